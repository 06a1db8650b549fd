// SPDX-License-Identifier: Apache-2.0
//! What the programs know of this node and the others.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ebpf_abi::{Address, DatapathConfig, NodeValue, address, node::CONFIG_MIGRATING};

use crate::{datapath::Datapath, error::MapAccessError};

/// The only entry of CONFIG.
const ENTRY: u32 = 0;

impl Datapath {
    /// Makes NODE_ADDRESSES hold exactly these, each with its flags (`ADDRESS_*` of ebpf-abi). Only differences are written;
    /// gives their number.
    pub fn write_node_addresses(&mut self, wanted: &BTreeMap<IpAddr, u32>) -> Result<usize, MapAccessError> {
        let map = &self.maps.node_addresses;
        let wanted: BTreeMap<Address, u32> =
            wanted.iter().map(|(ip, flags)| (address::address(*ip), *flags)).collect();
        let present: BTreeMap<Address, u32> = map.entries()?.into_iter().collect();
        let changed = wanted.iter().filter(|(address, flags)| present.get(*address) != Some(flags));
        let gone = present.keys().filter(|address| !wanted.contains_key(*address));
        // Removals first: both together may be more than the map holds.
        Ok(map.remove_all(gone)? + map.put_all(changed)?)
    }

    /// NODE_ADDRESSES as it is.
    pub fn node_addresses(&self) -> Result<BTreeMap<IpAddr, u32>, MapAccessError> {
        let entries = self.maps.node_addresses.entries()?.into_iter();
        Ok(entries.map(|(address, flags)| (address::ip(address), flags)).collect())
    }

    /// Makes NODES hold exactly these, by index (never 0). Only differences are written; gives their number.
    pub fn write_nodes(&mut self, wanted: &BTreeMap<u32, NodeValue>) -> Result<usize, MapAccessError> {
        let present = self.nodes()?;
        let indexes: BTreeSet<u32> = wanted.keys().chain(present.keys()).copied().collect();
        let changes: Vec<(u32, NodeValue)> = indexes
            .into_iter()
            .map(|index| (index, wanted.get(&index).copied().unwrap_or_default()))
            .filter(|(index, value)| present.get(index).copied().unwrap_or_default() != *value)
            .collect();
        self.maps.nodes.put_all(changes.iter().map(|(index, value)| (index, value)))
    }

    /// NODES as it is, unused indexes left out.
    pub fn nodes(&self) -> Result<BTreeMap<u32, NodeValue>, MapAccessError> {
        let entries = self.maps.nodes.entries()?.into_iter();
        Ok(entries.filter(|(_, node)| *node != NodeValue::default()).collect())
    }

    /// Writes CONFIG; `false` when it was so already. `CONFIG_MIGRATING` is not the caller's: it stays as it is.
    pub fn write_config(&mut self, config: &DatapathConfig) -> Result<bool, MapAccessError> {
        let present = self.maps.config.get(&ENTRY)?.unwrap_or_default();
        let kept = present.flags & CONFIG_MIGRATING;
        self.change_config(
            present,
            DatapathConfig { flags: config.flags & !CONFIG_MIGRATING | kept, ..*config },
        )
    }

    /// CONFIG as it is, without `CONFIG_MIGRATING`.
    pub fn config(&self) -> Result<DatapathConfig, MapAccessError> {
        let present = self.maps.config.get(&ENTRY)?.unwrap_or_default();
        Ok(DatapathConfig { flags: present.flags & !CONFIG_MIGRATING, ..present })
    }

    /// Tells the programs whether flows are on their way from other maps.
    pub(crate) fn say_migrating(&mut self, is_migrating: bool) -> Result<bool, MapAccessError> {
        let present = self.maps.config.get(&ENTRY)?.unwrap_or_default();
        let flag = if is_migrating { CONFIG_MIGRATING } else { 0 };
        self.change_config(
            present,
            DatapathConfig { flags: present.flags & !CONFIG_MIGRATING | flag, ..present },
        )
    }

    fn change_config(&self, from: DatapathConfig, to: DatapathConfig) -> Result<bool, MapAccessError> {
        if from != to {
            self.maps.config.set(&ENTRY, &to)?;
        }
        Ok(from != to)
    }
}
