// SPDX-License-Identifier: Apache-2.0
//! What the headers of an IP packet say, read with every length checked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::Sum;

/// Protocol number of TCP.
pub(super) const TCP: u8 = 6;
/// Protocol number of UDP.
pub(super) const UDP: u8 = 17;
/// Bytes of a UDP header.
pub(super) const UDP_HEADER_LEN: usize = 8;
/// Bytes of an IPv4 header without options.
pub(super) const IPV4_HEADER_LEN: usize = 20;
/// Bytes of the fixed IPv6 header.
pub(super) const IPV6_HEADER_LEN: usize = 40;
/// Offset of the checksum in a TCP header.
pub(super) const TCP_CHECKSUM: usize = 16;
/// Offset of the checksum in a UDP header.
pub(super) const UDP_CHECKSUM: usize = 6;
/// TCP flags, byte 13 of the header.
pub(super) const FIN: u8 = 0x01;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;
pub(super) const ECE: u8 = 0x40;
pub(super) const CWR: u8 = 0x80;

/// Extension headers looked at: a packet has one or two; more than this is not worth offloading.
const EXTENSIONS_MAX: usize = 4;

/// Length of the packet as its own header has it. None when `packet` is neither IPv4 nor IPv6, or is shorter than
/// its header says. Bytes behind this length are padding.
#[must_use]
pub fn ip_len(packet: &[u8]) -> Option<usize> {
    let len = match packet.first()? >> 4 {
        4 if packet.len() >= IPV4_HEADER_LEN => {
            let header_len = usize::from(packet[0] & 0x0f) * 4;
            let len = usize::from(word(packet, 2));
            (header_len >= IPV4_HEADER_LEN && len >= header_len).then_some(len)
        }
        6 if packet.len() >= IPV6_HEADER_LEN => Some(IPV6_HEADER_LEN + usize::from(word(packet, 4))),
        _ => None,
    }?;
    (len <= packet.len()).then_some(len)
}

/// Source address of a packet that [`ip_len`] accepts.
#[must_use]
pub fn source(packet: &[u8]) -> Option<IpAddr> {
    ip_len(packet)?;
    address(packet, 12, 8)
}

/// Destination address of a packet that [`ip_len`] accepts.
#[must_use]
pub fn destination(packet: &[u8]) -> Option<IpAddr> {
    ip_len(packet)?;
    address(packet, 16, 24)
}

/// Where a packet's transport header begins, and its protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Transport {
    pub(super) offset: usize,
    pub(super) protocol: u8,
}

/// The transport header of a packet that [`ip_len`] accepts. None for a fragment and for IPv6 extension headers under
/// which the transport's checksum means something else (a routing header with segments left) or that cannot be read.
pub(super) fn transport(packet: &[u8]) -> Option<Transport> {
    if packet.first()? >> 4 == 4 {
        let offset = usize::from(packet[0] & 0x0f) * 4;
        return (!is_ipv4_fragment(packet)).then_some(Transport { offset, protocol: *packet.get(9)? });
    }
    let mut protocol = *packet.get(6)?;
    let mut offset = IPV6_HEADER_LEN;
    for _ in 0..=EXTENSIONS_MAX {
        match protocol {
            // Hop-by-hop options, and destination options.
            0 | 60 => {}
            // Routing header: as long as segments are left, the destination in the pseudo-header is another one.
            43 if packet.get(offset + 3) == Some(&0) => {}
            43 | 44 => return None,
            _ => return Some(Transport { offset, protocol }),
        }
        protocol = *packet.get(offset)?;
        offset += 8 + 8 * usize::from(*packet.get(offset + 1)?);
    }
    None
}

/// Whether an IPv4 packet of at least 20 bytes is a fragment, the first one included.
pub(super) fn is_ipv4_fragment(packet: &[u8]) -> bool {
    word(packet, 6) & 0x3fff != 0
}

/// The addresses' and the protocol's share of the pseudo-header's sum; the length is added by the caller, who also
/// knows that the header of that version is there.
pub(super) fn pseudo_sum(packet: &[u8], v4: bool, protocol: u8) -> Sum {
    let addresses = if v4 { &packet[12..20] } else { &packet[8..40] };
    Sum::default().add_bytes(addresses).add_u16(u16::from(protocol))
}

/// The 16-bit number at `at`, which the caller knows to be inside.
pub(super) fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Writes a 16-bit number at `at`, which the caller knows to be inside.
pub(super) fn set_word(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// The 32-bit number at `at`, which the caller knows to be inside.
pub(super) fn long(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn address(packet: &[u8], v4: usize, v6: usize) -> Option<IpAddr> {
    if packet.first()? >> 4 == 4 {
        Some(Ipv4Addr::from(*packet.get(v4..)?.first_chunk::<4>()?).into())
    } else {
        Some(Ipv6Addr::from(*packet.get(v6..)?.first_chunk::<16>()?).into())
    }
}
