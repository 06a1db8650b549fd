// SPDX-License-Identifier: Apache-2.0
//! Cutting: stories.

use super::*;
use crate::segment::SegmentError;
use crate::segment::packet::{CWR, ECE, FIN, PSH};

/// Bytes that differ from one another nearby.
fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

#[test]
fn a_tcp_packet_of_three_segments_becomes_three_whole_packets() {
    let large = Packet { flags: ACK | PSH | FIN | CWR | ECE, ..Packet::tcp(u32::MAX - 500, &payload(2500)) };
    let segments = segments(&large.read(1000));
    let expected = [
        Packet { payload: payload(2500)[..1000].to_vec(), flags: ACK | CWR | ECE, ..large.clone() },
        Packet {
            payload: payload(2500)[1000..2000].to_vec(),
            flags: ACK | ECE,
            seq: 499,
            id: 10,
            ..large.clone()
        },
        Packet {
            payload: payload(2500)[2000..].to_vec(),
            flags: ACK | PSH | FIN | ECE,
            seq: 1499,
            id: 11,
            ..large
        },
    ];
    assert_eq!(segments, expected.map(|packet| packet.bytes()));
    assert!(segments.iter().all(|segment| is_whole(segment)));
}

#[test]
fn tcp_over_ipv6_with_options_keeps_its_options() {
    let options = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2].to_vec();
    let large = Packet { v6: true, options: options.clone(), tos: 3, ..Packet::tcp(1, &payload(3000)) };
    let segments = segments(&large.read(1368));
    assert_eq!(segments.iter().map(Vec::len).collect::<Vec<_>>(), [1440, 1440, 336]);
    for segment in &segments {
        assert!(is_whole(segment));
        assert_eq!(segment[60..72], options);
    }
}

#[test]
fn a_udp_packet_becomes_datagrams_of_one_size() {
    for v6 in [false, true] {
        let large = Packet { v6, ..Packet::udp(&payload(1201)) };
        let segments = segments(&large.read(400));
        assert_eq!(segments.len(), 4);
        assert!(segments.iter().all(|segment| is_whole(segment)));
        assert_eq!(segments[3].last(), payload(1201).last());
    }
}

#[test]
fn headers_longer_than_a_segments_payload_do_not_spoil_the_next_payload() {
    let large = Packet::tcp(7, &payload(50));
    let segments = segments(&large.read(1));
    assert_eq!(segments.len(), 50);
    let got: Vec<u8> = segments.iter().map(|segment| segment[40]).collect();
    assert_eq!(got, payload(50));
    assert!(segments.iter().all(|segment| is_whole(segment)));
}

#[test]
fn a_plain_packet_gets_the_checksum_it_was_promised() {
    for packet in [Packet::tcp(5, b"hello"), Packet::udp(b"hello"), Packet { v6: true, ..Packet::udp(b"") }] {
        let mut read = packet.read(0);
        read[1] = 0;
        assert_eq!(segments(&read), [packet.bytes()]);
    }
}

#[test]
fn a_plain_packet_with_its_checksum_is_left_alone() {
    let mut packet = Packet::tcp(5, b"hello").bytes();
    packet[36] ^= 1; // Even a wrong checksum: that is the receiver's to judge.
    assert_eq!(segments(&[&[0; 10], packet.as_slice()].concat()), [packet]);
}

#[test]
fn padding_behind_the_packet_is_not_sent() {
    let packet = Packet::udp(b"hello").bytes();
    let read = [&[0; 10], packet.as_slice(), &[0; 6]].concat();
    assert_eq!(segments(&read), [packet]);
}

/// An IPv6 packet of two segments with one extension header.
fn extended(plain: &Packet, number: u8, header: [u8; 8]) -> Vec<u8> {
    let mut read = plain.read(1000);
    let len = 8 + u16::from_be_bytes([read[14], read[15]]);
    read[14..16].copy_from_slice(&len.to_be_bytes());
    read[16] = number;
    read.splice(50..50, header);
    read
}

#[test]
fn a_routing_header_is_cut_only_at_its_end() {
    let plain = Packet { v6: true, ..Packet::tcp(1, &payload(2000)) };
    let passed = extended(&plain, 43, [6, 0, 4, 0, 0, 0, 0, 0]);
    assert_eq!(segments(&passed).len(), 2);
    let mut on_the_way = extended(&plain, 43, [6, 0, 4, 1, 0, 0, 0, 0]);
    let unfit = SegmentError::Headers { gso_type: 4, len: 2068 };
    assert_eq!(Split::new(&mut on_the_way).expect_err("another destination in the checksum"), unfit);
}

#[test]
fn an_extension_header_is_repeated_in_each_segment() {
    let plain = Packet { v6: true, ..Packet::tcp(1, &payload(2000)) };
    // Destination options: padding only.
    let segments = segments(&extended(&plain, 60, [6, 0, 1, 4, 0, 0, 0, 0]));
    assert_eq!(segments.len(), 2);
    for segment in segments {
        assert_eq!(segment[40..48], [6, 0, 1, 4, 0, 0, 0, 0]);
        let sum = naive_transport_checksum(plain.addresses(), TCP, &segment[48..]);
        assert_eq!(sum, 0, "checksum over the transport alone");
    }
}

#[test]
fn lies_about_lengths_are_errors() {
    let packet = Packet::tcp(5, &payload(100));
    let failure = |read: &[u8]| Split::new(&mut read.to_vec()).expect_err("a lie");
    let changed = |at: usize, value: u8| {
        let mut read = packet.read(50);
        read[at] = value;
        failure(&read)
    };
    let unfit = SegmentError::Headers { gso_type: 1, len: 140 };
    assert_eq!(failure(&[0; 9]), SegmentError::Short(9));
    assert_eq!(failure(&[0; 10]), SegmentError::NotIp(0));
    assert_eq!(changed(4, 0), SegmentError::ZeroSize);
    assert_eq!(changed(1, 3), SegmentError::UnknownType(3));
    assert_eq!(changed(1, 0x21), SegmentError::UnknownType(0x21));
    assert_eq!(changed(1, 4), SegmentError::Headers { gso_type: 4, len: 140 });
    assert_eq!(changed(1, 5), SegmentError::Headers { gso_type: 5, len: 140 });
    assert_eq!(changed(10, 0x44), SegmentError::NotIp(140), "IP header shorter than itself");
    assert_eq!(changed(13, 141), SegmentError::NotIp(140), "longer than what was read");
    assert_eq!(changed(16, 0x20), unfit, "a fragment");
    assert_eq!(changed(42, 0x40), unfit, "TCP header shorter than itself");
    let mut short = Packet::tcp(5, b"").read(50);
    short[42] = 0xf0;
    assert_eq!(failure(&short), SegmentError::Headers { gso_type: 1, len: 40 }, "options beyond the packet");
    let mut plain = packet.read(50);
    plain[1] = 0;
    plain[6..8].copy_from_slice(&139_u16.to_le_bytes());
    let outside = SegmentError::ChecksumOutside { start: 139, offset: 16, len: 140 };
    assert_eq!(failure(&plain), outside);
}
