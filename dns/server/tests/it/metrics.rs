// SPDX-License-Identifier: Apache-2.0
//! What is counted.

use hickory_proto::rr::RecordType;

use crate::client::{ask, question};
use crate::server::{forward_to, start};
use crate::upstream::{Mood, Upstream};

#[tokio::test]
async fn what_was_asked_and_answered_is_counted_by_source_type_and_code() {
    let upstream = Upstream::start(Mood::Answers(7)).await;
    let server = start(forward_to(&[upstream.address]));
    for (name, qtype) in [
        ("web.default.svc.cluster.local.", RecordType::A),
        ("web.default.svc.cluster.local.", RecordType::AAAA),
        ("nope.default.svc.cluster.local.", RecordType::A),
        ("20.0.96.10.in-addr.arpa.", RecordType::PTR),
        ("www.example.org.", RecordType::A),
        ("www.example.org.", RecordType::A),
    ] {
        ask(server.address, &question(name, qtype)).await;
    }
    let counts = server.stats.counts();
    for (source, qtype, rcode, count) in [
        ("cluster", "A", "NOERROR", 1),
        ("cluster", "AAAA", "NOERROR", 1),
        ("cluster", "A", "NXDOMAIN", 1),
        ("reverse", "PTR", "NOERROR", 1),
        ("outside", "A", "NOERROR", 2),
    ] {
        assert!(counts.answers.contains(&(source, qtype, rcode, count)), "{source} {qtype}: {counts:?}");
    }
    assert_eq!((counts.forwarded, counts.cache_hits, counts.cache_entries), (2, 1, 1));
    assert!(counts.cache_bytes > 0);
    let upstream_counts = &counts.upstreams[0];
    assert_eq!((upstream_counts.answers, upstream_counts.healthy), (1, true));
    assert!(!upstream_counts.rtt.is_zero());
    // The last latency is counted after its answer has gone.
    for _ in 0..100 {
        if server.stats.counts().latency.iter().map(|(_, count)| count).sum::<u64>() == 6 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{:?}", server.stats.counts().latency);
}
