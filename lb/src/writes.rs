// SPDX-License-Identifier: Apache-2.0
//! What is to be changed in the maps, in an order that is safe while programs run.

use std::collections::{BTreeMap, BTreeSet};

use ebpf_abi::{AffinityBackendKey, BackendValue, EndpointKey, FrontendKey, ServiceValue, SourceRangeKey};

/// Changes to the maps. The fields are written in the order that they stand in: what is new comes before that which
/// points at it, and what is gone goes after nothing points at it. A program that runs after any part of it was written
/// finds each frontend as it was before or as it will be.
///
/// Removing what is not there is no error: a write that failed halfway is simply repeated with the next one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    /// Backend identifiers that get a new meaning: their count of connections begins at 0.
    pub loads_reset: BTreeSet<u32>,
    /// BACKENDS, by identifier.
    pub backends_put: BTreeMap<u32, BackendValue>,
    /// BACKEND_ENDPOINTS: how many backends have this address.
    pub endpoints_put: BTreeMap<EndpointKey, u32>,
    /// SLOTS: backend identifiers from an offset on. None of these slots is in use.
    pub slots_put: BTreeMap<u32, Vec<u32>>,
    /// AFFINITY_BACKENDS.
    pub affinity_put: BTreeSet<AffinityBackendKey>,
    /// SOURCE_RANGES.
    pub ranges_put: BTreeSet<SourceRangeKey>,
    /// Service identifiers that get a new meaning: their counters begin at 0.
    pub counters_reset: BTreeSet<u32>,
    /// SERVICES; see [`Self::services_put_in_order`].
    pub services_put: BTreeMap<FrontendKey, ServiceValue>,
    /// SERVICES; see [`Self::services_del_in_order`].
    pub services_del: BTreeSet<FrontendKey>,
    /// AFFINITY_BACKENDS.
    pub affinity_del: BTreeSet<AffinityBackendKey>,
    /// SOURCE_RANGES.
    pub ranges_del: BTreeSet<SourceRangeKey>,
    /// BACKEND_ENDPOINTS.
    pub endpoints_del: BTreeSet<EndpointKey>,
    /// BACKENDS: identifiers to be filled with zeroes.
    pub backends_del: BTreeSet<u32>,
    /// Not a map: (service identifier, backend identifier) of backends that a frontend no longer uses. Their connections
    /// may have to be ended; [`crate::Compiler::standing`] says which.
    pub left: BTreeSet<(u32, u32)>,
}

impl Writes {
    /// Whether there is nothing to write (and no connection to look at).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// How many single changes of maps there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.steps().count()
    }

    /// [`Self::services_put`], wildcards last: a new ClusterIP does not refuse a port for the moment between the two.
    pub fn services_put_in_order(&self) -> impl Iterator<Item = (&FrontendKey, &ServiceValue)> {
        let (wildcards, ports): (Vec<_>, Vec<_>) =
            self.services_put.iter().partition(|(key, _)| key.is_wildcard());
        ports.into_iter().chain(wildcards)
    }

    /// [`Self::services_del`], wildcards last: until all of a ClusterIP is gone it refuses.
    pub fn services_del_in_order(&self) -> impl Iterator<Item = &FrontendKey> {
        let (wildcards, ports): (Vec<_>, Vec<_>) =
            self.services_del.iter().partition(|key| key.is_wildcard());
        ports.into_iter().chain(wildcards)
    }

    pub(crate) fn put_backend(&mut self, id: u32, value: BackendValue) {
        self.backends_del.remove(&id);
        self.loads_reset.insert(id);
        self.backends_put.insert(id, value);
    }

    pub(crate) fn del_backend(&mut self, id: u32) {
        self.backends_put.remove(&id);
        self.loads_reset.remove(&id);
        self.backends_del.insert(id);
    }

    pub(crate) fn set_endpoint(&mut self, key: EndpointKey, count: u32) {
        if count == 0 {
            self.endpoints_put.remove(&key);
            self.endpoints_del.insert(key);
        } else {
            self.endpoints_del.remove(&key);
            self.endpoints_put.insert(key, count);
        }
    }

    pub(crate) fn put_affinity(&mut self, key: AffinityBackendKey) {
        self.affinity_del.remove(&key);
        self.affinity_put.insert(key);
    }

    pub(crate) fn del_affinity(&mut self, key: AffinityBackendKey) {
        self.affinity_put.remove(&key);
        self.affinity_del.insert(key);
    }

    pub(crate) fn put_range(&mut self, key: SourceRangeKey) {
        self.ranges_del.remove(&key);
        self.ranges_put.insert(key);
    }

    pub(crate) fn del_range(&mut self, key: SourceRangeKey) {
        self.ranges_put.remove(&key);
        self.ranges_del.insert(key);
    }

    pub(crate) fn put_service(&mut self, key: FrontendKey, value: ServiceValue) {
        self.services_del.remove(&key);
        self.services_put.insert(key, value);
    }

    pub(crate) fn del_service(&mut self, key: FrontendKey) {
        self.services_put.remove(&key);
        self.services_del.insert(key);
    }

    /// The single changes in their order, as closures over an image: for [`crate::Image`] and tests.
    pub(crate) fn steps(&self) -> impl Iterator<Item = Step> {
        let backends = self.backends_put.iter().map(|(id, value)| Step::Backend(*id, *value));
        let endpoints = self.endpoints_put.iter().map(|(key, count)| Step::Endpoint(*key, *count));
        let slots = self.slots_put.iter().flat_map(|(offset, ids)| (*offset..).zip(ids));
        let slots = slots.map(|(slot, id)| Step::Slot(slot, *id));
        let affinity = self.affinity_put.iter().map(|key| Step::Affinity(*key, true));
        let ranges = self.ranges_put.iter().map(|key| Step::Range(*key, true));
        let services = self.services_put_in_order().map(|(key, value)| Step::Service(*key, Some(*value)));
        let services_del = self.services_del_in_order().map(|key| Step::Service(*key, None));
        let affinity_del = self.affinity_del.iter().map(|key| Step::Affinity(*key, false));
        let ranges_del = self.ranges_del.iter().map(|key| Step::Range(*key, false));
        let endpoints_del = self.endpoints_del.iter().map(|key| Step::Endpoint(*key, 0));
        let backends_del = self.backends_del.iter().map(|id| Step::Backend(*id, BackendValue::default()));
        let new = backends.chain(endpoints).chain(slots).chain(affinity).chain(ranges);
        let gone =
            services_del.chain(affinity_del).chain(ranges_del).chain(endpoints_del).chain(backends_del);
        new.chain(services).chain(gone)
    }
}

/// One change of one map.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Affinity(AffinityBackendKey, bool),
    Backend(u32, BackendValue),
    Endpoint(EndpointKey, u32),
    Range(SourceRangeKey, bool),
    Service(FrontendKey, Option<ServiceValue>),
    Slot(u32, u32),
}
