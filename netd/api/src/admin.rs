// SPDX-License-Identifier: Apache-2.0
//! What an operator changes: pools, nodes that are gone, labels of running pods; and the examination of the addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// POST [`crate::paths::POOL_ADD`]: a new pool, usable at once; the same pool again is a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolAddRequest {
    /// The pool's name.
    pub name: String,
    /// Its CIDR.
    pub cidr: IpNet,
    /// Prefix length of its blocks; 26 (IPv4) or 122 (IPv6) where none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_prefix: Option<u8>,
    /// Labels that a node must have to claim blocks from it; empty for every node.
    #[serde(default)]
    pub node_selector: BTreeMap<String, String>,
}

/// POST [`crate::paths::POOL_DRAIN`] (nothing new comes from the pool), [`crate::paths::POOL_UNDRAIN`] (the opposite) and
/// [`crate::paths::POOL_REMOVE`] (refused while the pool has blocks).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRequest {
    /// The pool's name.
    pub name: String,
}

/// The answer to a change of pools.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolReply {
    /// What else this change means, a line each: that pods get a second address, that a family has no pool left.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// POST [`crate::paths::NODE_REMOVE`]: the node leaves the cluster for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRemoveRequest {
    /// The node's name or UUID.
    pub node: String,
    /// The operator states that the machine is off: its acknowledgement is not waited for. The other nodes' is.
    #[serde(default)]
    pub force: bool,
}

/// How far a removal has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRemoveReply {
    /// The node's name.
    pub name: String,
    /// The node's UUID.
    pub uuid: String,
    /// Its blocks are free and its record is gone.
    pub done: bool,
    /// What is waited for, a line each: `n1 has not acknowledged`, `n3 still has routes to it`.
    #[serde(default)]
    pub waiting_for: Vec<String>,
}

/// POST [`crate::paths::POD_LABEL`]: labels of a pod on the node that is asked. They last until the pod's DEL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodLabelRequest {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// Labels to set; without a value the label goes.
    pub labels: BTreeMap<String, Option<String>>,
}

/// The answer to [`PodLabelRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodLabelReply {
    /// All labels of the pod now.
    pub labels: BTreeMap<String, String>,
}

/// GET [`crate::paths::IPAM_CHECK`], and the answer of POST [`crate::paths::IPAM_REPAIR`] (what was left).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpamCheckReply {
    /// What was compared, a line each with a count.
    pub compared: Vec<String>,
    /// What does not agree.
    pub findings: Vec<IpamFinding>,
    /// What a repair did; empty for a check.
    #[serde(default)]
    pub repaired: Vec<String>,
}

/// Two witnesses that do not agree about an address or a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpamFinding {
    /// `double`, `leak`, `orphan`, `missing-record`, `foreign-block`, `stale-mirror` or `damaged`.
    pub kind: String,
    /// What it is about.
    pub subject: String,
    /// Its pod, `NAMESPACE/NAME`, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The address, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Which witness says what, and what it means.
    pub explanation: String,
    /// Whether it is proven, so that `weft ipam repair` acts on it.
    pub repairable: bool,
    /// What the repair does, or what the operator can do where it does nothing.
    pub remedy: String,
}

/// POST [`crate::paths::STICKY_REMOVE`]: the name gives its addresses up. Refused while an attachment has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StickyRequest {
    /// The sticky name.
    pub name: String,
}
