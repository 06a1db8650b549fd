// SPDX-License-Identifier: Apache-2.0
//! Answers a second by client network: against being used to flood somebody else with answers to forged questions.
//!
//! Each network has a theoretical arrival time (GCRA) in a table of fixed size. Networks that fall into one place of the
//! table share their rate; the hash is keyed.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Places of the table.
const PLACES: usize = 4_096;
/// A network's addresses share their rate, as BIND has it: /24 and /56.
const V4_BITS: u32 = 24;
const V6_BITS: u32 = 56;

/// A rate for each network.
pub(crate) struct Rate {
    /// Microseconds that one answer costs.
    cost_us: u64,
    /// Answers at once, in microseconds.
    burst_us: u64,
    places: Box<[AtomicU64; PLACES]>,
    hasher: RandomState,
}

impl Rate {
    /// So many a second, and a second's worth at once.
    pub(crate) fn new(per_second: u32) -> Self {
        let cost_us = 1_000_000 / u64::from(per_second.max(1));
        let places = Box::new(std::array::from_fn(|_| AtomicU64::new(0)));
        Rate { cost_us: cost_us.max(1), burst_us: 1_000_000, places, hasher: RandomState::new() }
    }

    /// Whether this client's network may have one more answer.
    pub(crate) fn allows(&self, client: IpAddr, now_us: u64) -> bool {
        let place = &self.places[self.hasher.hash_one(network(client)) as usize % PLACES];
        let next = |due: u64| {
            let due = due.max(now_us);
            (due - now_us < self.burst_us).then_some(due + self.cost_us)
        };
        place.fetch_update(Relaxed, Relaxed, next).is_ok()
    }
}

fn network(client: IpAddr) -> u128 {
    match client.to_canonical() {
        IpAddr::V4(v4) => u128::from(v4.to_bits() >> (32 - V4_BITS)),
        // The top bit keeps the families apart.
        IpAddr::V6(v6) => v6.to_bits() >> (128 - V6_BITS) | 1 << 127,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_its_rate_and_recovers_with_time() {
        let rate = Rate::new(10);
        let client = |n: u8| IpAddr::from([192, 0, 2, n]);
        let allowed = |now_us| (0..100).filter(|n| rate.allows(client(*n), now_us)).count();
        assert_eq!(allowed(0), 10, "a second's worth at once, for the whole network");
        assert_eq!(allowed(500_000), 5);
        assert!(rate.allows([198, 51, 100, 1].into(), 500_000), "another network");
    }
}
