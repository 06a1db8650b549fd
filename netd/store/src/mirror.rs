// SPDX-License-Identifier: Apache-2.0
//! A prefix of the store as a value, kept by listings and watch batches.

use std::sync::Arc;

use lb::ChunkMap;

use crate::{Event, KeyValue, Listing, WatchBatch};

/// Items by key. A copy costs nothing, and two copies tell their differences without a look at what they share.
pub type Items = ChunkMap<String, KeyValue>;

/// The keys of a prefix at a revision. Pure: no clock, no I/O.
///
/// Invariant: once in sync, `items` is exactly what the store held under the prefix at `revision`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mirror {
    /// False until the first listing was applied.
    pub in_sync: bool,
    /// Everything up to here is in `items`.
    pub revision: u64,
    /// Shared with whoever took a snapshot; a change copies a small part of it.
    pub items: Items,
    /// The newest listing or event seen. Progress notifications do not raise it, so a store that sends one too early
    /// cannot make us drop an event that is still to come.
    applied: u64,
}

/// What applying did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// Keys differ from before.
    Changed,
    /// The listing is older than what we had: the store was restored from a backup or replaced. It was taken over.
    Regressed,
    /// Nothing differs (the revision may have moved on).
    Unchanged,
}

impl Mirror {
    /// Empty and not in sync.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes over a listing: keys that it lacks are gone.
    pub fn apply_listing(&mut self, listing: Listing) -> Applied {
        let regressed = self.in_sync && listing.revision < self.applied;
        let items: Items = listing.items.into_iter().map(|item| (item.key.clone(), Arc::new(item))).collect();
        let changed = !self.in_sync || self.items != items;
        if changed {
            self.items = items;
        }
        self.in_sync = true;
        self.applied = listing.revision;
        self.revision = listing.revision;
        match (regressed, changed) {
            (true, _) => Applied::Regressed,
            (false, true) => Applied::Changed,
            (false, false) => Applied::Unchanged,
        }
    }

    /// Applies changes; those already applied are ignored. Ignored whole before the first listing.
    pub fn apply_batch(&mut self, batch: WatchBatch) -> Applied {
        if !self.in_sync {
            return Applied::Unchanged;
        }
        let known = self.applied;
        let mut applied = Applied::Unchanged;
        for event in batch.events {
            let revision = event.revision();
            if revision <= known {
                continue;
            }
            self.applied = self.applied.max(revision);
            match event {
                Event::Delete { key, .. } => {
                    if self.items.remove(&key).is_some() {
                        applied = Applied::Changed;
                    }
                }
                Event::Put(item) => {
                    self.items.insert(item.key.clone(), Arc::new(item));
                    applied = Applied::Changed;
                }
            }
        }
        self.revision = self.revision.max(batch.revision).max(self.applied);
        applied
    }

    /// The keys that start with `prefix`, in order.
    pub fn range<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a KeyValue> + 'a {
        let from = self.items.range_from(prefix);
        from.take_while(move |(key, _)| key.starts_with(prefix)).map(|(_, item)| item.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn item(key: &str, revision: u64) -> KeyValue {
        KeyValue { key: key.into(), value: Bytes::new(), create_revision: 1, mod_revision: revision }
    }

    fn put(key: &str, revision: u64) -> Event {
        Event::Put(item(key, revision))
    }

    fn batch(events: Vec<Event>) -> WatchBatch {
        WatchBatch { revision: events.iter().map(Event::revision).max().unwrap_or(0), events }
    }

    fn keys(mirror: &Mirror) -> Vec<&str> {
        mirror.items.keys().map(String::as_str).collect()
    }

    #[test]
    fn a_batch_before_the_first_listing_changes_nothing() {
        let mut mirror = Mirror::new();
        assert_eq!(mirror.apply_batch(batch(vec![put("/a", 9)])), Applied::Unchanged);
        assert_eq!(mirror, Mirror::new());
    }

    #[test]
    fn duplicates_and_older_batches_are_ignored() {
        let mut mirror = Mirror::new();
        mirror.apply_listing(Listing { revision: 5, items: vec![item("/a", 3)] });
        let change = batch(vec![put("/b", 6), Event::Delete { key: "/a".into(), revision: 7 }]);
        assert_eq!(mirror.apply_batch(change.clone()), Applied::Changed);
        assert_eq!(mirror.apply_batch(change), Applied::Unchanged);
        // The key was put at 3 and is deleted since: an old put must not bring it back.
        assert_eq!(mirror.apply_batch(batch(vec![put("/a", 3)])), Applied::Unchanged);
        assert_eq!((keys(&mirror), mirror.revision), (vec!["/b"], 7));
    }

    #[test]
    fn all_events_of_one_revision_are_applied() {
        let mut mirror = Mirror::new();
        mirror.apply_listing(Listing { revision: 5, items: vec![] });
        mirror.apply_batch(batch(vec![put("/a", 6), put("/b", 6)]));
        assert_eq!(keys(&mirror), ["/a", "/b"]);
    }

    #[test]
    fn progress_moves_the_revision_but_hides_no_later_event() {
        let mut mirror = Mirror::new();
        mirror.apply_listing(Listing { revision: 5, items: vec![] });
        assert_eq!(mirror.apply_batch(WatchBatch { revision: 9, events: vec![] }), Applied::Unchanged);
        assert_eq!(mirror.revision, 9);
        assert_eq!(mirror.apply_batch(batch(vec![put("/a", 8)])), Applied::Changed);
        assert_eq!(mirror.revision, 9);
    }

    #[test]
    fn a_snapshot_that_somebody_holds_does_not_change() {
        let mut mirror = Mirror::new();
        mirror.apply_listing(Listing { revision: 5, items: vec![item("/a", 3)] });
        let held = mirror.items.clone();
        mirror.apply_batch(batch(vec![put("/b", 6)]));
        assert_eq!((held.len(), mirror.items.len()), (1, 2));
    }

    #[test]
    fn a_listing_from_a_restored_store_is_taken_over_and_told() {
        let mut mirror = Mirror::new();
        mirror.apply_listing(Listing { revision: 50, items: vec![item("/a", 30)] });
        let older = Listing { revision: 7, items: vec![item("/b", 7)] };
        assert_eq!(mirror.apply_listing(older.clone()), Applied::Regressed);
        assert_eq!((keys(&mirror), mirror.revision), (vec!["/b"], 7));
        assert_eq!(mirror.apply_listing(older), Applied::Unchanged);
        assert_eq!(mirror.apply_batch(batch(vec![put("/c", 8)])), Applied::Changed);
    }

    #[test]
    fn a_prefix_range_stops_at_its_end() {
        let mut mirror = Mirror::new();
        mirror.apply_listing(Listing {
            revision: 5,
            items: ["/a/1", "/a/2", "/a0", "/b"].map(|k| item(k, 1)).into(),
        });
        assert_eq!(mirror.range("/a/").map(|item| item.key.as_str()).collect::<Vec<_>>(), ["/a/1", "/a/2"]);
    }
}
