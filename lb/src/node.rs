// SPDX-License-Identifier: Apache-2.0
//! What this node knows of itself and the others: the same table means other slots on another node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// This node. Where it changes, all services are compiled anew; where others change, those that name them; where its pods do,
/// those with faults of some clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    /// Its name, as in `nodeName` of endpoints.
    pub name: String,
    /// Its zone, as in hints.
    pub zone: Option<String>,
    /// Whether `externalIPs` are served: whoever may write a Service could take any address by them.
    pub external_ips_enabled: bool,
    /// Whether `weft.dev/fault` has an effect.
    pub fault_injection_enabled: bool,
    /// Labels of its pods, by address, the implied ones too: whom faults of clients befall.
    pub pods: BTreeMap<IpAddr, BTreeMap<String, String>>,
    /// All nodes by name, this one too.
    pub nodes: BTreeMap<String, NodeInfo>,
}

impl NodeView {
    /// Whether what it says of this node itself is the same in `now`.
    pub(crate) fn is_same_node(&self, now: &Self) -> bool {
        let Self { name, zone, external_ips_enabled, fault_injection_enabled, pods: _, nodes: _ } = self;
        (name, zone, external_ips_enabled, fault_injection_enabled)
            == (&now.name, &now.zone, &now.external_ips_enabled, &now.fault_injection_enabled)
    }

    /// Nodes that have another index in `now`, with both; 0 stands for a node that is not known.
    pub(crate) fn moved<'a>(&'a self, now: &'a Self) -> BTreeMap<&'a str, (u32, u32)> {
        if self.nodes == now.nodes {
            return BTreeMap::new();
        }
        let index = |view: &Self, name: &String| view.nodes.get(name).map_or(0, |node| node.index);
        let names: BTreeSet<&String> = self.nodes.keys().chain(now.nodes.keys()).collect();
        let indexes = names.into_iter().map(|name| (name.as_str(), (index(self, name), index(now, name))));
        indexes.filter(|(_, (before, now))| before != now).collect()
    }
}

/// A node as backends refer to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its index in NODES, not 0.
    pub index: u32,
}
