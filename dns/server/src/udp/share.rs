// SPDX-License-Identifier: Apache-2.0
//! Shares of an overloaded worker. While more questions come than it can answer, the kernel drops some of everybody's; so
//! those of a client that asks more than its share are passed over unanswered, and the queue is read faster.
//!
//! Nothing is counted while the worker keeps up. Clients that fall into one place of the table share their part; the hash is
//! keyed.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

/// Full batches in a row that mean more than a burst: some milliseconds of work.
const OVERLOADED_AFTER: u32 = 64;
/// Questions after which everybody starts anew.
const WINDOW: u32 = 4_096;
/// A client that is not alone has this part of an even share: what is passed over costs little, so the queue gets short, and
/// with a short queue nobody's question is dropped by the kernel.
const STRICTNESS: u32 = 8;
/// Places of the table: more than a node has pods.
const PLACES: usize = 1_024;

/// The shares of one worker's clients.
pub(super) struct Share {
    full_in_a_row: u32,
    seen: u32,
    active: u32,
    by_client: Box<[u16; PLACES]>,
    hasher: RandomState,
}

impl Share {
    pub(super) fn new() -> Self {
        Share { full_in_a_row: 0, seen: 0, active: 0, by_client: Box::new([0; PLACES]), hasher: RandomState::new() }
    }

    /// A batch was received; `full`: more may wait.
    pub(super) fn next_batch(&mut self, full: bool) {
        self.full_in_a_row = if full { self.full_in_a_row.saturating_add(1) } else { 0 };
    }

    /// Whether this client's next question is answered. A client that is alone always is.
    pub(super) fn admit(&mut self, client: IpAddr) -> bool {
        if self.full_in_a_row < OVERLOADED_AFTER {
            return true;
        }
        if self.seen == WINDOW {
            self.by_client.fill(0);
            (self.seen, self.active) = (0, 0);
        }
        let asked = &mut self.by_client[self.hasher.hash_one(client) as usize % PLACES];
        self.active += u32::from(*asked == 0);
        *asked = asked.saturating_add(1);
        self.seen += 1;
        self.active <= 1 || u32::from(*asked) <= WINDOW / self.active / STRICTNESS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(n: u8) -> IpAddr {
        [10, 244, 0, n].into()
    }

    fn overloaded() -> Share {
        let mut share = Share::new();
        (0..OVERLOADED_AFTER).for_each(|_| share.next_batch(true));
        share
    }

    #[test]
    fn a_worker_that_keeps_up_and_a_client_that_is_alone_lose_nothing() {
        let mut share = Share::new();
        assert!((0..100_000).all(|_| share.admit(client(1)) && share.admit(client(2))));
        let mut share = overloaded();
        assert!((0..100_000).all(|_| share.admit(client(1))));
    }

    #[test]
    fn a_flood_gets_its_share_and_others_all_of_theirs() {
        let mut share = overloaded();
        let (mut flood, mut others) = (0, 0);
        for n in 0..WINDOW * 4 {
            if n % 16 == 0 {
                others += u32::from(share.admit(client(2 + (n / 16 % 3) as u8)));
            } else {
                flood += u32::from(share.admit(client(1)));
            }
        }
        assert_eq!(others, WINDOW / 4);
        assert!((1..WINDOW).contains(&flood), "{flood}");
        share.next_batch(false);
        assert!((0..10_000).all(|_| share.admit(client(1))), "recovers at once");
    }
}
