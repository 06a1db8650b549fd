// SPDX-License-Identifier: Apache-2.0
//! The content of the BPF maps, as a value.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use ebpf_abi::service::{
    ALGORITHM_HASH, ALGORITHM_LEAST_CONNECTIONS, SERVICE_AFFINITY, SERVICE_DROP_EMPTY, SERVICE_DSR,
    SERVICE_FAULT_CLIENTS, SERVICE_FAULT_DROP, SERVICE_FAULT_RESET, SERVICE_KEEP_SOURCE, SERVICE_NODE_PORT,
    SERVICE_SOURCE_RANGES,
};
use ebpf_abi::{
    AffinityBackendKey, BackendValue, EndpointKey, FrontendKey, ServiceValue, SourceRangeKey, address, limits,
};

use crate::Writes;
use crate::writes::Step;

/// What the maps of services hold. Slots and backends that nothing points at any more stay in it while they rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Frontends. `slot_count` 0 means: refuse, or drop by flag.
    pub services: BTreeMap<FrontendKey, ServiceValue>,
    /// Backends by identifier; 0 is never one.
    pub backends: BTreeMap<u32, BackendValue>,
    /// Backend identifier by position in SLOTS; positions that hold 0 are left out.
    pub slots: BTreeMap<u32, u32>,
    /// How many backends have this address.
    pub endpoints: BTreeMap<EndpointKey, u32>,
    /// Which backends clients with affinity may stay with.
    pub affinity: BTreeSet<AffinityBackendKey>,
    /// Who may ask, by frontend; or whom its fault befalls.
    pub ranges: BTreeSet<SourceRangeKey>,
    /// For people and metrics, by service identifier: `default/web:80/tcp`, `default/web:*`. Empty in an
    /// image that was read back from the maps.
    pub names: BTreeMap<u32, String>,
}

impl Image {
    /// The backends behind a frontend in slot order; `None`: no such frontend, or a slot leads nowhere.
    #[must_use]
    pub fn resolve(&self, key: &FrontendKey) -> Option<Vec<BackendValue>> {
        let value = self.services.get(key)?;
        let end = value.slot_offset.checked_add(value.slot_count)?;
        (value.slot_offset..end).map(|slot| self.backends.get(self.slots.get(&slot)?).copied()).collect()
    }

    /// Writes all of `writes`.
    pub fn apply(&mut self, writes: &Writes) {
        self.apply_first(writes, usize::MAX);
    }

    /// Writes the first `count` single changes of `writes`, in their order; returns whether that were all.
    pub fn apply_first(&mut self, writes: &Writes, count: usize) -> bool {
        let mut steps = writes.steps();
        for step in steps.by_ref().take(count) {
            match step {
                Step::Affinity(key, true) => drop(self.affinity.insert(key)),
                Step::Affinity(key, false) => drop(self.affinity.remove(&key)),
                Step::Backend(id, value) if value.is_unused() => drop(self.backends.remove(&id)),
                Step::Backend(id, value) => drop(self.backends.insert(id, value)),
                Step::Endpoint(key, 0) => drop(self.endpoints.remove(&key)),
                Step::Endpoint(key, count) => drop(self.endpoints.insert(key, count)),
                Step::Range(key, true) => drop(self.ranges.insert(key)),
                Step::Range(key, false) => drop(self.ranges.remove(&key)),
                Step::Service(key, Some(value)) => drop(self.services.insert(key, value)),
                Step::Service(key, None) => drop(self.services.remove(&key)),
                Step::Slot(slot, 0) => drop(self.slots.remove(&slot)),
                Step::Slot(slot, id) => drop(self.slots.insert(slot, id)),
            }
        }
        steps.next().is_none()
    }

    /// What clients see, one frontend a line, without identifiers and offsets: two images with one dump treat every
    /// connection alike. A table of many slots shows the share of each backend and a digest of the order.
    #[must_use]
    pub fn dump(&self) -> String {
        let mut out = String::new();
        for key in self.services.keys() {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{key}{}", self.describe(key));
        }
        out
    }

    /// What a frontend does: flags, faults, backends, who may ask.
    #[must_use]
    pub fn describe(&self, key: &FrontendKey) -> String {
        let Some(value) = self.services.get(key) else { return String::new() };
        let mut out = String::new();
        for (flag, word) in
            [(SERVICE_NODE_PORT, " node-port"), (SERVICE_DSR, " dsr"), (SERVICE_KEEP_SOURCE, " keep-source")]
        {
            if value.flags & flag != 0 {
                out.push_str(word);
            }
        }
        match value.algorithm {
            ALGORITHM_HASH => out.push_str(" hash"),
            ALGORITHM_LEAST_CONNECTIONS => out.push_str(" least-connections"),
            _ => {}
        }
        if value.flags & SERVICE_AFFINITY != 0 {
            let members = self.affinity.iter().filter(|member| member.affinity_id == value.affinity_id);
            let _ = write!(out, " affinity={}s/{}", value.affinity_secs, members.count());
        }
        let ranges = || {
            let own = self.ranges.iter().filter(|range| range.service_id == value.service_id.to_be_bytes());
            own.map(range_text).collect::<Vec<String>>().join(",")
        };
        if value.flags & SERVICE_SOURCE_RANGES != 0 {
            let _ = write!(out, " from=[{}]", ranges());
        }
        for (flag, word) in [(SERVICE_FAULT_DROP, "drop"), (SERVICE_FAULT_RESET, "reset")] {
            if value.flags & flag != 0 {
                let _ = write!(out, " fault={word}:{}%", value.fault_percent);
            }
        }
        if value.flags & SERVICE_FAULT_CLIENTS != 0 {
            let _ = write!(out, " of=[{}]", ranges());
        }
        match self.resolve(key) {
            None => out.push_str(" BROKEN"),
            Some(slots) if slots.is_empty() && value.flags & SERVICE_DROP_EMPTY != 0 => out.push_str(" drop"),
            Some(slots) if slots.is_empty() => out.push_str(" refuse"),
            Some(slots) => describe_slots(&mut out, &slots),
        }
        out
    }
}

/// Longest list of slots that is shown one by one.
const SHOWN_SLOTS: usize = 32;

fn describe_slots(out: &mut String, slots: &[BackendValue]) {
    let mark = |backend: &BackendValue| if backend.is_local() { "!" } else { "" };
    if slots.len() <= SHOWN_SLOTS {
        for backend in slots {
            let _ = write!(out, " {backend}{}", mark(backend));
        }
        return;
    }
    let mut counts: BTreeMap<&BackendValue, usize> = BTreeMap::new();
    let mut digest = 0u64;
    for backend in slots {
        *counts.entry(backend).or_default() += 1;
        digest = crate::maglev::mix(digest.rotate_left(5) ^ crate::frontends::seed(backend));
    }
    for (backend, count) in counts {
        let _ = write!(out, " {count}*{backend}{}", mark(backend));
    }
    let _ = write!(out, " of {} ({digest:016x})", slots.len());
}

fn range_text(range: &SourceRangeKey) -> String {
    let bits = range.prefix_len.saturating_sub(32);
    let ip = address::ip(range.addr);
    let bits = if ip.is_ipv4() && bits >= 96 { bits - 96 } else { bits };
    format!("{ip}/{bits}")
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
    /// Entries of AFFINITY_BACKENDS.
    pub affinity_backends: u32,
    /// Entries of SOURCE_RANGES.
    pub source_ranges: u32,
}

impl Default for Limits {
    /// The sizes that the BPF programs are built with.
    fn default() -> Self {
        Self {
            services: limits::FRONTENDS_DEFAULT,
            backends: limits::BACKENDS_DEFAULT,
            slots: limits::SLOTS_DEFAULT,
            affinity_backends: limits::AFFINITY_BACKENDS_DEFAULT,
            source_ranges: limits::SOURCE_RANGES_DEFAULT,
        }
    }
}
