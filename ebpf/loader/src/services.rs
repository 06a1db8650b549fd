// SPDX-License-Identifier: Apache-2.0
//! Services in the maps: read back, and written in an order that is safe while programs run.
//!
//! What points at something comes after it, and goes before it: a program that looks between two steps, or a write that stops
//! at one, finds each frontend as it was or as it is to be, with its slots and backends in place. That slots and identifiers
//! are not reused while a program may still follow them is the compiler's grace period (`lb`).

use ebpf_abi::{BackendValue, FrontendKey, ServiceValue};
use lb::{Image, Writes};

use crate::{
    datapath::{Datapath, Maps},
    error::{MapAccessError, WriteError},
};

/// Value of each entry of AFFINITY_BACKENDS and SOURCE_RANGES.
const PRESENT: u32 = 0;

/// How much a write changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteStats {
    /// Frontends written.
    pub services: usize,
    /// Frontends removed.
    pub services_removed: usize,
    /// Backends written, cleared ones among them.
    pub backends: usize,
    /// Slots written.
    pub slots: usize,
    /// Entries of the other maps written or removed.
    pub others: usize,
}

impl WriteStats {
    /// Whether nothing was written.
    pub fn is_unchanged(&self) -> bool {
        *self == Self::default()
    }
}

impl Datapath {
    /// Carries out what the compiler wishes, in the order of its fields.
    ///
    /// # Errors
    /// [`WriteError::OutOfRange`]: nothing was done. [`WriteError::Map`], with the map's name when it is full: what was done
    /// before stays, and all is consistent; call again with the same or the compiler's next writes.
    pub fn write(&mut self, writes: &Writes) -> Result<WriteStats, WriteError> {
        self.validate(writes)?;
        let mut stats = WriteStats::default();
        let maps = &self.maps;
        maps.backend_load.put_all(writes.loads_reset.iter().map(|id| (id, &0)))?;
        stats.backends += maps.backends.put_all(writes.backends_put.iter())?;
        stats.others += maps.backend_endpoints.put_all(writes.endpoints_put.iter())?;
        for (offset, backends) in &writes.slots_put {
            maps.slots.store_run(*offset, backends);
            stats.slots += backends.len();
        }
        let members = writes.affinity_put.iter().map(|key| (key, &PRESENT));
        stats.others += maps.affinity_backends.put_all(members)?;
        let ranges = writes.ranges_put.iter().map(|key| (key, &PRESENT));
        stats.others += maps.source_ranges.put_all(ranges)?;
        maps.counters.clear_all(writes.counters_reset.iter())?;
        stats.services += maps.services.put_all(writes.services_put_in_order())?;
        self.frontends.extend(writes.services_put.iter().map(|(key, value)| (*key, value.service_id)));
        stats.services_removed += maps.services.remove_all(writes.services_del_in_order())?;
        for key in &writes.services_del {
            self.frontends.remove(key);
        }
        stats.others += maps.affinity_backends.remove_all(writes.affinity_del.iter())?;
        stats.others += maps.source_ranges.remove_all(writes.ranges_del.iter())?;
        stats.others += maps.backend_endpoints.remove_all(writes.endpoints_del.iter())?;
        let unused = BackendValue::default();
        stats.backends += maps.backends.put_all(writes.backends_del.iter().map(|id| (id, &unused)))?;
        Ok(stats)
    }

    /// Services as the maps hold them now, without names: what a compiler adopts.
    pub fn read_image(&mut self) -> Result<Image, MapAccessError> {
        let image = self.maps.read_image()?;
        self.learn(image.services.iter().map(|(key, value)| (*key, *value)));
        Ok(image)
    }

    /// Remembers which frontends there are.
    pub(crate) fn learn_frontends(&mut self) -> Result<(), MapAccessError> {
        let entries = self.maps.services.entries()?;
        self.learn(entries.into_iter());
        Ok(())
    }

    fn learn(&mut self, entries: impl Iterator<Item = (FrontendKey, ServiceValue)>) {
        self.frontends = entries.map(|(key, value)| (key, value.service_id)).collect();
    }

    fn validate(&self, writes: &Writes) -> Result<(), WriteError> {
        let within = |what, value: u64, limit: u32| {
            if value < u64::from(limit) { Ok(()) } else { Err(WriteError::OutOfRange { what, value, limit }) }
        };
        let maps = &self.maps;
        let (backends, services, slots) =
            (maps.backends.max_entries(), maps.counters.max_entries(), maps.slots.len());
        let ids =
            [writes.backends_put.keys().next_back(), writes.backends_del.last(), writes.loads_reset.last()];
        for id in ids.into_iter().flatten() {
            within("backend identifier", u64::from(*id), backends)?;
        }
        if let Some((offset, run)) = writes.slots_put.last_key_value() {
            within("end of a run of slots", u64::from(*offset) + run.len() as u64, slots + 1)?;
        }
        let ids = writes.services_put.values().map(|value| &value.service_id);
        for id in ids.chain(writes.counters_reset.last()) {
            within("service identifier", u64::from(*id), services)?;
        }
        for value in writes.services_put.values() {
            let end = u64::from(value.slot_offset) + u64::from(value.slot_count);
            within("end of a service's slots", end, slots + 1)?;
        }
        Ok(())
    }
}

impl Maps {
    pub(crate) fn read_image(&self) -> Result<Image, MapAccessError> {
        Ok(Image {
            services: self.services.entries()?.into_iter().collect(),
            backends: self.backends.entries()?.into_iter().filter(|(_, value)| !value.is_unused()).collect(),
            slots: (0..self.slots.len())
                .map(|slot| (slot, self.slots.load(slot)))
                .filter(|(_, backend_id)| *backend_id != 0)
                .collect(),
            endpoints: self.backend_endpoints.entries()?.into_iter().collect(),
            affinity: self.affinity_backends.entries()?.into_iter().map(|(key, _)| key).collect(),
            ranges: self.source_ranges.entries()?.into_iter().map(|(key, _)| key).collect(),
            ..Image::default()
        })
    }
}
