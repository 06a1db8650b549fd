// SPDX-License-Identifier: Apache-2.0
//! Nothing that comes from a pod or a peer makes this panic.

use proptest::prelude::*;

use super::*;
use crate::segment::Coalescing;

/// Reads in which some bytes of a good one were changed, or that are noise behind a version number.
fn spoilt() -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((0_usize..110, any::<u8>()), 0..6);
    let good =
        (any::<bool>(), any::<bool>(), 0_usize..300, 0_u16..200, changes, any::<prop::sample::Index>());
    let changed = good.prop_map(|(v6, udp, len, size, changes, end)| {
        let mut read = Packet { v6, udp, ..Packet::tcp(1, &vec![7; len]) }.read(size);
        for (at, value) in changes {
            let at = at % read.len();
            read[at] = value;
        }
        if read[4].is_multiple_of(4) {
            read.truncate(end.index(read.len()));
        }
        read
    });
    let noise =
        (prop::collection::vec(any::<u8>(), 0..200), 0_u8..6, prop::sample::select(vec![0x45, 0x60, 0x4f]));
    let noise = noise.prop_map(|(mut read, gso_type, version)| {
        if let Some(byte) = read.get_mut(1) {
            *byte = gso_type;
        }
        if let Some(byte) = read.get_mut(10) {
            *byte = version;
        }
        read
    });
    prop_oneof![changed, noise]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn a_spoilt_read_is_cut_or_refused(mut read in spoilt()) {
        let len = read.len();
        if let Ok(mut split) = Split::new(&mut read) {
            let (mut left, full) = (split.count(), split.segment_len());
            while let Some(segment) = split.next_segment() {
                prop_assert!(segment.len() <= full && segment.len() <= len);
                prop_assert_eq!(crate::segment::ip_len(segment), Some(segment.len()));
                left -= 1;
            }
            prop_assert_eq!(left, 0);
        }
    }
}

proptest! {
    #[test]
    fn spoilt_packets_come_out_of_the_coalescer_one_way_or_another(
        reads in prop::collection::vec(spoilt(), 1..40), tcp: bool, udp: bool,
    ) {
        let packets: Vec<Vec<u8>> =
            reads.iter().filter_map(|read| read.get(VNET_HEADER_LEN..)).filter(|packet| !packet.is_empty())
                .map(<[u8]>::to_vec).collect();
        // `coalesce` checks that as many segments come out as went in.
        coalesce(&mut Coalescer::new(16, Coalescing { tcp, udp }), &packets);
    }

    #[test]
    fn a_buffer_that_changed_or_shrank_loses_packets_but_nothing_else(
        reads in prop::collection::vec(spoilt(), 2..20), noise in prop::collection::vec(any::<u8>(), 0..4000),
    ) {
        let arena = reads.concat();
        let mut coalescer = Coalescer::new(16, Coalescing { tcp: true, udp: true });
        let mut start = 0;
        for (number, read) in reads.iter().enumerate() {
            let arena = if number % 2 == 0 { &arena } else { &noise };
            let _ = coalescer.push(arena, start..start + read.len());
            start += read.len();
        }
        coalescer.flush(&noise, |_| ());
        prop_assert!(coalescer.is_empty());
    }
}
