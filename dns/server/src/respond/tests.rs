// SPDX-License-Identifier: Apache-2.0
//! What an answer costs, and that no packet gets an answer it should not.
#![allow(unsafe_code, reason = "an allocator that counts has to be one; the block says why it is sound")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use dns_zone::{Client, ZoneKind, ZoneService, ZoneSettings};
use proptest::prelude::*;

use super::*;
use crate::cache::Entry;
use crate::forward::ForwardConfig;
use crate::stats::DnsStats;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is the system's allocator's doing; the counter is a plain cell of the thread, which allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn core() -> Core {
    let kind = || ZoneKind::ClusterIp(vec!["10.96.0.20".parse().unwrap()]);
    let zone = Zone::build(
        "cluster.local",
        5,
        42,
        [ZoneService::new("default", "web", kind())],
        &["10.96.0.0/16".parse().unwrap()],
    );
    let config = ForwardConfig {
        upstreams: vec![SocketAddr::from(([192, 0, 2, 1], 53)).into()],
        ..ForwardConfig::default()
    };
    Core {
        clients: Arc::new(ArcSwap::from_pointee(vec!["10.244.0.0/16".parse().unwrap()])),
        zone: Arc::new(ArcSwapOption::from_pointee(zone.unwrap())),
        forwarder: Forwarder::new(&config, &[], tokio::time::Instant::now()),
        admission: Admission::new(8),
        refusals: Rate::new(10),
        answers: None,
        log: QueryLog::new(0),
    }
}

fn asker(now_us: u64) -> Asker {
    Asker { client: "10.244.0.7:4711".parse().unwrap(), transport: Transport::Udp, now_us, seed: now_us }
}

fn question(name: &[u8], qtype: u8, edns: bool) -> Vec<u8> {
    let mut packet = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
    packet.extend_from_slice(name);
    packet.extend_from_slice(&[0, qtype, 0, 1]);
    if edns {
        packet.extend_from_slice(b"\0\0\x29\x10\0\0\0\0\0\0\0");
    }
    packet
}

const WEB: &[u8] = b"\x03web\x07default\x03svc\x07cluster\x05local\0";
const NOPE: &[u8] = b"\x04nope\x07default\x03svc\x07cluster\x05local\0";
const OUTSIDE: &[u8] = b"\x03www\x07example\x03org\0";

/// A cached answer to [`OUTSIDE`].
fn cache(core: &Core) {
    let mut wire = question(OUTSIDE, 1, false);
    wire[2] = 0x81;
    wire[7] = 1;
    wire.extend_from_slice(&[0xC0, 12, 0, 1, 0, 1, 0, 0, 1, 0, 0, 4, 192, 0, 2, 1]);
    let entry = Entry::new(wire, 256_000, 0).unwrap();
    core.forwarder.cache().keep(&Key::new(OUTSIDE, 1, 0), Arc::new(entry));
}

#[test]
fn an_answer_costs_no_allocation() {
    let (core, stats) = (core(), DnsStats::default());
    let counters = stats.worker();
    cache(&core);
    let packets: Vec<_> =
        [(WEB, 1), (WEB, 28), (NOPE, 1), (b"\x0220\x010\x0296\x0210\x07in-addr\x04arpa\0", 12), (OUTSIDE, 1)]
            .into_iter()
            .flat_map(|(name, qtype)| [question(name, qtype, false), question(name, qtype, true)])
            .chain([vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xC0, 12]])
            .collect();
    let mut out = [0; UDP_BYTES_MAX as usize];
    let mut round = |times: u64| {
        for now_us in 0..times {
            for packet in &packets {
                match core.respond(packet, asker(now_us), &counters, &mut out) {
                    Verdict::Answer(len) => assert!(len >= 12),
                    _ => panic!("{packet:?} is not answered on the spot"),
                }
            }
        }
    };
    // The first time a thread reads the zone it gets a place for that.
    round(1);
    let before = ALLOCATIONS.get();
    round(1_000);
    assert_eq!(ALLOCATIONS.get() - before, 0, "allocations for {} answers", packets.len() * 1_000);
}

#[test]
fn a_search_path_is_answered_on_the_spot_where_its_names_are_cached() {
    let (core, stats) = (core(), DnsStats::default());
    let counters = stats.worker();
    let mut edit =
        Zone::new(ZoneSettings { autopath: true, ..ZoneSettings::new("cluster.local") }).unwrap().edit();
    let pod = Client { namespace: "default".into(), pod: "c".into(), labels: Arc::default() };
    edit.set_client("10.244.0.7".parse().unwrap(), Some(Arc::new(pod)));
    edit.set_service(&ZoneService::new(
        "default",
        "web",
        ZoneKind::ClusterIp(vec!["10.96.0.20".parse().unwrap()]),
    ));
    core.zone.store(Some(Arc::new(edit.finish(43))));
    let packet = question(b"\x03www\x07example\x03org\x07default\x03svc\x07cluster\x05local\0", 1, true);
    let mut out = [0; UDP_BYTES_MAX as usize];
    let first = core.respond(&packet, asker(0), &counters, &mut out);
    assert!(matches!(first, Verdict::Hand(_)), "nothing is cached yet");
    cache(&core);
    let Verdict::Answer(len) = core.respond(&packet, asker(1), &counters, &mut out) else {
        panic!("handed on, though it is cached")
    };
    let answer = hickory_proto::op::Message::from_vec(&out[..len]).unwrap();
    let shown: Vec<String> = answer.answers.iter().map(|record| record.data.to_string()).collect();
    assert_eq!(shown, ["www.example.org.", "192.0.2.1"], "an alias to the name, and its address");
}

proptest! {
    /// Whatever comes: no panic, no answer to an answer, none over the limit, none longer than it may be for a stranger.
    #[test]
    fn any_packet_is_answered_within_its_limit_or_not_at_all(
        name in prop::sample::select(vec![WEB, NOPE, OUTSIDE]),
        edns: bool,
        changes in prop::collection::vec((0usize..80, any::<u8>()), 0..6),
        cut in 0usize..80,
        stranger: bool,
    ) {
        let (core, stats) = (core(), DnsStats::default());
        cache(&core);
        let counters = stats.worker();
        let mut packet = question(name, 1, edns);
        let length = packet.len();
        changes.into_iter().for_each(|(at, value)| packet[at % length] = value);
        packet.truncate(length.saturating_sub(cut / 8));
        let mut out = [0xAA; UDP_BYTES_MAX as usize];
        let client = if stranger { "192.0.2.9:53" } else { "10.244.0.7:53" }.parse().unwrap();
        match core.respond(&packet, Asker { client, ..asker(0) }, &counters, &mut out) {
            Verdict::Silent => prop_assert!(packet.len() < 12 || packet[2] & 0x80 != 0),
            Verdict::Answer(len) | Verdict::AnswerAndPrefetch(len) => {
                prop_assert!(packet[2] & 0x80 == 0, "an answer to an answer");
                prop_assert!(out[2] & 0x80 != 0 && out[..2] == packet[..2]);
                let limit = if edns { 1_232 } else { 512 };
                prop_assert!(len <= limit, "{len} octets");
                if stranger {
                    prop_assert!(len <= packet.len() + 11, "{len} octets to a stranger for {}", packet.len());
                }
                prop_assert!(hickory_proto::op::Message::from_vec(&out[..len]).is_ok());
            }
            Verdict::Hand(_) => prop_assert!(!stranger),
        }
    }
}
