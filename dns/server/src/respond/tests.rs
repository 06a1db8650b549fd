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
use crate::life::Part;
use crate::stats::DnsStats;
use crate::wire::Key;

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

pub(crate) fn core() -> Core {
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
        refusals: Rate::new(10, crate::rate::NETWORK),
        answers: None,
        log: QueryLog::new(0),
        life: Life::new(),
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

/// The client is a pod whose search path is looked through.
fn with_autopath(core: &Core) {
    let settings = ZoneSettings { autopath: true, ttl_secs: 7, ..ZoneSettings::new("cluster.local") };
    let mut edit = Zone::new(settings).unwrap().edit();
    let pod = Client { namespace: "default".into(), pod: "c".into(), labels: Arc::default() };
    edit.set_client("10.244.0.7".parse().unwrap(), Some(Arc::new(pod)));
    edit.set_service(&ZoneService::new(
        "default",
        "web",
        ZoneKind::ClusterIp(vec!["10.96.0.20".parse().unwrap()]),
    ));
    core.zone.store(Some(Arc::new(edit.finish(43))));
}

const SEARCHED: &[u8] = b"\x03www\x07example\x03org\x07default\x03svc\x07cluster\x05local\0";

fn read(out: &[u8]) -> Vec<(u32, String)> {
    let answer = hickory_proto::op::Message::from_vec(out).unwrap();
    answer.answers.iter().map(|record| (record.ttl, record.data.to_string())).collect()
}

#[test]
fn a_search_path_is_answered_on_the_spot_where_its_names_are_cached() {
    let (core, stats) = (core(), DnsStats::default());
    let counters = stats.worker();
    with_autopath(&core);
    let packet = question(SEARCHED, 1, true);
    let mut out = [0; UDP_BYTES_MAX as usize];
    let first = core.respond(&packet, asker(0), &counters, &mut out);
    assert!(matches!(first, Verdict::Hand(_)), "nothing is cached yet");
    cache(&core);
    let Verdict::Answer(len) = core.respond(&packet, asker(40_000_000), &counters, &mut out) else {
        panic!("handed on, though it is cached")
    };
    // An alias to the name with the zone's TTL, and its address with what is left of its own.
    assert_eq!(read(&out[..len]), [(7, "www.example.org.".into()), (216, "192.0.2.1".into())]);
    assert_eq!(stats.counts().cache_hits, 1);
}

/// What pods ask most is put together of ours and of cached records. The zone's decision has its values to make; nothing is
/// decoded, and the answer itself costs three allocations, for the alias.
#[test]
fn an_answer_through_a_search_path_costs_few_allocations() {
    const ALLOCATIONS_MAX: u64 = 15;
    let (core, stats) = (core(), DnsStats::default());
    let counters = stats.worker();
    with_autopath(&core);
    cache(&core);
    let packet = question(SEARCHED, 1, true);
    let mut out = [0; UDP_BYTES_MAX as usize];
    let mut round = |times: u64| {
        for now_us in 0..times {
            assert!(matches!(core.respond(&packet, asker(now_us), &counters, &mut out), Verdict::Answer(_)));
        }
    };
    round(1);
    let before = ALLOCATIONS.get();
    let started = std::time::Instant::now();
    round(1_000);
    let each = (ALLOCATIONS.get() - before) / 1_000;
    eprintln!("{each} allocations, {:?} for one answer", started.elapsed() / 1_000);
    assert!(each <= ALLOCATIONS_MAX, "{each}");
}

/// Workers have no runtime: what is not known at the moment of the look is handed on, never asked from here.
#[test]
fn whatever_the_clock_says_between_two_looks_a_worker_never_asks_the_upstreams() {
    let (core, stats) = (core(), DnsStats::default());
    let counters = stats.worker();
    with_autopath(&core);
    let mut out = [0; UDP_BYTES_MAX as usize];
    let ends_us = core.forwarder.now_ms() * 1_000 + 20_000;
    let entry = || {
        let mut wire = question(OUTSIDE, 1, false);
        wire[2] = 0x81;
        wire[7] = 1;
        wire.extend_from_slice(&[0xC0, 12, 0, 1, 0, 1, 0, 0, 1, 0, 0, 4, 192, 0, 2, 1]);
        Arc::new(Entry::new(wire, ends_us / 1_000, 0).unwrap())
    };
    core.forwarder.cache().keep(&Key::new(OUTSIDE, 1, 0), entry());
    let (mut answered, mut handed) = (0, 0);
    // The batch's time stands still while the clock passes the entry's end.
    while core.forwarder.now_ms() * 1_000 < ends_us + 5_000 {
        for now_us in [ends_us - 1_000, ends_us] {
            match core.respond(&question(SEARCHED, 1, true), asker(now_us), &counters, &mut out) {
                Verdict::Answer(_) => answered += 1,
                Verdict::Hand(_) => handed += 1,
                Verdict::Silent => panic!("an answer"),
            }
        }
    }
    assert_eq!((answered, answered > 0), (handed, true));
}

#[test]
fn without_a_place_in_flight_an_old_answer_is_given_and_an_unknown_name_refused() {
    let (core, stats) = (core(), DnsStats::default());
    let counters = stats.worker();
    with_autopath(&core);
    cache(&core);
    let _tickets: Vec<_> =
        (0..8).filter_map(|_| core.admission.enter("10.244.0.7".parse().unwrap())).collect();
    let mut out = [0; UDP_BYTES_MAX as usize];
    for name in [OUTSIDE, SEARCHED] {
        let verdict = core.respond(&question(name, 1, false), asker(300_000_000), &counters, &mut out);
        let Verdict::Answer(len) = verdict else { panic!("an old answer") };
        assert_eq!(read(&out[..len]).last().unwrap(), &(30, "192.0.2.1".into()));
    }
    assert_eq!((stats.counts().stale, stats.counts().forward_overloads), (2, 0));
    let unknown = question(b"\x03new\x07example\x03org\0", 1, false);
    let Verdict::Answer(_) = core.respond(&unknown, asker(300_000_000), &counters, &mut out) else {
        panic!("refused")
    };
    assert_eq!((out[3] & 15, stats.counts().forward_overloads), (5, 1));
}

#[test]
fn a_name_asked_through_a_search_path_is_asked_for_again_in_its_last_tenth() {
    let (core, stats) = (core(), DnsStats::default());
    let counters = stats.worker();
    with_autopath(&core);
    cache(&core);
    let mut out = [0; UDP_BYTES_MAX as usize];
    for now_us in [1_000, 2_000, 250_000_000, 250_000_001] {
        core.respond(&question(SEARCHED, 1, false), asker(now_us), &counters, &mut out);
    }
    assert_eq!(core.forwarder.wanted(), [Key::new(OUTSIDE, 1, 0).to_vec()]);
    assert_eq!(stats.counts().cache_hits, 4);
}

#[tokio::test]
async fn a_part_that_panics_ends_the_server_and_one_that_is_told_to_stop_does_not() {
    use std::sync::atomic::AtomicBool;

    let core = Arc::new(core());
    let end = |is_told: bool| {
        let part = Part::new(core.clone(), Arc::new(AtomicBool::new(is_told)), "worker");
        let thread = std::thread::spawn(move || {
            let _part = part;
            assert!(is_told, "as a worker might");
        });
        assert_eq!(thread.join().is_ok(), is_told);
    };
    let lost =
        async || tokio::time::timeout(std::time::Duration::from_millis(50), core.life.lost_a_part()).await;
    end(true);
    assert!(lost().await.is_err());
    end(false);
    assert!(lost().await.is_ok());
    core.life.enter(crate::life::Phase::Closing);
    end(false);
    assert!(lost().await.is_err(), "it stops anyway");
}

#[test]
fn past_its_rate_a_client_is_told_every_second_time_to_come_over_tcp() {
    let (core, stats) = (core(), DnsStats::default());
    let core = Core { answers: Some(Rate::new(10, crate::rate::CLIENT)), ..core };
    let counters = stats.worker();
    let mut out = [0; UDP_BYTES_MAX as usize];
    let (mut whole, mut over_tcp, mut silent) = (0, 0, 0);
    for _ in 0..30 {
        match core.respond(&question(WEB, 1, false), asker(0), &counters, &mut out) {
            Verdict::Answer(_) if out[2] & TC != 0 => over_tcp += 1,
            Verdict::Answer(_) => whole += 1,
            _ => silent += 1,
        }
    }
    assert_eq!((whole, over_tcp, silent), (10, 10, 10));
    let other = Asker { client: "10.244.0.8:53".parse().unwrap(), ..asker(0) };
    core.respond(&question(WEB, 1, false), other, &counters, &mut out);
    assert_eq!((out[2] & TC, out[7]), (0, 1), "another pod of the node");
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
            Verdict::Answer(len) => {
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
