// SPDX-License-Identifier: Apache-2.0
//! Restarts.

use std::net::SocketAddr;
use std::time::Duration;

use dns_server::hold::{Holder, HolderClient};
use dns_server::{DnsConfig, DnsServer, Further};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{oneshot, watch};

use crate::client::{StreamClient, connect, question};
use crate::server::{config, forward_to, start_held};
use crate::upstream::{Mood, Upstream};

const WEB: &str = "web.default.svc.cluster.local.";

/// Sends questions from many ports, so that every worker's socket gets some.
async fn send_questions(to: SocketAddr) -> Vec<UdpSocket> {
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
    let (stop, stopped) = oneshot::channel::<()>();
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

/// Starts a server that is told to stop by dropping what comes first.
fn start_stoppable(
    upstream: &Upstream,
) -> (oneshot::Sender<()>, SocketAddr, tokio::task::JoinHandle<Result<(), dns_server::BindError>>) {
    let config = DnsConfig { forward: forward_to(&[upstream.address]), ..config() };
    let server = DnsServer::bind(config, Vec::new()).expect("binds");
    let (stop, stopped) = oneshot::channel::<()>();
    let address = server.addresses()[0];
    (stop, address, tokio::spawn(server.run(async { drop(stopped.await) })))
}

/// One question over TCP and one over UDP, both under way.
async fn ask_both(server: SocketAddr, upstream: &Upstream) -> (StreamClient<TcpStream>, UdpSocket) {
    let mut stream = connect(server).await;
    stream.send(&question("a.example.org.", RecordType::A)).await;
    let datagram = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let bytes = question("b.example.org.", RecordType::A).to_vec().expect("encodes");
    datagram.send_to(&bytes, server).await.expect("sends");
    while upstream.asked() < 2 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    (stream, datagram)
}

async fn hear(socket: &UdpSocket) -> Message {
    let mut buffer = [0; 512];
    let heard = tokio::time::timeout(Duration::from_secs(2), socket.recv(&mut buffer)).await;
    Message::from_vec(&buffer[..heard.expect("in time").expect("receives")]).expect("decodes")
}

#[tokio::test]
async fn questions_under_way_are_answered_before_the_server_ends() {
    let mut seen = Vec::new();
    // On a busy machine the upstream may take longer than the server has; then once more.
    for _ in 0..4 {
        let upstream = Upstream::start(Mood::Cold(7)).await;
        let (stop, address, running) = start_stoppable(&upstream);
        let (mut stream, datagram) = ask_both(address, &upstream).await;
        drop(stop);
        seen.push((stream.receive().await.answers.len(), hear(&datagram).await.answers.len()));
        running.await.expect("no panic").expect("it ran");
        if seen.last() == Some(&(1, 1)) {
            return;
        }
    }
    panic!("{seen:?}");
}

#[tokio::test]
async fn what_nobody_answers_in_time_is_servfail_when_the_server_ends() {
    let upstream = Upstream::start(Mood::Silent).await;
    let (stop, address, running) = start_stoppable(&upstream);
    let (mut stream, datagram) = ask_both(address, &upstream).await;
    drop(stop);
    let started = std::time::Instant::now();
    assert_eq!(stream.receive().await.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(hear(&datagram).await.metadata.response_code, ResponseCode::ServFail);
    running.await.expect("no panic").expect("it ran");
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

/// A further address, with a port that is free there, and the two ends that a server does not have.
fn further_at(
    ip: &str,
) -> (SocketAddr, Further, watch::Sender<Vec<SocketAddr>>, watch::Receiver<Vec<SocketAddr>>) {
    let free = std::net::UdpSocket::bind((ip, 0)).expect("a socket");
    let address = free.local_addr().expect("bound");
    let (wanted, receiver) = watch::channel(vec![address]);
    let (sender, bound) = watch::channel(Vec::new());
    (address, Further { wanted: receiver, bound: sender }, wanted, bound)
}

/// Waits until it is answered at these.
async fn answered_at(
    bound: &mut watch::Receiver<Vec<SocketAddr>>,
    addresses: &[SocketAddr],
    patience_secs: u64,
) {
    let is_so = bound.wait_for(|bound| *bound == addresses);
    tokio::time::timeout(Duration::from_secs(patience_secs), is_so)
        .await
        .expect("in time")
        .expect("it lives");
}

#[tokio::test]
async fn connections_at_further_addresses_have_their_last_word_too() {
    let upstream = Upstream::start(Mood::Silent).await;
    let (address, further, _wanted, mut bound) = further_at("127.0.7.2");
    let forward = forward_to(&[upstream.address]);
    let server = DnsServer::bind(DnsConfig { further: Some(further), forward, ..config() }, Vec::new());
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(server.expect("binds").run(async { drop(stopped.await) }));
    answered_at(&mut bound, &[address], 8).await;
    let mut stream = connect(address).await;
    stream.send(&question("a.example.org.", RecordType::A)).await;
    while upstream.asked() < 1 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    drop(stop);
    assert_eq!(stream.receive().await.metadata.response_code, ResponseCode::ServFail);
    running.await.expect("no panic").expect("it ran");
}

#[tokio::test]
async fn an_address_comes_back_while_a_question_of_before_still_waits() {
    let upstream = Upstream::start(Mood::Silent).await;
    let (address, further, wanted, mut bound) = further_at("127.0.7.3");
    let forward = forward_to(&[upstream.address]);
    let _server = start_held(DnsConfig { further: Some(further), forward, ..config() }, Vec::new());
    answered_at(&mut bound, &[address], 8).await;
    let datagram = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let bytes = question("b.example.org.", RecordType::A).to_vec().expect("encodes");
    datagram.send_to(&bytes, address).await.expect("sends");
    while upstream.asked() < 1 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    wanted.send_replace(Vec::new());
    answered_at(&mut bound, &[], 3).await;
    wanted.send_replace(vec![address]);
    answered_at(&mut bound, &[address], 2).await;
    let answer = crate::client::ask(address, &question(WEB, RecordType::A)).await;
    assert_eq!(answer.answers.len(), 1);
}

#[tokio::test]
async fn an_address_that_goes_and_comes_back_is_answered_at_again_at_once() {
    let (address, further, wanted, mut bound) = further_at("127.0.7.1");
    let server = start_held(DnsConfig { further: Some(further), ..config() }, Vec::new());
    for (addresses, patience) in [(vec![address], 8), (vec![], 8), (vec![address], 3)] {
        wanted.send_replace(addresses.clone());
        answered_at(&mut bound, &addresses, patience).await;
        if !addresses.is_empty() {
            let answer = crate::client::ask(address, &question(WEB, RecordType::A)).await;
            assert_eq!(answer.answers.len(), 1);
        }
    }
    let a = server.stats.counts().by_type[0];
    assert_eq!(a, ("A", 2), "the first worker's count stays");
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
