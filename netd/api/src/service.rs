// SPDX-License-Identifier: Apache-2.0
//! Services as `weft service` shows them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// One entry of GET [`crate::paths::SERVICES`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceInfo {
    /// The service's namespace.
    pub namespace: String,
    /// The service's name.
    pub name: String,
    /// Kubernetes' spec.type: `ClusterIP`, `ExternalName`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// ClusterIPs; empty when headless or external.
    #[serde(default)]
    pub cluster_ips: Vec<IpAddr>,
    /// Addresses of its load balancer, and external ones that this node serves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub external_ips: Vec<IpAddr>,
    /// The service's ports.
    #[serde(default)]
    pub ports: Vec<PortInfo>,
    /// Backends that new connections go to.
    pub ready_backends: usize,
    /// All known backends.
    pub total_backends: usize,
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortInfo {
    /// The port's name, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// The service's port.
    pub port: u16,
    /// The nodes' port that leads there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_port: Option<u16>,
    /// The backends' port: a number or a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<String>,
}

/// GET [`crate::paths::service`]: one service with all that the node knows of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceDetail {
    /// The line of the list.
    #[serde(flatten)]
    pub info: ServiceInfo,
    /// The selector, where it has one.
    #[serde(default)]
    pub selector: BTreeMap<String, String>,
    /// spec.externalName.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_name: Option<String>,
    /// What its object and its extras say beside addresses and ports, a word or two each: `sessionAffinity`, `ClientIP 10800s`.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// What is in the datapath's maps.
    #[serde(default)]
    pub frontends: Vec<FrontendInfo>,
    /// Where new connections go from this node, and why.
    #[serde(default)]
    pub verdicts: Vec<FrontendVerdict>,
    /// Every backend of every port, with its verdict.
    #[serde(default)]
    pub backends: Vec<BackendInfo>,
    /// What is wrong with the objects, one line each.
    #[serde(default)]
    pub problems: Vec<String>,
}

/// A frontend (address, port, protocol, who asks) as the datapath has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontendInfo {
    /// `10.96.0.10:53/udp`, `node:30080/tcp external`.
    #[serde(default)]
    pub frontend: String,
    /// Its address; the unspecified one of its family for the nodes' ports.
    pub address: IpAddr,
    /// Its port; 0 for all others of the address.
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`; empty for all others of the address.
    pub protocol: String,
    /// The service's port's name, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Index of its counters.
    pub service_id: u32,
    /// First slot.
    pub slot_offset: u32,
    /// Number of slots; none means that connections are refused or dropped.
    pub slot_count: u32,
    /// Connections translated on this node since the frontend was made.
    pub connections: u64,
    /// Connections refused on this node since the frontend was made.
    pub refused: u64,
}

/// Where new connections to a frontend go, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FrontendVerdict {
    /// As in [`FrontendInfo::frontend`].
    pub frontend: String,
    /// Who asks there: `cluster`, `world`, `another node`.
    pub asked_by: String,
    /// `forward`, `refuse` or `drop`.
    pub verdict: String,
    /// Why just these backends, or none.
    pub reason: String,
    /// Those that new connections go to.
    #[serde(default)]
    pub backends: Vec<BackendShare>,
}

/// A backend's part of the new connections to a frontend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendShare {
    /// `10.244.0.7:8080/tcp`.
    pub backend: String,
    /// Whether it runs on this node.
    pub local: bool,
    /// Percent.
    pub share: f64,
}

/// One entry of GET [`crate::paths::FLOWS`]: a connection through a service, as this node remembers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowInfo {
    /// `socket`: translated where its program asked; `packet`: packet by packet.
    pub path: String,
    /// `tcp`, `udp`, `sctp`.
    pub protocol: String,
    /// Who asked; for a socket of a pod the pod, where it is known.
    pub client: String,
    /// What was asked for; for a direct flow that is only kept apart, its destination.
    pub frontend: std::net::SocketAddr,
    /// The service's port, such as `default/web:80/tcp`; none where it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Where it goes; none where the backend is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<std::net::SocketAddr>,
    /// How far it has come.
    pub state: String,
    /// Seconds since it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_secs: Option<u32>,
}

/// A backend of one port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendInfo {
    /// The backend's address.
    pub address: IpAddr,
    /// The backend's port.
    pub port: u16,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// The name of the service's port, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_name: Option<String>,
    /// The endpoint's hostname, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The node it runs on, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The verdict: `up`, `draining` or `down`.
    pub state: String,
    /// Who says so.
    pub source: String,
}
