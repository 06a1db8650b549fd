// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! Between pods and the overlay device, past the host's stack: what the stack would do to such a packet is route it, and
//! that is all. Packets of the nodes themselves, of pods without [`POD_REDIRECT`], and whatever the routes do not know take
//! the stack as before.

use ebpf_abi::{POD_REDIRECT, PodKey};

use crate::{
    maps,
    packet::{ETHER_IPV4, Head, Hop, Packet},
    pod::TTL_LAST,
};

/// Where a packet from another node goes: the host end of the pod it is for, when that pod allows it.
#[inline(always)]
pub(crate) fn ingress(packet: &Packet) -> Option<u32> {
    let head = packet.head()?;
    let [version, _, _, _, _, _, _, _, ttl, _, _, _, _, _, _, _, d0, d1, d2, d3] = head.body;
    if head.ether_type != ETHER_IPV4 || version >> 4 != 4 || version & 0x0f < 5 || ttl <= TTL_LAST {
        return None;
    }
    let pod = maps::pod(&PodKey { addr: [d0, d1, d2, d3] })?;
    let hop = Hop { dst: pod.mac, src: pod.host_mac };
    if pod.flags & POD_REDIRECT == 0 || !packet.readdress(&head, &hop) {
        return None;
    }
    Some(pod.ifindex)
}

/// Where a pod's packet to another node goes: the overlay device, when the host's routes lead there. The routes (the
/// fail-closed one too), neighbours and the device's MTU are the kernel's; there is no second copy of them.
#[inline(always)]
pub(crate) fn egress(packet: &Packet, head: &Head, src: [u8; 4], dst: [u8; 4]) -> Option<u32> {
    let overlay = maps::overlay()?;
    let (ifindex, hop) = packet.route(src, dst)?;
    if ifindex != overlay || !packet.readdress(head, &hop) {
        return None;
    }
    Some(overlay)
}
