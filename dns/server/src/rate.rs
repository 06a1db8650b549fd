// SPDX-License-Identifier: Apache-2.0
//! Answers a second by client: against being used to flood somebody else with answers to forged questions.
//!
//! Strangers count by network, as BIND has it; clients each for itself, for one that asks in a loop shares its network with
//! all pods of its node. Each has a theoretical arrival time (GCRA) in a table of fixed size. Networks that fall into one place of the
//! table share their rate; the hash is keyed.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Places of the table.
const PLACES: usize = 4_096;
/// Bits of an address that count: of IPv4, of IPv6.
pub(crate) type Bits = (u32, u32);
/// A network of strangers.
pub(crate) const NETWORK: Bits = (24, 56);
/// One client; in a /64 it may take any address it likes.
pub(crate) const CLIENT: Bits = (32, 64);
/// Of so many answers that may not go out, one says "come over TCP".
const SLIP: u32 = 2;

/// A rate for each network.
pub(crate) struct Rate {
    /// Microseconds that one answer costs.
    cost_us: u64,
    /// Answers at once, in microseconds.
    burst_us: u64,
    bits: Bits,
    refused: AtomicU32,
    places: Box<[AtomicU64; PLACES]>,
    hasher: RandomState,
}

impl Rate {
    /// So many a second, and a second's worth at once.
    pub(crate) fn new(per_second: u32, bits: Bits) -> Self {
        let cost_us = 1_000_000 / u64::from(per_second.max(1));
        let places = Box::new(std::array::from_fn(|_| AtomicU64::new(0)));
        Rate {
            cost_us: cost_us.max(1),
            burst_us: 1_000_000,
            bits,
            refused: AtomicU32::new(0),
            places,
            hasher: RandomState::new(),
        }
    }

    /// Whether this client's network may have one more answer.
    pub(crate) fn allows(&self, client: IpAddr, now_us: u64) -> bool {
        let place = &self.places[self.hasher.hash_one(network(client, self.bits)) as usize % PLACES];
        let next = |due: u64| {
            let due = due.max(now_us);
            (due - now_us < self.burst_us).then_some(due + self.cost_us)
        };
        place.fetch_update(Relaxed, Relaxed, next).is_ok()
    }

    /// Of an answer that is not allowed: whether its client is told to come over TCP.
    pub(crate) fn is_slip(&self) -> bool {
        self.refused.fetch_add(1, Relaxed).is_multiple_of(SLIP)
    }
}

fn network(client: IpAddr, (v4_bits, v6_bits): Bits) -> u128 {
    match client.to_canonical() {
        IpAddr::V4(v4) => u128::from(v4.to_bits() >> (32 - v4_bits)),
        // The top bit keeps the families apart.
        IpAddr::V6(v6) => v6.to_bits() >> (128 - v6_bits) | 1 << 127,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_its_rate_and_recovers_with_time() {
        let rate = Rate::new(10, NETWORK);
        let client = |n: u8| IpAddr::from([192, 0, 2, n]);
        let allowed = |now_us| (0..100).filter(|n| rate.allows(client(*n), now_us)).count();
        assert_eq!(allowed(0), 10, "a second's worth at once, for the whole network");
        assert_eq!(allowed(500_000), 5);
        assert!(rate.allows([198, 51, 100, 1].into(), 500_000), "another network");
    }

    #[test]
    fn a_client_has_a_rate_of_its_own_whoever_else_is_in_its_network() {
        let rate = Rate::new(10, CLIENT);
        let greedy = (0..100).filter(|_| rate.allows([10, 244, 0, 1].into(), 0)).count();
        assert_eq!(greedy, 10);
        assert!(rate.allows([10, 244, 0, 2].into(), 0));
        let v6 = |host: u16| std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host).into();
        assert_eq!((0..100).filter(|n| rate.allows(v6(*n), 0)).count(), 10);
    }
}
