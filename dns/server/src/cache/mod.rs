// SPDX-License-Identifier: Apache-2.0
//! Answers of the upstreams by question, with a cap in bytes.
//!
//! Workers look here by themselves: a cached name costs no task and no allocation. Which entry goes when the cap is reached
//! is decided by second chance: the oldest, unless somebody asked for it since it was last looked at.

mod entry;
mod merge;

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use entry::OVERHEAD_BYTES;
pub(crate) use entry::{Entry, Freshness};

use crate::wire::Key;

/// Parts with a lock each, so that workers seldom meet.
const SHARDS: usize = 16;

/// The cache.
pub(crate) struct Cache {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
    shard_bytes_max: usize,
    stale_ms: u64,
}

#[derive(Default)]
struct Shard {
    /// `None`: removed; its key still stands in the queue.
    entries: HashMap<Arc<[u8]>, Option<Arc<Entry>>>,
    /// Every key of `entries` exactly once.
    queue: VecDeque<Arc<[u8]>>,
    bytes: usize,
    /// How many were removed and stand in the queue.
    removed: usize,
    evicted: u64,
}

/// How full it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CacheSize {
    pub(crate) entries: usize,
    pub(crate) bytes: usize,
    pub(crate) evicted: u64,
}

impl Cache {
    /// `stale_ms`: how long past its time an answer may be given when no upstream answers.
    pub(crate) fn new(bytes_max: usize, stale_ms: u64) -> Self {
        Cache {
            shards: Default::default(),
            hasher: RandomState::new(),
            shard_bytes_max: bytes_max / SHARDS,
            stale_ms,
        }
    }

    /// The answer to this question, and how good it is.
    pub(crate) fn find(&self, key: &Key, now_ms: u64) -> Option<(Arc<Entry>, Freshness)> {
        let entry = self.shard(key).entries.get(&**key)?.clone()?;
        let freshness = entry.freshness(now_ms, self.stale_ms);
        if freshness == Freshness::Dead {
            return None;
        }
        entry.used.store(true, Relaxed);
        Some((entry, freshness))
    }

    /// Keeps an answer instead of the one there was. What may not be kept, or is too large, ends the older one all the same.
    pub(crate) fn keep(&self, key: &Key, entry: Arc<Entry>) {
        let cost = entry.cost(key.len());
        let mut shard = self.shard(key);
        if !entry.is_cacheable() || cost > self.shard_bytes_max {
            shard.remove(key);
            return;
        }
        match shard.entries.get_mut(&**key) {
            Some(known) => {
                let before = known.replace(entry);
                shard.bytes -= cost_of(before.as_deref(), key.len());
                shard.removed -= usize::from(before.is_none());
            }
            None => {
                let key: Arc<[u8]> = (**key).into();
                shard.entries.insert(key.clone(), Some(entry));
                shard.queue.push_back(key);
            }
        }
        shard.bytes += cost;
        shard.shrink(self.shard_bytes_max);
    }

    /// How full it is.
    pub(crate) fn size(&self) -> CacheSize {
        self.shards.iter().map(lock).fold(CacheSize::default(), |sum, shard| CacheSize {
            entries: sum.entries + shard.entries.len() - shard.removed,
            bytes: sum.bytes + shard.bytes,
            evicted: sum.evicted + shard.evicted,
        })
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, Shard> {
        lock(&self.shards[self.hasher.hash_one(&**key) as usize % SHARDS])
    }
}

impl Shard {
    /// Leaves the key, which goes when its turn comes: workers wait for the lock, so nobody may search the queue.
    fn remove(&mut self, key: &Key) {
        let Some(entry) = self.entries.get_mut(&**key).and_then(Option::take) else { return };
        self.bytes -= entry.cost(key.len());
        self.bytes += cost_of(None, key.len());
        self.removed += 1;
    }

    fn shrink(&mut self, bytes_max: usize) {
        // Everybody gets one second chance at most, so this ends.
        let mut chances = self.queue.len();
        while self.bytes > bytes_max {
            let Some(key) = self.queue.pop_front() else { return };
            let Some(entry) = self.entries.get(&key) else { continue };
            let entry = entry.as_deref();
            if chances > 0 && entry.is_some_and(|entry| entry.used.swap(false, Relaxed)) {
                chances -= 1;
                self.queue.push_back(key);
                continue;
            }
            self.bytes -= cost_of(entry, key.len());
            match entry {
                Some(_) => self.evicted += 1,
                None => self.removed -= 1,
            }
            self.entries.remove(&key);
        }
    }
}

/// Bytes of an entry, or of what is left of a removed one, with a key of this length.
fn cost_of(entry: Option<&Entry>, key_bytes: usize) -> usize {
    entry.map_or(key_bytes + OVERHEAD_BYTES, |entry| entry.cost(key_bytes))
}

/// Nothing in a shard is left half done by a panic.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> Key {
        let mut name = vec![4];
        name.extend_from_slice(format!("{n:04}").as_bytes());
        name.push(0);
        Key::new(&name, 1, 0)
    }

    fn entry(n: u32, extra: usize) -> Arc<Entry> {
        let mut wire = vec![0, 0, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
        wire.extend_from_slice(key(n).name());
        wire.extend_from_slice(&[0, 16, 0, 1, 0xC0, 12, 0, 16, 0, 1, 0, 0, 0, 100]);
        wire.extend_from_slice(&(extra as u16).to_be_bytes());
        wire.resize(wire.len() + extra, 0);
        Arc::new(Entry::new(wire, 100_000, 0).unwrap())
    }

    #[test]
    fn the_cap_in_bytes_holds_and_what_is_asked_for_stays() {
        let cache = Cache::new(256 * 1024, 0);
        for n in 0..5_000 {
            cache.keep(&key(n), entry(n, 200));
            assert!(cache.find(&key(0), 0).is_some(), "asked for all the time, gone after {n}");
        }
        let size = cache.size();
        assert!(size.bytes <= 256 * 1024, "{size:?}");
        assert!(size.entries > 300 && size.evicted > 4_000, "{size:?}");
    }

    #[test]
    fn a_newer_answer_takes_the_place_of_the_older() {
        let cache = Cache::new(1 << 20, 0);
        for extra in [10, 500, 20] {
            cache.keep(&key(1), entry(1, extra));
        }
        let size = cache.size();
        assert_eq!((size.entries, size.bytes), (1, entry(1, 20).cost(key(1).len())));
    }

    #[test]
    fn an_answer_that_may_not_be_kept_ends_the_older_one() {
        let cache = Cache::new(1 << 20, 1 << 30);
        cache.keep(&key(1), entry(1, 10));
        let wire = [&[0, 0, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0], key(1).name(), &[0, 16, 0, 1]].concat();
        cache.keep(&key(1), Arc::new(Entry::new(wire, 0, 0).unwrap()));
        assert!(cache.find(&key(1), 0).is_none());
        assert_eq!(cache.size().entries, 0);
        cache.keep(&key(1), entry(1, 10));
        let size = cache.size();
        assert_eq!((size.entries, size.bytes), (1, entry(1, 10).cost(key(1).len())));
    }

    #[test]
    fn what_is_left_of_removed_answers_has_the_cap_too() {
        let cache = Cache::new(256 * 1024, 0);
        for n in 0..5_000 {
            let name = [&[0, 0, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0], key(n).name(), &[0, 16, 0, 1]].concat();
            cache.keep(&key(n), entry(n, 10));
            cache.keep(&key(n), Arc::new(Entry::new(name, 0, 0).unwrap()));
        }
        let size = cache.size();
        assert_eq!((size.entries, size.evicted), (0, 0));
        assert!(size.bytes <= 256 * 1024, "{size:?}");
        for shard in &cache.shards {
            let shard = lock(shard);
            assert_eq!((shard.entries.len(), shard.queue.len()), (shard.removed, shard.removed));
        }
    }

    #[test]
    fn what_is_larger_than_its_share_is_not_kept() {
        let cache = Cache::new(16 * 1024, 0);
        cache.keep(&key(1), entry(1, 2_000));
        assert_eq!(cache.size(), CacheSize::default());
    }
}
