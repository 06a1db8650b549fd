// SPDX-License-Identifier: Apache-2.0
//! The service image: read back, and written as a difference in an order that is safe while programs run.
//!
//! New things before those that point at them: backends, slots, services. Then services go, and what only they used is
//! cleared. A program that looks in between finds the old service or the new one, each with its slots and backends in
//! place; that slots are not reused while a program may still read them is the compiler's grace period (`lb`).

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsFd as _,
};

use aya::maps::{MapError, PerCpuValues};
use ebpf_abi::{
    ServiceCounters,
    limits::{BACKENDS_MAX, SERVICE_COUNTERS_MAX},
    names,
    v1::{BackendValue, ServiceKey, ServiceValue},
};
use lb::Image;

use crate::{
    datapath::{Datapath, entries},
    error::{ImageError, MapAccessError},
    sys,
};

/// BPF_ANY (linux/bpf.h): create or replace.
const ANY: u64 = 0;

/// How much a write changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteStats {
    /// Backends written.
    pub backends: usize,
    /// Slots written.
    pub slots: usize,
    /// Services written.
    pub services: usize,
    /// Services removed.
    pub services_removed: usize,
    /// Backends and slots cleared.
    pub cleared: usize,
}

impl WriteStats {
    /// Whether nothing differed.
    pub fn is_unchanged(&self) -> bool {
        *self == Self::default()
    }
}

impl Datapath {
    /// The image as the maps hold it now, without names. Also what the next write is compared with, so that a caller
    /// who distrusts the maps reads before writing.
    pub fn observed_image(&mut self) -> Result<Image, MapAccessError> {
        let services = entries(&self.services, names::SERVICES)?;
        let raw = sys::read_array(self.backends_fd.as_fd(), BACKENDS_MAX).map_err(|io_error| {
            let source =
                MapError::SyscallError(aya::sys::SyscallError { call: "BPF_MAP_LOOKUP_BATCH", io_error });
            MapAccessError { map: names::BACKENDS, source }
        })?;
        let backends = (0..)
            .zip(raw)
            .map(|(id, [a, b, c, d, e, f, proto, flags])| {
                (id, BackendValue { addr: [a, b, c, d], port: [e, f], proto, flags })
            })
            .filter(|(_, backend)| !backend.is_unused())
            .collect();
        let slots = (0..self.slots.len())
            .map(|slot| (slot, self.slots.load(slot)))
            .filter(|(_, backend_id)| *backend_id != 0)
            .collect();
        self.programmed = Image { services, backends, slots, names: BTreeMap::new() };
        Ok(self.programmed.clone())
    }

    /// Makes the maps hold `image`, and nothing else. Only differences are written.
    pub fn write_image(&mut self, image: &Image) -> Result<WriteStats, ImageError> {
        self.validate(image)?;
        let mut stats = WriteStats::default();
        for (id, backend) in &image.backends {
            if self.programmed.backends.get(id) != Some(backend) {
                self.backends.set(*id, backend, ANY).map_err(MapAccessError::of(names::BACKENDS))?;
                self.programmed.backends.insert(*id, *backend);
                stats.backends += 1;
            }
        }
        for (slot, backend_id) in &image.slots {
            if self.slots.load(*slot) != *backend_id {
                self.slots.store(*slot, *backend_id);
                stats.slots += 1;
            }
            self.programmed.slots.insert(*slot, *backend_id);
        }
        stats.services = self.upsert_services(&image.services)?;
        stats.services_removed = self.remove_services(&image.services)?;
        stats.cleared = self.clear_unnamed(image)?;
        self.programmed.names.clone_from(&image.names);
        Ok(stats)
    }

    fn validate(&self, image: &Image) -> Result<(), ImageError> {
        let within = |what, value: u64, limit: u32| {
            if value < u64::from(limit) { Ok(()) } else { Err(ImageError::OutOfRange { what, value, limit }) }
        };
        if let Some((id, _)) = image.backends.last_key_value() {
            within("backend identifier", u64::from(*id), BACKENDS_MAX)?;
        }
        if let Some((slot, _)) = image.slots.last_key_value() {
            within("slot", u64::from(*slot), self.slots.len())?;
        }
        for value in image.services.values() {
            within("service identifier", u64::from(value.service_id), SERVICE_COUNTERS_MAX)?;
            if value.slot_count > 0 {
                let last = u64::from(value.slot_offset) + u64::from(value.slot_count) - 1;
                within("last slot of a service", last, self.slots.len())?;
            }
        }
        Ok(())
    }

    fn upsert_services(&mut self, desired: &BTreeMap<ServiceKey, ServiceValue>) -> Result<usize, ImageError> {
        let counted: BTreeSet<u32> =
            self.programmed.services.values().map(|value| value.service_id).collect();
        let mut written = 0;
        for (key, value) in desired {
            if self.programmed.services.get(key) == Some(value) {
                continue;
            }
            if !counted.contains(&value.service_id) {
                // A reused identifier starts from zero, not from what its former service counted.
                let zero = PerCpuValues::try_from(vec![ServiceCounters::default(); self.cpus()?])
                    .map_err(|error| MapAccessError { map: names::SERVICE_COUNTERS, source: error.into() })?;
                self.counters
                    .set(value.service_id, zero, ANY)
                    .map_err(MapAccessError::of(names::SERVICE_COUNTERS))?;
            }
            self.services.insert(key, value, ANY).map_err(MapAccessError::of(names::SERVICES))?;
            self.programmed.services.insert(*key, *value);
            written += 1;
        }
        Ok(written)
    }

    fn remove_services(&mut self, desired: &BTreeMap<ServiceKey, ServiceValue>) -> Result<usize, ImageError> {
        let gone: Vec<_> =
            self.programmed.services.keys().filter(|key| !desired.contains_key(key)).copied().collect();
        for key in &gone {
            match self.services.remove(key) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) if is_absent(&error) => {}
                Err(source) => return Err(MapAccessError { map: names::SERVICES, source }.into()),
            }
            self.programmed.services.remove(key);
        }
        Ok(gone.len())
    }

    fn clear_unnamed(&mut self, image: &Image) -> Result<usize, ImageError> {
        let slots: Vec<_> =
            self.programmed.slots.keys().filter(|slot| !image.slots.contains_key(slot)).copied().collect();
        for slot in &slots {
            self.slots.store(*slot, 0);
            self.programmed.slots.remove(slot);
        }
        let backends: Vec<_> =
            self.programmed.backends.keys().filter(|id| !image.backends.contains_key(id)).copied().collect();
        for id in &backends {
            self.backends
                .set(*id, BackendValue::default(), ANY)
                .map_err(MapAccessError::of(names::BACKENDS))?;
            self.programmed.backends.remove(id);
        }
        Ok(slots.len() + backends.len())
    }

    fn cpus(&self) -> Result<usize, MapAccessError> {
        // Any element has one value per possible CPU.
        self.drops.get(&0, 0).map(|values| values.len()).map_err(MapAccessError::of(names::DROPS))
    }
}

/// Whether a removal failed because there was nothing to remove.
pub(crate) fn is_absent(error: &MapError) -> bool {
    matches!(error, MapError::SyscallError(error) if error.io_error.raw_os_error() == Some(libc::ENOENT))
}
