// SPDX-License-Identifier: Apache-2.0
//! Objects that do not read or are refused, and of which no good value is known, as after a restart: what the maps were found
//! with stands for them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ebpf_abi::{BackendValue, FrontendKey};
use ipnet::IpNet;

use crate::compile::Compiled;
use crate::frontends::{SetKey, Wishes};
use crate::{Algorithm, Compiler, ServiceName, VerdictState};

/// What a [`crate::ServiceTable`] lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unread {
    /// Services of which nothing is known.
    pub services: BTreeSet<ServiceName>,
    /// Services of which some EndpointSlice is not known.
    pub endpoints: BTreeSet<ServiceName>,
    /// What ClusterIPs are taken from: in there `services` have those of `cluster_ips` and no others. Any other address may be
    /// theirs.
    pub cluster_ranges: Vec<IpNet>,
    /// ClusterIPs that are claimed for `services`.
    pub cluster_ips: BTreeSet<IpAddr>,
    /// Node ports that are claimed for `services`.
    pub node_ports: BTreeSet<u16>,
}

/// Backends that a Service was found with, by the set that they were in.
pub(crate) type Found = BTreeMap<SetKey, BTreeMap<BackendValue, VerdictState>>;

impl Unread {
    /// Whether a frontend may belong to a Service of which nothing is known.
    pub(crate) fn may_have(&self, key: &FrontendKey) -> bool {
        if self.services.is_empty() {
            return false;
        }
        if key.is_node_port() {
            return self.node_ports.contains(&key.port_number());
        }
        let ip = key.address();
        self.cluster_ips.contains(&ip) || !self.cluster_ranges.iter().any(|range| range.contains(&ip))
    }

    /// Whether a Service, or one that it depends upon, may have backends that nobody knows.
    fn lacks_backends<'a>(&self, mut names: impl Iterator<Item = &'a ServiceName>) -> bool {
        names.any(|name| self.endpoints.contains(name) || self.services.contains(name))
    }
}

impl Compiler {
    /// Adds to the wishes of a Service, whose slices are not all known, the backends that it was found with and that no slice
    /// names. Those that nobody chose any more, but that connections go to, may keep these.
    pub(crate) fn stand_in(
        &self,
        name: &ServiceName,
        compiled: &mut Compiled,
        wishes: &mut Wishes,
        unread: &Unread,
        algorithm: Algorithm,
    ) {
        if !unread.lacks_backends([name].into_iter().chain(&compiled.depends)) {
            compiled.found.clear();
            return;
        }
        let is_new = |value: &BackendValue| wishes.like(value).next().is_none();
        if self.adopted.is_fresh() && compiled.found.is_empty() {
            compiled.found = self.adopted.found(wishes, |id| self.holdings.backend(id));
            // What a slice names now is not of the one that does not read.
            compiled.found.values_mut().for_each(|found| found.retain(|value, _| is_new(value)));
            compiled.found.retain(|_, found| !found.is_empty());
        }
        let lost =
            compiled.found.iter().filter(|(key, _)| wishes.sets.contains_key(key)).map(|(key, found)| {
                let found = found.iter().filter(|(value, _)| is_new(value));
                (*key, found.map(|(value, state)| (*value, *state)).collect())
            });
        let lost: Vec<(SetKey, Vec<(BackendValue, VerdictState)>)> = lost.collect();
        for (key, backends) in lost {
            if let Some(set) = wishes.sets.get_mut(&key) {
                let up = backends.iter().filter(|(_, state)| *state == VerdictState::Up);
                set.recipe.extend(up.map(|(value, _)| *value), algorithm);
            }
            for (value, state) in backends {
                let listed = wishes.listed.entry(value).or_insert(state);
                *listed = (*listed).min(state);
            }
        }
    }
}
