// SPDX-License-Identifier: Apache-2.0
//! Writing objects: apply and delete.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// POST [`crate::paths::APPLY`]. All objects are checked before the first one is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApplyRequest {
    /// Objects in their Kubernetes v1 shapes.
    pub objects: Vec<Value>,
}

/// What became of the objects, in the request's order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplyReply {
    /// One entry for each object.
    pub results: Vec<ApplyResult>,
    /// The store revision that holds all of them.
    pub revision: u64,
}

/// What became of one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplyResult {
    /// The object, such as `Service default/web`.
    pub object: String,
    /// What was done.
    pub action: ApplyAction,
    /// Paths of the fields that Weft does not serve, such as `spec.sessionAffinityConfig`.
    #[serde(default)]
    pub ignored: Vec<String>,
    /// The Service's first ClusterIP, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_ip: Option<IpAddr>,
    /// All of its ClusterIPs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cluster_ips: Vec<IpAddr>,
    /// Its ports that every node answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub node_ports: Vec<NodePortInfo>,
    /// Where a load balancer asks each node whether it has ready backends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check_node_port: Option<u16>,
}

/// A port of a Service that every node answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePortInfo {
    /// The Service's port.
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The nodes' port.
    pub node_port: u16,
}

/// What apply did to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ApplyAction {
    /// It was there and differed.
    Configured,
    /// It was not there.
    Created,
    /// It was there and is the same.
    Unchanged,
}

impl std::fmt::Display for ApplyAction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Configured => "configured",
            Self::Created => "created",
            Self::Unchanged => "unchanged",
        })
    }
}

/// POST [`crate::paths::DELETE`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteRequest {
    /// `Service` or `EndpointSlice`.
    pub kind: String,
    /// The object's namespace.
    pub namespace: String,
    /// The object's name.
    pub name: String,
}

/// What became of a deletion. An object that was not there is a success.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteReply {
    /// The store revision after it.
    pub revision: u64,
    /// Whether it was there.
    pub existed: bool,
}
