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
    /// The backends' port: a number or a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<String>,
}

/// GET [`crate::paths::service`]: one service with all that the node knows of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// What is in the datapath's maps.
    #[serde(default)]
    pub frontends: Vec<FrontendInfo>,
    /// Every backend of every port, with its verdict.
    #[serde(default)]
    pub backends: Vec<BackendInfo>,
    /// What is wrong with the objects, one line each.
    #[serde(default)]
    pub problems: Vec<String>,
}

/// A frontend (address, port, protocol) as the datapath has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontendInfo {
    /// The ClusterIP.
    pub address: IpAddr,
    /// The service's port.
    pub port: u16,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// The port's name, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Index of its counters.
    pub service_id: u32,
    /// First slot.
    pub slot_offset: u32,
    /// Number of slots; none means that connections are refused.
    pub slot_count: u32,
    /// Connections translated on this node since the maps were made.
    pub connections: u64,
    /// Connections refused on this node since the maps were made.
    pub refused: u64,
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
