// SPDX-License-Identifier: Apache-2.0
//! Desired against observed, and what is pending between them.
//!
//! ```text
//!        desired              observed
//!   ┌──────────────────┬──────────────────┐
//!   │ only desired     │ only observed    │
//!   │  pending update  │  pending deletion│
//!   │        ┌─────────┴────────┐         │
//!   │        │ both, equal: in sync       │
//!   │        │ both, not equal: pending   │
//!   │        │ update                     │
//!   └────────┴──────────────────┴─────────┘
//! ```
//!
//! The idea is that of Felix's delta tracker; the pending sets are kept up to date with each change, so that a
//! large table with one change costs as much as the change.

use std::collections::{BTreeMap, BTreeSet};

/// Two maps and the difference between them.
#[derive(Clone, Debug)]
pub struct DeltaTracker<K: Ord + Clone, V: Eq + Clone> {
    desired: BTreeMap<K, V>,
    observed: BTreeMap<K, V>,
    updates: BTreeSet<K>,
    deletions: BTreeSet<K>,
}

impl<K: Ord + Clone, V: Eq + Clone> Default for DeltaTracker<K, V> {
    fn default() -> Self {
        DeltaTracker {
            desired: BTreeMap::new(),
            observed: BTreeMap::new(),
            updates: BTreeSet::new(),
            deletions: BTreeSet::new(),
        }
    }
}

impl<K: Ord + Clone, V: Eq + Clone> DeltaTracker<K, V> {
    /// Nothing desired, nothing observed.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces everything desired.
    pub fn set_desired(&mut self, desired: BTreeMap<K, V>) {
        self.desired = desired;
        self.recompute();
    }

    /// Replaces everything observed, after reading the kernel back.
    pub fn set_observed(&mut self, observed: BTreeMap<K, V>) {
        self.observed = observed;
        self.recompute();
    }

    /// Desires one value.
    pub fn desire(&mut self, key: K, value: V) {
        self.desired.insert(key.clone(), value);
        self.refresh(key);
    }

    /// Desires the key no more.
    pub fn undesire(&mut self, key: &K) {
        self.desired.remove(key);
        self.refresh(key.clone());
    }

    /// Notes one value as observed.
    pub fn observe(&mut self, key: K, value: V) {
        self.observed.insert(key.clone(), value);
        self.refresh(key);
    }

    /// Notes that the key was seen to be absent.
    pub fn observe_absent(&mut self, key: &K) {
        self.observed.remove(key);
        self.refresh(key.clone());
    }

    /// Notes that the pending update of this key was written. Without one, nothing happens.
    pub fn applied_update(&mut self, key: &K) {
        if let Some(value) = self.desired.get(key) {
            self.observe(key.clone(), value.clone());
        }
    }

    /// Notes that the pending deletion of this key was carried out. Without one, nothing happens.
    pub fn applied_deletion(&mut self, key: &K) {
        if self.deletions.contains(key) {
            self.observe_absent(key);
        }
    }

    /// What is desired and not observed so, in key order.
    pub fn pending_updates(&self) -> impl Iterator<Item = (&K, &V)> {
        self.updates.iter().filter_map(|key| self.desired.get_key_value(key))
    }

    /// What is observed and not desired, with the observed value, in key order.
    pub fn pending_deletions(&self) -> impl Iterator<Item = (&K, &V)> {
        self.deletions.iter().filter_map(|key| self.observed.get_key_value(key))
    }

    /// How many updates and deletions are pending.
    pub fn pending_len(&self) -> usize {
        self.updates.len() + self.deletions.len()
    }

    /// Whether nothing is pending.
    pub fn in_sync(&self) -> bool {
        self.pending_len() == 0
    }

    /// Everything desired.
    pub fn desired(&self) -> &BTreeMap<K, V> {
        &self.desired
    }

    /// Everything observed.
    pub fn observed(&self) -> &BTreeMap<K, V> {
        &self.observed
    }

    fn recompute(&mut self) {
        self.updates = self
            .desired
            .iter()
            .filter(|(key, value)| self.observed.get(key) != Some(value))
            .map(|(key, _)| key.clone())
            .collect();
        self.deletions =
            self.observed.keys().filter(|key| !self.desired.contains_key(key)).cloned().collect();
    }

    fn refresh(&mut self, key: K) {
        let desired = self.desired.get(&key);
        let observed = self.observed.get(&key);
        let update = desired.is_some() && desired != observed;
        let deletion = desired.is_none() && observed.is_some();
        set_member(&mut self.updates, &key, update);
        set_member(&mut self.deletions, &key, deletion);
    }
}

fn set_member<K: Ord + Clone>(set: &mut BTreeSet<K>, key: &K, member: bool) {
    if member {
        set.insert(key.clone());
    } else {
        set.remove(key);
    }
}
