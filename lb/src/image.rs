// SPDX-License-Identifier: Apache-2.0
//! The content of the BPF maps, as a value.

use std::collections::BTreeMap;

use ebpf_abi::{
    limits,
    v1::{BackendValue, ServiceKey, ServiceValue},
};

/// What the maps SERVICES, BACKENDS and SLOTS hold, or should hold.
///
/// Retired slots and backends stay in it until their grace period is over, so whoever writes the image may
/// clear what it does not name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Frontends. `slot_count` 0 means: refuse.
    pub services: BTreeMap<ServiceKey, ServiceValue>,
    /// Backends by identifier; 0 is never one.
    pub backends: BTreeMap<u32, BackendValue>,
    /// Backend identifier by position in SLOTS.
    pub slots: BTreeMap<u32, u32>,
    /// For people and metrics, by service identifier: `default/web:80/tcp`, `default/web:*`. Empty in an
    /// image that was read back from the maps.
    pub names: BTreeMap<u32, String>,
}

impl Image {
    /// The backends behind a frontend in slot order; `None`: no such frontend, or a slot leads nowhere.
    #[must_use]
    pub fn resolve(&self, key: &ServiceKey) -> Option<Vec<BackendValue>> {
        let value = self.services.get(key)?;
        let end = value.slot_offset.checked_add(value.slot_count)?;
        (value.slot_offset..end).map(|slot| self.backends.get(self.slots.get(&slot)?).copied()).collect()
    }
}

/// Sizes of the maps. Identifier 0 is never given out, so one less than the size is usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries of SERVICES, and of the counters that a service identifier indexes.
    pub services: u32,
    /// Entries of BACKENDS.
    pub backends: u32,
    /// Entries of SLOTS.
    pub slots: u32,
}

impl Default for Limits {
    /// The sizes that the BPF programs are built with.
    fn default() -> Self {
        Self { services: limits::SERVICES_MAX, backends: limits::BACKENDS_MAX, slots: limits::SLOTS_MAX }
    }
}
