// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! What happens to a packet that a pod sends.
//!
//! 1. It must be the pod's own: source MAC, IP source, ARP sender; neighbour discovery is in [`neighbour`](crate::neighbour).
//!    Anything else is dropped and counted by reason.
//! 2. If it is of a flow of the packet path, it is translated and goes where that leads.
//! 3. To a pod of this node it goes straight into that pod's netns, when both allow that.
//! 4. To a pod of another node it goes straight to the overlay device, when the host's routes say so.
//! 5. To a service it begins a flow.
//! 6. The rest is the host stack's, with the mark that says that it was checked: the next program and the qdisc's filters see
//!    it, too.
//!
//! IPv4 and ARP are here, IPv6 is in [`pod6`].

use ebpf_abi::{DropReason, NO_IPV4, POD_IPV6, POD_REDIRECT, PodLink, pod_address::mapped};

use crate::{
    ct::{self, Found},
    ct_maps,
    forward::{self, Origin},
    icmp, maps,
    nat::{self, Asker, Begun},
    overlay,
    packet::{ETHER_ARP, ETHER_IPV4, ETHER_IPV6, Head, Packet, TC_NEXT},
    pod6,
    scratch::Scratch,
    tuple::{self, Kind},
    uplink,
};

/// Hardware type 1 (Ethernet), protocol type IPv4, lengths 6 and 4 (RFC 826).
const ARP_ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
/// The sender of an address probe (RFC 5227): claims nothing, so a pod may send it.
const ARP_PROBE_SENDER: [u8; 4] = [0; 4];
/// From this TTL (or hop limit) on a packet ends at this hop; the host's stack says so to the sender.
pub(crate) const TTL_LAST: u8 = 1;

/// First byte of 127.0.0.0/8 (RFC 1122 section 3.2.1.3).
const LOOPBACK_NET: u8 = 127;

/// Where the packet goes.
pub(crate) enum Verdict {
    /// Marked as checked, to the next program, then to the host's stack.
    Continue,
    /// Nowhere.
    Drop(DropReason),
    /// Into the netns of the pod whose host end has this index.
    Deliver { ifindex: u32 },
    /// Out of the interface with this index.
    Forward { ifindex: u32 },
    /// Where the program's result says: the packet path has dealt with it.
    Done(i32),
    /// Not decided yet: it is the pod's own, and this is what it is.
    Own(Kind),
}

#[inline(always)]
pub(crate) fn ingress(packet: &Packet) -> Verdict {
    let Some(link) = maps::pod_link(packet.ifindex()) else { return Verdict::Drop(DropReason::UnknownLink) };
    let Some(s) = ct_maps::scratch() else { return Verdict::Drop(DropReason::Malformed) };
    if !packet.head_into(&mut s.head) {
        return Verdict::Drop(DropReason::Malformed);
    }
    let head = &s.head;
    if head.src != link.mac {
        return Verdict::Drop(DropReason::SourceMac);
    }
    if packet.is_tagged() {
        return Verdict::Drop(DropReason::EtherType);
    }
    let verdict = match head.ether_type {
        ETHER_ARP if link.addr != NO_IPV4 => arp(packet, link, head),
        ETHER_IPV4 if link.addr != NO_IPV4 => ipv4(packet, s, link),
        ETHER_IPV6 if link.flags & POD_IPV6 != 0 => pod6::check(packet, s, link),
        _ => Verdict::Drop(DropReason::EtherType),
    };
    match verdict {
        Verdict::Own(kind) => onward(packet, s, link, kind),
        verdict => verdict,
    }
}

#[inline(always)]
fn arp(packet: &Packet, link: &PodLink, head: &Head) -> Verdict {
    let [h0, h1, p0, p1, hl, pl, _, _, m0, m1, m2, m3, m4, m5, a0, a1, a2, a3, ..] = head.body;
    if [h0, h1, p0, p1, hl, pl] != ARP_ETHERNET_IPV4 {
        return Verdict::Drop(DropReason::Malformed);
    }
    let sender = [a0, a1, a2, a3];
    if [m0, m1, m2, m3, m4, m5] != link.mac || (sender != ARP_PROBE_SENDER && !is_own(packet, link, sender)) {
        return Verdict::Drop(DropReason::ArpSender);
    }
    Verdict::Continue
}

#[inline(never)]
fn ipv4(packet: &Packet, s: &mut Scratch, link: &PodLink) -> Verdict {
    let [version, _, _, _, _, _, _, _, _, _, _, _, s0, s1, s2, s3, d0, ..] = s.head.body;
    // Version 4 and at least five words of header.
    if version >> 4 != 4 || version & 0x0f < 5 {
        return Verdict::Drop(DropReason::Malformed);
    }
    let src = [s0, s1, s2, s3];
    if !is_own(packet, link, src) {
        return Verdict::Drop(DropReason::SourceAddress);
    }
    // Mapped ports open the pod's link for the node's loopback addresses (route_localnet); not for the pod.
    if d0 == LOOPBACK_NET {
        return Verdict::Drop(DropReason::LoopbackAddress);
    }
    s.view.ip = s.head.body;
    Verdict::Own(tuple::read4(packet, s))
}

/// Where a packet goes that is the pod's own.
#[inline(always)]
fn onward(packet: &Packet, s: &mut Scratch, link: &PodLink, kind: Kind) -> Verdict {
    if let Some(verdict) = known(packet, s, kind, link) {
        return verdict;
    }
    if s.view.hops <= TTL_LAST {
        return Verdict::Continue;
    }
    // Both ends must allow it: a connection with one direction past the host's stack confuses its conntrack.
    let is_fast = link.flags & POD_REDIRECT != 0 && (!s.is_ipv6() || pod6::is_plain(&s.head6));
    let Some(pod) = forward::pod_at(&s.key.dst) else {
        let ifindex = if is_fast { overlay::egress(packet, s) } else { 0 };
        if ifindex != 0 {
            return Verdict::Forward { ifindex };
        }
        return service(packet, s, kind, link);
    };
    if !is_fast || pod.flags & POD_REDIRECT == 0 || !overlay::readdress(packet, s, &overlay::hop_to(pod)) {
        return Verdict::Continue;
    }
    Verdict::Deliver { ifindex: pod.ifindex }
}

/// What becomes of a packet of a flow that the packet path knows (or of one that it has to know, see
/// [`nat::mark_direct`]); `None` for all others.
#[inline(never)]
pub(crate) fn known(packet: &Packet, s: &mut Scratch, kind: Kind, link: &PodLink) -> Option<Verdict> {
    let found = match kind {
        Kind::Flow => ct::follow(s),
        Kind::Error => {
            s.view.is_from_pod = 1;
            icmp::about(packet, s)
        }
        Kind::Cut | Kind::Other => return None,
    };
    match found {
        Found::Flow => {}
        Found::Plain => return None,
        Found::Gone => return Some(Verdict::Done(forward::refuse(packet, s.value.service_id))),
        Found::Nothing => {
            if kind == Kind::Flow && nat::is_lost_answer(s) {
                return Some(Verdict::Drop(DropReason::Migrating));
            }
            let is_direct = kind == Kind::Flow && nat::may_need_marker(s, Asker::Pod);
            if !is_direct || nat::mark_direct(packet, s, Asker::Pod) != Found::Flow {
                return None;
            }
        }
    }
    Some(Verdict::Done(forward::send(packet, s, origin(link))))
}

/// What becomes of a packet to an address that is no pod's: a service's, or somewhere in the world.
#[inline(never)]
pub(crate) fn service(packet: &Packet, s: &mut Scratch, kind: Kind, link: &PodLink) -> Verdict {
    match kind {
        Kind::Flow => {}
        Kind::Cut => {
            return match uplink::cut(s, TC_NEXT) {
                TC_NEXT => Verdict::Continue,
                action => Verdict::Done(action),
            };
        }
        Kind::Error | Kind::Other => return Verdict::Continue,
    }
    match nat::begin(packet, s, Asker::Pod) {
        Begun::Nothing => Verdict::Continue,
        Begun::Flow => Verdict::Done(forward::send(packet, s, origin(link))),
        Begun::Refuse => Verdict::Done(forward::refuse(packet, s.value.service_id)),
        begun => Verdict::Drop(begun.reason()),
    }
}

#[inline(always)]
fn origin(link: &PodLink) -> Origin {
    if link.flags & POD_REDIRECT != 0 { Origin::PodFast } else { Origin::PodStack }
}

/// Whether the pod may send from this IPv4 address; nearly always it is the link's first.
#[inline(always)]
fn is_own(packet: &Packet, link: &PodLink, addr: [u8; 4]) -> bool {
    addr == link.addr || maps::may_send_from(packet.ifindex(), mapped(addr))
}
