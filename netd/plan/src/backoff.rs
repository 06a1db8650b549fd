// SPDX-License-Identifier: Apache-2.0
//! When to try again what failed, item by item.

use std::collections::BTreeMap;
use std::time::Duration;

/// First wait after a failure, in milliseconds: short, because most failures are races that are over at once.
pub const BACKOFF_MS_MIN: u64 = 100;

/// Longest wait in milliseconds: an operator who repairs something should see it heal within half a minute.
pub const BACKOFF_MS_MAX: u64 = 30_000;

/// Back-off per item: the wait doubles with each failure, up to a maximum, and carries jitter so that nodes that
/// failed together do not come back together. Times are milliseconds on any clock that only goes forward.
#[derive(Clone, Debug)]
pub struct Backoff<K: Ord + Clone> {
    min_ms: u64,
    max_ms: u64,
    items: BTreeMap<K, Waiting>,
}

/// How one item waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Failures in a row, at least 1.
    pub failures: u32,
    /// Not to be tried before, in milliseconds.
    pub not_before_ms: u64,
    /// Why it failed last.
    pub error: String,
}

impl<K: Ord + Clone> Default for Backoff<K> {
    fn default() -> Self {
        Self::new(BACKOFF_MS_MIN, BACKOFF_MS_MAX)
    }
}

impl<K: Ord + Clone> Backoff<K> {
    /// Nothing waits yet. `max_ms` below `min_ms` counts as `min_ms`; a `min_ms` of 0 as 1.
    pub fn new(min_ms: u64, max_ms: u64) -> Self {
        let min_ms = min_ms.max(1);
        Backoff { min_ms, max_ms: max_ms.max(min_ms), items: BTreeMap::new() }
    }

    /// Notes a failure at `now_ms` and returns how long to wait. `seed` chooses the jitter: any number that differs
    /// between nodes.
    pub fn failed(&mut self, key: K, error: impl Into<String>, now_ms: u64, seed: u64) -> Duration {
        let failures = self.items.get(&key).map_or(0, |waiting| waiting.failures).saturating_add(1);
        let wait_ms = wait_ms(self.min_ms, self.max_ms, failures, seed);
        let not_before_ms = now_ms.saturating_add(wait_ms);
        self.items.insert(key, Waiting { failures, not_before_ms, error: error.into() });
        Duration::from_millis(wait_ms)
    }

    /// Notes that the item succeeded, or is wanted no more.
    pub fn succeeded(&mut self, key: &K) {
        self.items.remove(key);
    }

    /// Forgets items for which `keep` says no: those that are no longer pending.
    pub fn retain(&mut self, mut keep: impl FnMut(&K) -> bool) {
        self.items.retain(|key, _| keep(key));
    }

    /// Whether the item may be tried now: it never failed, or it waited long enough.
    pub fn ready(&self, key: &K, now_ms: u64) -> bool {
        self.items.get(key).is_none_or(|waiting| waiting.not_before_ms <= now_ms)
    }

    /// How long until the first waiting item may be tried, zero where one may be tried now; `None` where nothing
    /// waits.
    pub fn next(&self, now_ms: u64) -> Option<Duration> {
        let first = self.items.values().map(|waiting| waiting.not_before_ms).min()?;
        Some(Duration::from_millis(first.saturating_sub(now_ms)))
    }

    /// Everything that waits, in key order.
    pub fn waiting(&self) -> impl Iterator<Item = (&K, &Waiting)> {
        self.items.iter()
    }
}

/// Between half and all of `min · 2^(failures − 1)`, at most `max`.
fn wait_ms(min_ms: u64, max_ms: u64, failures: u32, seed: u64) -> u64 {
    let doublings = failures.saturating_sub(1).min(63);
    let full = min_ms.saturating_mul(1 << doublings).min(max_ms);
    let half = full / 2;
    let spread = full - half + 1;
    half + mix(seed ^ u64::from(failures)) % spread
}

/// SplitMix64's finaliser: spreads neighbouring seeds over all bits.
fn mix(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
