// SPDX-License-Identifier: Apache-2.0
//! The service table: every Service at one revision with its backends and their verdicts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use crate::kubernetes::{LABEL_HEADLESS, LABEL_SERVICE_PROXY_NAME};
use crate::{EndpointSlice, Problem, Protocol, Service, Verdict, VerdictState, validate};

/// Namespace and name of a Service. Displays as `default/web`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name in it.
    pub name: String,
}

impl ServiceName {
    /// From its two parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// All services at one store revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceTable {
    /// The revision that the inputs were read at.
    pub revision: u64,
    /// By name.
    pub services: BTreeMap<ServiceName, ServiceEntry>,
}

/// One Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Its type as written, `ClusterIP` when empty.
    pub kind: String,
    /// In the order of the object; empty when headless, external or not allocated yet.
    pub cluster_ips: Vec<IpAddr>,
    /// `clusterIP: None`: DNS answers with the backends.
    pub headless: bool,
    /// The name that it stands for.
    pub external_name: Option<String>,
    /// Another proxy serves it: names, but no frontends of ours.
    pub foreign_proxy: bool,
    /// Ports of the ClusterIPs.
    pub ports: Vec<ServicePort>,
    /// Sorted by address, each address once.
    pub backends: Vec<Backend>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicePort {
    /// As in SRV records; `None` for the single unnamed port.
    pub name: Option<String>,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// 1..=65535.
    pub port: u16,
}

/// One address behind a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Of a pod or anything else, also outside the pod CIDR.
    pub address: IpAddr,
    /// Where it listens, by the name of the Service's port; sorted.
    pub ports: Vec<BackendPort>,
    /// First label of its own DNS name.
    pub hostname: Option<String>,
    /// Node that it runs on.
    pub node: Option<String>,
    /// `namespace/name` of the pod behind it.
    pub pod: Option<String>,
    /// The shared opinion about it.
    pub verdict: Verdict,
}

/// A port of a backend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BackendPort {
    /// Name of the Service's port that it belongs to.
    pub name: Option<String>,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// 1..=65535.
    pub port: u16,
}

impl ServiceTable {
    /// Joins Services with their slices. Whatever is wrong with one object is a [`Problem`] and leaves out
    /// that object or part; the order of the inputs does not matter.
    pub fn build<'a>(
        revision: u64,
        services: impl IntoIterator<Item = &'a Service>,
        slices: impl IntoIterator<Item = &'a EndpointSlice>,
    ) -> (Self, Vec<Problem>) {
        let mut problems = Vec::new();
        let mut table = Self { revision, services: BTreeMap::new() };
        let mut publish_not_ready = BTreeSet::new();
        for service in services {
            if let Err(error) = validate::service(service) {
                problems.push(error.into());
                continue;
            }
            let name = ServiceName::new(&service.metadata.namespace, &service.metadata.name);
            if service.spec.publish_not_ready_addresses {
                publish_not_ready.insert(name.clone());
            }
            table.services.insert(name, ServiceEntry::new(service));
        }
        table.drop_taken_cluster_ips(&mut problems);

        let mut backends: BTreeMap<ServiceName, BTreeMap<IpAddr, Backend>> = BTreeMap::new();
        for slice in slices {
            if let Err(error) = validate::slice(slice) {
                problems.push(error.into());
                continue;
            }
            // Without the label it belongs to nobody; validate::slice has said so.
            let Some(service) = slice.service_name() else { continue };
            let name = ServiceName::new(&slice.metadata.namespace, service);
            let ready_anyway = publish_not_ready.contains(&name);
            // A slice may come before its Service or outlive it: not an error.
            if table.services.contains_key(&name) {
                add_slice(backends.entry(name).or_default(), slice, ready_anyway, &mut problems);
            }
        }
        for (name, found) in backends {
            if let Some(entry) = table.services.get_mut(&name) {
                entry.backends = found.into_values().collect();
            }
        }
        problems.sort();
        (table, problems)
    }

    /// One entry by namespace and name.
    #[must_use]
    pub fn find(&self, namespace: &str, name: &str) -> Option<&ServiceEntry> {
        self.services.get(&ServiceName::new(namespace, name))
    }

    /// ClusterIPs are claimed by transaction, so two owners mean a value written past us: the first by name
    /// keeps it, on every node alike.
    fn drop_taken_cluster_ips(&mut self, problems: &mut Vec<Problem>) {
        let mut taken: BTreeMap<IpAddr, ServiceName> = BTreeMap::new();
        for (name, entry) in &mut self.services {
            entry.cluster_ips.retain(|ip| match taken.get(ip) {
                None => {
                    taken.insert(*ip, name.clone());
                    true
                }
                Some(owner) => {
                    problems.push(Problem {
                        object: format!("Service {name}"),
                        field: "spec.clusterIP".to_owned(),
                        reason: format!("{ip} already belongs to Service {owner}; delete one of the two"),
                    });
                    false
                }
            });
        }
    }
}

impl ServiceEntry {
    fn new(service: &Service) -> Self {
        let spec = &service.spec;
        let external = service.is_external_name();
        let kind = if spec.kind.is_empty() { "ClusterIP" } else { &spec.kind };
        let ports = spec.ports.iter().map(|port| ServicePort {
            name: non_empty(&port.name),
            protocol: port.protocol,
            port: port.port,
        });
        Self {
            kind: kind.to_owned(),
            cluster_ips: if external || service.is_headless() { Vec::new() } else { service.cluster_ips() },
            headless: service.is_headless() && !external,
            external_name: if external { non_empty(&spec.external_name) } else { None },
            foreign_proxy: [LABEL_HEADLESS, LABEL_SERVICE_PROXY_NAME]
                .iter()
                .any(|label| service.metadata.labels.contains_key(*label)),
            ports: ports.collect(),
            backends: Vec::new(),
        }
    }

    /// Where new connections to `port` go, sorted: the backends that are up, and only where there is none,
    /// those that drain.
    #[must_use]
    pub fn choose(&self, port: &ServicePort) -> Vec<(IpAddr, u16)> {
        for state in [VerdictState::Up, VerdictState::Draining] {
            let mut chosen: Vec<(IpAddr, u16)> = Vec::new();
            for backend in self.backends.iter().filter(|backend| backend.verdict.state == state) {
                let matching =
                    backend.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
                chosen.extend(matching.map(|p| (backend.address, p.port)));
            }
            if !chosen.is_empty() {
                return chosen;
            }
        }
        Vec::new()
    }

    /// The backends that DNS names: those that are up.
    pub fn published(&self) -> impl Iterator<Item = &Backend> {
        self.backends.iter().filter(|backend| backend.verdict.is_up())
    }
}

fn add_slice(
    backends: &mut BTreeMap<IpAddr, Backend>,
    slice: &EndpointSlice,
    ready_anyway: bool,
    problems: &mut Vec<Problem>,
) {
    if slice.address_type == "FQDN" {
        problems.push(Problem {
            object: slice.display_name(),
            field: "addressType".to_owned(),
            reason: "FQDN endpoints are not used; give addresses, or use a Service of type ExternalName"
                .to_owned(),
        });
        return;
    }
    let ports = slice.ports.iter().filter_map(|port| {
        let name = port.name.as_deref().and_then(non_empty);
        Some(BackendPort { name, protocol: port.protocol, port: port.port? })
    });
    let ports: BTreeSet<BackendPort> = ports.collect();
    for endpoint in &slice.endpoints {
        let pod = endpoint.target_ref.as_ref().filter(|target| target.kind == "Pod");
        // All addresses of an endpoint reach the same backend: a second one would only give it a double share.
        let Some(address) = endpoint.addresses.first().and_then(|text| text.parse().ok()) else { continue };
        let found = Backend {
            address,
            ports: ports.iter().cloned().collect(),
            hostname: endpoint.hostname.as_deref().and_then(non_empty),
            node: endpoint.node_name.as_deref().and_then(non_empty),
            pod: pod.map(|target| format!("{}/{}", target.namespace, target.name)),
            verdict: Verdict::from_conditions(&endpoint.conditions, ready_anyway),
        };
        let merged = match backends.remove(&address) {
            None => found,
            Some(known) => merge(known, found),
        };
        backends.insert(address, merged);
    }
}

/// The same address in two slices, as happens while an endpoint moves between them. The better verdict wins,
/// ports are united, and neither depends on which slice came first.
fn merge(one: Backend, other: Backend) -> Backend {
    let ports: BTreeSet<BackendPort> = one.ports.into_iter().chain(other.ports).collect();
    Backend {
        address: one.address,
        ports: ports.into_iter().collect(),
        hostname: first(one.hostname, other.hostname),
        node: first(one.node, other.node),
        pod: first(one.pod, other.pod),
        verdict: one.verdict.min(other.verdict),
    }
}

fn first(one: Option<String>, other: Option<String>) -> Option<String> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

fn non_empty(text: &str) -> Option<String> {
    if text.is_empty() { None } else { Some(text.to_owned()) }
}
