// SPDX-License-Identifier: Apache-2.0
//! What the store says about addresses, at one revision.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipam::{BlockRecord, Family, Pool, PoolState};
use ipnet::IpNet;
use netd_store::claim::StickyError;
use netd_store::records::{AddressRecord, MemberRecord, StickyRecord};
use uuid::Uuid;

/// The cluster's addresses as this node last read them.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    /// The store has been read in full, and the watch goes on from there.
    pub in_sync: bool,
    /// Why nothing can be written or claimed now; `None` while the store is followed.
    pub away: Option<String>,
    /// The cluster has a configuration.
    pub configured: bool,
    /// Usable pools by name.
    pub pools: BTreeMap<String, Pool>,
    /// Blocks that have an owner.
    pub blocks: BTreeMap<IpNet, BlockRecord>,
    /// Addresses lent from one node's block to another node.
    pub borrowed: BTreeMap<IpAddr, AddressRecord>,
    /// Sticky names.
    pub sticky: BTreeMap<String, StickyRecord>,
    /// Machines outside the cluster, each with addresses of some node's block.
    pub members: BTreeMap<String, MemberRecord>,
    /// The nodes' names, for messages.
    pub names: BTreeMap<Uuid, String>,
    /// This node's labels, for pools with a selector.
    pub labels: BTreeMap<String, String>,
    /// This node was removed from the cluster.
    pub removed: bool,
}

impl Picture {
    /// The families that an attachment gets an address of: those with a pool in use.
    pub fn families(&self) -> BTreeSet<Family> {
        let active = self.pools.values().filter(|pool| pool.state == PoolState::Active);
        active.map(|pool| Family::of_net(&pool.cidr)).collect()
    }

    /// A node as an operator knows it; its UUID where it has no record.
    pub(crate) fn name_of(&self, node: Uuid) -> String {
        self.names.get(&node).cloned().unwrap_or_else(|| node.to_string())
    }

    /// Why a sticky name was not taken or removed, with the holder's node by name.
    pub(crate) fn explain(&self, error: &StickyError) -> String {
        match error {
            StickyError::HeldBy { name, node, attachment, .. } => format!(
                "sticky name {name} is in use by attachment {attachment} on node {}: its DEL must come first",
                self.name_of(*node)
            ),
            StickyError::Change(_) | StickyError::Unknown(_) => error.to_string(),
        }
    }

    /// The pool that an address lies in.
    pub(crate) fn pool_of(&self, ip: &IpAddr) -> Option<&Pool> {
        self.pools.values().find(|pool| pool.cidr.contains(ip))
    }

    /// The block that an address lies in.
    pub(crate) fn block_of(&self, ip: &IpAddr) -> Option<&BlockRecord> {
        self.blocks.values().find(|block| block.cidr.contains(ip))
    }

    /// Addresses outside its own blocks that are in use on `node`: peers route each of them there.
    pub(crate) fn moved_to(&self, node: Uuid) -> impl Iterator<Item = IpAddr> {
        let borrowed =
            self.borrowed.values().filter(move |record| record.granted && record.node == Some(node));
        let sticky = self.sticky.values().filter(move |record| record.node == Some(node));
        let own = move |ip: &IpAddr| self.block_of(ip).is_some_and(|block| block.owner == node);
        let all =
            borrowed.map(|record| record.ip).chain(sticky.flat_map(|record| record.ips.iter().copied()));
        all.filter(move |ip| !own(ip))
    }
}
