// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! The bytes of a translated packet: addresses, ports, and the checksums over them.
//!
//! A transport checksum may not be there yet (the sender's kernel left it to the NIC: then the field holds the sum of the pseudo
//! header, and only addresses change it) or be none at all (UDP over IPv4). The kernel's helpers know; the IPv4 header's own is
//! always there and is computed here. What segments a packet will be cut into stays as it is: no length changes.

use ebpf_abi::{PROTO_TCP, PROTO_UDP, address::tail};

use crate::{
    icmp,
    packet::{ETHER_IPV4, ETHERNET_BYTES, Hop, Packet, RECOMPUTE_CHECKSUM, add, fold},
    scratch::{PART_LATER, Scratch},
};

/// Where the checksum lies in a TCP header (RFC 9293) and in a UDP header (RFC 768).
pub(crate) const TCP_CHECKSUM: u32 = 16;
/// See [`TCP_CHECKSUM`].
pub(crate) const UDP_CHECKSUM: u32 = 6;
/// Where the TTL lies in an IPv4 header (the protocol follows), the checksum, and the addresses.
const TTL4: usize = 8;
const CHECKSUM4: usize = 10;
const SOURCE4: usize = 12;
/// Where the addresses lie in an IPv6 header.
const ADDRESSES6: u32 = 8;

/// Makes the packet in [`Scratch::key`] the one in [`Scratch::value`]; with a next hop it is readdressed to that and one hop older.
/// `false` when its buffer cannot be written: then it may be half done and must be dropped.
#[inline(always)]
pub(crate) fn apply(packet: &Packet, s: &mut Scratch, hop: Option<&Hop>) -> bool {
    transport(packet, s) && if s.is_ipv6() { header6(packet, s, hop) } else { header4(packet, s, hop) }
}

/// The same for a way that fewer packets take.
#[inline(never)]
pub(crate) fn apply_for(packet: &Packet, s: &mut Scratch, hop: &Hop) -> bool {
    apply(packet, s, Some(hop))
}

/// The same without a next hop: the host's stack goes on with the packet.
#[inline(never)]
pub(crate) fn apply_in_place(packet: &Packet, s: &mut Scratch) -> bool {
    apply(packet, s, None)
}

#[inline(never)]
fn transport(packet: &Packet, s: &Scratch) -> bool {
    if s.view.part == PART_LATER {
        return true;
    }
    if s.view.is_error != 0 {
        return icmp::rewrite(packet, s);
    }
    let is_udp = s.key.proto == PROTO_UDP;
    let checksum = match s.key.proto {
        PROTO_TCP => TCP_CHECKSUM,
        PROTO_UDP => UDP_CHECKSUM,
        _ => return true,
    };
    let at = s.view.transport;
    if !packet.checksum_addresses(at + checksum, s.value.difference, is_udp, s.is_ipv6()) {
        return false;
    }
    let from = joined(s.key.sport, s.key.dport);
    let to = joined(s.value.sport, s.value.dport);
    from == to || (packet.checksum_word(at + checksum, from, to, is_udp) && packet.store(at, &to, 0))
}

#[inline(always)]
fn header4(packet: &Packet, s: &mut Scratch, hop: Option<&Hop>) -> bool {
    let frame = &mut s.frame;
    frame.ip = s.view.ip;
    // RFC 1624: ones' complement, in the order of the bytes.
    let old = u16::from_ne_bytes([frame.ip[CHECKSUM4], frame.ip[CHECKSUM4 + 1]]);
    let mut sum = add(u32::from(!old), s.value.difference);
    if hop.is_some() {
        let before = u16::from_ne_bytes([frame.ip[TTL4], frame.ip[TTL4 + 1]]);
        frame.ip[TTL4] = frame.ip[TTL4].wrapping_sub(1);
        let after = u16::from_ne_bytes([frame.ip[TTL4], frame.ip[TTL4 + 1]]);
        sum = add(sum, u32::from(!before) + u32::from(after));
    }
    [frame.ip[CHECKSUM4], frame.ip[CHECKSUM4 + 1]] = (!fold(sum)).to_ne_bytes();
    let (src, dst) = (tail(&s.value.src), tail(&s.value.dst));
    frame.ip[SOURCE4..SOURCE4 + 4].copy_from_slice(&src);
    frame.ip[SOURCE4 + 4..].copy_from_slice(&dst);
    if let (Some(hop), ETHERNET_BYTES) = (hop, packet.ip()) {
        frame.hop = *hop;
        frame.ether_type = ETHER_IPV4;
        return packet.store(0, frame, 0);
    }
    packet.store(packet.ip(), &frame.ip, 0)
}

#[inline(never)]
fn header6(packet: &Packet, s: &Scratch, hop: Option<&Hop>) -> bool {
    // The transport checksum makes up for the change of the addresses, in a later fragment there is none.
    let flags = if s.view.part == PART_LATER { RECOMPUTE_CHECKSUM } else { 0 };
    if !packet.store_addresses(packet.ip() + ADDRESSES6, &s.value, flags) {
        return false;
    }
    let Some(hop) = hop else { return true };
    packet.count_hop6(s.view.next, s.view.hops) && (packet.ip() != ETHERNET_BYTES || packet.store(0, hop, 0))
}

/// Two ports as they lie in a header.
#[inline(always)]
pub(crate) fn joined([a, b]: [u8; 2], [c, d]: [u8; 2]) -> [u8; 4] {
    [a, b, c, d]
}
