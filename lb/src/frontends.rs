// SPDX-License-Identifier: Apache-2.0
//! From the service table to the frontends that the maps should hold: names and values, no identifiers yet.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ebpf_abi::v1::{BackendValue, ServiceKey};

use crate::{Problem, Protocol, ServiceEntry, ServiceName, ServicePort, ServiceTable};

/// A frontend as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Desired {
    /// `default/web:80/tcp`, `default/web:*`.
    pub(crate) name: String,
    /// Sorted, each once; empty means: refuse.
    pub(crate) backends: Vec<BackendValue>,
}

/// All frontends of the table. Families and protocols that the maps cannot hold are problems.
pub(crate) fn desired(table: &ServiceTable, problems: &mut Vec<Problem>) -> BTreeMap<ServiceKey, Desired> {
    let mut frontends = BTreeMap::new();
    for (name, entry) in &table.services {
        if entry.headless || entry.external_name.is_some() || entry.foreign_proxy {
            continue;
        }
        report_unsupported(name, entry, problems);
        for ip in entry.cluster_ips.iter().filter_map(v4) {
            // Ports that are not listed are refused instead of leaving by the default route.
            let wildcard = Desired { name: format!("{name}:*"), backends: Vec::new() };
            frontends.insert(ServiceKey::wildcard(ip), wildcard);
            for port in &entry.ports {
                let Some(protocol) = abi_protocol(port.protocol) else { continue };
                let desired = Desired {
                    name: format!("{name}:{}/{}", port.port, port.protocol.as_lower()),
                    backends: backends(entry, port, protocol),
                };
                frontends.insert(ServiceKey::new(ip, port.port, protocol), desired);
            }
        }
    }
    frontends
}

fn backends(entry: &ServiceEntry, port: &ServicePort, protocol: ebpf_abi::Protocol) -> Vec<BackendValue> {
    let chosen = entry.choose(port);
    let chosen = chosen.iter().filter_map(|(ip, number)| Some(BackendValue::new(v4(ip)?, *number, protocol)));
    let mut backends: Vec<BackendValue> = chosen.collect();
    backends.sort();
    backends.dedup();
    backends
}

fn report_unsupported(name: &ServiceName, entry: &ServiceEntry, problems: &mut Vec<Problem>) {
    let mut report = |field: String, reason: String| {
        problems.push(Problem { object: format!("Service {name}"), field, reason });
    };
    for (index, ip) in entry.cluster_ips.iter().enumerate().filter(|(_, ip)| ip.is_ipv6()) {
        report(format!("spec.clusterIPs[{index}]"), format!("{ip} is not served: IPv4 only for now"));
    }
    for (index, port) in entry.ports.iter().enumerate().filter(|(_, p)| abi_protocol(p.protocol).is_none()) {
        let reason = format!("{} is not served: TCP and UDP only for now", port.protocol);
        report(format!("spec.ports[{index}].protocol"), reason);
    }
    let left_out = entry.backends.iter().filter(|backend| backend.address.is_ipv6()).count();
    if left_out > 0 {
        report("endpoints".to_owned(), format!("{left_out} IPv6 backends are left out: IPv4 only for now"));
    }
}

fn v4(ip: &IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    }
}

fn abi_protocol(protocol: Protocol) -> Option<ebpf_abi::Protocol> {
    match protocol {
        Protocol::Sctp => None,
        Protocol::Tcp => Some(ebpf_abi::Protocol::Tcp),
        Protocol::Udp => Some(ebpf_abi::Protocol::Udp),
    }
}
