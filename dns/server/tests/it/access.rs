// SPDX-License-Identifier: Apache-2.0
//! Who may ask, what may be asked, and what happens to garbage.

use dns_server::ForwardConfig;
use hickory_proto::op::{Edns, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};

use crate::client::{ask, ask_bytes, ask_tcp, question};
use crate::server::{start, start_for};

const WEB: &str = "web.default.svc.cluster.local.";

#[tokio::test]
async fn a_stranger_is_refused_over_both_transports() {
    let server = start_for(&["10.244.0.0/16"], ForwardConfig::default());
    let question = question(WEB, RecordType::A);
    for answer in [ask(server.address, &question).await, ask_tcp(server.address, &question).await] {
        assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
        assert!(answer.answers.is_empty());
    }
    assert!(server.stats.counts().by_rcode.contains(&("REFUSED", 2)));
}

#[tokio::test]
async fn nobody_is_answered_where_no_client_is_allowed() {
    let server = start_for(&[], ForwardConfig::default());
    let answer = ask(server.address, &question(WEB, RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
}

#[tokio::test]
async fn what_we_do_not_serve_has_its_code() {
    let server = start(ForwardConfig::default());
    for (qtype, rcode) in [
        (RecordType::ANY, ResponseCode::NotImp),
        (RecordType::AXFR, ResponseCode::Refused),
        (RecordType::IXFR, ResponseCode::Refused),
        (RecordType::OPT, ResponseCode::NotImp),
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
