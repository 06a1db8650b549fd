// SPDX-License-Identifier: Apache-2.0
//! Putting together: stories.

use super::*;
use crate::segment::packet::{ECE, FIN, PSH};
use crate::segment::{Coalescing, PushError, SEGMENTS_MAX, UDP_SEGMENTS_MAX};

const BOTH: Coalescing = Coalescing { tcp: true, udp: true };

/// A stream of `count` segments of `size` bytes each.
fn stream(first: &Packet, count: usize, size: usize) -> Vec<Packet> {
    let segment = |n: usize| Packet {
        seq: first.seq.wrapping_add((n * size) as u32),
        id: first.id.wrapping_add(n as u16),
        payload: vec![n as u8; size],
        ..first.clone()
    };
    (0..count).map(segment).collect()
}

fn bytes(packets: &[Packet]) -> Vec<Vec<u8>> {
    packets.iter().map(Packet::bytes).collect()
}

/// Segments of each write, in order.
fn counts(packets: &[Packet]) -> Vec<usize> {
    let written = coalesce(&mut Coalescer::new(1000, BOTH), &bytes(packets));
    written.iter().map(|read| segments(read).len()).collect()
}

#[test]
fn a_stream_becomes_the_packet_the_kernel_would_have_sent() {
    for v6 in [false, true] {
        let first = Packet { v6, ..Packet::tcp(u32::MAX - 3000, b"") };
        let mut packets = stream(&first, 5, 1000);
        packets[4].payload.truncate(10);
        packets[4].flags |= PSH;
        let written = coalesce(&mut Coalescer::new(10, BOTH), &bytes(&packets));
        let payload = packets.iter().flat_map(|packet| packet.payload.clone()).collect();
        let large = Packet { payload, flags: ACK | PSH, ..packets[0].clone() };
        assert_eq!(written, [large.read(1000)]);
    }
}

#[test]
fn datagrams_merge_only_where_the_device_cuts_them() {
    let packets = bytes(&stream(&Packet::udp(b""), 3, 1200));
    assert_eq!(coalesce(&mut Coalescer::new(10, BOTH), &packets).len(), 1);
    let tcp_only = Coalescing { udp: false, ..BOTH };
    let written = coalesce(&mut Coalescer::new(10, tcp_only), &packets);
    let plain: Vec<Vec<u8>> = packets.iter().map(|packet| [&[0; 10], packet.as_slice()].concat()).collect();
    assert_eq!(written, plain);
}

#[test]
fn two_interleaved_streams_become_two_packets() {
    let (a, b) = (stream(&Packet::tcp(0, b""), 4, 500), Packet { flow: 2, ..Packet::tcp(0, b"") });
    let b = stream(&b, 4, 700);
    let mixed: Vec<Packet> = a.into_iter().zip(b).flat_map(|(a, b)| [a, b]).collect();
    assert_eq!(counts(&mixed), [4, 4]);
}

#[test]
fn more_streams_than_are_held_open_still_come_out_whole() {
    let mut mixed = Vec::new();
    for n in 0..3 {
        for flow in 0..40 {
            mixed.push(stream(&Packet { flow, ..Packet::tcp(0, b"") }, 3, 100)[n].clone());
        }
    }
    assert_eq!(counts(&mixed), [1; 120]);
}

#[test]
fn whatever_makes_a_segment_different_ends_the_packet_before_it() {
    type Change<'a> = &'a dyn Fn(&mut Packet);
    let packets = stream(&Packet::tcp(0, b""), 4, 1000);
    let with = |change: Change<'_>| {
        let mut packets = packets.clone();
        change(&mut packets[2]);
        counts(&packets)
    };
    assert_eq!(with(&|_| ()), [4]);
    let cases: [(&str, Change<'_>); 9] = [
        ("acknowledgement", &|packet| packet.ack += 1),
        ("window", &|packet| packet.window += 1),
        ("ttl", &|packet| packet.ttl -= 1),
        ("tos", &|packet| packet.tos = 1),
        ("df", &|packet| packet.df = false),
        ("identification", &|packet| packet.id += 7),
        ("congestion echo", &|packet| packet.flags |= ECE),
        ("options", &|packet| packet.options = vec![1; 4]),
        ("reserved", &|packet| packet.flags |= 0x20),
    ];
    for (name, change) in cases {
        assert_eq!(with(change), [2, 1, 1], "{name}");
    }
    assert_eq!(with(&|packet| packet.seq += 1), [2, 1, 1], "a gap, and the next does not continue behind it");
    assert_eq!(with(&|packet| packet.flags |= PSH), [3, 1], "PSH ends a packet, and belongs to it");
    assert_eq!(with(&|packet| packet.payload.truncate(999)), [3, 1], "a short segment is the last");
    assert_eq!(with(&|packet| packet.payload.push(0)), [2, 1, 1], "a longer one is the first of another");
    assert_eq!(with(&|packet| packet.flags |= FIN), [2, 1, 1], "the end of a connection goes alone");
    assert_eq!(with(&|packet| packet.payload.clear()), [2, 1, 1], "so does a bare acknowledgement");
}

#[test]
fn traffic_class_flow_label_and_hop_limit_keep_ipv6_packets_apart() {
    let packets = bytes(&stream(&Packet { v6: true, ..Packet::tcp(0, b"") }, 4, 100));
    for at in [1, 3, 7] {
        let mut packets = packets.clone();
        packets[2][at] ^= 1; // None of these is under the checksum.
        assert_eq!(coalesce(&mut Coalescer::new(10, BOTH), &packets).len(), 3, "byte {at}");
    }
}

#[test]
fn options_have_to_be_equal_in_length_and_content() {
    let with_options = Packet { options: vec![1, 1, 1, 1], ..Packet::tcp(0, b"") };
    let mut packets = stream(&with_options, 4, 100);
    assert_eq!(counts(&packets), [4]);
    packets[2].options[3] = 0;
    assert_eq!(counts(&packets), [2, 1, 1]);
    packets[2].options = Vec::new();
    assert_eq!(counts(&packets), [2, 1, 1]);
}

#[test]
fn connections_that_open_and_unknown_bits_are_not_touched() {
    for flags in [0, 0x02, 0x12, 0x14, 0x11, 0x30] {
        let packets = stream(&Packet { flags, ..Packet::tcp(0, b"") }, 2, 100);
        assert_eq!(counts(&packets), [1, 1], "flags {flags:#x}");
    }
    let mut packets = bytes(&stream(&Packet::tcp(0, b""), 2, 100));
    for packet in &mut packets {
        packet[32] |= 1; // Accurate ECN's bit, with the checksum made right again.
        let sum = u16::from_be_bytes([packet[36], packet[37]]);
        let sum = naive_checksum(&[(!sum).to_be_bytes(), [1, 0]].concat());
        packet[36..38].copy_from_slice(&sum.to_be_bytes());
        assert!(is_whole(packet));
    }
    assert_eq!(coalesce(&mut Coalescer::new(10, BOTH), &packets).len(), 2);
}

#[test]
fn datagrams_without_a_checksum_or_with_another_length_stay_alone() {
    // A payload whose last word makes the sum 0xffff, for which zero in the field would pass as right.
    let mut first = Packet::udp(&[0; 100]);
    let sum = u16::from_be_bytes(first.bytes()[26..28].try_into().unwrap());
    first.payload[98..].copy_from_slice(&sum.to_be_bytes());
    let good = [first.bytes(), Packet { id: first.id + 1, ..first }.bytes()];
    assert_eq!(good[0][26..28], [0xff, 0xff]);
    assert_eq!(coalesce(&mut Coalescer::new(10, BOTH), &good).len(), 1);
    let none = good.clone().map(|mut packet| {
        packet[26..28].fill(0);
        packet
    });
    assert_eq!(coalesce(&mut Coalescer::new(10, BOTH), &none).len(), 2);
    let shorter = good.map(|mut packet| {
        packet[25] -= 4; // The length, and the payload's first word takes the difference.
        packet[28..30].copy_from_slice(&[0, 4]);
        packet
    });
    assert_eq!(coalesce(&mut Coalescer::new(10, BOTH), &shorter).len(), 2);
}

#[test]
fn a_segment_with_a_wrong_checksum_goes_to_the_kernel_as_it_came() {
    for (broken, expected) in [(0, vec![1, 3]), (2, vec![2, 1, 1]), (3, vec![3, 1])] {
        for at in [10, 25, 36, 45] {
            let mut packets = bytes(&stream(&Packet::tcp(0, b""), 4, 100));
            packets[broken][at] ^= 4;
            let written = coalesce(&mut Coalescer::new(10, BOTH), &packets);
            let cut: Vec<usize> = written.iter().map(|read| segments(read).len()).collect();
            assert_eq!(cut, expected, "packet {broken}, byte {at}");
            let plain = [&[0; 10], packets[broken].as_slice()].concat();
            assert!(written.contains(&plain), "packet {broken} unchanged");
        }
    }
}

#[test]
fn identification_may_stand_still_only_with_df() {
    let mut packets = stream(&Packet::tcp(0, b""), 4, 100);
    packets.iter_mut().for_each(|packet| packet.id = 0);
    assert_eq!(counts(&packets), [4]);
    packets[3].id = 1;
    assert_eq!(counts(&packets), [3, 1], "still, then counting");
    packets.iter_mut().for_each(|packet| (packet.id, packet.df) = (0, false));
    assert_eq!(counts(&packets), [1; 4]);
}

#[test]
fn a_packet_never_grows_beyond_its_limits() {
    let large = counts(&stream(&Packet::tcp(0, b""), 100, 1400));
    assert_eq!(large, [46, 46, 8], "46 x 1400 + 40 is the last below 64 KiB");
    assert_eq!(counts(&stream(&Packet::tcp(0, b""), SEGMENTS_MAX + 1, 100)), [SEGMENTS_MAX, 1]);
    assert_eq!(counts(&stream(&Packet::udp(b""), UDP_SEGMENTS_MAX + 1, 100)), [UDP_SEGMENTS_MAX, 1]);
}

#[test]
fn a_fragment_keeps_its_place_between_the_datagrams_of_its_addresses() {
    let mut packets = bytes(&stream(&Packet::udp(b""), 3, 100));
    packets[1][6] = 0x20;
    let other = Packet { flow: 2, ..Packet::udp(b"") };
    packets.insert(1, stream(&other, 2, 80)[0].bytes());
    packets.push(stream(&other, 2, 80)[1].bytes());
    let written = coalesce(&mut Coalescer::new(10, BOTH), &packets);
    let lens: Vec<usize> = written.iter().map(|read| read.len() - VNET_HEADER_LEN).collect();
    assert_eq!(lens, [128, 188, 128, 128], "the other flow merged, this one did not");
    assert_eq!(written[2][VNET_HEADER_LEN..], packets[2]);
}

#[test]
fn a_full_coalescer_takes_nothing_and_loses_nothing() {
    let packets = bytes(&stream(&Packet::tcp(0, b""), 3, 100));
    let arena = packets.concat();
    let mut coalescer = Coalescer::new(2, BOTH);
    assert_eq!(coalescer.push(&arena, 0..140), Ok(()));
    assert_eq!(coalescer.push(&arena, 140..280), Ok(()));
    assert_eq!(coalescer.push(&arena, 280..420), Err(PushError::Full));
    assert_eq!(coalescer.len(), 2);
    let mut written = Vec::new();
    write(&mut coalescer, &arena, &mut written);
    assert_eq!(written.len(), 1);
    assert_eq!(coalescer.push(&arena, 280..421), Err(PushError::Outside));
    assert_eq!(coalescer.push(&arena, 280..280), Err(PushError::Outside));
    assert_eq!(coalescer.push(&arena, 280..420), Ok(()));
    write(&mut coalescer, &arena, &mut written);
    assert_eq!(written[1][VNET_HEADER_LEN..], packets[2]);
}

#[test]
fn padding_of_the_tunnel_is_not_written() {
    let packet = Packet::tcp(0, b"hello").bytes();
    let padded = [packet.as_slice(), &[0; 3]].concat();
    let written = coalesce(&mut Coalescer::new(2, BOTH), &[padded]);
    assert_eq!(written[0][VNET_HEADER_LEN..], packet);
}
