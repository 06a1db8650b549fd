// SPDX-License-Identifier: Apache-2.0
//! Slots and identifiers: who holds them, who rests, and what that means for the maps.
//!
//! ```text
//!            taken                       nobody needs it                written(now)
//!   free ────────────► held ──────────────────────────────► resting ───────────────► resting until now + GRACE_MS
//!    ▲                  ▲                                     │                               │
//!    │                  └──── needed again (backends) ────────┘                               │
//!    └────────────────────────────────── release_due, once due ────────────────────────────────┘
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use ebpf_abi::{BackendValue, EndpointKey, FrontendKey};

use crate::ids::IdSpace;
use crate::slots::{Range, SlotSpace};
use crate::{GRACE_MS, Limits, ServiceName, Writes};

#[derive(Clone, Debug)]
pub(crate) struct Holdings {
    pub(crate) service_ids: IdSpace,
    pub(crate) backend_ids: IdSpace,
    pub(crate) affinity_ids: IdSpace,
    pub(crate) slots: SlotSpace,
    /// Every backend with an identifier, held or resting; `id_of` is its inverse (an adopted image may name one
    /// backend twice: then one of the identifiers is found by value, and the other is used up).
    backends: BTreeMap<u32, Held>,
    id_of: BTreeMap<BackendValue, u32>,
    /// How many identifiers have this address.
    endpoints: BTreeMap<EndpointKey, u32>,
    /// Frontends that are gone and may come back: whose they were, and their identifier.
    services: BTreeMap<FrontendKey, (Arc<ServiceName>, u32)>,
    /// Identifiers of services that rest, with the ticket of their last rest.
    resting_services: BTreeMap<u32, u64>,
    /// Since the last `written`: the kernel may still point at these.
    fresh: Vec<Resting>,
    /// By when they are free, in order.
    due: VecDeque<(u64, Vec<Resting>)>,
    tickets: u64,
    /// Slots and backends that rest.
    resting: [u32; 2],
    /// What the kernel is not known to have.
    writes: Arc<Writes>,
    /// Something became free since this was last set to false.
    pub(crate) freed: bool,
    /// Not everything that was found in the kernel has been claimed or given up yet.
    adopting: bool,
    /// What was retired then or later goes on resting.
    pub(crate) kept_since_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    value: BackendValue,
    /// Sets and lists of Services that name it; at 0 it rests.
    users: u32,
    /// Of its last rest: an older one says nothing.
    ticket: u64,
}

#[derive(Clone, Copy, Debug)]
enum Resting {
    Affinity(u32),
    Backend {
        id: u32,
        ticket: u64,
    },
    /// An identifier without a value, which some slot was found to hold or connections go by.
    BareBackend(u32),
    Service {
        /// Of what it was the identifier, where that is known.
        key: Option<FrontendKey>,
        id: u32,
        ticket: u64,
    },
    Slots(Range),
}

impl Holdings {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            service_ids: IdSpace::new(limits.services),
            backend_ids: IdSpace::new(limits.backends),
            // Keys of hash maps, bounded by what is in them.
            affinity_ids: IdSpace::plenty(),
            slots: SlotSpace::new(limits.slots),
            backends: BTreeMap::new(),
            id_of: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            services: BTreeMap::new(),
            resting_services: BTreeMap::new(),
            fresh: Vec::new(),
            due: VecDeque::new(),
            tickets: 0,
            resting: [0; 2],
            writes: Arc::default(),
            freed: false,
            adopting: false,
            kept_since_ms: None,
        }
    }

    pub(crate) fn writes(&mut self) -> &mut Writes {
        Arc::make_mut(&mut self.writes)
    }

    pub(crate) fn unwritten(&self) -> Arc<Writes> {
        self.writes.clone()
    }

    pub(crate) fn backend(&self, id: u32) -> Option<BackendValue> {
        self.backends.get(&id).map(|held| held.value)
    }

    pub(crate) fn backends(&self) -> impl Iterator<Item = (u32, BackendValue)> {
        self.backends.iter().map(|(id, held)| (*id, held.value))
    }

    pub(crate) fn endpoints(&self) -> &BTreeMap<EndpointKey, u32> {
        &self.endpoints
    }

    /// The identifier that a backend gets, if it has one. One that was found in the kernel, and that nobody has claimed yet, is
    /// its own, too, when it only runs elsewhere by what was known then: connections go by the identifier.
    pub(crate) fn id_to_be_of(&self, value: &BackendValue) -> Option<u32> {
        self.id_of(value).or_else(|| self.unclaimed(value))
    }

    pub(crate) fn id_of(&self, value: &BackendValue) -> Option<u32> {
        self.id_of.get(value).copied()
    }

    fn unclaimed(&self, value: &BackendValue) -> Option<u32> {
        if !self.adopting {
            return None;
        }
        let first = BackendValue { flags: 0, node: 0, ..*value };
        let last = BackendValue { flags: u8::MAX, node: u32::MAX, ..*value };
        let mut like = self.id_of.range(first..=last).map(|(_, id)| *id);
        like.find(|id| self.backends.get(id).is_some_and(|held| held.users == 0))
    }

    /// One user more for a backend; `None` where no identifier is free.
    pub(crate) fn hold_backend(&mut self, value: BackendValue) -> Option<u32> {
        if let Some(id) = self.id_to_be_of(&value) {
            self.claim(id, value);
            self.hold(id);
            return Some(id);
        }
        let id = self.backend_ids.take()?;
        self.name_backend(id, value, 1);
        self.writes().put_backend(id, value);
        let count = self.endpoints.get(&value.endpoint()).copied().unwrap_or(0);
        self.writes().set_endpoint(value.endpoint(), count);
        Some(id)
    }

    /// An identifier means this backend: the same address, port and protocol, perhaps on another node than the kernel says.
    pub(crate) fn claim(&mut self, id: u32, value: BackendValue) {
        let Some(held) = self.backends.get_mut(&id).filter(|held| held.value != value) else { return };
        let before = std::mem::replace(&mut held.value, value);
        if self.id_of.get(&before) == Some(&id) {
            self.id_of.remove(&before);
        }
        self.id_of.insert(value, id);
        // Its connections are counted on.
        self.writes().backends_put.insert(id, value);
    }

    /// One user more for an identifier that has some, or rests.
    pub(crate) fn hold(&mut self, id: u32) {
        let Some(held) = self.backends.get_mut(&id) else { return };
        if held.users == 0 && held.ticket != 0 {
            held.ticket = 0;
            self.resting[1] -= 1;
        }
        held.users += 1;
    }

    /// One user less.
    pub(crate) fn let_go(&mut self, id: u32) {
        let Some(held) = self.backends.get_mut(&id) else { return };
        held.users = held.users.saturating_sub(1);
        if held.users == 0 {
            self.rest_backend(id);
        }
    }

    /// A backend as it was found in the kernel, without users yet.
    pub(crate) fn adopt_backend(&mut self, id: u32, value: BackendValue) {
        self.adopting = true;
        if self.backend_ids.reserve(id) {
            self.name_backend(id, value, 0);
        }
    }

    /// An identifier that a slot was found to hold, or connections go by: nobody else gets it before the grace is over.
    pub(crate) fn adopt_bare_backend(&mut self, id: u32) {
        if self.backend_ids.reserve(id) {
            self.resting[1] += 1;
            self.fresh.push(Resting::BareBackend(id));
        }
    }

    /// Whatever was adopted and found no user rests.
    pub(crate) fn rest_unused_backends(&mut self) {
        self.adopting = false;
        let unused = self.backends.iter().filter(|(_, held)| held.users == 0 && held.ticket == 0);
        for id in unused.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.rest_backend(id);
        }
    }

    pub(crate) fn rest_slots(&mut self, range: Range) {
        if range.length > 0 {
            self.resting[0] += range.length;
            self.fresh.push(Resting::Slots(range));
        }
    }

    pub(crate) fn rest_affinity(&mut self, id: u32) {
        if id != 0 {
            self.fresh.push(Resting::Affinity(id));
        }
    }

    pub(crate) fn rest_service(&mut self, key: FrontendKey, owner: Arc<ServiceName>, id: u32) {
        if id != 0 {
            self.tickets += 1;
            let ticket = self.tickets;
            self.services.insert(key, (owner, id));
            self.resting_services.insert(id, ticket);
            self.fresh.push(Resting::Service { key: Some(key), id, ticket });
        }
    }

    /// An identifier that connections go by: nobody gets it before the grace is over.
    pub(crate) fn spare_service(&mut self, id: u32) {
        if self.service_ids.reserve(id) {
            self.tickets += 1;
            let ticket = self.tickets;
            self.resting_services.insert(id, ticket);
            self.fresh.push(Resting::Service { key: None, id, ticket });
        }
    }

    /// The identifier that `owner`'s frontend had a moment ago, with its counters.
    pub(crate) fn wake_service(&mut self, key: &FrontendKey, owner: &ServiceName) -> Option<u32> {
        let (_, id) = self.services.get(key).filter(|(of, _)| **of == *owner)?;
        let id = *id;
        self.services.remove(key);
        self.resting_services.remove(&id);
        Some(id)
    }

    /// A new meaning for an identifier.
    pub(crate) fn new_service(&mut self) -> Option<u32> {
        let id = self.service_ids.take()?;
        self.writes().counters_reset.insert(id);
        Some(id)
    }

    pub(crate) fn written(&mut self, now_ms: u64) {
        self.writes = Arc::default();
        if !self.fresh.is_empty() {
            self.due.push_back((now_ms.saturating_add(GRACE_MS), std::mem::take(&mut self.fresh)));
        }
    }

    pub(crate) fn next_due(&self) -> Option<u64> {
        self.due.front().map(|(due, _)| *due).filter(|due| !self.is_kept(*due))
    }

    /// Slots, backends and services that rest, all together.
    pub(crate) fn resting(&self) -> [u32; 3] {
        let [slots, backends] = self.resting;
        [slots, backends, self.resting_services.len() as u32]
    }

    pub(crate) fn release_due(&mut self, now_ms: u64) {
        while let Some((due, batch)) = self.due.pop_front() {
            if due > now_ms || self.is_kept(due) {
                self.due.push_front((due, batch));
                return;
            }
            self.freed = true;
            for resting in batch {
                self.release(resting);
            }
        }
    }

    /// Whether what is due then goes on resting.
    fn is_kept(&self, due: u64) -> bool {
        self.kept_since_ms.is_some_and(|since| due >= since.saturating_add(GRACE_MS))
    }

    fn release(&mut self, resting: Resting) {
        match resting {
            Resting::Affinity(id) => self.affinity_ids.release(id),
            Resting::BareBackend(id) => {
                self.resting[1] -= 1;
                self.backend_ids.release(id);
            }
            Resting::Backend { id, ticket } => {
                if self.backends.get(&id).is_none_or(|held| held.ticket != ticket) {
                    return;
                }
                let Some(held) = self.backends.remove(&id) else { return };
                self.resting[1] -= 1;
                if self.id_of.get(&held.value) == Some(&id) {
                    self.id_of.remove(&held.value);
                }
                self.backend_ids.release(id);
                self.writes().del_backend(id);
                let endpoint = held.value.endpoint();
                let count = self.endpoints.get(&endpoint).copied().unwrap_or(0).saturating_sub(1);
                if count == 0 {
                    self.endpoints.remove(&endpoint);
                } else {
                    self.endpoints.insert(endpoint, count);
                }
                self.writes().set_endpoint(endpoint, count);
            }
            Resting::Service { key, id, ticket } => {
                // Awake again, perhaps to rest again since: then it is in a later batch.
                if self.resting_services.get(&id) != Some(&ticket) {
                    return;
                }
                self.resting_services.remove(&id);
                if let Some(key) = key.filter(|key| self.services.get(key).is_some_and(|(_, of)| *of == id)) {
                    self.services.remove(&key);
                }
                self.service_ids.release(id);
            }
            Resting::Slots(range) => {
                self.resting[0] -= range.length;
                self.slots.release(range);
            }
        }
    }

    fn name_backend(&mut self, id: u32, value: BackendValue, users: u32) {
        self.backends.insert(id, Held { value, users, ticket: 0 });
        self.id_of.entry(value).or_insert(id);
        *self.endpoints.entry(value.endpoint()).or_default() += 1;
    }

    fn rest_backend(&mut self, id: u32) {
        self.tickets += 1;
        let ticket = self.tickets;
        if let Some(held) = self.backends.get_mut(&id) {
            held.ticket = ticket;
            self.resting[1] += 1;
            self.fresh.push(Resting::Backend { id, ticket });
        }
    }
}

#[cfg(test)]
mod tests {
    use ebpf_abi::Protocol;

    use super::*;

    #[test]
    fn what_somebody_looks_for_yet_is_not_given_out_again() {
        let mut holdings = Holdings::new(Limits::default());
        let backend = |port| BackendValue::new([10, 244, 0, 2].into(), port, Protocol::Tcp);
        let mut retire = |port, now_ms| {
            let id = holdings.hold_backend(backend(port)).unwrap();
            holdings.let_go(id);
            holdings.written(now_ms);
            id
        };
        let (before, since) = (retire(80, 99), retire(81, 100));
        holdings.kept_since_ms = Some(100);
        assert_eq!(holdings.next_due(), Some(99 + GRACE_MS));
        holdings.release_due(10 * GRACE_MS);
        assert_eq!(holdings.backend(before), None, "that is known to be over");
        assert_eq!(holdings.backend(since), Some(backend(81)));
        assert_eq!(holdings.next_due(), None, "no time: the end of the search");
        assert_ne!(holdings.hold_backend(backend(82)), Some(since));
        holdings.kept_since_ms = None;
        assert_eq!(holdings.next_due(), Some(100 + GRACE_MS));
        holdings.release_due(10 * GRACE_MS);
        assert_eq!(holdings.backend(since), None);
    }
}
