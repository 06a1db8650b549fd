// SPDX-License-Identifier: Apache-2.0
//! Whom the server believes, and how it gets along with name servers of every kind.

use std::time::Duration;

use dns_server::{DnsConfig, ForwardConfig, StubZone};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use crate::client::{answers, ask, question};
use crate::server::{Running, config, forward_to, start, start_with};
use crate::upstream::{Mood, Upstream};

async fn address_of(server: &Running, name: &str) -> String {
    let answer = ask(server.address, &question(name, RecordType::A)).await;
    answers(&answer).first().and_then(|line| line.rsplit(' ').next().map(str::to_owned)).unwrap_or_default()
}

#[tokio::test]
async fn names_go_out_in_random_case() {
    let upstream = Upstream::start(Mood::Answers(7)).await;
    let server = start(forward_to(&[upstream.address]));
    for n in 0..5 {
        assert_eq!(address_of(&server, &format!("abcdefghijklmnop{n}.example.org.")).await, "192.0.2.7");
    }
    let mixed = |name: &String| *name != name.to_lowercase();
    assert!(upstream.names().iter().filter(|name| mixed(name)).count() >= 4, "{:?}", upstream.names());
}

#[tokio::test]
async fn forged_answers_are_passed_over() {
    let upstream = Upstream::start(Mood::Attacked(7)).await;
    let server = start(forward_to(&[upstream.address]));
    for n in 0..5 {
        assert_eq!(address_of(&server, &format!("n{n}.example.org.")).await, "192.0.2.7");
    }
}

#[tokio::test]
async fn an_upstream_that_changes_the_case_is_asked_over_tcp_once_and_then_in_lower_case() {
    let upstream = Upstream::start(Mood::FoldsCase(7)).await;
    let server = start(forward_to(&[upstream.address]));
    assert_eq!(address_of(&server, "abcdefghijklmnopqrstuvwxyz.example.org.").await, "192.0.2.7");
    assert_eq!(upstream.asked_tcp(), 1);
    assert_eq!(address_of(&server, "zyxwvutsrqponmlkjihgfedcba.example.org.").await, "192.0.2.7");
    assert_eq!(upstream.asked_tcp(), 1);
}

#[tokio::test]
async fn an_upstream_without_edns_is_asked_without() {
    let upstream = Upstream::start(Mood::Old(7)).await;
    let server = start(forward_to(&[upstream.address]));
    assert_eq!(address_of(&server, "a.example.org.").await, "192.0.2.7");
    let before = upstream.asked();
    assert_eq!(address_of(&server, "b.example.org.").await, "192.0.2.7");
    assert_eq!(upstream.asked(), before + 1, "it remembers");
}

#[tokio::test]
async fn an_upstream_gets_the_cookie_it_gave() {
    let upstream = Upstream::start(Mood::WantsCookie(7)).await;
    let server = start(forward_to(&[upstream.address]));
    // It refuses us over UDP, and gives its cookie along.
    assert_eq!(address_of(&server, "a.example.org.").await, "192.0.2.7");
    let before = upstream.asked_tcp();
    assert_eq!(address_of(&server, "b.example.org.").await, "192.0.2.7");
    assert_eq!(upstream.asked_tcp(), before, "with the cookie UDP does");
}

#[tokio::test]
async fn an_upstream_that_gives_cookies_no_more_is_believed_without() {
    let upstream = Upstream::start(Mood::WantsCookie(7)).await;
    let server = start(forward_to(&[upstream.address]));
    assert_eq!(address_of(&server, "a.example.org.").await, "192.0.2.7");
    // Started anew, or another one behind the same address.
    upstream.change(Mood::Answers(8));
    assert_eq!(address_of(&server, "b.example.org.").await, "192.0.2.8");
    let (before, started) = (upstream.asked_tcp(), std::time::Instant::now());
    assert_eq!(address_of(&server, "c.example.org.").await, "192.0.2.8");
    assert_eq!(upstream.asked_tcp(), before, "UDP does again");
    assert!(started.elapsed() < Duration::from_millis(1_200), "{:?}", started.elapsed());
}

#[tokio::test]
async fn an_upstream_that_was_confused_once_is_asked_with_edns_all_the_same() {
    let upstream = Upstream::start(Mood::Confused).await;
    let server = start(forward_to(&[upstream.address]));
    let answer = ask(server.address, &question("a.example.org.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    // Only with EDNS has it the cookie that this wants.
    upstream.change(Mood::WantsCookie(7));
    assert_eq!(address_of(&server, "b.example.org.").await, "192.0.2.7");
}

#[tokio::test]
async fn a_stub_zone_that_leads_back_to_us_is_found_out() {
    let stub = Upstream::start(Mood::Silent).await;
    let zone = dns_zone::Name::parse("corp.example").expect("a name");
    let stubs = vec![StubZone { zone, upstreams: vec![stub.address.into()] }];
    let forward = ForwardConfig { stubs, probe: true, ..forward_to(&[]) };
    let server = start_with(DnsConfig { forward, ..config() });
    stub.change(Mood::StubCircle(server.address));
    for n in 0..200 {
        let name = format!("n{n}.corp.example.");
        ask(server.address, &question(&name, RecordType::A)).await;
        if stub.asked_for(&name) == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("still asked: {:?}", stub.names());
}

#[tokio::test]
async fn an_upstream_that_leads_back_to_us_is_found_out() {
    let circle = Upstream::start(Mood::Silent).await;
    let forward = ForwardConfig { probe: true, ..forward_to(&[circle.address]) };
    let server = start_with(DnsConfig { forward, ..config() });
    circle.change(Mood::Circle(server.address));
    let healthy =
        |server: &Running| server.stats.counts().upstreams.first().is_none_or(|upstream| upstream.healthy);
    for _ in 0..200 {
        if !healthy(&server) && circle.asked_for("www.example.org.") == 0 {
            ask(server.address, &question("www.example.org.", RecordType::A)).await;
            if circle.asked_for("www.example.org.") == 0 {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("still asked: {:?}", circle.names());
}

#[tokio::test]
async fn a_stub_zone_is_asked_of_its_own_servers() {
    let (world, corp) = (Upstream::start(Mood::Answers(7)).await, Upstream::start(Mood::Answers(8)).await);
    let zone = dns_zone::Name::parse("corp.example").expect("a name");
    let stubs = vec![StubZone { zone, upstreams: vec![corp.address.into()] }];
    let server = start(ForwardConfig { stubs, ..forward_to(&[world.address]) });
    assert_eq!(address_of(&server, "db.Corp.example.").await, "192.0.2.8");
    assert_eq!(address_of(&server, "notcorp.example.").await, "192.0.2.7");
    let alone = start(ForwardConfig {
        stubs: vec![StubZone {
            zone: dns_zone::Name::parse("corp.example").expect("a name"),
            upstreams: vec![corp.address.into()],
        }],
        ..forward_to(&[])
    });
    assert_eq!(address_of(&alone, "db.corp.example.").await, "192.0.2.8");
    let other = ask(alone.address, &question("www.example.org.", RecordType::A)).await;
    assert_eq!(other.metadata.response_code, ResponseCode::Refused);
}

#[tokio::test]
async fn an_upstream_that_failed_is_first_again_when_it_is_back() {
    let (first, second) = (Upstream::start(Mood::Silent).await, Upstream::start(Mood::Answers(8)).await);
    let forward = ForwardConfig { probe: true, ..forward_to(&[first.address, second.address]) };
    let server = start_with(DnsConfig { forward, ..config() });
    assert_eq!(address_of(&server, "a.example.org.").await, "192.0.2.8");
    first.change(Mood::Answers(7));
    for n in 0..100 {
        if address_of(&server, &format!("n{n}.example.org.")).await == "192.0.2.7" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("it is not asked any more");
}
