// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! What happens to an IPv6 packet that a pod sends: the source must be the pod's, what it says in ICMPv6 must concern
//! itself; then it goes the ways that IPv4 has, see [`pod`](crate::pod).

use ebpf_abi::{DropReason, PodLink, pod_address::link_local};

use crate::{
    extension::{self, Fragment, HOP_BY_HOP, ICMPV6, Upper},
    maps, neighbour,
    packet::{Head6, Packet},
    pod::{TTL_LAST, Verdict},
    scratch::Scratch,
    tuple,
};

/// Length of the IPv6 header, in bytes.
pub(crate) const HEADER_BYTES: u32 = 40;
/// How an IPv4 address begins that is written as IPv6.
const MAPPED_PREFIX: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
/// The source of who has no address yet (RFC 4291, section 2.5.2).
const UNSPECIFIED: [u8; 16] = [0; 16];

/// Whose the source address is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// One of the link's.
    Own,
    /// The link-local one that follows from the MAC: only the host hears it.
    LinkLocal,
    /// Nobody's.
    Unspecified,
}

#[inline(never)]
pub(crate) fn check(packet: &Packet, s: &mut Scratch, link: &PodLink) -> Verdict {
    if !packet.head6_into(&mut s.head6) {
        return Verdict::Drop(DropReason::Malformed);
    }
    let head = &s.head6;
    if head.first[0] >> 4 != 6 {
        return Verdict::Drop(DropReason::Malformed);
    }
    let Some(source) = source(packet, link, &head.src) else {
        return Verdict::Drop(DropReason::SourceAddress6);
    };
    let Some(end) = end(packet, head) else { return Verdict::Drop(DropReason::Malformed) };
    let mut upper = Upper::UNKNOWN;
    if !extension::walk(packet, head.next, end, &mut upper) {
        return Verdict::Drop(DropReason::ExtensionHeaders);
    }
    // What a later fragment carries was judged with the first.
    if upper.proto == ICMPV6 && upper.fragment != Fragment::Later {
        let message = neighbour::Message { offset: upper.offset, end, before: upper.before, source };
        match neighbour::check(packet, link, &message) {
            Ok(neighbour::Reach::Anywhere) => {}
            Ok(neighbour::Reach::Link) => return Verdict::Continue,
            Err(reason) => return Verdict::Drop(reason),
        }
    } else if source == Source::Unspecified {
        return Verdict::Drop(DropReason::SourceAddress6);
    }
    if source != Source::Own || is_local(&head.dst) {
        return Verdict::Continue;
    }
    Verdict::Own(tuple::read_upper(packet, s, &upper))
}

/// Whether a router has no more to do with the packet than to forward it: hops are left, there are no options for each hop,
/// and the destination is not on the link itself.
#[inline(always)]
pub(crate) fn is_plain(head: &Head6) -> bool {
    head.first[0] >> 4 == 6 && head.hop_limit > TTL_LAST && head.next != HOP_BY_HOP && !is_local(&head.dst)
}

/// Whether an address is on the link itself: multicast, link-local.
#[inline(always)]
fn is_local([d0, d1, ..]: &[u8; 16]) -> bool {
    *d0 == 0xff || (*d0 == 0xfe && *d1 & 0xc0 == 0x80)
}

/// Whether the link may send from this address, or speak of it as its own.
#[inline(always)]
pub(crate) fn is_own(packet: &Packet, link: &PodLink, addr: [u8; 16]) -> bool {
    // A mapped key stands for an IPv4 address of the link.
    let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = addr;
    let is_mapped = [a, b, c, d, e, f, g, h, i, j, k, l] == MAPPED_PREFIX;
    (!is_mapped && maps::may_send_from(packet.ifindex(), addr)) || addr == link_local(link.mac)
}

#[inline(always)]
fn source(packet: &Packet, link: &PodLink, src: &[u8; 16]) -> Option<Source> {
    if *src == UNSPECIFIED {
        return Some(Source::Unspecified);
    }
    if *src == link_local(link.mac) {
        return Some(Source::LinkLocal);
    }
    is_own(packet, link, *src).then_some(Source::Own)
}

/// Where the packet ends for its receiver, from the start of the IPv6 header: what lies behind is cut off there, and must
/// not be taken for a part of it here. `None` when the packet is shorter than it says.
#[inline(always)]
pub(crate) fn end(packet: &Packet, head: &Head6) -> Option<u32> {
    let actual = packet.ip_bytes();
    let payload = u32::from(u16::from_be_bytes(head.payload_bytes));
    // Only a jumbogram, whose length is among the options for each hop, says zero (RFC 2675).
    if payload == 0 && head.next == HOP_BY_HOP {
        return Some(actual);
    }
    let end = HEADER_BYTES + payload;
    (end <= actual).then_some(end)
}
