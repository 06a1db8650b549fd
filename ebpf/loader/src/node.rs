// SPDX-License-Identifier: Apache-2.0
//! What the programs know of this node and the others.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ebpf_abi::{
    Address, DatapathConfig, NodeValue, address,
    node::{CONFIG_BLIND_UPLINK, CONFIG_MIGRATING},
};

use crate::{datapath::Datapath, error::MapAccessError};

/// The only entry of CONFIG.
const ENTRY: u32 = 0;
/// Flags in it that say what this crate has done, not what the caller wants.
const OURS: u32 = CONFIG_MIGRATING | CONFIG_BLIND_UPLINK;

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

    /// Writes CONFIG; `false` when it was so already. `CONFIG_MIGRATING` and `CONFIG_BLIND_UPLINK` are not the caller's: they stay
    /// as they are.
    pub fn write_config(&mut self, config: &DatapathConfig) -> Result<bool, MapAccessError> {
        let present = self.maps.config.get(&ENTRY)?.unwrap_or_default();
        let flags = config.flags & !OURS | present.flags & OURS;
        self.change_config(present, DatapathConfig { flags, ..*config })
    }

    /// CONFIG as it is, without `CONFIG_MIGRATING` and `CONFIG_BLIND_UPLINK`.
    pub fn config(&self) -> Result<DatapathConfig, MapAccessError> {
        let present = self.maps.config.get(&ENTRY)?.unwrap_or_default();
        Ok(DatapathConfig { flags: present.flags & !OURS, ..present })
    }

    /// Tells the programs whether flows are on their way from other maps.
    pub(crate) fn say_migrating(&mut self, is_migrating: bool) -> Result<bool, MapAccessError> {
        self.say(CONFIG_MIGRATING, is_migrating)
    }

    /// Tells the programs whether an uplink has none at its egress.
    pub(crate) fn say_blind_uplink(&mut self, is_blind: bool) -> Result<bool, MapAccessError> {
        self.say(CONFIG_BLIND_UPLINK, is_blind)
    }

    fn say(&mut self, flag: u32, is_so: bool) -> Result<bool, MapAccessError> {
        let present = self.maps.config.get(&ENTRY)?.unwrap_or_default();
        let flags = present.flags & !flag | if is_so { flag } else { 0 };
        self.change_config(present, DatapathConfig { flags, ..present })
    }

    fn change_config(&self, from: DatapathConfig, to: DatapathConfig) -> Result<bool, MapAccessError> {
        if from != to {
            self.maps.config.set(&ENTRY, &to)?;
        }
        Ok(from != to)
    }
}
