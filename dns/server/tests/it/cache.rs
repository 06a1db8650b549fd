// SPDX-License-Identifier: Apache-2.0
//! What others said is kept.

use std::time::{Duration, Instant};

use dns_server::{DnsConfig, ForwardConfig};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use crate::client::{answers, ask, question, question_edns};
use crate::server::{config, forward_to, start, start_with};
use crate::upstream::{Mood, Upstream};

const NAME: &str = "www.example.org.";

#[tokio::test]
async fn clients_that_ask_the_same_at_once_share_one_question() {
    let upstream = Upstream::start(Mood::Slow(7)).await;
    let server = start(forward_to(&[upstream.address]));
    let asked = question(NAME, RecordType::A);
    let all = futures::future::join_all((0..20).map(|_| ask(server.address, &asked))).await;
    assert!(all.iter().all(|answer| answers(answer)[0].ends_with("192.0.2.7")));
    assert_eq!(upstream.asked(), 1);
}

#[tokio::test]
async fn when_the_upstreams_fail_an_old_answer_is_better_than_none() {
    let upstream = Upstream::start(Mood::Brief(7)).await;
    let server = start(forward_to(&[upstream.address]));
    let asked = question(NAME, RecordType::A);
    assert!(answers(&ask(server.address, &asked).await)[0].contains(" 1 IN A "));
    upstream.change(Mood::Fails);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let answer = ask(server.address, &asked).await;
    assert_eq!(answers(&answer), [format!("{NAME} 30 IN A 192.0.2.7")]);
    // For a while nobody waits for the upstreams.
    let before = upstream.asked();
    assert_eq!(answers(&ask(server.address, &asked).await), [format!("{NAME} 30 IN A 192.0.2.7")]);
    assert_eq!((upstream.asked(), server.stats.counts().stale), (before, 2));
}

#[tokio::test]
async fn a_silent_upstream_delays_an_old_answer_by_less_than_a_clients_patience() {
    let upstream = Upstream::start(Mood::Brief(7)).await;
    let server = start(forward_to(&[upstream.address]));
    let asked = question(NAME, RecordType::A);
    ask(server.address, &asked).await;
    upstream.change(Mood::Silent);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let started = Instant::now();
    assert_eq!(answers(&ask(server.address, &asked).await), [format!("{NAME} 30 IN A 192.0.2.7")]);
    assert!(started.elapsed() < Duration::from_millis(2_400), "{:?}", started.elapsed());
}

/// Names of ours that lead to names of others give what is left of their time.
#[tokio::test]
async fn behind_an_alias_of_ours_an_answer_is_as_old_as_it_is() {
    const ALIAS: &str = "out.default.svc.cluster.local.";
    let upstream = Upstream::start(Mood::Answers(7)).await;
    let server = start(forward_to(&[upstream.address]));
    let asked = question(ALIAS, RecordType::A);
    let ttl = |answer: &hickory_proto::op::Message| answer.answers.last().expect("an address").ttl;
    assert_eq!(ttl(&ask(server.address, &asked).await), 300);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let answer = ask(server.address, &asked).await;
    assert!((290..300).contains(&ttl(&answer)), "{answer}");
    assert_eq!((answer.answers[0].ttl, upstream.asked()), (5, 1));

    let brief = Upstream::start(Mood::Brief(7)).await;
    let server = start(forward_to(&[brief.address]));
    ask(server.address, &asked).await;
    brief.change(Mood::Fails);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(ttl(&ask(server.address, &asked).await), 30, "out of date");
}

#[tokio::test]
async fn what_many_ask_for_is_asked_again_before_it_is_out_of_date() {
    let upstream = Upstream::start(Mood::Short(7)).await;
    let server = start(forward_to(&[upstream.address]));
    // One asker by the alias, two by the name itself.
    for name in ["out.default.svc.cluster.local.", NAME, NAME] {
        ask(server.address, &question(name, RecordType::A)).await;
    }
    let cached = Instant::now();
    assert_eq!(upstream.asked(), 1);
    upstream.change(Mood::Answers(8));
    // Never past its end, where the question itself would do it.
    while upstream.asked() == 1 && cached.elapsed() < Duration::from_millis(9_700) {
        ask(server.address, &question("out.default.svc.cluster.local.", RecordType::A)).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(upstream.asked(), 2);
    let answer = ask(server.address, &question(NAME, RecordType::A)).await;
    assert!(answers(&answer)[0].ends_with("192.0.2.8"), "{answer}");
}

#[tokio::test]
async fn what_does_not_exist_elsewhere_is_kept_as_its_soa_says() {
    let upstream = Upstream::start(Mood::KnowsNothing).await;
    let server = start(forward_to(&[upstream.address]));
    for _ in 0..3 {
        let answer = ask(server.address, &question(NAME, RecordType::A)).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        assert!(answer.authorities[0].ttl <= 60);
    }
    assert_eq!(upstream.asked(), 1);
    assert_eq!(server.stats.counts().cache_hits, 2);
}

#[tokio::test]
async fn the_case_asked_for_comes_back_from_the_cache() {
    let upstream = Upstream::start(Mood::Answers(7)).await;
    let server = start(forward_to(&[upstream.address]));
    for name in ["www.example.org.", "WWW.eXample.ORG.", "wWw.Example.Org."] {
        let answer = ask(server.address, &question_edns(name, RecordType::A, 1232)).await;
        assert_eq!(answer.queries[0].name().to_string(), name);
        assert_eq!(answer.answers[0].name.to_string(), name);
        assert!(answer.edns.is_some());
    }
    assert_eq!(upstream.asked(), 1);
}

#[tokio::test]
async fn the_cache_keeps_to_its_bytes() {
    let upstream = Upstream::start(Mood::Answers(7)).await;
    let forward = ForwardConfig { cache_bytes: 64 * 1024, ..forward_to(&[upstream.address]) };
    let server = start_with(DnsConfig { forward, ..config() });
    for n in 0..400 {
        ask(server.address, &question(&format!("n{n}.example.org."), RecordType::A)).await;
    }
    let counts = server.stats.counts();
    assert!(counts.cache_bytes <= 64 * 1024 && counts.cache_entries > 50, "{counts:?}");
    assert!(counts.cache_evictions > 100, "{counts:?}");
}
