// SPDX-License-Identifier: Apache-2.0
//! Restarts.

use std::time::Duration;

use dns_server::hold::{Holder, HolderClient};
use dns_server::{DnsConfig, DnsServer};
use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;
use tokio::net::UdpSocket;

use crate::client::{connect, question};
use crate::server::{config, start_held};

const WEB: &str = "web.default.svc.cluster.local.";

/// Sends questions from many ports, so that every worker's socket gets some.
async fn send_questions(to: std::net::SocketAddr) -> Vec<UdpSocket> {
    let mut clients = Vec::new();
    for _ in 0..32 {
        let client = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        client.connect(to).await.expect("connects");
        client.send(&question(WEB, RecordType::A).to_vec().expect("encodes")).await.expect("sends");
        clients.push(client);
    }
    clients
}

#[tokio::test]
async fn questions_that_came_while_nobody_ran_are_answered_from_the_held_sockets() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("dns.sock");
    let holder = Holder::bind(&path).expect("a holder");
    // It ends with the test's process.
    std::thread::spawn(move || holder.run());
    let client = HolderClient::new(&path);

    let first = DnsServer::bind(config(), client.take().expect("nothing yet")).expect("binds");
    let address = first.addresses()[0];
    client.hold(&first.sockets()).expect("held");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(first.run(async { drop(stopped.await) }));
    assert_eq!(crate::client::ask(address, &question(WEB, RecordType::A)).await.answers.len(), 1);
    drop(stop);
    running.await.expect("no panic").expect("it ran");

    // Away: questions queue, connections too.
    let waiting = send_questions(address).await;
    let mut stream = connect(address).await;
    stream.send(&question(WEB, RecordType::A)).await;

    let held = client.take().expect("held");
    assert_eq!(held.len(), 3, "two workers' and a listener");
    let again = start_held(DnsConfig { addresses: vec![address], ..config() }, held);
    assert_eq!(again.address, address);
    for client in &waiting {
        let mut buffer = [0; 512];
        let answer = tokio::time::timeout(Duration::from_secs(1), client.recv(&mut buffer)).await;
        let length = answer.expect("within a second").expect("receives");
        assert_eq!(Message::from_vec(&buffer[..length]).expect("decodes").answers.len(), 1);
    }
    assert_eq!(stream.receive().await.answers.len(), 1);
}

#[test]
fn a_second_holder_is_told_so_and_a_dead_ones_socket_is_replaced() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("dns.sock");
    let first = Holder::bind(&path).expect("a holder");
    let error = Holder::bind(&path).expect_err("there is one");
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    drop(first);
    assert!(Holder::bind(&path).is_ok());
    assert!(HolderClient::new(&dir.path().join("none")).take().is_err());
}
