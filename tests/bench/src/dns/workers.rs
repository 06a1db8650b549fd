// SPDX-License-Identifier: Apache-2.0
//! How the DNS server's workers scale over processors, without a load generator beside them: questions queue in the server's
//! sockets before it runs, as they do while netd is away, and what counts is how soon all of them are answered.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dns_server::{DnsConfig, DnsServer, DnsStats};
use dns_zone::{Zone, ZoneKind, ZoneService};
use socket2::SockRef;

use super::{SERVICES, ZONE, vip};
use crate::pairs::{Bound, Row, Terms, measure};

/// Name of the row.
pub(super) const ROW: &str = "dns-workers";
/// Clients, each with a port of its own: the kernel spreads them over the workers' sockets by that.
const CLIENTS: usize = 512;
/// Questions of each; their answers wait in its socket, which nobody reads.
const QUESTIONS: usize = 64;
/// A socket's room for questions: its server thinks of overload from a quarter of it on.
const RECEIVE_BYTES: usize = 64 << 20;
/// All of it takes less than a second.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often the answers are counted.
const LOOK_EVERY: Duration = Duration::from_micros(500);
/// What two cores must do of what one does.
const SCALE: f64 = 1.7;

/// Two workers beside one.
pub(super) fn row(rounds: usize) -> Result<Row> {
    let zone = Arc::new(zone()?);
    let pairs = measure(rounds, || answered(&zone, 2), || answered(&zone, 1))?;
    let bound = Bound::AtLeast(SCALE);
    let terms = Terms { unit: "answers/s", weft: "two workers", baseline: "one", bound, by_best: false };
    Ok(Row::new(ROW, terms, pairs))
}

fn zone() -> Result<Zone> {
    let service = |number| {
        let kind = ZoneKind::ClusterIp(vec![IpAddr::V4(vip(number))]);
        ZoneService::new("default".to_owned(), format!("svc-{number}"), kind)
    };
    Zone::build(ZONE, 5, 1, (0..SERVICES).map(service), &[]).context("the zone")
}

/// Answers a second of a server with so many workers.
fn answered(zone: &Arc<Zone>, workers: usize) -> Result<f64> {
    let stats = Arc::<DnsStats>::default();
    let config = DnsConfig {
        addresses: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))],
        workers,
        stats: stats.clone(),
        ..DnsConfig::default()
    };
    config.zone.store(Some(zone.clone()));
    config.clients.store(Arc::new(vec!["127.0.0.0/8".parse()?]));
    let server = DnsServer::bind(config, Vec::new())?;
    for socket in server.sockets() {
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &RECEIVE_BYTES)?;
    }
    let to = server.addresses()[0];
    // Their answers have somewhere to go until the end.
    let _clients = ask(to)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let start = Instant::now();
    let running = runtime.spawn(server.run(async { drop(stopped.await) }));
    let took = loop {
        let answers: u64 = stats.counts().by_rcode.iter().map(|(_, count)| count).sum();
        if answers == (CLIENTS * QUESTIONS) as u64 {
            break start.elapsed();
        }
        ensure!(start.elapsed() < PATIENCE, "{answers} of {} were answered", CLIENTS * QUESTIONS);
        std::thread::sleep(LOOK_EVERY);
    };
    drop(stop);
    runtime.block_on(running)??;
    let counts = stats.counts();
    let found = counts.by_rcode.iter().any(|(code, count)| *code == "NOERROR" && *count > 0);
    ensure!(found && counts.by_rcode.iter().filter(|(_, count)| *count > 0).count() == 1, "wrong answers");
    Ok((CLIENTS * QUESTIONS) as f64 / took.as_secs_f64())
}

fn ask(to: SocketAddr) -> Result<Vec<UdpSocket>> {
    let mut number = 0;
    (0..CLIENTS)
        .map(|_| {
            let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            client.connect(to)?;
            SockRef::from(&client).set_recv_buffer_size(QUESTIONS * 2_048)?;
            for _ in 0..QUESTIONS {
                client.send(&question(number % SERVICES))?;
                number += 7_919;
            }
            Ok(client)
        })
        .collect()
}

/// An A question (RFC 1035, section 4).
fn question(number: usize) -> Vec<u8> {
    let mut packet = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in format!("svc-{number}.default.svc.{ZONE}").split('.') {
        packet.push(label.len() as u8);
        packet.extend_from_slice(label.as_bytes());
    }
    packet.extend_from_slice(&[0, 0, 1, 0, 1]);
    packet
}
