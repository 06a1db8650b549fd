// SPDX-License-Identifier: Apache-2.0
//! Packets and slow references for the tests of this module.

mod garbage;
mod merging;
mod properties;
mod splitting;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::packet::{ACK, TCP, UDP, word};
use super::{Coalescer, Split, VNET_HEADER_LEN, VnetHeader};

/// The checksum as RFC 1071 tells it, word by word.
pub(super) fn naive_checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A TCP or UDP packet to be built.
#[derive(Clone, Debug)]
struct Packet {
    v6: bool,
    udp: bool,
    flow: u8,
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
    ttl: u8,
    tos: u8,
    id: u16,
    df: bool,
    /// A multiple of four bytes, of TCP.
    options: Vec<u8>,
    payload: Vec<u8>,
}

impl Packet {
    fn tcp(seq: u32, payload: &[u8]) -> Self {
        Self {
            v6: false,
            udp: false,
            flow: 1,
            seq,
            ack: 77,
            flags: ACK,
            window: 500,
            ttl: 64,
            tos: 0,
            id: 9,
            df: true,
            options: Vec::new(),
            payload: payload.to_vec(),
        }
    }

    fn udp(payload: &[u8]) -> Self {
        Self { udp: true, ..Self::tcp(0, payload) }
    }

    fn addresses(&self) -> (IpAddr, IpAddr) {
        if self.v6 {
            (Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, self.flow.into()).into(), Ipv6Addr::from(2 << 64).into())
        } else {
            (Ipv4Addr::new(10, 1, 0, self.flow).into(), Ipv4Addr::new(10, 2, 0, 2).into())
        }
    }

    fn head_len(&self) -> usize {
        (if self.v6 { 40 } else { 20 }) + if self.udp { 8 } else { 20 + self.options.len() }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut transport = [4000 + u16::from(self.flow), 5001].map(u16::to_be_bytes).concat();
        let len = self.head_len() + self.payload.len();
        let ip_header = if self.v6 { 40 } else { 20 };
        if self.udp {
            transport.extend(((len - ip_header) as u16).to_be_bytes());
            transport.extend([0; 2]);
        } else {
            transport.extend(self.seq.to_be_bytes());
            transport.extend(self.ack.to_be_bytes());
            transport.extend([((5 + self.options.len() / 4) << 4) as u8, self.flags]);
            transport.extend(self.window.to_be_bytes());
            transport.extend([0; 4]);
            transport.extend(&self.options);
        }
        transport.extend(&self.payload);
        let protocol = if self.udp { UDP } else { TCP };
        let sum = naive_transport_checksum(self.addresses(), protocol, &transport);
        let field = if self.udp { 6 } else { 16 };
        let stored = if self.udp && sum == 0 { 0xffff } else { sum };
        transport[field..field + 2].copy_from_slice(&stored.to_be_bytes());
        let mut packet = match self.addresses() {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = vec![0x45, self.tos];
                header.extend((len as u16).to_be_bytes());
                header.extend(self.id.to_be_bytes());
                header.extend([u8::from(self.df) << 6, 0, self.ttl, protocol, 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                let sum = naive_checksum(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                header
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut header = vec![0x60 | self.tos >> 4, self.tos << 4, 0, self.flow];
                header.extend(((len - 40) as u16).to_be_bytes());
                header.extend([protocol, self.ttl]);
                header.extend(source.octets());
                header.extend(destination.octets());
                header
            }
            _ => unreachable!("both addresses are of one family"),
        };
        packet.extend(transport);
        packet
    }

    /// As the TUN device gives a packet that is still to be cut: the checksum holds the pseudo-header's sum.
    fn read(&self, gso_size: u16) -> Vec<u8> {
        let mut packet = self.bytes();
        let ip_header = if self.v6 { 40 } else { 20 };
        let (protocol, csum_offset, mut gso_type) = match (self.udp, self.v6) {
            (true, _) => (UDP, 6, 5),
            (false, false) => (TCP, 16, 1),
            (false, true) => (TCP, 16, 4),
        };
        if self.flags & 0x80 != 0 && !self.udp {
            gso_type |= 0x80;
        }
        let transport_len = packet.len() - ip_header;
        let pseudo = !naive_checksum(&naive_pseudo_header(self.addresses(), protocol, transport_len));
        let field = ip_header + csum_offset;
        packet[field..field + 2].copy_from_slice(&pseudo.to_be_bytes());
        let header = VnetHeader {
            flags: 1,
            gso_type,
            hdr_len: self.head_len() as u16,
            gso_size,
            csum_start: ip_header as u16,
            csum_offset: csum_offset as u16,
        };
        [&header.to_bytes(), packet.as_slice()].concat()
    }
}

fn naive_pseudo_header(addresses: (IpAddr, IpAddr), protocol: u8, len: usize) -> Vec<u8> {
    let mut bytes = match addresses {
        (IpAddr::V4(source), IpAddr::V4(destination)) => [source.octets(), destination.octets()].concat(),
        (IpAddr::V6(source), IpAddr::V6(destination)) => [source.octets(), destination.octets()].concat(),
        _ => unreachable!("both addresses are of one family"),
    };
    bytes.extend((len as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes
}

fn naive_transport_checksum(addresses: (IpAddr, IpAddr), protocol: u8, transport: &[u8]) -> u16 {
    naive_checksum(&[naive_pseudo_header(addresses, protocol, transport.len()), transport.to_vec()].concat())
}

/// Whether lengths and checksums of a TCP or UDP packet without options or extension headers are right.
fn is_whole(packet: &[u8]) -> bool {
    let (Some(source), Some(destination)) = (super::source(packet), super::destination(packet)) else {
        return false;
    };
    let v4 = packet[0] >> 4 == 4;
    let (ip_header, protocol) = if v4 { (20, packet[9]) } else { (40, packet[6]) };
    let transport = &packet[ip_header..];
    super::ip_len(packet) == Some(packet.len())
        && (!v4 || naive_checksum(&packet[..20]) == 0)
        && naive_transport_checksum((source, destination), protocol, transport) == 0
        && (protocol != UDP || usize::from(word(transport, 4)) == transport.len() && word(transport, 6) != 0)
}

/// All segments of a read.
fn segments(read: &[u8]) -> Vec<Vec<u8>> {
    let mut read = read.to_vec();
    let mut split = Split::new(&mut read).expect("a packet that can be cut");
    let (count, full, last) = (split.count(), split.segment_len(), split.last_len());
    let mut segments = Vec::new();
    while let Some(segment) = split.next_segment() {
        segments.push(segment.to_vec());
    }
    assert_eq!((segments.len(), split.count()), (count, 0));
    assert_eq!(segments.last().map(Vec::len), Some(last));
    assert!(segments[..count - 1].iter().all(|segment| segment.len() == full), "all but the last are full");
    segments
}

/// Packets one behind the other in a buffer, as they are decrypted; pushed, flushed when full, and written.
fn coalesce(coalescer: &mut Coalescer, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let arena = packets.concat();
    let mut written = Vec::new();
    let mut start = 0;
    for packet in packets {
        let at = start..start + packet.len();
        start = at.end;
        if coalescer.push(&arena, at.clone()).is_err() {
            write(coalescer, &arena, &mut written);
            coalescer.push(&arena, at).expect("room after a flush");
        }
    }
    write(coalescer, &arena, &mut written);
    written
}

fn write(coalescer: &mut Coalescer, arena: &[u8], written: &mut Vec<Vec<u8>>) {
    let held = coalescer.len();
    let mut segments = 0;
    coalescer.flush(arena, |packet| {
        let bytes: Vec<u8> = packet.slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        assert_eq!(bytes.len(), packet.len + VNET_HEADER_LEN);
        segments += packet.segments;
        written.push(bytes);
    });
    assert_eq!(segments, held, "nothing lost, nothing twice");
    assert!(coalescer.is_empty());
}
