// SPDX-License-Identifier: Apache-2.0
//! Counters, summed over CPUs.

use std::collections::BTreeMap;

use ebpf_abi::{DropReason, ServiceCounters, names};

use crate::{datapath::Datapath, error::MapAccessError};

impl Datapath {
    /// Connections and refusals by service identifier, for the services in the maps, since each got its identifier.
    pub fn counters(&self) -> Result<BTreeMap<u32, ServiceCounters>, MapAccessError> {
        self.programmed
            .services
            .values()
            .map(|service| {
                let values = self
                    .counters
                    .get(&service.service_id, 0)
                    .map_err(MapAccessError::of(names::SERVICE_COUNTERS))?;
                let sum = values.iter().fold(ServiceCounters::default(), |sum, value| ServiceCounters {
                    connections: sum.connections.wrapping_add(value.connections),
                    refused: sum.refused.wrapping_add(value.refused),
                });
                Ok((service.service_id, sum))
            })
            .collect()
    }

    /// Packets of pods that were dropped, by reason, since the maps were made.
    pub fn drops(&self) -> Result<BTreeMap<DropReason, u64>, MapAccessError> {
        DropReason::ALL
            .into_iter()
            .map(|reason| {
                let values = self.drops.get(&reason.index(), 0).map_err(MapAccessError::of(names::DROPS))?;
                Ok((reason, values.iter().sum()))
            })
            .collect()
    }
}
