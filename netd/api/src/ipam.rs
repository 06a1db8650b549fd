// SPDX-License-Identifier: Apache-2.0
//! Address usage as `weft ipam show` shows it.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// GET [`crate::paths::IPAM`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpamInfo {
    /// Every pool.
    #[serde(default)]
    pub pools: Vec<PoolInfo>,
    /// Every claimed block of the cluster.
    #[serde(default)]
    pub blocks: Vec<BlockInfo>,
    /// The allocations in this node's blocks, and the addresses of other nodes' blocks that are in use here.
    #[serde(default)]
    pub addresses: Vec<AddressInfo>,
    /// Names whose addresses follow them from node to node.
    #[serde(default)]
    pub sticky: Vec<StickyInfo>,
}

/// A sticky name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StickyInfo {
    /// The name.
    pub name: String,
    /// Its addresses, one of a family.
    pub addresses: Vec<IpAddr>,
    /// The name of the node where an attachment has them now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The pod that has them now, `NAMESPACE/NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
}

/// A pool and how full it is. Counts are u64 and saturate (an IPv6 pool has more addresses than that).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolInfo {
    /// The pool's name.
    pub name: String,
    /// The pool's CIDR.
    pub cidr: IpNet,
    /// Prefix length of its blocks.
    pub block_prefix: u8,
    /// How many blocks it is cut into.
    pub blocks_total: u64,
    /// How many of them are claimed.
    pub blocks_claimed: u64,
    /// Addresses in use in claimed blocks.
    pub used: u64,
    /// `active` or `draining`.
    #[serde(default)]
    pub state: String,
    /// Labels that a node must have to claim from it.
    #[serde(default)]
    pub node_selector: std::collections::BTreeMap<String, String>,
    /// When the last block will be claimed at the recent rate, in seconds from now, 0 where that has happened; none where it
    /// grows too little to say, or has not been watched for long enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_in_secs: Option<u64>,
    /// The answering netd has not watched the pool for long enough to say when it is full.
    #[serde(default)]
    pub too_early: bool,
}

/// A claimed block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockInfo {
    /// The block's CIDR.
    pub cidr: IpNet,
    /// Its pool's name.
    pub pool: String,
    /// The owner's UUID.
    pub owner: Uuid,
    /// The owner's name, where its record exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Addresses in use.
    pub used: u64,
    /// Addresses that can be given now; of another node's block those that rest there, too.
    pub free: u64,
    /// Addresses that rest after their release; only the block's own node knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resting: Option<u64>,
    /// `active` or `releasing`.
    pub state: String,
}

/// An allocated address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressInfo {
    /// The address.
    pub address: IpAddr,
    /// `node/<uuid>`, `attachment/<network>/<container>/<ifname>`, `sticky/<name>` or `reserved/<why>`.
    pub owner: String,
    /// `pending` (its ADD is under way), `committed`; of a sticky name `in use` or `kept`; `lent` to another node, `borrowed`
    /// from one.
    pub state: String,
    /// Who uses it, `NAMESPACE/NAME`, with ` on NODE` where that is another node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
}
