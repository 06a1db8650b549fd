// SPDX-License-Identifier: Apache-2.0
//! More than the server can do.

use std::time::{Duration, Instant};

use dns_server::{DnsConfig, ForwardConfig};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use tokio::net::UdpSocket;

use crate::client::{ask, question};
use crate::server::{config, forward_to, start, start_with};
use crate::upstream::{Mood, Upstream};

const WEB: &str = "web.default.svc.cluster.local.";

#[tokio::test]
async fn one_client_cannot_take_all_places_in_flight() {
    let upstream = Upstream::start(Mood::Silent).await;
    let server = start(ForwardConfig { in_flight_max: 16, ..forward_to(&[upstream.address]) });
    let greedy = UdpSocket::bind("127.0.0.2:0").await.expect("a socket");
    for n in 0..64 {
        let question = question(&format!("n{n}.example.org."), RecordType::A).to_vec().expect("encodes");
        greedy.send_to(&question, server.address).await.expect("sends");
    }
    // A quarter of the places; all others are refused at once.
    let mut buffer = [0; 512];
    for _ in 0..60 {
        let heard = tokio::time::timeout(Duration::from_secs(2), greedy.recv(&mut buffer)).await;
        heard.expect("in time").expect("receives");
        assert_eq!(buffer[3] & 0x0F, 5, "REFUSED");
    }
    assert_eq!(server.stats.counts().forward_overloads, 60);
    // Another client gets in, and names of ours are answered to everybody.
    upstream.change(Mood::Answers(7));
    let answer = ask(server.address, &question("other.example.org.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    assert_eq!(ask(server.address, &question(WEB, RecordType::A)).await.answers.len(), 1);
}

#[tokio::test]
async fn it_recovers_at_once_when_the_flood_is_over() {
    let upstream = Upstream::start(Mood::Silent).await;
    let server = start(ForwardConfig { in_flight_max: 4, ..forward_to(&[upstream.address]) });
    let asked = |n: usize| question(&format!("n{n}.example.org."), RecordType::A);
    let flood: Vec<_> = (0..20).map(asked).collect();
    let all = futures::future::join_all(flood.iter().map(|one| ask(server.address, one))).await;
    let refused = all.iter().filter(|answer| answer.metadata.response_code == ResponseCode::Refused).count();
    assert!((16..20).contains(&refused), "{refused}");
    upstream.change(Mood::Answers(7));
    let answer = ask(server.address, &asked(100)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
}

/// A short flood with garbage in it, while a client asks now and then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_questions_and_garbage_leaves_others_their_answers() {
    let server = start_with(DnsConfig { workers: 1, ..config() });
    let address = server.address;
    let flood = std::thread::spawn(move || {
        let socket = std::net::UdpSocket::bind("127.0.0.3:0").expect("a socket");
        socket.connect(address).expect("connects");
        socket.set_nonblocking(true).expect("an option");
        let good = question(WEB, RecordType::A).to_vec().expect("encodes");
        let (mut random, started, mut buffer) = (fastrand::Rng::with_seed(7), Instant::now(), [0; 2048]);
        while started.elapsed() < Duration::from_secs(3) {
            let mut packet = good.clone();
            if random.u8(..4) == 0 {
                for _ in 0..random.usize(1..8) {
                    let at = random.usize(..packet.len());
                    packet[at] = random.u8(..);
                }
                packet.truncate(random.usize(..=packet.len()));
            }
            let _ = socket.send(&packet);
            while socket.recv(&mut buffer).is_ok() {}
        }
    });
    let (mut asked, mut answered) = (0, 0);
    while !flood.is_finished() {
        asked += 1;
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let question = question(WEB, RecordType::A).to_vec().expect("encodes");
        let mut buffer = [0; 512];
        // As a stub resolver does, only in less time.
        for _ in 0..4 {
            socket.send_to(&question, address).await.expect("sends");
            let heard = tokio::time::timeout(Duration::from_millis(250), socket.recv(&mut buffer)).await;
            if heard.is_ok_and(|heard| heard.is_ok()) {
                answered += 1;
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    flood.join().expect("no panic");
    // Without shares it is one of a hundred.
    assert!(asked > 3 && answered * 10 >= asked * 8, "{answered} of {asked}, {:?}", server.stats.counts());
    // What still waits in the socket may leave no room for the first question after the flood.
    for _ in 0..8 {
        let asked = question(WEB, RecordType::A);
        let last = tokio::time::timeout(Duration::from_secs(2), ask(address, &asked)).await;
        if last.is_ok_and(|answer| answer.answers.len() == 1) {
            return;
        }
    }
    panic!("no answer after the flood");
}
