// SPDX-License-Identifier: Apache-2.0
//! Cutting and putting together undo each other.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::segment::Coalescing;
use crate::segment::packet::{CWR, ECE, FIN, PSH};

const BOTH: Coalescing = Coalescing { tcp: true, udp: true };

/// A large packet and its segments' size.
fn large() -> impl Strategy<Value = (Packet, u16)> {
    let shape = (any::<bool>(), any::<bool>(), 0_u8..4, any::<u32>(), any::<u16>(), any::<bool>());
    let tcp = (any::<bool>(), any::<bool>(), 0_usize..=10, any::<u8>());
    // At most 60 segments and 64 KiB, at least two segments.
    let size =
        (1_u16..=1400).prop_flat_map(|size| (Just(size), usize::from(size) + 1..=usize::from(size) * 46));
    (shape, tcp, size).prop_map(|((v6, udp, flow, seq, id, df), (push, cwr, options, fill), (size, len))| {
        let flags = ACK | if push { PSH } else { 0 } | if cwr { CWR | ECE } else { 0 };
        let payload = (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(fill)).collect();
        let options = vec![1; if udp { 0 } else { options * 4 }];
        (Packet { v6, udp, flow, flags, id, df, options, payload, ..Packet::tcp(seq, b"") }, size)
    })
}

/// What the next packet of a stream is like.
#[derive(Clone, Debug)]
enum Step {
    Full,
    Short,
    Ack,
    Push,
    Fin,
    Gap,
    Retransmit,
    NewWindow,
    Reduced,
    StillId,
    Broken(usize),
    Fragment,
    Ping,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => Just(Step::Full),
        2 => Just(Step::Short),
        2 => Just(Step::Ack),
        2 => Just(Step::Push),
        1 => Just(Step::Fin),
        1 => Just(Step::Gap),
        1 => Just(Step::Retransmit),
        1 => Just(Step::NewWindow),
        1 => Just(Step::Reduced),
        1 => Just(Step::StillId),
        1 => (8_usize..100).prop_map(Step::Broken),
        1 => Just(Step::Fragment),
        1 => Just(Step::Ping),
    ]
}

/// Sender of one flow.
struct Sender {
    next: Packet,
    size: usize,
}

impl Sender {
    fn new(flow: u8) -> Self {
        let next =
            Packet { v6: flow % 2 == 1, udp: flow % 3 == 2, flow, ..Packet::tcp(u32::MAX - 5000, b"") };
        Self { next, size: 300 + 100 * usize::from(flow) }
    }

    fn send(&mut self, step: &Step, number: usize) -> Vec<u8> {
        let mut packet = self.next.clone();
        let mut len = self.size;
        match step {
            Step::Short => len = 1 + number % self.size,
            Step::Ack => len = 0,
            Step::Push => packet.flags |= PSH,
            Step::Fin => packet.flags |= FIN,
            Step::Gap => packet.seq = packet.seq.wrapping_add(1),
            Step::Retransmit => packet.seq = packet.seq.wrapping_sub(self.size as u32),
            Step::NewWindow => packet.window += 1,
            Step::Reduced => packet.flags |= CWR,
            Step::StillId => packet.id = packet.id.wrapping_sub(1),
            Step::Full | Step::Broken(_) | Step::Fragment | Step::Ping => {}
        }
        packet.payload = (0..len).map(|at| (at + number) as u8).collect();
        self.next.seq = packet.seq.wrapping_add(len as u32);
        self.next.id = packet.id.wrapping_add(1);
        self.next.window = packet.window;
        let mut bytes = packet.bytes();
        match step {
            Step::Broken(at) => {
                let at = at % bytes.len();
                // Not the fields that say how long the packet is and which flow it belongs to.
                if at >= 8 && !(if packet.v6 { 8..44 } else { 9..24 }).contains(&at) {
                    bytes[at] ^= 0x11;
                }
            }
            Step::Fragment if !packet.v6 => bytes[6] |= 0x20,
            Step::Ping => bytes[if packet.v6 { 6 } else { 9 }] = if packet.v6 { 58 } else { 1 },
            _ => {}
        }
        bytes
    }
}

/// Packets by flow, in order. Identifications under DF are left out: they mean nothing (RFC 6864) and the kernel, too,
/// counts them anew when it cuts.
fn by_flow<'a>(packets: impl IntoIterator<Item = &'a Vec<u8>>) -> BTreeMap<Vec<u8>, Vec<Vec<u8>>> {
    let mut flows = BTreeMap::<_, Vec<_>>::new();
    for packet in packets {
        let mut packet = packet.clone();
        let flow = if packet[0] >> 4 == 4 {
            if packet[6] & 0x40 != 0 && naive_checksum(&packet[..20]) == 0 {
                packet[4..6].fill(0);
                packet[10..12].fill(0);
            }
            packet[12..20].to_vec()
        } else {
            packet[8..40].to_vec()
        };
        flows.entry(flow).or_default().push(packet);
    }
    flows
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn cutting_then_putting_together_gives_the_packet_again((large, size) in large()) {
        let read = large.read(size);
        let segments = segments(&read);
        prop_assert!(segments.iter().all(|segment| is_whole(segment)));
        let written = coalesce(&mut Coalescer::new(100, BOTH), &segments);
        prop_assert_eq!(written, vec![read]);
    }

    #[test]
    fn each_segment_carries_its_part_of_the_payload((large, size) in large()) {
        let segments = segments(&large.read(size));
        let parts = segments.iter().map(|segment| &segment[large.head_len()..]);
        prop_assert_eq!(parts.collect::<Vec<_>>().concat(), large.payload.clone());
        prop_assert!(segments.iter().all(|segment| segment.len() <= large.head_len() + usize::from(size)));
    }

    #[test]
    fn putting_together_then_cutting_gives_the_packets_again_in_each_flows_order(
        steps in prop::collection::vec((0_u8..6, step()), 1..200), room in 1_usize..300, udp: bool,
    ) {
        let mut senders: Vec<Sender> = (0..6).map(Sender::new).collect();
        let packets: Vec<Vec<u8>> = steps
            .iter()
            .enumerate()
            .map(|(number, (flow, step))| senders[usize::from(*flow)].send(step, number))
            .collect();
        let written = coalesce(&mut Coalescer::new(room, Coalescing { udp, ..BOTH }), &packets);
        let cut: Vec<Vec<u8>> = written.iter().flat_map(|read| segments(read)).collect();
        prop_assert_eq!(by_flow(&cut), by_flow(&packets));
    }
}
