// SPDX-License-Identifier: Apache-2.0
//! Our own names.

use std::collections::BTreeMap;
use std::sync::Arc;

use dns_server::ForwardConfig;
use dns_zone::{Client, Zone, ZoneKind, ZoneService, ZoneSettings};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use crate::client::{answers, ask, ask_tcp, question, question_edns};
use crate::server::{example_zone, forward_to, start};
use crate::upstream::{Mood, Upstream};

#[tokio::test]
async fn a_service_name_gives_its_cluster_ip_with_authority() {
    let server = start(ForwardConfig::default());
    let answer = ask(server.address, &question("Web.default.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    assert!(answer.metadata.authoritative);
    assert!(answer.metadata.recursion_desired && !answer.metadata.recursion_available);
    assert_eq!(answer.metadata.id, 4711);
    assert_eq!(answers(&answer), ["Web.default.svc.cluster.local. 5 IN A 10.96.0.20"]);
    assert!(answer.edns.is_none());
}

#[tokio::test]
async fn srv_and_reverse_names_work() {
    let server = start(ForwardConfig::default());
    let answer =
        ask(server.address, &question("_pg._tcp.db.default.svc.cluster.local.", RecordType::SRV)).await;
    assert_eq!(answer.answers.len(), 2);
    assert_eq!(answer.additionals.len(), 2, "the addresses of the targets come along");
    let answer = ask(server.address, &question("20.0.96.10.in-addr.arpa.", RecordType::PTR)).await;
    assert_eq!(answers(&answer), ["20.0.96.10.in-addr.arpa. 5 IN PTR web.default.svc.cluster.local."]);
}

#[tokio::test]
async fn a_name_that_is_not_there_is_nxdomain_and_one_without_such_records_is_empty() {
    let server = start(ForwardConfig::default());
    let answer = ask(server.address, &question("nope.default.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    assert!(answer.metadata.authoritative);
    assert_eq!(answer.authorities.len(), 1);
    assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);

    let answer = ask(server.address, &question("web.default.svc.cluster.local.", RecordType::AAAA)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    assert!(answer.answers.is_empty());
    assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
}

#[tokio::test]
async fn before_the_first_sync_everything_is_servfail_never_nxdomain() {
    let server = start(ForwardConfig::default());
    server.zone.store(None);
    for name in ["web.default.svc.cluster.local.", "nope.cluster.local.", "example.org."] {
        let answer = ask(server.address, &question(name, RecordType::A)).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail, "{name}");
    }
    server.zone.store(Some(example_zone().into()));
    let answer = ask(server.address, &question("web.default.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_cut_and_whole_over_tcp() {
    let server = start(ForwardConfig::default());
    let name = "big.default.svc.cluster.local.";

    let plain = ask(server.address, &question(name, RecordType::A)).await;
    assert!(plain.metadata.truncation);
    assert!((1..100).contains(&plain.answers.len()), "{}", plain.answers.len());

    let edns = ask(server.address, &question_edns(name, RecordType::A, 4096)).await;
    assert!(edns.metadata.truncation, "no more than fits a frame, whatever the client says");
    assert!(edns.answers.len() > plain.answers.len());
    assert!(edns.edns.is_some(), "the OPT record is never cut");

    let whole = ask_tcp(server.address, &question(name, RecordType::A)).await;
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 100);
    assert_eq!(server.stats.counts().truncated, 2);
}

#[tokio::test]
async fn the_first_question_of_a_search_path_has_the_last_ones_answer() {
    let settings = ZoneSettings { autopath: true, ..ZoneSettings::new("cluster.local") };
    let mut edit = Zone::new(settings).expect("a zone").edit();
    let kind = ZoneKind::ClusterIp(vec![[10, 96, 0, 20].into()]);
    edit.set_service(&ZoneService::new("default", "web", kind));
    let client = Client { namespace: "default".into(), pod: "a".into(), labels: Arc::new(BTreeMap::new()) };
    edit.set_client([127, 0, 0, 1].into(), Some(Arc::new(client)));
    let zone = Arc::new(edit.finish(1));
    let first = question("www.example.org.default.svc.cluster.local.", RecordType::A);

    let upstream = Upstream::start(Mood::Answers(7)).await;
    let server = start(forward_to(&[upstream.address]));
    server.zone.store(Some(zone.clone()));
    let answer = ask(server.address, &first).await;
    let found = answers(&answer);
    assert!(found.iter().any(|line| line.contains(" IN CNAME www.example.org.")), "{answer}");
    assert!(
        found.iter().any(|line| line.starts_with("www.example.org.") && line.ends_with("192.0.2.7")),
        "{answer}"
    );
    assert_eq!(upstream.asked(), 1);

    // Where nobody knows the name, or nobody can be asked, our own name is not there, and that is the answer.
    upstream.change(Mood::KnowsNothing);
    let other = question("nope.example.org.default.svc.cluster.local.", RecordType::A);
    assert_eq!(ask(server.address, &other).await.metadata.response_code, ResponseCode::NXDomain);
    let alone = start(ForwardConfig::default());
    alone.zone.store(Some(zone));
    assert_eq!(ask(alone.address, &first).await.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn dig_itself_is_content() {
    let server = start(ForwardConfig::default());
    let dig = |arguments: &'static [&'static str]| {
        tokio::process::Command::new("dig")
            .args(["@127.0.0.1", "-p", &server.address.port().to_string(), "+time=2", "+tries=1"])
            .args(arguments)
            .output()
    };
    let Ok(output) = dig(&["+short", "big.default.svc.cluster.local"]).await else {
        eprintln!("SKIP dig is not installed (Debian: dnsutils)");
        assert!(std::env::var("CI").as_deref() != Ok("true"), "dig is required in CI");
        return;
    };
    // dig repeats a truncated question over TCP by itself.
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.starts_with("10.")).count(),
        100
    );
    let output = dig(&["nope.default.svc.cluster.local"]).await.expect("dig runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("status: NXDOMAIN") && said.contains("flags: qr aa"), "{said}");
    assert!(said.contains("SOA"), "{said}");
}
