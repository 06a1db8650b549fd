// SPDX-License-Identifier: Apache-2.0
//! Slow start: a backend that comes up gets its share little by little.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

/// Steps from the first tenth of the weight to all of it: each is a new table.
const TENTHS: u64 = 10;

/// The backends of one Service that were up when it was last looked at, and those that warm up.
#[derive(Clone, Debug, Default)]
pub(crate) struct Warmth {
    /// `None` until somebody looked: who is up then was up before.
    up: Option<BTreeSet<IpAddr>>,
    /// Since when.
    since: BTreeMap<IpAddr, u64>,
    duration_ms: u64,
    /// When the next one gets more.
    next: Option<u64>,
}

impl Warmth {
    /// Takes note of who is up. Who was not a moment ago begins with a tenth.
    pub(crate) fn see(&mut self, up: impl IntoIterator<Item = IpAddr>, slow: Option<Duration>, now_ms: u64) {
        let up: BTreeSet<IpAddr> = up.into_iter().collect();
        self.duration_ms = slow.map_or(0, |slow| u64::try_from(slow.as_millis()).unwrap_or(u64::MAX));
        if let Some(before) = &self.up {
            for address in up.difference(before) {
                self.since.insert(*address, now_ms);
            }
        }
        let duration_ms = self.duration_ms;
        self.since
            .retain(|address, since| up.contains(address) && now_ms < since.saturating_add(duration_ms));
        self.up = Some(up);
        let step = (duration_ms / TENTHS).max(1);
        let next = |since: &u64| since + (now_ms.saturating_sub(*since) / step + 1) * step;
        self.next = self.since.values().map(next).min();
    }

    /// How many tenths of its weight a backend gets.
    pub(crate) fn tenths(&self, address: IpAddr, now_ms: u64) -> u64 {
        let Some(since) = self.since.get(&address) else { return TENTHS };
        let step = (self.duration_ms / TENTHS).max(1);
        (now_ms.saturating_sub(*since) / step + 1).min(TENTHS)
    }

    pub(crate) fn next_step(&self) -> Option<u64> {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newcomer_warms_up_in_ten_steps_and_old_ones_stay_warm() {
        let [old, new]: [IpAddr; 2] = ["10.244.0.2", "10.244.0.3"].map(|ip| ip.parse().unwrap());
        let slow = Some(Duration::from_secs(10));
        let mut warmth = Warmth::default();
        warmth.see([old], slow, 0);
        assert_eq!((warmth.tenths(old, 0), warmth.next_step()), (10, None), "nobody knows since when");
        warmth.see([old, new], slow, 5_000);
        assert_eq!((warmth.tenths(old, 5_000), warmth.tenths(new, 5_000)), (10, 1));
        assert_eq!(warmth.next_step(), Some(6_000));
        warmth.see([old, new], slow, 9_500);
        assert_eq!((warmth.tenths(new, 9_500), warmth.next_step()), (5, Some(10_000)));
        warmth.see([old, new], slow, 15_000);
        assert_eq!((warmth.tenths(new, 15_000), warmth.next_step()), (10, None));
    }

    #[test]
    fn who_went_and_comes_back_begins_anew() {
        let address: IpAddr = "10.244.0.2".parse().unwrap();
        let slow = Some(Duration::from_secs(10));
        let mut warmth = Warmth::default();
        warmth.see([address], slow, 0);
        warmth.see([], slow, 1);
        warmth.see([address], slow, 2);
        assert_eq!(warmth.tenths(address, 2), 1);
    }
}
