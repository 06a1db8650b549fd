// SPDX-License-Identifier: Apache-2.0
//! Who may ask, what may be asked, and what happens to garbage.

use std::time::Duration;

use dns_server::{DnsConfig, ForwardConfig};
use hickory_proto::op::{Edns, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};

use crate::client::{ask, ask_bytes, connect, question};
use crate::server::{Running, clients, config, start, start_with};

const WEB: &str = "web.default.svc.cluster.local.";

#[tokio::test]
async fn a_stranger_is_refused_and_has_no_connection() {
    let server = start_with(DnsConfig { clients: clients(&["10.244.0.0/16"]), ..config() });
    let answer = ask(server.address, &question(WEB, RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
    assert!(answer.answers.is_empty());
    assert!(server.stats.counts().by_rcode.contains(&("REFUSED", 1)));
    assert!(connect(server.address).await.closed_by_server().await);
    assert_eq!(server.stats.counts().streams_refused, 1);
}

#[tokio::test]
async fn nobody_is_answered_where_no_client_is_allowed() {
    let server = start_with(DnsConfig { clients: clients(&[]), ..config() });
    let answer = ask(server.address, &question(WEB, RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
}

#[tokio::test]
async fn a_flood_of_strangers_gets_few_refusals() {
    let server = start_with(DnsConfig { clients: clients(&[]), ..config() });
    let heard = count_answers(&server, 400).await;
    assert!((1..100).contains(&heard), "{heard} refusals");
    assert!(server.stats.counts().rate_limited > 300);
}

#[tokio::test]
async fn a_client_network_has_its_rate_where_one_is_configured() {
    let server = start_with(DnsConfig { answers_per_second: Some(50), ..config() });
    let heard = count_answers(&server, 400).await;
    assert!((50..390).contains(&heard), "{heard} answers");
    let plain = start_with(config());
    assert_eq!(count_answers(&plain, 400).await, 400);
}

/// Sends so many questions at once and counts the answers.
async fn count_answers(server: &Running, questions: usize) -> usize {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.connect(server.address).expect("connects");
    socket.set_read_timeout(Some(Duration::from_secs(2))).expect("an option");
    let bytes = question(WEB, RecordType::A).to_vec().expect("encodes");
    // A quarter of a socket's room for answers, so that none is lost there.
    const AT_ONCE: usize = 40;
    let counting = tokio::task::spawn_blocking(move || {
        let (mut heard, mut asked, mut buffer) = (0, 0, [0; 512]);
        while asked < questions {
            for _ in 0..AT_ONCE.min(questions - asked) {
                socket.send(&bytes).expect("sends");
                asked += 1;
            }
            while heard < asked && socket.recv(&mut buffer).is_ok() {
                heard += 1;
            }
            // Silence is the limit's: nothing more is worth waiting for long.
            if heard < asked {
                socket.set_read_timeout(Some(Duration::from_millis(50))).expect("an option");
            }
        }
        heard
    });
    counting.await.expect("no panic")
}

#[tokio::test]
async fn what_we_do_not_serve_has_its_code() {
    let server = start(ForwardConfig::default());
    for (qtype, rcode) in [
        (RecordType::AXFR, ResponseCode::Refused),
        (RecordType::IXFR, ResponseCode::Refused),
        (RecordType::Unknown(65_280), ResponseCode::NoError),
    ] {
        let answer = ask(server.address, &question(WEB, qtype)).await;
        assert_eq!(answer.metadata.response_code, rcode, "{qtype}");
        assert!(answer.answers.is_empty(), "{qtype}");
    }
    for opcode in [OpCode::Status, OpCode::Notify, OpCode::Update, OpCode::Unknown(9)] {
        let mut message = question(WEB, RecordType::SOA);
        message.metadata.op_code = opcode;
        let answer = ask(server.address, &message).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NotImp, "{opcode}");
    }
    let mut chaos = question(WEB, RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(ask(server.address, &chaos).await.metadata.response_code, ResponseCode::Refused);
}

#[tokio::test]
async fn a_newer_edns_is_told_so() {
    let server = start(ForwardConfig::default());
    let mut message = question(WEB, RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1);
    message.set_edns(edns);
    let answer = ask(server.address, &message).await;
    // 16 is BADVERS in an OPT record and BADSIG in TSIG; the decoder cannot tell.
    assert_eq!(u16::from(answer.metadata.response_code), u16::from(ResponseCode::BADVERS));
    assert_eq!(answer.edns.expect("an OPT record").version(), 0);
}

#[tokio::test]
async fn garbage_gets_formerr_or_silence_and_the_server_lives() {
    let server = start(ForwardConfig::default());
    let mut two = question(WEB, RecordType::A);
    two.add_query(Query::query(Name::root(), RecordType::A));
    assert_eq!(ask(server.address, &two).await.metadata.response_code, ResponseCode::FormErr);
    let mut none = question(WEB, RecordType::A);
    none.queries.clear();
    assert_eq!(ask(server.address, &none).await.metadata.response_code, ResponseCode::FormErr);

    // A header that promises a question, and a name that points at itself.
    let header = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for body in [&[][..], &[0xC0, 12, 0, 1, 0, 1], &[63; 20], &[0, 0]] {
        let answer = ask_bytes(server.address, &[&header[..], body].concat()).await;
        assert_eq!(answer[..2], [0x12, 0x34]);
        assert_eq!(answer[3] & 0x0F, 1, "FORMERR for {body:?}");
    }
    let stranger = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    for length in 0..12 {
        stranger.send_to(&header[..length], server.address).await.expect("sends");
    }
    assert_eq!(ask(server.address, &question(WEB, RecordType::A)).await.answers.len(), 1);
}
