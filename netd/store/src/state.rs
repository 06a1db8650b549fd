// SPDX-License-Identifier: Apache-2.0
//! Keys, history and leases as etcd keeps them: pure, under the stores that keep them in this process.
//!
//! A write is planned as a [`Change`] against the state and then applied, so that a store may make it durable in between.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use crate::{Event, KeyValue, Lease, LeaseId, Listing, Put, StoreError, Transacted, Transaction};

/// What an item or an event weighs besides its key and its value, in bytes: roughly what the maps need.
const ITEM_BYTES: usize = 128;

/// A lease lives no longer, in seconds; etcd's limit.
const LEASE_TTL_SECS_MAX: u64 = 9_000_000_000;

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) revision: u64,
    /// A watch from here on is possible.
    pub(crate) compacted: u64,
    /// The time, counted from any moment; set by the owner, never backwards.
    pub(crate) now: Duration,
    items: BTreeMap<String, Item>,
    item_bytes: usize,
    /// In order of revision.
    history: Vec<Event>,
    history_bytes: usize,
    leases: BTreeMap<LeaseId, LeaseState>,
    last_lease: i64,
}

/// A key's value and where it stands.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) value: Bytes,
    pub(crate) create_revision: u64,
    pub(crate) mod_revision: u64,
    pub(crate) lease: Option<LeaseId>,
}

/// What happens at one revision. Every deleted key is there before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) revision: u64,
    pub(crate) puts: Vec<Put>,
    pub(crate) deletes: Vec<String>,
}

#[derive(Debug)]
struct LeaseState {
    ttl: Duration,
    ends: Duration,
}

impl Change {
    /// Nothing happens, and the revision stays.
    pub(crate) fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.deletes.is_empty()
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            revision: 1,
            compacted: 0,
            now: Duration::ZERO,
            items: BTreeMap::new(),
            item_bytes: 0,
            history: Vec::new(),
            history_bytes: 0,
            leases: BTreeMap::new(),
            last_lease: 0,
        }
    }
}

impl State {
    /// A state as it was at `revision`, without history.
    pub(crate) fn restored(revision: u64, items: BTreeMap<String, Item>) -> Self {
        let item_bytes = items.iter().map(|(key, item)| weight(key, &item.value)).sum();
        // At revision 1 nothing has happened yet, so no history is missing.
        let compacted = if revision <= 1 { 0 } else { revision.saturating_add(1) };
        Self { revision, compacted, items, item_bytes, ..Self::default() }
    }

    /// The leases that restored items hang on are over.
    pub(crate) fn end_restored_leases(&mut self) {
        for id in self.items.values().filter_map(|item| item.lease) {
            self.leases.insert(id, LeaseState { ttl: Duration::ZERO, ends: Duration::ZERO });
        }
    }

    /// Lease numbers from here on.
    pub(crate) fn number_leases_from(&mut self, last_lease: i64) {
        self.last_lease = last_lease;
    }

    /// What the transaction would change; `None` when a compare does not hold.
    pub(crate) fn plan(&self, transaction: Transaction) -> Result<Option<Change>, StoreError> {
        let holds = transaction.compares.iter().all(|compare| {
            self.items.get(&compare.key).map_or(0, |item| item.mod_revision) == compare.mod_revision
        });
        if !holds {
            return Ok(None);
        }
        if let Some(gone) =
            transaction.puts.iter().filter_map(|put| put.lease).find(|id| !self.leases.contains_key(id))
        {
            return Err(StoreError::LeaseNotFound(gone));
        }
        let mut deletes = transaction.deletes;
        deletes.retain(|key| self.items.contains_key(key));
        Ok(Some(Change { revision: self.revision + 1, puts: transaction.puts, deletes }))
    }

    /// What the end of the lease would change.
    pub(crate) fn plan_end(&self, id: LeaseId) -> Result<Change, StoreError> {
        if !self.leases.contains_key(&id) {
            return Err(StoreError::LeaseNotFound(id));
        }
        let held = self.items.iter().filter(|(_, item)| item.lease == Some(id));
        let deletes = held.map(|(key, _)| key.clone()).collect();
        Ok(Change { revision: self.revision + 1, puts: Vec::new(), deletes })
    }

    /// Makes a change that was planned on this very state.
    pub(crate) fn apply(&mut self, change: Change) {
        if change.is_empty() {
            return;
        }
        self.revision = change.revision;
        for put in change.puts {
            let before = self.items.get(&put.key);
            let create_revision = before.map_or(change.revision, |item| item.create_revision);
            self.item_bytes -= before.map_or(0, |item| weight(&put.key, &item.value));
            self.item_bytes += weight(&put.key, &put.value);
            let item =
                Item { value: put.value, create_revision, mod_revision: change.revision, lease: put.lease };
            self.remember(Event::Put(key_value(&put.key, &item)));
            self.items.insert(put.key, item);
        }
        for key in change.deletes {
            if let Some(item) = self.items.remove(&key) {
                self.item_bytes -= weight(&key, &item.value);
                self.remember(Event::Delete { key, revision: change.revision });
            }
        }
    }

    /// Plans and applies at once.
    pub(crate) fn transact(&mut self, transaction: Transaction) -> Result<Transacted, StoreError> {
        let change = self.plan(transaction)?;
        let succeeded = change.is_some();
        self.apply(change.unwrap_or_default());
        Ok(Transacted { succeeded, revision: self.revision })
    }

    pub(crate) fn lease_grant(&mut self, ttl: Duration) -> Lease {
        let ttl = Duration::from_secs(lease_secs(ttl));
        self.last_lease += 1;
        let id = LeaseId(self.last_lease);
        self.leases.insert(id, LeaseState { ttl, ends: self.now.saturating_add(ttl) });
        Lease { id, ttl }
    }

    /// A lease whose time is over stays over, also while its keys are still being deleted.
    pub(crate) fn lease_keep_alive(&mut self, id: LeaseId) -> Result<(), StoreError> {
        let now = self.now;
        let lease = self.leases.get_mut(&id).filter(|lease| lease.ends > now);
        let lease = lease.ok_or(StoreError::LeaseNotFound(id))?;
        lease.ends = now.saturating_add(lease.ttl);
        Ok(())
    }

    pub(crate) fn lease_revoke(&mut self, id: LeaseId) -> Result<(), StoreError> {
        let change = self.plan_end(id)?;
        self.apply(change);
        self.lease_forget(id);
        Ok(())
    }

    /// Forgets a lease whose keys are gone.
    pub(crate) fn lease_forget(&mut self, id: LeaseId) {
        self.leases.remove(&id);
    }

    /// A lease whose time is over.
    pub(crate) fn lease_over(&self) -> Option<LeaseId> {
        self.leases.iter().find(|(_, lease)| lease.ends <= self.now).map(|(id, _)| *id)
    }

    /// When the next lease ends, as [`State::now`] counts.
    pub(crate) fn next_lease_end(&self) -> Option<Duration> {
        self.leases.values().map(|lease| lease.ends).min()
    }

    pub(crate) fn lease_count(&self) -> usize {
        self.leases.len()
    }

    /// Forgets the history before `revision`.
    pub(crate) fn compact(&mut self, revision: u64) {
        self.forget_before(revision.min(self.revision));
    }

    /// Forgets the older half of a history that has grown past `bytes_max`; whole revisions only.
    pub(crate) fn bound_history(&mut self, bytes_max: usize) {
        if self.history_bytes <= bytes_max {
            return;
        }
        let mut kept = 0;
        let newest_lost = self.history.iter().rev().find(|event| {
            kept += event_weight(event);
            kept > bytes_max / 2
        });
        if let Some(revision) = newest_lost.map(Event::revision) {
            // That may be all of it, after one large change: watches that were behind list again.
            self.forget_before(revision + 1);
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<KeyValue> {
        self.items.get(key).map(|item| key_value(key, item))
    }

    pub(crate) fn list(&self, prefix: &str) -> Listing {
        let items = self.items.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        Listing { revision: self.revision, items: items.map(|(key, item)| key_value(key, item)).collect() }
    }

    /// All that happened to keys of the prefix from a revision on, as far as it is not compacted.
    pub(crate) fn history(&self, prefix: &str, from_revision: u64) -> Vec<Event> {
        let start = self.history.partition_point(|event| event.revision() < from_revision);
        self.history.iter().skip(start).filter(|event| event.key().starts_with(prefix)).cloned().collect()
    }

    /// Everything there is, in order of key.
    pub(crate) fn items(&self) -> &BTreeMap<String, Item> {
        &self.items
    }

    /// What keys and values weigh, roughly.
    pub(crate) fn item_bytes(&self) -> usize {
        self.item_bytes
    }

    fn forget_before(&mut self, revision: u64) {
        self.compacted = self.compacted.max(revision);
        let compacted = self.compacted;
        self.history.retain(|event| event.revision() >= compacted);
        self.history_bytes = self.history.iter().map(event_weight).sum();
    }

    fn remember(&mut self, event: Event) {
        self.history_bytes += event_weight(&event);
        self.history.push(event);
    }
}

/// A lease's time in whole seconds, never shorter than asked, as long as there are such leases.
pub(crate) fn lease_secs(ttl: Duration) -> u64 {
    let secs = ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0));
    secs.clamp(1, LEASE_TTL_SECS_MAX)
}

pub(crate) fn weight(key: &str, value: &Bytes) -> usize {
    key.len() + value.len() + ITEM_BYTES
}

fn event_weight(event: &Event) -> usize {
    match event {
        Event::Delete { key, .. } => key.len() + ITEM_BYTES,
        Event::Put(item) => weight(&item.key, &item.value),
    }
}

fn key_value(key: &str, item: &Item) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: item.value.clone(),
        create_revision: item.create_revision,
        mod_revision: item.mod_revision,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_history_is_bounded_by_whole_revisions_and_says_from_where_it_is_whole() {
        let mut state = State::default();
        for round in 0..100 {
            let both = Transaction::new().put("/a", format!("{round}")).put("/b", format!("{round}"));
            state.transact(both).unwrap();
            state.bound_history(4_000);
            assert!(state.history_bytes <= 4_000, "{}", state.history_bytes);
        }
        let first = state.history[0].revision();
        assert_eq!(first, state.compacted);
        assert_eq!(state.history("/", 0).len() as u64, 2 * (state.revision - first + 1));
        assert!(state.history.len() >= 2, "the newest is kept");

        state.transact(Transaction::new().put("/a", vec![b'x'; 9_000])).unwrap();
        state.bound_history(4_000);
        assert_eq!((state.history.len(), state.compacted), (0, state.revision + 1));
    }

    #[test]
    fn bytes_are_counted_back_to_nothing() {
        let mut state = State::default();
        state.transact(Transaction::new().put("/a", "1").put("/b", "22")).unwrap();
        state.transact(Transaction::new().put("/a", "4444").delete("/b")).unwrap();
        assert_eq!(state.item_bytes(), weight("/a", &Bytes::from_static(b"4444")));
        state.transact(Transaction::new().delete("/a")).unwrap();
        assert_eq!(state.item_bytes(), 0);
    }

    #[test]
    fn a_lease_is_never_shorter_than_asked_and_any_time_is_taken() {
        let mut state = State::default();
        assert_eq!(state.lease_grant(Duration::from_millis(1_500)).ttl, Duration::from_secs(2));
        assert_eq!(state.lease_grant(Duration::ZERO).ttl, Duration::from_secs(1));
        assert_eq!(state.lease_grant(Duration::MAX).ttl, Duration::from_secs(LEASE_TTL_SECS_MAX));
    }
}
