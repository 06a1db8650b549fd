// SPDX-License-Identifier: Apache-2.0
//! Random service tables, small enough that services meet in slots and identifiers.

use std::net::{IpAddr, Ipv4Addr};

use lb::{
    Backend, BackendPort, Protocol, ServiceEntry, ServiceName, ServicePort, ServiceTable, Verdict,
    VerdictState,
};
use proptest::prelude::*;

pub(crate) const PORTS: [(u16, Protocol); 3] =
    [(53, Protocol::Udp), (80, Protocol::Tcp), (443, Protocol::Tcp)];

/// Up to five services, each with up to seven backends, each backend on all ports.
pub(crate) fn table() -> impl Strategy<Value = ServiceTable> {
    let backend = (0u8..7, 0u8..6);
    let service = (1usize..=PORTS.len(), prop::collection::vec(backend, 0..7));
    prop::collection::btree_map(0u8..5, service, 0..5).prop_map(|services| {
        let entries = services.into_iter().map(|(number, (ports, backends))| {
            (ServiceName::new("default", format!("s{number}")), entry(number, ports, backends))
        });
        ServiceTable { revision: 1, services: entries.collect() }
    })
}

fn entry(number: u8, ports: usize, mut backends: Vec<(u8, u8)>) -> ServiceEntry {
    backends.sort_unstable();
    backends.dedup_by_key(|(host, _)| *host);
    let name = |index: usize| Some(format!("p{index}"));
    let ports = || PORTS[..ports].iter().enumerate();
    ServiceEntry {
        kind: "ClusterIP".to_owned(),
        cluster_ips: vec![IpAddr::V4(Ipv4Addr::new(10, 96, 0, number))],
        ports: ports()
            .map(|(index, (port, protocol))| ServicePort {
                name: name(index),
                protocol: *protocol,
                port: *port,
            })
            .collect(),
        backends: backends
            .into_iter()
            .map(|(host, state)| Backend {
                address: IpAddr::V4(Ipv4Addr::new(10, 244, 0, host)),
                ports: ports()
                    .map(|(index, (port, protocol))| BackendPort {
                        name: name(index),
                        protocol: *protocol,
                        port: port + 8_000,
                    })
                    .collect(),
                hostname: None,
                node: None,
                pod: None,
                verdict: Verdict {
                    state: match state {
                        0 => VerdictState::Down,
                        1 => VerdictState::Draining,
                        _ => VerdictState::Up,
                    },
                    source: "test",
                },
            })
            .collect(),
        ..ServiceEntry::default()
    }
}
