// SPDX-License-Identifier: Apache-2.0
//! Counters, summed over CPUs, and how much memory the maps take.

use std::collections::BTreeMap;

use ebpf_abi::{Counter, DropReason, ServiceCounters, names};

use crate::{datapath::Datapath, error::MapAccessError, map::BpfMap, sys::MapFd};

/// How large a map is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapUsage {
    /// Its name in ebpf-abi.
    pub map: &'static str,
    /// Entries that it was made for.
    pub max_entries: u32,
    /// Bytes that the kernel has put aside for it (of one that grows with use: for what is in it).
    pub bytes: u64,
}

impl Datapath {
    /// Connections and refusals by service identifier, for the frontends in the maps, since each got its identifier.
    pub fn counters(&self) -> Result<BTreeMap<u32, ServiceCounters>, MapAccessError> {
        let mut sums = BTreeMap::new();
        for service_id in self.frontends.values() {
            if let Some(sum) = self.maps.counters.sum(service_id, add)? {
                sums.insert(*service_id, sum);
            }
        }
        Ok(sums)
    }

    /// Those of one frontend; `None` for an identifier that no map has room for.
    pub fn counters_of(&self, service_id: u32) -> Result<Option<ServiceCounters>, MapAccessError> {
        self.maps.counters.sum(&service_id, add)
    }

    /// Packets that were dropped, by reason, since the maps were made.
    pub fn drops(&self) -> Result<BTreeMap<DropReason, u64>, MapAccessError> {
        DropReason::ALL
            .into_iter()
            .map(|reason| Ok((reason, total(&self.maps.drops, reason.index())?)))
            .collect()
    }

    /// What else the programs count, since the maps were made.
    pub fn packet_counters(&self) -> Result<BTreeMap<Counter, u64>, MapAccessError> {
        Counter::ALL
            .into_iter()
            .map(|counter| Ok((counter, total(&self.maps.packet_counters, counter.index())?)))
            .collect()
    }

    /// Every map with its size; one that cannot be opened is left out.
    pub fn usage(&self) -> Vec<MapUsage> {
        names::MAPS
            .into_iter()
            .filter_map(|map| {
                let fd = MapFd::open(&self.options.pin_dir.join(map)).ok()?;
                Some(MapUsage { map, max_entries: fd.shape().max_entries, bytes: fd.memory() })
            })
            .collect()
    }
}

fn add(sum: ServiceCounters, value: ServiceCounters) -> ServiceCounters {
    ServiceCounters {
        connections: sum.connections.wrapping_add(value.connections),
        refused: sum.refused.wrapping_add(value.refused),
    }
}

fn total(map: &BpfMap<u32, u64>, index: u32) -> Result<u64, MapAccessError> {
    Ok(map.sum(&index, |sum: u64, value| sum.wrapping_add(value))?.unwrap_or(0))
}
