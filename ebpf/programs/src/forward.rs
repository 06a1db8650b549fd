// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! Where a packet of a flow goes once its translation is known: into a pod, out of an interface, or on to the host's stack.
//!
//! Whatever becomes a packet from an address of this host (an answer from a node port; a pod's packet to itself) must not go by
//! the stack, which would take it for a lie. A flow between two pods goes by the stack when one of them asks for that; then answers
//! stay as they are until the egress of the client's link, so that the stack's own conntrack sees one connection.

use ebpf_abi::{
    Address, Counter, DropReason, POD_REDIRECT, Pod6Key, PodKey, PodValue,
    address::{is_ipv4, tail},
    conntrack::{CT_DIRECT, CT_REPLY, CT_SOURCE, CT_UNWRAPPED, CT_WORLD, CT_WRAPPED},
    node::ADDRESS_OWN,
};

use crate::{
    dsr, icmp, maps, overlay,
    packet::{ETHER_IPV4, ETHER_IPV6, ETHERNET_BYTES, Packet, TC_DROP, TC_NEXT},
    pod::TTL_LAST,
    route,
    scratch::{Scratch, TCP_SYN},
    translate, tuple,
};

/// Where the flags lie in an IPv4 header, and the one that forbids fragments (RFC 791, section 3.1).
const FLAGS4: usize = 6;
const DONT_FRAGMENT: u8 = 0x40;

/// Where a packet came in.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Origin {
    /// A pod's link; the pod's packets may pass by the stack.
    PodFast,
    /// A pod's link; they may not.
    PodStack,
    /// The uplink.
    World,
    /// The overlay device.
    Overlay,
    /// A tunnel device without Ethernet headers.
    Tunnel,
    /// The device for direct server return.
    Node,
}

impl Origin {
    #[inline(always)]
    fn is_pod(self) -> bool {
        matches!(self, Self::PodFast | Self::PodStack)
    }
}

/// Translates the packet in [`Scratch::key`] to the one in [`Scratch::value`] and sends it on.
#[inline(never)]
pub(crate) fn send(packet: &Packet, s: &mut Scratch, origin: Origin) -> i32 {
    tuple::remember_fragment(s);
    if s.value.flags & CT_WRAPPED != 0 {
        if s.view.hops <= TTL_LAST {
            return drop(DropReason::NoRoute);
        }
        return dsr::wrap(packet, s);
    }
    let is_reply = s.value.flags & CT_REPLY != 0;
    if s.view.hops <= TTL_LAST {
        return if is_reply { drop(DropReason::NoRoute) } else { next(packet, origin) };
    }
    let needs_clamp = s.value.flags & CT_UNWRAPPED != 0 && is_reply && s.has_tcp(TCP_SYN);
    if needs_clamp && !dsr::clamp(packet, s) {
        return drop(DropReason::ServiceHeaders);
    }
    // Past the services, from outside: the stack's rules see both directions, as they do where no port has to be another one.
    // Answers are translated where they leave.
    if s.value.flags & (CT_DIRECT | CT_WORLD) == CT_DIRECT | CT_WORLD {
        return if is_reply { next(packet, origin) } else { next_translated(packet, s, origin) };
    }
    match pod_at(&s.value.dst) {
        Some(pod) => deliver(packet, s, origin, pod),
        None => away(packet, s, origin),
    }
}

/// Drops a packet, for a reason that is counted.
#[inline(always)]
pub(crate) fn drop(reason: DropReason) -> i32 {
    maps::count_drop(reason);
    TC_DROP
}

/// Has the nft table refuse the packet, which was for a service without a backend.
#[inline(always)]
pub(crate) fn refuse(packet: &Packet, service_id: u32) -> i32 {
    maps::count_refusal(service_id);
    maps::count(Counter::Refused);
    packet.mark_refused();
    TC_NEXT
}

/// How to reach the pod of this node that has an address.
#[inline(always)]
pub(crate) fn pod_at(addr: &Address) -> Option<&'static PodValue> {
    if is_ipv4(addr) { maps::pod(&PodKey { addr: tail(addr) }) } else { maps::pod6(&Pod6Key { addr: *addr }) }
}

/// On to the host's stack, as it is.
#[inline(always)]
fn next(packet: &Packet, origin: Origin) -> i32 {
    if origin.is_pod() {
        packet.mark_checked();
    }
    TC_NEXT
}

/// On to the host's stack, translated.
#[inline(always)]
fn next_translated(packet: &Packet, s: &mut Scratch, origin: Origin) -> i32 {
    if translate::apply_in_place(packet, s) { next(packet, origin) } else { drop(DropReason::ServiceHeaders) }
}

/// To a pod of this node.
#[inline(always)]
fn deliver(packet: &Packet, s: &mut Scratch, origin: Origin, pod: &PodValue) -> i32 {
    let is_reply = s.value.flags & CT_REPLY != 0;
    let is_fast = pod.flags & POD_REDIRECT != 0;
    if s.value.flags & CT_SOURCE == 0 {
        let by_stack = match origin {
            Origin::PodFast => !is_fast,
            Origin::PodStack => true,
            // As its packets to there.
            Origin::Overlay => is_reply && !is_fast,
            Origin::Tunnel => true,
            Origin::World => is_reply,
            Origin::Node => false,
        };
        if by_stack {
            return if is_reply { next(packet, origin) } else { next_translated(packet, s, origin) };
        }
    }
    if !translate::apply(packet, s, Some(&overlay::hop_to(pod))) {
        return drop(DropReason::ServiceHeaders);
    }
    // By its link's egress where something there has to see the packet.
    if is_fast { route::redirect_peer(pod.ifindex) } else { route::redirect(pod.ifindex) }
}

/// To somewhere else.
#[inline(never)]
fn away(packet: &Packet, s: &mut Scratch, origin: Origin) -> i32 {
    // A pod asks somebody who is no pod of this node: the stack knows what to do (masquerade, ask for the neighbour, say
    // that there is no route), but for the short way to the overlay.
    let is_plain = origin.is_pod() && s.value.flags & (CT_REPLY | CT_SOURCE) == 0;
    if !packet.way(&s.value.src, &s.value.dst, &mut s.way) {
        let is_own = maps::node_address(&s.value.dst) & ADDRESS_OWN != 0;
        let to_host = s.value.flags & CT_REPLY == 0 && is_own;
        if is_plain || (to_host && s.value.flags & CT_SOURCE == 0) {
            return next_translated(packet, s, origin);
        }
        maps::count(Counter::NoRoute);
        return drop(DropReason::NoRoute);
    }
    let way = s.way;
    let is_resolved = way.resolved != 0;
    if is_plain && (origin != Origin::PodFast || maps::overlay() != Some(way.ifindex) || !is_resolved) {
        return next_translated(packet, s, origin);
    }
    if let Err(mtu) = packet.fits(way.ifindex) {
        // The stack cuts what may be cut, where it knows the packet's source.
        if is_plain && !s.is_ipv6() && s.view.ip[FLAGS4] & DONT_FRAGMENT == 0 {
            return next_translated(packet, s, origin);
        }
        return icmp::too_big(packet, s, mtu, DropReason::TooBig);
    }
    if !translate::apply_for(packet, s, &way.hop) {
        return drop(DropReason::ServiceHeaders);
    }
    if packet.ip() != ETHERNET_BYTES {
        let ether_type = if s.is_ipv6() { ETHER_IPV6 } else { ETHER_IPV4 };
        if packet.with_ethernet(&way.hop, ether_type).is_none() {
            return drop(DropReason::NoRoute);
        }
    }
    if is_resolved { route::redirect(way.ifindex) } else { route::redirect_neighbour(way.ifindex) }
}
