// SPDX-License-Identifier: Apache-2.0
//! What this node knows of itself and the others: the same table means other slots on another node.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// This node. Where it changes, all services are compiled anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    /// Its name, as in `nodeName` of endpoints.
    pub name: String,
    /// Its zone, as in hints.
    pub zone: Option<String>,
    /// Addresses that answer node ports; for explanations only, the maps have NODE_ADDRESSES.
    pub node_port_addresses: Vec<IpAddr>,
    /// Whether `externalIPs` are served: whoever may write a Service could take any address by them.
    pub external_ips_enabled: bool,
    /// All nodes by name, this one too.
    pub nodes: BTreeMap<String, NodeInfo>,
}

/// A node as backends refer to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its index in NODES, not 0.
    pub index: u32,
    /// Its overlay address.
    pub overlay4: Option<Ipv4Addr>,
    /// Its overlay address.
    pub overlay6: Option<Ipv6Addr>,
}
