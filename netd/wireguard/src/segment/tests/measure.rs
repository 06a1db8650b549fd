// SPDX-License-Identifier: Apache-2.0
//! What a segment costs. Not a test: `cargo test --release -p netd-wireguard --lib measure -- --ignored --nocapture`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::*;
use crate::segment::Coalescing;

/// Segments of 1,420 bytes in one super-packet: what a pod with our GSO limit sends.
const SEGMENTS: usize = 45;
const PAYLOAD: usize = 1368;
const ROUNDS: u32 = 4000;

/// Best of several rounds: the machine is shared.
fn per_segment(mut work: impl FnMut() -> Duration) -> f64 {
    let best = (0..9).map(|_| work()).min().unwrap_or_default();
    best.as_nanos() as f64 / f64::from(ROUNDS) / SEGMENTS as f64
}

#[test]
#[ignore = "a measurement, to be run by hand in a release build"]
fn nanoseconds_per_segment() {
    for v6 in [false, true] {
        let options = vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
        let large = Packet { v6, options, ..Packet::tcp(1, &vec![0x5a; PAYLOAD * SEGMENTS]) };
        let read = large.read(PAYLOAD as u16);
        let mut work = read.clone();
        let split = per_segment(|| {
            let start = Instant::now();
            for _ in 0..ROUNDS {
                // The rest of the packet is as it was: only headers were written, over payload.
                work[..VNET_HEADER_LEN + 100].copy_from_slice(&read[..VNET_HEADER_LEN + 100]);
                let mut split = Split::new(&mut work).expect("a good packet");
                while let Some(segment) = split.next_segment() {
                    black_box(segment);
                }
            }
            start.elapsed()
        });
        let packets = segments(&read);
        let arena = packets.concat();
        let mut coalescer = Coalescer::new(1024, Coalescing { tcp: true, udp: true });
        let merge = per_segment(|| {
            let start = Instant::now();
            for _ in 0..ROUNDS {
                let mut at = 0;
                for packet in &packets {
                    coalescer.push(&arena, at..at + packet.len()).expect("room");
                    at += packet.len();
                }
                coalescer.flush(&arena, |packet| {
                    black_box(packet);
                });
            }
            start.elapsed()
        });
        println!(
            "IPv{}: split {split:.0} ns, verify and coalesce {merge:.0} ns per segment",
            if v6 { 6 } else { 4 }
        );
    }
}
