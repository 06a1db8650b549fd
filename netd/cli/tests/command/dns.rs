// SPDX-License-Identifier: Apache-2.0
//! `weft dns`: what is asked of netd, and two servers that are compared over real sockets.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record};
use serde_json::json;

use crate::fake_netd::{FakeNetd, stdout};

/// A server whose names have this address, but for `gone.`, which it does not know.
fn server(address: Ipv4Addr, knows_gone: bool) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let at = socket.local_addr().expect("its address");
    // Ends with the test's process: nobody asks after the test.
    thread::spawn(move || {
        let mut buffer = [0; 1_500];
        while let Ok((len, client)) = socket.recv_from(&mut buffer) {
            let question = Message::from_vec(&buffer[..len]).expect("a question");
            let query = question.queries[0].clone();
            let mut answer = Message::response(question.metadata.id, OpCode::Query);
            if knows_gone || query.name().to_ascii() != "gone." {
                answer.add_answers([Record::from_rdata(query.name().clone(), 5, RData::A(A(address)))]);
            } else {
                answer.metadata.response_code = ResponseCode::NXDomain;
            }
            answer.add_query(query);
            socket.send_to(&answer.to_vec().expect("encodes"), client).expect("sends");
        }
    });
    at
}

#[test]
fn two_servers_are_compared_name_by_name() {
    let address = Ipv4Addr::new(10, 96, 0, 7);
    let (here, there) = (server(address, true), server(address, false));
    let question = |name: &str| json!({"name": name, "type": "A"});
    let part = |questions: serde_json::Value, more: bool| {
        (200, json!({"servers": [here.to_string()], "revision": 7, "questions": questions, "more": more}))
    };
    let netd = FakeNetd::start(&[
        part(json!([question("a."), question("gone.")]), true),
        part(json!([question("b.")]), false),
    ]);
    let output = netd.weft(&["dns", "compare", &there.to_string()]);
    assert_eq!(
        stdout(&output),
        "gone. A\n  here   No Error\n  here   A 10.96.0.7\n  there  Non-Existent Domain\n\
         3 names asked for: 2 the same, 1 different.\n"
    );
    assert_eq!(output.status.code(), Some(1), "they differ");
    let skips: Vec<u64> = netd.requests().iter().filter_map(|(_, body)| body["skip"].as_u64()).collect();
    assert_eq!(skips, [0, 2]);

    let netd = FakeNetd::start(&[part(json!([question("a."), question("b.")]), false)]);
    let output = netd.weft(&["dns", "compare", &there.to_string(), "--rate", "1000"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stdout(&output), "2 names asked for: 2 the same, 0 different.\n");
}

#[test]
fn a_query_names_the_pod_that_asks() {
    let answer = json!({"name": "db.shop.svc.cluster.local.", "type": "SRV", "client": "shop/web", "revision": 7,
        "outcome": "NODATA", "authority": ["cluster.local. 0 IN SOA ns. h. 7 1 1 1 0"]});
    let netd = FakeNetd::start(&[(200, json!({"questions": [answer]}))]);
    let output = netd.weft(&["dns", "query", "db", "SRV", "--as", "shop/web"]);
    assert_eq!(
        stdout(&output),
        "db.shop.svc.cluster.local. SRV, asked by pod shop/web, at revision 7: NODATA\n  \
         authority  cluster.local. 0 IN SOA ns. h. 7 1 1 1 0\n"
    );
    let asked = json!({"name": "db", "type": "SRV", "client": "shop/web"});
    assert_eq!(netd.requests(), [("POST /v1/dns/query".to_owned(), asked)]);
}
