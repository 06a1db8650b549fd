// SPDX-License-Identifier: Apache-2.0
//! Clients over TCP and TLS.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dns_server::{DnsConfig, ForwardConfig, TlsListen, UpstreamConfig, UpstreamTls, server_tls};
use hickory_proto::rr::{Name, RecordType};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::client::{StreamClient, answers, ask_tcp, connect, question};
use crate::server::{config, forward_to, start, start_with};
use crate::upstream::{Mood, Upstream, serve_stream};

const WEB: &str = "web.default.svc.cluster.local.";

#[tokio::test]
async fn answers_on_one_connection_come_as_they_are_ready() {
    let upstream = Upstream::start(Mood::Slow(7)).await;
    let server = start(forward_to(&[upstream.address]));
    let mut client = connect(server.address).await;
    let (mut slow, mut quick) = (question("www.example.org.", RecordType::A), question(WEB, RecordType::A));
    (slow.metadata.id, quick.metadata.id) = (1, 2);
    client.send(&slow).await;
    client.send(&quick).await;
    assert_eq!(client.receive().await.metadata.id, 2, "the quick one does not wait for the slow one");
    assert_eq!(client.receive().await.metadata.id, 1);
}

#[tokio::test]
async fn a_hundred_questions_in_one_write_are_all_answered() {
    let server = start(ForwardConfig::default());
    let mut client = connect(server.address).await;
    let mut bytes = Vec::new();
    for id in 0..100 {
        let mut question = question(WEB, RecordType::A);
        question.metadata.id = id;
        let message = question.to_vec().expect("encodes");
        bytes.extend_from_slice(&(message.len() as u16).to_be_bytes());
        bytes.extend_from_slice(&message);
    }
    client.send_bytes(&bytes).await;
    for id in 0..100 {
        assert_eq!(client.receive().await.metadata.id, id);
    }
}

#[tokio::test]
async fn a_client_that_takes_no_answers_is_hung_up_on_and_holds_nobody() {
    let server = start(ForwardConfig::default());
    let mut greedy = connect(server.address).await;
    let message = question("big.default.svc.cluster.local.", RecordType::A).to_vec().expect("encodes");
    let frame = [&(message.len() as u16).to_be_bytes()[..], &message].concat().repeat(64);
    // It asks until nothing goes any more, and reads nothing.
    let flood = tokio::spawn(async move {
        while tokio::time::timeout(Duration::from_secs(1), greedy.send_bytes(&frame)).await.is_ok() {}
        greedy
    });
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(3) {
        let asked = Instant::now();
        assert_eq!(ask_tcp(server.address, &question(WEB, RecordType::A)).await.answers.len(), 1);
        // Far less than the greedy one is given to take its answers.
        assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for _ in 0..200 {
        if server.stats.counts().streams_slow == 1 {
            flood.abort();
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("still connected: {:?}", server.stats.counts());
}

#[tokio::test]
async fn one_client_has_so_many_connections_and_silence_ends_them() {
    let server = start_with(DnsConfig { streams_per_client_max: 3, ..config() });
    let mut taken = Vec::new();
    for _ in 0..3 {
        let mut client = connect(server.address).await;
        client.send(&question(WEB, RecordType::A)).await;
        client.receive().await;
        taken.push(client);
    }
    assert!(connect(server.address).await.closed_by_server().await, "the fourth");
    assert_eq!(server.stats.counts().streams_open, 3);
    // Ten seconds of silence.
    assert!(taken[0].closed_by_server().await);
    let mut next = connect(server.address).await;
    next.send(&question(WEB, RecordType::A)).await;
    next.receive().await;
}

#[tokio::test]
async fn while_places_are_scarce_silence_ends_sooner() {
    let server = start_with(DnsConfig { streams_max: 2, ..config() });
    let (mut one, mut two) = (connect(server.address).await, connect(server.address).await);
    for client in [&mut one, &mut two] {
        client.send(&question(WEB, RecordType::A)).await;
        client.receive().await;
    }
    let started = Instant::now();
    assert!(two.closed_by_server().await);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test]
async fn garbage_ends_the_connection_and_nothing_else() {
    let server = start(ForwardConfig::default());
    for garbage in [&b"\0\0"[..], b"\0\x0babcdefghijk", b"GET / HTTP/1.1\r\n\r\n"] {
        let mut client = connect(server.address).await;
        client.send_bytes(garbage).await;
        assert!(client.closed_by_server().await, "{garbage:?}");
    }
    assert_eq!(ask_tcp(server.address, &question(WEB, RecordType::A)).await.answers.len(), 1);
}

/// A certificate for `dns.test` that vouches for itself, and its key.
fn certificate() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["dns.test".to_owned()]).expect("a certificate");
    (made.cert.pem(), made.signing_key.serialize_pem())
}

fn ring() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

#[tokio::test]
async fn dns_over_tls_is_served_with_the_configured_certificate() {
    let (chain, key) = certificate();
    let tls = vec![TlsListen {
        address: "127.0.0.1:0".parse().expect("an address"),
        config: server_tls(chain.as_bytes(), key.as_bytes()).expect("usable"),
    }];
    let server = start_with(DnsConfig { tls, ..config() });
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(chain.as_bytes()).expect("pem")).expect("a root");
    let mut config = ClientConfig::builder_with_provider(ring())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"dot".to_vec()];
    let stream = TcpStream::connect(server.tls.expect("bound")).await.expect("connects");
    let name = ServerName::try_from("dns.test").expect("a name");
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("trusted");
    let mut client = StreamClient::new(stream);
    for _ in 0..3 {
        client.send(&question(WEB, RecordType::A)).await;
        assert_eq!(client.receive().await.answers.len(), 1);
    }

    // Who does not speak TLS there is hung up on.
    let mut plain = connect(server.tls.expect("bound")).await;
    plain.send(&question(WEB, RecordType::A)).await;
    let closed =
        tokio::time::timeout(Duration::from_secs(5), async { while !plain.closed_by_server().await {} });
    assert!(closed.await.is_ok());
}

#[tokio::test]
async fn an_upstream_is_asked_over_tls_and_only_if_it_is_who_it_should_be() {
    let (chain, key) = certificate();
    let acceptor = TlsAcceptor::from(server_tls(chain.as_bytes(), key.as_bytes()).expect("usable"));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("bound");
    let asked: Arc<Mutex<Vec<Name>>> = Arc::default();
    let counted = asked.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                tokio::spawn(serve_stream(stream, Arc::new(Mutex::new(Mood::Answers(9))), counted.clone()));
            }
        }
    });
    let forward = |name: &str| {
        let tls = Some(UpstreamTls::new(name, chain.as_bytes()).expect("usable"));
        ForwardConfig { upstreams: vec![UpstreamConfig { address, tls }], ..forward_to(&[]) }
    };
    let server = start(forward("dns.test"));
    for n in 0..3 {
        let answer = ask_tcp(server.address, &question(&format!("n{n}.example.org."), RecordType::A)).await;
        assert!(answers(&answer)[0].ends_with("192.0.2.9"), "{answer}");
    }
    assert_eq!(asked.lock().expect("no panic").len(), 3);
    let stranger = start(forward("other.test"));
    let answer = ask_tcp(stranger.address, &question("www.example.org.", RecordType::A)).await;
    assert!(answer.answers.is_empty());
    assert_eq!(asked.lock().expect("no panic").len(), 3);
}
