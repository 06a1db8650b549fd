// SPDX-License-Identifier: Apache-2.0
//! What a zone of 10,000 services and 100,000 endpoints takes: `cargo run --release -p dns-zone --example size`.
//!
//! Half of the services are headless with 20 endpoints each. Prints resident memory before and after, the time of building, of
//! changes of one service (each a zone of its own, as readers get them), and of answers from packet to packet.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "an example shows figures, and fails by panicking"
)]
#![allow(clippy::disallowed_methods, reason = "it measures time")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use dns_zone::{
    Incoming, ReplyOptions, Response, Transport, Zone, ZoneEndpoint, ZoneKind, ZonePort, ZoneProtocol,
    ZoneService,
};

const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 20;
const ROUNDS: u32 = 1_000_000;

fn main() {
    let before = resident_kib();
    let start = Instant::now();
    let cidrs = ["10.0.0.0/8".parse().unwrap()];
    let mut zone =
        Zone::build("cluster.local", 5, 1, (0..SERVICES).map(|number| service(number, 0)), &cidrs).unwrap();
    println!("built {} services in {:?}", zone.len(), start.elapsed());
    println!("resident: {} KiB before, {} KiB with the zone", before, resident_kib());

    let start = on_cpu();
    for round in 0..10_000u32 {
        let mut edit = zone.edit();
        edit.set_service(&service(round % SERVICES, 1 + round / SERVICES));
        zone = edit.finish(2 + u64::from(round));
    }
    println!("a change of one service: {:?} of CPU", (on_cpu() - start) / 10_000);

    let asked: Vec<Vec<u8>> =
        (0..SERVICES).map(|number| packet(&format!("s{number}.ns{}", number % 100), 1)).collect();
    let cluster_ips: Vec<&Vec<u8>> = asked.iter().step_by(2).collect();
    let headless: Vec<&Vec<u8>> = asked.iter().skip(1).step_by(2).collect();
    let missing: Vec<Vec<u8>> =
        (0..SERVICES).map(|number| packet(&format!("t{number}.ns{}", number % 100), 1)).collect();
    let srv: Vec<Vec<u8>> =
        (1..SERVICES).step_by(2).map(|n| packet(&format!("_http._tcp.s{n}.ns{}", n % 100), 33)).collect();
    measure("ClusterIP A", &zone, &cluster_ips);
    measure("headless A, 20 endpoints", &zone, &headless);
    measure("headless SRV, 20 endpoints", &zone, &srv.iter().collect::<Vec<_>>());
    measure("NXDOMAIN", &zone, &missing.iter().collect::<Vec<_>>());
}

fn measure(title: &str, zone: &Zone, packets: &[&Vec<u8>]) {
    let mut out = [0; 1_232];
    let client = IpAddr::V4(Ipv4Addr::new(10, 244, 0, 9));
    let start = on_cpu();
    for round in 0..ROUNDS {
        // Not in the order of memory.
        let packet = packets[(round as usize * 7_919) % packets.len()];
        let Incoming::Query(query) = dns_zone::parse(packet) else { continue };
        let options = ReplyOptions {
            limit: query.limit(Transport::Udp, 1_232),
            udp_size: 1_232,
            recursion_available: true,
            cookie: None,
            extended_error: None,
        };
        let response = zone.respond(&query, client, u64::from(round), &options, &mut out);
        assert!(matches!(black_box(response), Response::Written(_)));
    }
    println!("{title}: {:?} of CPU from packet to packet", (on_cpu() - start) / ROUNDS);
}

fn service(number: u32, change: u32) -> ZoneService {
    let port = |port| ZonePort { name: Some("http".into()), protocol: ZoneProtocol::Tcp, port };
    let headless = number % 2 == 1;
    let kind = match headless {
        true => ZoneKind::Headless,
        false => ZoneKind::ClusterIp(vec![ip(0x0A60_0000 + number + (change % 2) * SERVICES)]),
    };
    let mut service = ZoneService::new(format!("ns{}", number % 100), format!("s{number}"), kind);
    service.ports = vec![port(80)];
    if headless {
        let first = 0x0AC0_0000 + number * ENDPOINTS + change % 2;
        let endpoint =
            |address| ZoneEndpoint { addresses: vec![ip(address)], hostname: None, ports: vec![port(8_080)] };
        service.endpoints = (first..first + ENDPOINTS).map(endpoint).collect();
    }
    service
}

fn ip(number: u32) -> IpAddr {
    IpAddr::V4(number.into())
}

/// A question with EDNS for a name of the zone's services.
fn packet(name: &str, record_type: u8) -> Vec<u8> {
    let mut packet = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in name.split('.').chain(["svc", "cluster", "local"]) {
        packet.push(label.len() as u8);
        packet.extend_from_slice(label.as_bytes());
    }
    packet.extend_from_slice(&[0, 0, record_type, 0, 1]);
    packet.extend_from_slice(&[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    packet
}

/// Time on a CPU, as the kernel counts it: others on the machine do not matter.
fn on_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// As the kernel sees this process.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
