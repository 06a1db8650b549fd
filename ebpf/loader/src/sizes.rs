// SPDX-License-Identifier: Apache-2.0
//! How large the maps are made whose size is a matter of configuration.

use ebpf_abi::{limits, names};

/// Entries of each map. A value below the map's minimum (ebpf-abi, `limits`) stands for the minimum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSizes {
    /// Frontends, and counters of frontends.
    pub services: u32,
    /// Backend identifiers, their loads, and their addresses.
    pub backends: u32,
    /// Slots over all frontends.
    pub slots: u32,
    /// Connected sockets that went through a service.
    pub sockets: u32,
    /// Backends of unconnected UDP sockets.
    pub flows: u32,
    /// Clients that stay with a backend.
    pub affinity: u32,
    /// Backends that clients may stay with.
    pub affinity_backends: u32,
    /// Prefixes of source ranges.
    pub source_ranges: u32,
    /// Entries for flows of the packet path that have begun.
    pub ct_live: u32,
    /// Entries for those without an answer yet.
    pub ct_new: u32,
    /// Packets that come in fragments.
    pub fragments: u32,
}

impl Default for MapSizes {
    /// What ebpf-abi says.
    fn default() -> Self {
        Self {
            services: limits::FRONTENDS_DEFAULT,
            backends: limits::BACKENDS_DEFAULT,
            slots: limits::SLOTS_DEFAULT,
            sockets: limits::SOCKETS_DEFAULT,
            flows: limits::FLOWS_DEFAULT,
            affinity: limits::AFFINITY_DEFAULT,
            affinity_backends: limits::AFFINITY_BACKENDS_DEFAULT,
            source_ranges: limits::SOURCE_RANGES_DEFAULT,
            ct_live: limits::CT_LIVE_DEFAULT,
            ct_new: limits::CT_NEW_DEFAULT,
            fragments: limits::FRAGMENTS_DEFAULT,
        }
    }
}

/// Memory that the defaults are made for; a machine with less gets smaller maps, one with more larger conntrack.
const DEFAULT_FOR_BYTES: u64 = 8 << 30;
/// Conntrack and sockets grow with memory up to this many times the default.
const GROWTH_MAX: u64 = 16;

impl MapSizes {
    /// For a machine with this much memory: what is one entry per flow follows it, from a quarter of the default (2 GiB and
    /// less) to sixteen times (128 GiB and more), in powers of two, so that a few bytes more or less resize nothing. What is
    /// one entry per service stays: services are as many as they are on a small machine, too.
    #[must_use]
    pub fn for_memory(bytes: u64) -> Self {
        let shares = (4 * bytes / DEFAULT_FOR_BYTES).clamp(1, 4 * GROWTH_MAX);
        let quarters = 1_u64 << shares.ilog2();
        let scaled = |entries: u32| u32::try_from(u64::from(entries) * quarters / 4).unwrap_or(u32::MAX);
        let default = Self::default();
        Self {
            sockets: scaled(default.sockets),
            flows: scaled(default.flows),
            affinity: scaled(default.affinity),
            ct_live: scaled(default.ct_live),
            ct_new: scaled(default.ct_new),
            fragments: scaled(default.fragments),
            ..default
        }
        .at_least_min()
    }

    /// With each size at its minimum at least: what the maps are made with.
    #[must_use]
    pub fn at_least_min(self) -> Self {
        Self {
            services: self.services.max(limits::FRONTENDS_MIN),
            backends: self.backends.max(limits::BACKENDS_MIN),
            slots: self.slots.max(limits::SLOTS_MIN),
            sockets: self.sockets.max(limits::SOCKETS_MIN),
            flows: self.flows.max(limits::FLOWS_MIN),
            affinity: self.affinity.max(limits::AFFINITY_MIN),
            affinity_backends: self.affinity_backends.max(limits::AFFINITY_BACKENDS_MIN),
            source_ranges: self.source_ranges.max(limits::SOURCE_RANGES_MIN),
            ct_live: self.ct_live.max(limits::CT_LIVE_MIN),
            ct_new: self.ct_new.max(limits::CT_NEW_MIN),
            fragments: self.fragments.max(limits::FRAGMENTS_MIN),
        }
    }

    /// The same sizes for the compiler.
    #[must_use]
    pub fn limits(&self) -> lb::Limits {
        lb::Limits {
            services: self.services,
            backends: self.backends,
            slots: self.slots,
            affinity_backends: self.affinity_backends,
            source_ranges: self.source_ranges,
        }
    }

    /// Entries of the map with this name; `None` for one that has a single size.
    pub(crate) fn of(&self, map: &str) -> Option<u32> {
        Some(match map {
            names::SERVICES | names::SERVICE_COUNTERS => self.services,
            names::BACKENDS | names::BACKEND_LOAD | names::BACKEND_ENDPOINTS => self.backends,
            names::SLOTS => self.slots,
            names::SOCKETS => self.sockets,
            names::FLOWS => self.flows,
            names::AFFINITY => self.affinity,
            names::AFFINITY_BACKENDS => self.affinity_backends,
            names::SOURCE_RANGES => self.source_ranges,
            names::CT_LIVE => self.ct_live,
            names::CT_NEW => self.ct_new,
            names::FRAGMENTS => self.fragments,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_follow_memory_and_services_do_not() {
        let of = |gib: u64| MapSizes::for_memory(gib << 30);
        assert_eq!(of(8), MapSizes::default());
        assert_eq!(of(15), MapSizes::default(), "nothing moves within a power of two");
        assert_eq!(of(16).ct_live, 2 * MapSizes::default().ct_live);
        assert_eq!(of(1), of(2));
        assert_eq!(of(2).sockets, MapSizes::default().sockets / 4);
        assert_eq!(of(4_000), of(128));
        for gib in [1, 8, 300] {
            assert_eq!(of(gib).services, MapSizes::default().services);
        }
    }

    #[test]
    fn nothing_is_made_below_its_minimum() {
        let none = MapSizes {
            services: 0,
            backends: 1,
            slots: 2,
            sockets: 0,
            flows: 0,
            affinity: 0,
            affinity_backends: 0,
            source_ranges: 0,
            ct_live: 0,
            ct_new: 0,
            fragments: 0,
        };
        let made = none.at_least_min();
        assert_eq!((made.services, made.slots), (limits::FRONTENDS_MIN, limits::SLOTS_MIN));
        assert_eq!(made, made.at_least_min());
    }
}
