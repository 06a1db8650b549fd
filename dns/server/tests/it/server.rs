// SPDX-License-Identifier: Apache-2.0
//! The server under test.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use dns_server::{DnsConfig, DnsServer, DnsStats, ForwardConfig};
use dns_zone::{Zone, ZoneEndpoint, ZoneKind, ZonePort, ZoneProtocol, ZoneService};
use tokio::task::JoinSet;

/// A running server; ends when dropped.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) tls: Option<SocketAddr>,
    pub(crate) zone: Arc<ArcSwapOption<Zone>>,
    pub(crate) stats: Arc<DnsStats>,
    _task: JoinSet<()>,
}

/// What most stories need: loopback may ask, [`example_zone`] is served, upstreams are not probed.
pub(crate) fn config() -> DnsConfig {
    DnsConfig {
        addresses: vec!["127.0.0.1:0".parse().expect("an address")],
        workers: 2,
        clients: clients(&["127.0.0.0/8"]),
        zone: Arc::new(ArcSwapOption::from_pointee(example_zone())),
        forward: ForwardConfig { probe: false, ..ForwardConfig::default() },
        ..DnsConfig::default()
    }
}

/// Networks that may ask.
pub(crate) fn clients(networks: &[&str]) -> Arc<ArcSwap<Vec<ipnet::IpNet>>> {
    Arc::new(ArcSwap::from_pointee(networks.iter().map(|net| net.parse().expect("a network")).collect()))
}

/// Starts a server that answers loopback, from [`example_zone`].
pub(crate) fn start(forward: ForwardConfig) -> Running {
    start_with(DnsConfig { forward, ..config() })
}

/// Starts this server.
pub(crate) fn start_with(config: DnsConfig) -> Running {
    start_held(config, Vec::new())
}

/// Starts this server with sockets that were held for it.
pub(crate) fn start_held(config: DnsConfig, held: Vec<OwnedFd>) -> Running {
    let (zone, stats) = (config.zone.clone(), config.stats.clone());
    let server = DnsServer::bind(config, held).expect("loopback can be bound");
    let (address, tls) = (server.addresses()[0], server.tls_addresses().first().copied());
    let mut task = JoinSet::new();
    task.spawn(async { server.run(std::future::pending()).await.expect("it runs") });
    Running { address, tls, zone, stats, _task: task }
}

/// Forwards to these.
pub(crate) fn forward_to(upstreams: &[SocketAddr]) -> ForwardConfig {
    let upstreams = upstreams.iter().map(|address| (*address).into()).collect();
    ForwardConfig { upstreams, probe: false, ..ForwardConfig::default() }
}

/// `web` with a ClusterIP, `db` headless with two named endpoints, `big` headless with a hundred, `out` elsewhere.
pub(crate) fn example_zone() -> Zone {
    let endpoint = |host: u8, hostname: Option<&str>, ports: Vec<ZonePort>| ZoneEndpoint {
        addresses: vec![[10, 244, 0, host].into()],
        hostname: hostname.map(str::to_owned),
        ports,
    };
    let db = vec![
        endpoint(1, Some("db-0"), vec![port("pg", 5432)]),
        endpoint(2, Some("db-1"), vec![port("pg", 5432)]),
    ];
    let big = (1..=100).map(|host| endpoint(host, None, Vec::new())).collect();
    let service = |name: &str, kind, ports: &[(&str, u16)], endpoints| ZoneService {
        ports: ports.iter().map(|(name, number)| port(name, *number)).collect(),
        endpoints,
        ..ZoneService::new("default", name, kind)
    };
    let services = [
        service("web", ZoneKind::ClusterIp(vec![[10, 96, 0, 20].into()]), &[("http", 80)], Vec::new()),
        service("db", ZoneKind::Headless, &[("pg", 5432)], db),
        service("big", ZoneKind::Headless, &[], big),
        service("out", ZoneKind::ExternalName("www.example.org".into()), &[], Vec::new()),
    ];
    let reverse = ["10.96.0.0/16".parse().expect("a network")];
    Zone::build("cluster.local", 5, 42, services, &reverse).expect("a zone")
}

fn port(name: &str, port: u16) -> ZonePort {
    ZonePort { name: Some(name.to_owned()), protocol: ZoneProtocol::Tcp, port }
}
