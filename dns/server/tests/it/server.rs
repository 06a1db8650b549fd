// SPDX-License-Identifier: Apache-2.0
//! The server under test.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use dns_server::{DnsServer, DnsStats, ForwardConfig};
use dns_zone::{Zone, ZoneEndpoint, ZoneKind, ZonePort, ZoneProtocol, ZoneService};
use tokio::task::JoinSet;

/// A running server; ends when dropped.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) zone: Arc<ArcSwapOption<Zone>>,
    pub(crate) stats: Arc<DnsStats>,
    _task: JoinSet<()>,
}

/// Starts a server that answers loopback, from [`example_zone`].
pub(crate) fn start(forward: ForwardConfig) -> Running {
    start_for(&["127.0.0.0/8"], forward)
}

/// Starts a server for these clients.
pub(crate) fn start_for(clients: &[&str], forward: ForwardConfig) -> Running {
    let zone = Arc::new(ArcSwapOption::from_pointee(example_zone()));
    let stats = Arc::new(DnsStats::default());
    let clients = clients.iter().map(|net| net.parse().expect("a network")).collect();
    let loopback = "127.0.0.1:0".parse().expect("an address");
    let server = DnsServer::bind(
        &[loopback],
        Arc::new(ArcSwap::from_pointee(clients)),
        zone.clone(),
        forward,
        stats.clone(),
    )
    .expect("loopback can be bound");
    let address = server.addresses()[0];
    let mut task = JoinSet::new();
    task.spawn(server.run(std::future::pending()));
    Running { address, zone, stats, _task: task }
}

/// Forwards to these.
pub(crate) fn forward_to(upstreams: &[SocketAddr]) -> ForwardConfig {
    ForwardConfig { upstreams: upstreams.to_vec(), ..ForwardConfig::default() }
}

/// `web` with a ClusterIP, `db` headless with two named endpoints, `big` headless with a hundred, `out` elsewhere.
pub(crate) fn example_zone() -> Zone {
    let service = |name: &str, kind, ports: &[(&str, u16)], endpoints| ZoneService {
        namespace: "default".into(),
        name: name.into(),
        kind,
        ports: ports.iter().map(|(name, number)| port(name, *number)).collect(),
        endpoints,
    };
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
