// SPDX-License-Identifier: Apache-2.0
//! The overlay while it runs: the cluster's settings, and keys.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// GET [`crate::paths::CONFIG`], and the answer of POST to it: the cluster's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigReply {
    /// How pods of different nodes reach each other: `wireguard`, `vxlan`, `native` or `auto`. Changes while all runs.
    pub overlay: String,
    /// How often nodes make new WireGuard keys, in seconds; `None`: only when asked to.
    #[serde(default)]
    pub key_rotation_secs: Option<u64>,
    /// Hosts outside the cluster that may open connections to pods, under their own addresses.
    #[serde(default)]
    pub trusted_cidrs: Vec<IpNet>,
    /// Where ClusterIPs of the primary family come from. Set once.
    pub service_cidr: IpNet,
    /// Where ClusterIPs come from, the primary family first. Set once.
    #[serde(default)]
    pub service_cidrs: Vec<IpNet>,
    /// Where node ports come from: `30000-32767`. Set once.
    #[serde(default)]
    pub node_port_range: String,
    /// The cluster's DNS zone. Fixed.
    pub dns_zone: String,
    /// VXLAN's UDP port. Fixed.
    pub vxlan_port: u16,
    /// WireGuard's UDP port for keys of even generations, that of odd ones is the next. Set once.
    pub wireguard_port: u16,
    /// What these settings do not do together, a line each.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// POST [`crate::paths::CONFIG`]: what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigRequest {
    /// See [`ConfigReply::overlay`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<String>,
    /// See [`ConfigReply::key_rotation_secs`]; 0 switches it off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_rotation_secs: Option<u64>,
    /// See [`ConfigReply::trusted_cidrs`]; the whole list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trusted_cidrs: Option<Vec<IpNet>>,
}

/// POST [`crate::paths::KEY_ROTATE`] without `only_look`: this node makes a new key, and the others follow. How far that has
/// come is asked for with `only_look`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRotateRequest {
    /// Change nothing, only tell.
    #[serde(default)]
    pub only_look: bool,
}

/// How far a rotation has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRotateReply {
    /// The newest generation of this node's keys.
    pub generation: u64,
    /// Every peer has moved to it and the older key is gone.
    pub done: bool,
    /// What is waited for, a line each.
    #[serde(default)]
    pub waiting_for: Vec<String>,
}
