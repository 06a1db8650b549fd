// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! Between pods and the overlay device, past the host's stack: what the stack would do to such a packet is route it, and
//! that is all. Packets of the nodes themselves, of pods without [`POD_REDIRECT`], and whatever the routes do not know take
//! the stack as before.

use ebpf_abi::{POD_REDIRECT, Pod6Key, PodKey, PodValue};

use crate::{
    forward::Origin,
    maps,
    packet::{ETHER_IPV4, ETHER_IPV6, Head, Hop, Packet, TC_NEXT},
    pod::TTL_LAST,
    pod6, route,
    scratch::Scratch,
    tunnel,
};

/// A packet from another node: an answer to what this node translated, or for a pod.
#[inline(always)]
pub(crate) fn ingress(packet: &Packet) -> i32 {
    if let Some(action) = tunnel::known(packet, Origin::Overlay) {
        return action;
    }
    match pod_link(packet) {
        Some(ifindex) => route::redirect_peer(ifindex),
        None => TC_NEXT,
    }
}

/// The host end of the pod that a packet from another node is for, when that pod allows it.
#[inline(always)]
fn pod_link(packet: &Packet) -> Option<u32> {
    let head = packet.head()?;
    match head.ether_type {
        ETHER_IPV4 => ingress4(packet, &head),
        ETHER_IPV6 => ingress6(packet),
        _ => None,
    }
}

#[inline(always)]
fn ingress4(packet: &Packet, head: &Head) -> Option<u32> {
    let [version, _, _, _, _, _, _, _, ttl, _, _, _, _, _, _, _, d0, d1, d2, d3] = head.body;
    if version >> 4 != 4 || version & 0x0f < 5 || ttl <= TTL_LAST {
        return None;
    }
    let pod = maps::pod(&PodKey { addr: [d0, d1, d2, d3] })?;
    if pod.flags & POD_REDIRECT == 0 || !packet.readdress(head, &hop_to(pod)) {
        return None;
    }
    Some(pod.ifindex)
}

#[inline(always)]
fn ingress6(packet: &Packet) -> Option<u32> {
    let head = packet.head6()?;
    if !pod6::is_plain(&head) {
        return None;
    }
    let pod = maps::pod6(&Pod6Key { addr: head.dst })?;
    if pod.flags & POD_REDIRECT == 0 || !packet.readdress6(&head, &hop_to(pod)) {
        return None;
    }
    Some(pod.ifindex)
}

/// Where a pod's packet to another node goes: the overlay device, when the host's routes lead there; 0 else. The routes (the
/// fail-closed one too), neighbours and the device's MTU are the kernel's; there is no second copy of them.
#[inline(always)]
pub(crate) fn egress(packet: &Packet, s: &mut Scratch) -> u32 {
    let ifindex = way(packet, s);
    if ifindex != 0 && readdress(packet, s, &s.way.hop) { ifindex } else { 0 }
}

/// Readdresses a pod's packet to its next hop.
#[inline(never)]
pub(crate) fn readdress(packet: &Packet, s: &Scratch, hop: &Hop) -> bool {
    if s.is_ipv6() { packet.readdress6(&s.head6, hop) } else { packet.readdress(&s.head, hop) }
}

#[inline(always)]
fn way(packet: &Packet, s: &mut Scratch) -> u32 {
    let Some(overlay) = maps::overlay() else { return 0 };
    let leads_there = packet.way(&s.key.src, &s.key.dst, &mut s.way)
        && s.way.resolved != 0
        && s.way.ifindex == overlay
        && packet.fits(overlay).is_ok();
    if leads_there { overlay } else { 0 }
}

/// The last hop to a pod of this node.
#[inline(always)]
pub(crate) fn hop_to(pod: &PodValue) -> Hop {
    Hop { dst: pod.mac, src: pod.host_mac }
}
