// SPDX-License-Identifier: Apache-2.0
//! One Service with its backends, as all readers of the table see it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use crate::kubernetes::{LABEL_HEADLESS, LABEL_SERVICE_PROXY_NAME};
use crate::{AFFINITY_SECS_DEFAULT, Extras, Protocol, Service, Verdict, VerdictState};

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
    /// Families that it is served in, first one first: as written, else those of its ClusterIPs.
    pub ip_families: Vec<Family>,
    /// `SingleStack`, `PreferDualStack`, `RequireDualStack`; empty where the object names none.
    pub ip_family_policy: String,
    /// Ports of the ClusterIPs.
    pub ports: Vec<ServicePort>,
    /// Addresses that it also answers at, where the node allows it.
    pub external_ips: Vec<IpAddr>,
    /// What its load balancer has.
    pub load_balancer: LoadBalancer,
    /// For clients outside.
    pub external_policy: TrafficPolicy,
    /// For clients in the cluster.
    pub internal_policy: TrafficPolicy,
    /// For how many seconds a client stays with its backend; `None`: not at all.
    pub affinity_secs: Option<u32>,
    /// `PreferSameZone` and the like; the hints of the backends say what comes of it.
    pub traffic_distribution: Option<String>,
    /// Where each node answers 200 while [`Self::ready_local`] is above 0, and 503 else.
    pub health_check_node_port: Option<u16>,
    /// All backends count as ready.
    pub publish_not_ready: bool,
    /// What its annotations ask for.
    pub extras: Extras,
    /// Sorted by address, each address once.
    pub backends: Vec<Backend>,
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Family {
    /// IPv4.
    #[serde(rename = "IPv4")]
    V4,
    /// IPv6.
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    /// That of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// As Kubernetes spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// Whose backends may be chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum TrafficPolicy {
    /// Those of all nodes.
    #[default]
    Cluster,
    /// Those of the node that is asked; where it has none, nobody answers.
    Local,
}

/// A Service's load balancer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadBalancer {
    /// Whose it is meant to be.
    pub class: Option<String>,
    /// Its addresses.
    pub ips: Vec<LoadBalancerIp>,
    /// Who may ask there; empty: everybody.
    pub source_ranges: Vec<IpNet>,
}

/// An address of a load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadBalancerIp {
    /// The address.
    pub ip: IpAddr,
    /// How its packets arrive.
    pub mode: IpMode,
}

/// How packets to a load balancer's address arrive at a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum IpMode {
    /// They do not: the load balancer speaks for itself, and the address is left alone in the cluster, too.
    Proxy,
    /// With that address, which nodes then answer, pods' packets included.
    #[default]
    #[serde(rename = "VIP")]
    Vip,
}

/// A port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicePort {
    /// As in SRV records; `None` for the single unnamed port.
    pub name: Option<String>,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// 1..=65535.
    pub port: u16,
    /// Port of every node that leads here.
    pub node_port: Option<u16>,
}

/// One address behind a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Of a pod or anything else, also outside the pod CIDR.
    pub address: IpAddr,
    /// Where it listens, by the name of the Service's port; sorted. Those of one slice share it.
    pub ports: Arc<[BackendPort]>,
    /// First label of its own DNS name.
    pub hostname: Option<String>,
    /// Node that it runs on.
    pub node: Option<String>,
    /// Zone that the node is in.
    pub zone: Option<String>,
    /// For whom it is meant; none: for everybody.
    pub hints: Option<Box<Hints>>,
    /// `namespace/name` of the pod behind it.
    pub pod: Option<String>,
    /// The shared opinion about it: of its ports the best.
    pub verdict: Verdict,
    /// A server of this node's agent itself, which is there before all other backends, and not while the agent is silent. Then those
    /// are asked by its own address, too.
    pub of_agent: bool,
    /// Of ports that have another one, as where slices say different things of them.
    pub port_verdicts: BTreeMap<(Protocol, u16), Verdict>,
}

/// For whom a backend is meant; sorted. An empty part says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Clients in these zones.
    pub zones: Vec<String>,
    /// Clients on these nodes.
    pub nodes: Vec<String>,
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

impl ServiceEntry {
    /// Without backends. `extras` are read elsewhere, because a bad one does not spoil the rest.
    pub(crate) fn new(service: &Service, extras: Extras) -> Self {
        let spec = &service.spec;
        let external = service.is_external_name();
        let node_port = |port: Option<u16>| port.filter(|port| *port != 0 && service.has_node_ports());
        let ports = spec.ports.iter().map(|port| ServicePort {
            name: non_empty(&port.name),
            protocol: port.protocol,
            port: port.port,
            node_port: node_port(port.node_port),
        });
        let policy = |text: &str| if text == "Local" { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
        let client_ip = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
        let affinity_secs = client_ip.and_then(|c| c.timeout_seconds).unwrap_or(AFFINITY_SECS_DEFAULT);
        let headless = service.is_headless() && !external;
        let addressed = !external && !headless;
        Self {
            kind: service.kind().to_owned(),
            cluster_ips: if addressed { service.cluster_ips() } else { Vec::new() },
            headless,
            external_name: if external { non_empty(&spec.external_name) } else { None },
            foreign_proxy: [LABEL_HEADLESS, LABEL_SERVICE_PROXY_NAME]
                .iter()
                .any(|label| service.metadata.labels.contains_key(*label)),
            ip_families: service.families(),
            ip_family_policy: spec.ip_family_policy.clone(),
            ports: ports.collect(),
            external_ips: if addressed { parsed(&spec.external_ips) } else { Vec::new() },
            load_balancer: if service.kind() == "LoadBalancer" {
                load_balancer(service)
            } else {
                LoadBalancer::default()
            },
            external_policy: policy(&spec.external_traffic_policy),
            internal_policy: policy(&spec.internal_traffic_policy),
            affinity_secs: (spec.session_affinity == "ClientIP").then_some(affinity_secs),
            traffic_distribution: non_empty(&spec.traffic_distribution),
            health_check_node_port: spec.health_check_node_port.filter(|port| *port != 0),
            publish_not_ready: spec.publish_not_ready_addresses,
            extras,
            backends: Vec::new(),
        }
    }

    /// Where new connections to `port` could go, whoever asks and wherever, sorted: the backends that are up, and only
    /// where there is none, those that drain.
    #[must_use]
    pub fn choose(&self, port: &ServicePort) -> Vec<(IpAddr, u16)> {
        for state in [VerdictState::Up, VerdictState::Draining] {
            let mut chosen: Vec<(IpAddr, u16)> = Vec::new();
            for backend in &self.backends {
                let numbers = backend.ports_for(port);
                let such = numbers.filter(|number| backend.verdict_of(port.protocol, *number).state == state);
                chosen.extend(such.map(|number| (backend.address, number)));
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

    /// How many backends on `node` are up: what its health-check node port tells (draining ones do not count, so that a
    /// load balancer turns away in time).
    #[must_use]
    pub fn ready_local(&self, node: &str) -> usize {
        self.published().filter(|backend| backend.node.as_deref() == Some(node)).count()
    }

    /// Whether the maps have frontends of it.
    #[must_use]
    pub fn is_served(&self) -> bool {
        !self.headless && self.external_name.is_none() && !self.foreign_proxy
    }
}

impl Backend {
    /// Of no node, pod or zone.
    #[must_use]
    pub fn new(address: IpAddr, ports: Arc<[BackendPort]>, verdict: Verdict) -> Self {
        let port_verdicts = BTreeMap::new();
        Self {
            address,
            ports,
            hostname: None,
            node: None,
            zone: None,
            hints: None,
            pod: None,
            verdict,
            of_agent: false,
            port_verdicts,
        }
    }

    /// The opinion about one of its ports.
    #[must_use]
    pub fn verdict_of(&self, protocol: Protocol, port: u16) -> Verdict {
        self.port_verdicts.get(&(protocol, port)).copied().unwrap_or(self.verdict)
    }

    /// The ports that answer for a Service's port; more than one only while an endpoint moves between slices.
    pub(crate) fn ports_for<'a>(&'a self, port: &'a ServicePort) -> impl Iterator<Item = u16> + 'a {
        self.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol).map(|p| p.port)
    }
}

fn load_balancer(service: &Service) -> LoadBalancer {
    let ingress = service.status.load_balancer.ingress.iter().filter_map(|ingress| {
        let mode = if ingress.ip_mode == "Proxy" { IpMode::Proxy } else { IpMode::Vip };
        Some(LoadBalancerIp { ip: ingress.ip.parse().ok()?, mode })
    });
    LoadBalancer {
        class: non_empty(&service.spec.load_balancer_class),
        ips: ingress.collect(),
        source_ranges: parsed(&service.spec.load_balancer_source_ranges),
    }
}

fn parsed<T: std::str::FromStr>(texts: &[String]) -> Vec<T> {
    texts.iter().filter_map(|text| text.trim().parse().ok()).collect()
}

pub(crate) fn non_empty(text: &str) -> Option<String> {
    if text.is_empty() { None } else { Some(text.to_owned()) }
}
