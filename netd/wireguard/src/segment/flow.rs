// SPDX-License-Identifier: Apache-2.0
//! Which packets belong to one flow, and which may be put together: the rules of the kernel's own GRO.

use super::packet::{
    self, ACK, CWR, ECE, IPV4_HEADER_LEN, IPV6_HEADER_LEN, PSH, TCP, UDP, UDP_CHECKSUM, UDP_HEADER_LEN, long,
    word,
};

/// Transport of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Tcp,
    Udp,
}

/// A TCP or UDP packet that is no fragment and has no IP options or extension headers: it belongs to a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) protocol: Protocol,
    /// Bytes of the IP header: 20 or 40. It also tells the version.
    pub(super) ip_header: usize,
    /// Bytes of the IP and the transport header.
    pub(super) head: usize,
    /// Bytes of payload.
    pub(super) payload: usize,
    /// Equal for packets of one flow, seldom for others.
    pub(super) hash: u64,
    /// Whether it can be one of several in a super-packet. If not it still keeps its place in its flow.
    pub(super) mergeable: bool,
    /// TCP sequence number; 0 for UDP.
    pub(super) seq: u32,
    /// TCP flags; 0 for UDP.
    pub(super) flags: u8,
    /// IPv4 identification; 0 for IPv6.
    pub(super) id: u16,
}

impl Candidate {
    /// Reads `packet`, which is exactly as long as its IP header says.
    pub(super) fn of(packet: &[u8]) -> Option<Self> {
        let (ip_header, number, id) = match packet.first()? {
            0x45 if !packet::is_ipv4_fragment(packet) => (IPV4_HEADER_LEN, packet[9], word(packet, 4)),
            0x60..=0x6f => (IPV6_HEADER_LEN, *packet.get(6)?, 0),
            _ => return None,
        };
        let transport = packet.get(ip_header..)?;
        let (protocol, header, mergeable, seq, flags) = match number {
            TCP if transport.len() >= 20 => {
                let flags = transport[13];
                // Reserved bits and urgent data are left alone, as is whatever opens or ends a connection.
                let plain =
                    transport[12] & 0x0f == 0 && flags & ACK != 0 && flags & !(ACK | PSH | ECE | CWR) == 0;
                (Protocol::Tcp, usize::from(transport[12] >> 4) * 4, plain, long(transport, 4), flags)
            }
            UDP if transport.len() >= UDP_HEADER_LEN => {
                // Without a checksum (IPv4 only) there is nothing to verify.
                let plain =
                    usize::from(word(transport, 4)) == transport.len() && word(transport, UDP_CHECKSUM) != 0;
                (Protocol::Udp, UDP_HEADER_LEN, plain, 0, 0)
            }
            _ => return None,
        };
        if header < UDP_HEADER_LEN.max(if protocol == Protocol::Tcp { 20 } else { 0 }) {
            return None;
        }
        let payload = transport.len().checked_sub(header)?;
        let hash = hash(&packet[identity(ip_header)], number);
        let (head, mergeable) = (ip_header + header, mergeable && payload > 0);
        Some(Self { protocol, ip_header, head, payload, hash, mergeable, seq, flags, id })
    }

    /// Whether IP header and transport have right checksums. Only then may the kernel be told to trust the packet.
    pub(super) fn verified(&self, packet: &[u8]) -> bool {
        let number = if self.protocol == Protocol::Tcp { TCP } else { UDP };
        let transport = &packet[self.ip_header..];
        let v4 = self.ip_header == IPV4_HEADER_LEN;
        let sum = packet::pseudo_sum(packet, v4, number).add_u32(transport.len() as u32).add_bytes(transport);
        sum.fold() == 0xffff && (!v4 || super::checksum::checksum(&packet[..IPV4_HEADER_LEN]) == 0)
    }
}

/// Whether two packets with headers of the same kind have the same addresses and ports.
pub(super) fn same_flow(first: &[u8], packet: &[u8], ip_header: usize) -> bool {
    first.get(identity(ip_header)) == packet.get(identity(ip_header))
}

/// Whether two packets have the same version and addresses: one may belong to the other's flow without showing it,
/// as a fragment does.
pub(super) fn same_addresses(first: &[u8], packet: &[u8]) -> bool {
    let part = match first.first() {
        Some(0x40..=0x4f) => 12..20,
        _ => 8..40,
    };
    match (first.get(part.clone()), packet.get(part)) {
        (Some(a), Some(b)) => first[0] >> 4 == packet[0] >> 4 && a == b,
        _ => false,
    }
}

/// Whether all header fields that a super-packet has only once are equal: traffic class, flow label, TTL, DF; and for
/// TCP acknowledgement, window, flags, urgent pointer and options. `first` and `packet` are of one flow and have heads
/// of the same length. Sequence number, IPv4 identification and lengths are the caller's.
pub(super) fn same_head(first: &[u8], packet: &[u8], candidate: &Candidate) -> bool {
    let same = |from: usize, to: usize| first.get(from..to) == packet.get(from..to);
    let ip = if candidate.ip_header == IPV4_HEADER_LEN {
        same(0, 2) && same(6, 9)
    } else {
        same(0, 4) && same(7, 8)
    };
    if !ip || candidate.protocol == Protocol::Udp {
        return ip;
    }
    let tcp = candidate.ip_header;
    let Some(flags) = first.get(tcp + 13) else { return false };
    // Congestion window reduced: only on the first segment, where cutting the super-packet again leaves it.
    (flags ^ candidate.flags) & !(PSH | CWR) == 0
        && candidate.flags & CWR == 0
        && same(tcp + 8, tcp + 13)
        && same(tcp + 14, tcp + 16)
        && same(tcp + 18, candidate.head)
}

/// Addresses and ports: they follow each other in IPv4 without options as in IPv6.
fn identity(ip_header: usize) -> std::ops::Range<usize> {
    if ip_header == IPV4_HEADER_LEN { 12..24 } else { 8..44 }
}

/// Mixes a flow's identity. Collisions cost a comparison, nothing else.
fn hash(identity: &[u8], protocol: u8) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut hash = u64::from(protocol) + 1;
    for part in identity.as_chunks::<4>().0 {
        hash = (hash ^ u64::from(u32::from_ne_bytes(*part))).wrapping_mul(ODD).rotate_left(29);
    }
    hash
}
