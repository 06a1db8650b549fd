// SPDX-License-Identifier: Apache-2.0
//! DNS: names of others, asked of upstreams that fail, lie or are slow.

use crate::dns_client::{Client, How, NODE_DNS, PATIENCE, question, send_framed};
use crate::dns_records::svc;
use crate::dns_upstream::Upstream;
use crate::have;
use crate::service_stage::{Stage, checked, service, spec};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use weft_lab::wait_until;

/// Documentation addresses (RFC 5737) by which the servers are told apart.
const FIRST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const SECOND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const STUB: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
/// Where they listen at the outside host.
const PORTS: [u16; 3] = [5301, 5302, 5303];
/// As the issue of the five-second delay wants it: a client's own patience is not touched.
const FAILOVER: Duration = Duration::from_millis(500);
/// Of one client's questions in flight, a quarter of 256 gets through; so many more are too many.
const FLOOD: usize = 400;

#[test]
fn others_names_come_from_upstreams_with_failover_tcp_stubs_and_cache() -> Result<()> {
    let outside = weft_lab::OUTSIDE_IP;
    let [first, second, stub] = PORTS.map(|port| format!("{outside}:{port}"));
    let args = ["--dns-upstreams", &format!("{first},{second}"), "--dns-stubs", &format!("corp.test={stub}")];
    let Some(mut stage) = Stage::alone("dnsfwd", &args)? else { return Ok(()) };
    let first = Upstream::start(&stage.lab, PORTS[0], FIRST)?;
    let second = Upstream::start(&stage.lab, PORTS[1], SECOND)?;
    let _stub = Upstream::start(&stage.lab, PORTS[2], STUB)?;
    stage.backend("n1", "b1", "web")?;
    stage.client("n1", "c1")?;
    let web = stage.service(&service("web", spec(json!({"selector": {"app": "web"}}))))?;
    let vip = web.vip(false)?.ip().to_string();
    let client = Client::pod(&stage.lab, "c1", NODE_DNS[0])?;
    let says = |name: &str, ip: Ipv4Addr| client.says(name, "A", "NOERROR", &[&ip.to_string()]);

    checked("upstreams in their order, once both have been seen alive", {
        let mut number = 0;
        let settled = wait_until(PATIENCE, || {
            number += 1;
            Ok(says(&format!("settle{number}.test"), FIRST).is_ok())
        })?;
        ensure!(settled, "the first upstream is not asked first");
        Ok(())
    })?;
    checked("a stub zone has its own server, at and below it", {
        says("corp.test", STUB)?;
        says("a.b.corp.test", STUB)?;
        says("acorp.test", FIRST)
    })?;
    checked("the cache answers what was asked before", {
        says("kept.test", FIRST)?;
        let heard = first.mood().heard.load(Relaxed);
        for _ in 0..20 {
            says("kept.test", FIRST)?;
        }
        ensure!(first.mood().heard.load(Relaxed) == heard, "asked again");
        Ok(())
    })?;
    checked("truncated over UDP: asked again over TCP", {
        first.mood().truncates.store(true, Relaxed);
        says("long.test", FIRST)?;
        ensure!(first.mood().over_tcp.load(Relaxed) > 0, "not over TCP");
        first.mood().truncates.store(false, Relaxed);
        Ok(())
    })?;
    checked("an upstream that dies: failover in less than 500 ms, each question answered", {
        first.mood().silent.store(true, Relaxed);
        let mut slowest = Duration::ZERO;
        for number in 0..20 {
            let answer = client.ask(&format!("over{number}.test"), "A")?;
            ensure!(answer.data == [format!("A {SECOND}")], "{:?} {}", answer.data, answer.rcode);
            slowest = slowest.max(answer.took);
        }
        ensure!(slowest < FAILOVER, "the slowest of 20 answers took {slowest:?}");
        println!("failover: the slowest of 20 answers took {slowest:?}");
        Ok(())
    })?;
    checked("both dead: what is known is answered, and SERVFAIL for the rest; our own names at once", {
        second.mood().silent.store(true, Relaxed);
        says("kept.test", FIRST)?;
        let start = Instant::now();
        client.says(&svc("web"), "A", "NOERROR", &[&vip])?;
        ensure!(start.elapsed() < FAILOVER, "our own name took {:?}", start.elapsed());
        client.says("unknown.test", "A", "SERVFAIL", &[])
    })?;
    checked("overload: past the places of one client REFUSED, our own names are answered meanwhile", {
        let socket = client.socket(Duration::from_secs(5))?;
        for number in 0..FLOOD {
            socket.send(&question(&format!("flood{number}.test"), "A", None)?.to_vec()?)?;
        }
        client.says(&svc("web"), "A", "NOERROR", &[&vip])?;
        let (mut refused, mut buffer) = (0, [0; 512]);
        while let Ok(length) = socket.recv(&mut buffer) {
            // The last four bits of the fourth octet are the RCODE; 5 is REFUSED.
            refused += usize::from(length > 3 && buffer[3] & 15 == 5);
        }
        ensure!(refused >= FLOOD / 2, "{refused} of {FLOOD} were refused");
        Ok(())
    })?;
    checked("recovers at once when the upstreams do", {
        first.mood().silent.store(false, Relaxed);
        second.mood().silent.store(false, Relaxed);
        let start = Instant::now();
        let mut number = 0;
        let back = wait_until(Duration::from_secs(3), || {
            number += 1;
            Ok(client.ask(&format!("back{number}.test"), "A")?.rcode == "NOERROR")
        })?;
        ensure!(back, "not after {:?}", start.elapsed());
        Ok(())
    })?;
    checked("metrics: answers, cache, upstreams", {
        if have("curl", "dnsfwd") {
            let url = ["curl", "-s", "http://127.0.0.1:9157/metrics"];
            let text = stage.lab.exec("n1", &url)?.text("metrics")?;
            for wanted in [
                "weft_dns_answers_total{source=\"",
                "weft_dns_events_total{event=\"cache-hit\"}",
                "weft_dns_events_total{event=\"refused-overload\"}",
                "weft_dns_upstream_failures_total{",
                "weft_dns_latency_seconds_bucket{",
                "rcode=\"SERVFAIL\"",
            ] {
                ensure!(text.contains(wanted), "no {wanted} in:\n{text}");
            }
        }
        Ok(())
    })?;
    stage.lab.down()
}

#[test]
fn an_upstream_that_leads_back_to_us_is_said_and_not_asked() -> Result<()> {
    let Some(mut stage) = Stage::alone("dnsloop", &[])? else { return Ok(()) };
    stage.backend("n1", "b1", "web")?;
    stage.client("n1", "c1")?;
    let web = stage.service(&service("web", spec(json!({"selector": {"app": "web"}}))))?;
    let vip = web.vip(false)?.ip().to_string();
    let client = Client::pod(&stage.lab, "c1", NODE_DNS[0])?;
    // A name server in a pod whose own one is the node's: how such circles are made.
    let pod = stage.client("n1", "relay")?;
    let relayed = Relay::start(&pod.netns, NODE_DNS[0])?;
    let upstream = format!("{}:{RELAY_PORT}", stage.ip("relay", false)?);
    stage.lab.netd_args(&["--dns-upstreams", &upstream])?;
    stage.lab.node_stop("n1")?;
    stage.lab.node_start("n1")?;
    checked("said, with the address of the upstream", {
        let said = || Ok(stage.lab.node_log("n1", 500)?.contains("sends our questions back to us"));
        ensure!(wait_until(PATIENCE, said)?, "{}", stage.lab.node_log("n1", 20)?);
        Ok(())
    })?;
    checked("names of others fail at once, and no question goes round", {
        let before = relayed.heard();
        for number in 0..20 {
            let answer = client.ask(&format!("round{number}.example.test"), "A")?;
            ensure!(answer.rcode == "SERVFAIL" || answer.rcode == "REFUSED", "{}", answer.rcode);
            ensure!(answer.took < FAILOVER, "after {:?}", answer.took);
        }
        // The probe that looks whether it is still so may go round meanwhile.
        let heard = relayed.heard() - before;
        ensure!(heard < 10, "{heard} questions went round");
        Ok(())
    })?;
    checked("our own names are answered", client.says(&svc("web"), "A", "NOERROR", &[&vip]))?;
    stage.lab.down()
}

/// Where the relay listens.
const RELAY_PORT: u16 = 5_310;

/// Passes questions on to a server, from its own port.
struct Relay {
    heard: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl Relay {
    fn start(netns: &str, server: &'static str) -> Result<Relay> {
        let (listener, onward) = weft_lab::in_netns(netns, || {
            let listener = UdpSocket::bind(("0.0.0.0", RELAY_PORT))?;
            listener.set_read_timeout(Some(Duration::from_millis(50)))?;
            let onward = UdpSocket::bind(("0.0.0.0", 0))?;
            onward.set_read_timeout(Some(Duration::from_millis(300)))?;
            Ok((listener, onward))
        })?;
        let relay = Relay { heard: Arc::default(), ended: Arc::default() };
        let (heard, ended) = (relay.heard.clone(), relay.ended.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4_096];
            while !ended.load(Relaxed) {
                let Ok((length, from)) = listener.recv_from(&mut buffer) else { continue };
                heard.fetch_add(1, Relaxed);
                if onward.send_to(&buffer[..length], server).is_err() {
                    continue;
                }
                // One after the other is enough for what a story asks.
                if let Ok(length) = onward.recv(&mut buffer) {
                    let _ = listener.send_to(&buffer[..length], from);
                }
            }
        });
        Ok(relay)
    }

    fn heard(&self) -> u64 {
        self.heard.load(Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.ended.store(true, Relaxed);
    }
}

#[test]
fn tcp_and_tls_for_clients_and_towards_upstreams() -> Result<()> {
    if !have("openssl", "dnstls") || !have("dig", "dnstls") || !have("python3", "dnstls") {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (cert, key) = (path("cert.pem"), path("key.pem"));
    weft_lab::tool(
        "openssl",
        &[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=dns.test",
            "-addext",
            "subjectAltName=DNS:dns.test",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-keyout",
            &key,
            "-out",
            &cert,
        ],
    )?;
    let relay = format!("{}:8853#dns.test", weft_lab::OUTSIDE_IP);
    let wrong = format!("wrong.test={}:8853#other.test", weft_lab::OUTSIDE_IP);
    let args = [
        "--dns-upstreams",
        &relay,
        "--dns-stubs",
        &wrong,
        "--dns-upstream-ca",
        &cert,
        "--dns-tls-cert",
        &cert,
        "--dns-tls-key",
        &key,
    ];
    let Some(mut stage) = Stage::alone("dnstls", &args)? else { return Ok(()) };
    stage.backend("n1", "b1", "web")?;
    stage.client("n1", "c1")?;
    stage.client("n1", "c2")?;
    let web = stage.service(&service("web", spec(json!({"selector": {"app": "web"}}))))?;
    let vip = web.vip(false)?.ip().to_string();
    let relay = stage.lab.spawn("outside", &["python3", "-u", "-c", RELAY, &cert, &key])?;
    relay.wait_line(PATIENCE).context("the relay")?;
    let clients = [Client::pod(&stage.lab, "c1", NODE_DNS[0])?, Client::pod(&stage.lab, "c1", NODE_DNS[1])?];
    let tcp = How { tcp: true, ..How::default() };

    checked("TCP for clients, over both families", {
        clients.iter().try_for_each(|client| {
            let answer = client.ask_how(&svc("web"), "A", tcp)?;
            ensure!(answer.data == [format!("A {vip}")], "{:?}", answer.data);
            Ok(())
        })
    })?;
    checked("TCP: several questions at once on one connection", {
        let mut stream = clients[0].connect()?;
        for number in 0..20 {
            let name = if number % 2 == 0 { svc("web") } else { format!("x{number}.example.test") };
            send_framed(&mut stream, &question(&name, "A", None)?.to_vec()?)?;
        }
        for _ in 0..20 {
            crate::dns_client::receive_framed(&mut stream)?;
        }
        Ok(())
    })?;
    checked("TLS for clients, the certificate checked", {
        for server in ["@169.254.53.53", "@fd00:53::53"] {
            let ca = format!("+tls-ca={cert}");
            let dig = ["dig", server, "+tls", &ca, "+tls-hostname=dns.test", "+short", &svc("web"), "A"];
            let said = stage.lab.exec("c1", &dig)?.text("dig over TLS")?;
            ensure!(said == vip, "{server}: {said}");
        }
        Ok(())
    })?;
    checked("TLS towards upstreams", {
        clients[0].says("www.example.test", "A", "NOERROR", &[&weft_lab::OUTSIDE_FAR_IP.to_string()])
    })?;
    checked("TLS towards an upstream with another's certificate: SERVFAIL, never in the clear", {
        clients[0].says("www.wrong.test", "A", "SERVFAIL", &[])
    })?;
    checked("connection caps: one client has 32, another is not touched", {
        let other = Client::pod(&stage.lab, "c2", NODE_DNS[0])?;
        let mut streams: Vec<_> = (0..40).map(|_| clients[0].connect()).collect::<Result<_>>()?;
        let ask = question(&svc("web"), "A", None)?.to_vec()?;
        let mut served = 0;
        for stream in &mut streams {
            let asked = send_framed(stream, &ask).and_then(|()| crate::dns_client::receive_framed(stream));
            served += usize::from(asked.is_ok());
        }
        ensure!(served == 32, "{served} of 40 connections were served");
        ensure!(other.ask_how(&svc("web"), "A", tcp)?.data == [format!("A {vip}")], "another client");
        Ok(())
    })?;
    checked("slow clients: half a question holds nobody up and ends after a while", {
        let mut slow: Vec<_> = (0..16).map(|_| clients[0].connect()).collect::<Result<_>>()?;
        for stream in &mut slow {
            std::io::Write::write_all(stream, &[0, 40, 1])?;
        }
        let start = Instant::now();
        let answer = clients[0].ask_how(&svc("web"), "A", tcp)?;
        ensure!(answer.took < FAILOVER, "a TCP question took {:?} beside slow ones", answer.took);
        for stream in &mut slow {
            let ended = crate::dns_client::receive_framed(stream);
            ensure!(ended.is_err(), "an answer to half a question");
        }
        ensure!(start.elapsed() < PATIENCE, "slow connections stayed for {:?}", start.elapsed());
        Ok(())
    })?;
    stage.lab.down()
}

#[test]
fn who_may_ask() -> Result<()> {
    let Some(stage) = Stage::alone("dnsacl", &[])? else { return Ok(()) };
    stage.client("n1", "c1")?;
    let outside = stage.lab.state()?.outside.netns;
    // Where other nodes' pods ask, too.
    let mut own = None;
    wait_until(PATIENCE, || {
        let nodes = stage.lab.ask("n1", async |client| client.nodes().await)?;
        own = nodes.first().and_then(|node| node.overlay);
        Ok(own.is_some())
    })?;
    let overlay = format!("{}:53", own.context("no overlay address")?);
    for server in NODE_DNS.into_iter().chain([overlay.as_str()]) {
        stage.route(server.parse::<std::net::SocketAddr>()?.ip(), "n1")?;
        let limit = Duration::from_millis(500);
        checked(&format!("no open resolver at {server}: a stranger hears nothing, or REFUSED"), {
            let stranger = Client::at(&outside, server)?;
            for name in ["kubernetes.default.svc.cluster.local", "www.example.test"] {
                if let Ok(answer) = stranger.ask_within(name, "A", How::default(), limit) {
                    ensure!(answer.rcode == "REFUSED" && answer.data.is_empty(), "{}", answer.rcode);
                }
                let over_tcp = stranger.ask_within(name, "A", How { tcp: true, ..How::default() }, limit);
                ensure!(over_tcp.is_err(), "a stranger has a connection");
            }
            Ok(())
        })?;
        checked(&format!("the node and its pods may ask {server}"), {
            for netns in [&stage.lab.state()?.node("n1")?.netns, &stage.lab.pod("c1")?.netns] {
                Client::at(netns, server)?.says("dns-version.cluster.local", "TXT", "NOERROR", &["1.1.0"])?;
            }
            Ok(())
        })?;
    }
    stage.lab.down()
}

/// DNS over TLS in front of the outside host's own server: bytes go to and fro.
const RELAY: &str = r#"
import socket, ssl, sys, threading
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
listener = socket.create_server(("", 8853), backlog=64)
def pump(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        pass
    for end in (source, sink):
        try: end.shutdown(socket.SHUT_RDWR)
        except OSError: pass
def serve(plain):
    try:
        inside = context.wrap_socket(plain, server_side=True)
        outside = socket.create_connection(("127.0.0.1", 53))
    except OSError:
        return
    threading.Thread(target=pump, args=(outside, inside), daemon=True).start()
    pump(inside, outside)
print("ready")
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"#;
