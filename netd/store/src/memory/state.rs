// SPDX-License-Identifier: Apache-2.0
//! Keys, history and leases as etcd keeps them.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use crate::{Event, KeyValue, Lease, LeaseId, Listing, StoreError, Transacted, Transaction};

#[derive(Debug)]
pub(super) struct State {
    pub(super) revision: u64,
    /// A watch from here on is possible.
    pub(super) compacted: u64,
    items: BTreeMap<String, Item>,
    /// In order of revision.
    history: Vec<Event>,
    leases: BTreeMap<LeaseId, LeaseState>,
    last_lease: i64,
    /// What [`State::advance`] has let pass.
    elapsed: Duration,
}

#[derive(Debug)]
struct Item {
    value: Bytes,
    create_revision: u64,
    mod_revision: u64,
    lease: Option<LeaseId>,
}

#[derive(Debug)]
struct LeaseState {
    ttl: Duration,
    ends: Duration,
}

impl Default for State {
    fn default() -> Self {
        Self {
            revision: 1,
            compacted: 0,
            items: BTreeMap::new(),
            history: Vec::new(),
            leases: BTreeMap::new(),
            last_lease: 0,
            elapsed: Duration::ZERO,
        }
    }
}

impl State {
    pub(super) fn transact(&mut self, transaction: Transaction) -> Result<Transacted, StoreError> {
        let holds = transaction.compares.iter().all(|compare| {
            self.items.get(&compare.key).map_or(0, |item| item.mod_revision) == compare.mod_revision
        });
        if !holds {
            return Ok(Transacted { succeeded: false, revision: self.revision });
        }
        if let Some(gone) =
            transaction.puts.iter().filter_map(|put| put.lease).find(|id| !self.leases.contains_key(id))
        {
            return Err(StoreError::LeaseNotFound(gone));
        }
        let revision = self.revision + 1;
        for put in transaction.puts {
            let create_revision = self.items.get(&put.key).map_or(revision, |item| item.create_revision);
            let item = Item { value: put.value, create_revision, mod_revision: revision, lease: put.lease };
            self.history.push(Event::Put(key_value(&put.key, &item)));
            self.items.insert(put.key, item);
            self.revision = revision;
        }
        self.remove(transaction.deletes, revision);
        Ok(Transacted { succeeded: true, revision: self.revision })
    }

    pub(super) fn lease_grant(&mut self, ttl: Duration) -> Lease {
        let ttl = Duration::from_secs(ttl.as_secs().max(1));
        self.last_lease += 1;
        let id = LeaseId(self.last_lease);
        self.leases.insert(id, LeaseState { ttl, ends: self.elapsed + ttl });
        Lease { id, ttl }
    }

    pub(super) fn lease_keep_alive(&mut self, id: LeaseId) -> Result<(), StoreError> {
        let lease = self.leases.get_mut(&id).ok_or(StoreError::LeaseNotFound(id))?;
        lease.ends = self.elapsed + lease.ttl;
        Ok(())
    }

    pub(super) fn lease_revoke(&mut self, id: LeaseId) -> Result<(), StoreError> {
        self.leases.remove(&id).ok_or(StoreError::LeaseNotFound(id))?;
        let held = self
            .items
            .iter()
            .filter(|(_, item)| item.lease == Some(id))
            .map(|(key, _)| key.clone())
            .collect();
        self.remove(held, self.revision + 1);
        Ok(())
    }

    pub(super) fn advance(&mut self, by: Duration) {
        self.elapsed += by;
        let over: Vec<LeaseId> =
            self.leases.iter().filter(|(_, lease)| lease.ends <= self.elapsed).map(|(id, _)| *id).collect();
        for id in over {
            // Cannot fail: the lease was just seen.
            let _ = self.lease_revoke(id);
        }
    }

    pub(super) fn compact(&mut self, revision: u64) {
        self.compacted = self.compacted.max(revision.min(self.revision));
        let compacted = self.compacted;
        self.history.retain(|event| event.revision() >= compacted);
    }

    pub(super) fn get(&self, key: &str) -> Option<KeyValue> {
        self.items.get(key).map(|item| key_value(key, item))
    }

    pub(super) fn list(&self, prefix: &str) -> Listing {
        let items = self.items.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        Listing { revision: self.revision, items: items.map(|(key, item)| key_value(key, item)).collect() }
    }

    pub(super) fn history(&self, prefix: &str, from_revision: u64) -> Vec<Event> {
        let start = self.history.partition_point(|event| event.revision() < from_revision);
        self.history.iter().skip(start).filter(|event| event.key().starts_with(prefix)).cloned().collect()
    }

    fn remove(&mut self, keys: Vec<String>, revision: u64) {
        for key in keys {
            if self.items.remove(&key).is_some() {
                self.history.push(Event::Delete { key, revision });
                self.revision = revision;
            }
        }
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
