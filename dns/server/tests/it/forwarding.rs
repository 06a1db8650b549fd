// SPDX-License-Identifier: Apache-2.0
//! Names of others.

use std::time::{Duration, Instant};

use dns_server::ForwardConfig;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;

use crate::client::{answers, ask, question};
use crate::server::{Running, forward_to, start};
use crate::upstream::{Mood, Upstream};

async fn ask_outside(server: &Running) -> Message {
    ask(server.address, &question("www.example.org.", RecordType::A)).await
}

#[tokio::test]
async fn an_outside_name_is_forwarded_and_cached() {
    let upstream = Upstream::start(Mood::Answers(7)).await;
    let server = start(forward_to(&[upstream.address]));
    for _ in 0..3 {
        let answer = ask_outside(&server).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        assert!(answer.metadata.recursion_available && !answer.metadata.authoritative);
        assert!(answers(&answer)[0].ends_with(" IN A 192.0.2.7"), "{answer}");
    }
    assert_eq!(upstream.asked(), 1);
    assert_eq!(server.stats.counts().forwarded, 3);
}

#[tokio::test]
async fn nxdomain_of_the_upstream_comes_back_with_its_soa() {
    let upstream = Upstream::start(Mood::KnowsNothing).await;
    let server = start(forward_to(&[upstream.address]));
    let answer = ask_outside(&server).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    assert!(!answer.metadata.authoritative);
    assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
}

/// On a busy machine any answer may be late: the quickest of a few says what the server does.
const TRIES: usize = 4;

#[tokio::test]
async fn a_silent_upstream_is_overtaken_by_the_next_and_then_asked_last() {
    let (silent, good) = (Upstream::start(Mood::Silent).await, Upstream::start(Mood::Answers(8)).await);
    let mut quickest = Duration::MAX;
    for _ in 0..TRIES {
        let server = start(forward_to(&[silent.address, good.address]));
        let started = Instant::now();
        let answer = ask_outside(&server).await;
        quickest = quickest.min(started.elapsed());
        assert!(answers(&answer)[0].ends_with("192.0.2.8"), "{answer}");
    }
    assert!(quickest < Duration::from_millis(500), "{quickest:?}");

    // It is listened to a little longer, for it may be no more than slow.
    let server = start(forward_to(&[silent.address, good.address]));
    ask_outside(&server).await;
    wait_until(|| !server.stats.counts().upstreams[0].healthy).await;
    let answer = ask(server.address, &question("other.example.org.", RecordType::A)).await;
    assert!(answers(&answer)[0].ends_with("192.0.2.8"), "{answer}");
    assert_eq!(silent.asked_for("other.example.org."), 0, "the one that answers is asked first now");
}

#[tokio::test]
async fn two_silent_upstreams_before_the_third_cost_less_than_half_a_second() {
    let (one, two) = (Upstream::start(Mood::Silent).await, Upstream::start(Mood::Silent).await);
    let good = Upstream::start(Mood::Answers(8)).await;
    let mut quickest = Duration::MAX;
    for _ in 0..TRIES {
        let server = start(forward_to(&[one.address, two.address, good.address]));
        let started = Instant::now();
        assert_eq!(ask_outside(&server).await.answers.len(), 1);
        quickest = quickest.min(started.elapsed());
    }
    assert!(quickest < Duration::from_millis(500), "{quickest:?}");
}

/// Bounded; panics when it does not come.
async fn wait_until(is_so: impl Fn() -> bool) {
    for _ in 0..500 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it does not come");
}

#[tokio::test]
async fn who_is_only_slow_is_waited_for_before_others_say_that_there_is_no_such_name() {
    let mut seen = Vec::new();
    for _ in 0..TRIES {
        seen.push(ask_slow_and_ignorant().await);
        if seen.last() == Some(&(true, true)) {
            return;
        }
    }
    panic!("{seen:?}");
}

/// The first server knows the name and is slow, the second knows nothing. Whether the first one's answer came, and whether it
/// is still asked first.
async fn ask_slow_and_ignorant() -> (bool, bool) {
    let (corp, public) = (Upstream::start(Mood::Answers(7)).await, Upstream::start(Mood::Answers(8)).await);
    let server = start(forward_to(&[corp.address, public.address]));
    // Its usual round trip is far below what a cold name takes.
    ask_outside(&server).await;
    public.change(Mood::KnowsNothing);
    corp.change(Mood::Cold(7));
    let answer = ask(server.address, &question("db.corp.example.", RecordType::A)).await;
    let is_found = answers(&answer).first().is_some_and(|line| line.ends_with("192.0.2.7"));
    // An address of the second one is as good; the first is not held to be ill for being slow.
    public.change(Mood::Answers(8));
    ask(server.address, &question("other.corp.example.", RecordType::A)).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    (is_found, server.stats.counts().upstreams.iter().all(|upstream| upstream.healthy))
}

#[tokio::test]
async fn nobody_waits_long_for_the_dead_to_hear_that_there_is_no_such_name() {
    let (dead, public) = (Upstream::start(Mood::Silent).await, Upstream::start(Mood::KnowsNothing).await);
    let server = start(forward_to(&[dead.address, public.address]));
    let started = Instant::now();
    assert_eq!(ask_outside(&server).await.metadata.response_code, ResponseCode::NXDomain);
    assert!(started.elapsed() < Duration::from_millis(1_500), "{:?}", started.elapsed());
}

#[tokio::test]
async fn an_upstream_that_is_gone_or_fails_is_followed_by_the_next() {
    let gone = Upstream::start(Mood::Silent).await.address;
    let (failing, good) = (Upstream::start(Mood::Fails).await, Upstream::start(Mood::Answers(9)).await);
    let server = start(forward_to(&[gone, failing.address, good.address]));
    let started = Instant::now();
    let answer = ask_outside(&server).await;
    assert!(answers(&answer)[0].ends_with("192.0.2.9"), "{answer}");
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_truncated_answer_is_asked_for_again_over_tcp() {
    let upstream = Upstream::start(Mood::Truncates).await;
    let server = start(forward_to(&[upstream.address]));
    let answer = ask_outside(&server).await;
    assert!(answers(&answer)[0].ends_with("192.0.2.77"), "{answer}");
    assert_eq!(upstream.asked_tcp(), 1);
}

#[tokio::test]
async fn an_external_name_is_followed_to_the_upstream() {
    let upstream = Upstream::start(Mood::Answers(7)).await;
    let server = start(forward_to(&[upstream.address]));
    let answer = ask(server.address, &question("out.default.svc.cluster.local.", RecordType::A)).await;
    let found = answers(&answer);
    assert_eq!(found[0], "out.default.svc.cluster.local. 5 IN CNAME www.example.org.");
    assert!(found[1].starts_with("www.example.org.") && found[1].ends_with("192.0.2.7"), "{answer}");

    let alias = ask(server.address, &question("out.default.svc.cluster.local.", RecordType::CNAME)).await;
    assert_eq!(alias.answers.len(), 1);
}

#[tokio::test]
async fn no_upstream_that_works_is_servfail_and_none_at_all_is_refused() {
    let failing = Upstream::start(Mood::Fails).await;
    let server = start(forward_to(&[failing.address]));
    assert_eq!(ask_outside(&server).await.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(server.stats.counts().forward_failures, 1);

    let server = start(ForwardConfig::default());
    assert_eq!(ask_outside(&server).await.metadata.response_code, ResponseCode::Refused);
    let alias = ask(server.address, &question("out.default.svc.cluster.local.", RecordType::A)).await;
    assert_eq!((alias.metadata.response_code, alias.answers.len()), (ResponseCode::NoError, 1));
}

#[tokio::test]
async fn past_the_maximum_in_flight_the_answer_is_refused_at_once() {
    let silent = Upstream::start(Mood::Silent).await;
    let server = start(ForwardConfig { in_flight_max: 1, ..forward_to(&[silent.address]) });
    let address = server.address;
    let waiting = tokio::spawn(async move { ask(address, &question("a.example.org.", RecordType::A)).await });
    while silent.asked() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let started = Instant::now();
    assert_eq!(ask_outside(&server).await.metadata.response_code, ResponseCode::Refused);
    assert!(started.elapsed() < Duration::from_secs(1));
    assert_eq!(server.stats.counts().forward_overloads, 1);
    // Our own names are answered all the same.
    let own = ask(server.address, &question("web.default.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(own.answers.len(), 1);
    assert_eq!(waiting.await.expect("ends").metadata.response_code, ResponseCode::ServFail);
}
