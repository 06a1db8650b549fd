// SPDX-License-Identifier: Apache-2.0
//! Shares of an overloaded worker. When a socket's queue is full, the kernel drops some of everybody's questions; so those of
//! a client that asks far more than its share are passed over unanswered before that. What is passed over costs little, the
//! queue gets short, and with a short queue nobody's question is dropped.
//!
//! Nothing is counted while the queue is short, and clients that ask equally much are not told apart. Clients that fall into
//! one place of the table share their part; the hash is keyed.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

/// Full batches after which the queue is looked at again.
const LOOK_EVERY: u32 = 8;
/// Questions after which everybody is judged anew.
const WINDOW: u32 = 1_024;
/// Who is found to ask too much has this part of an even share.
const STRICTNESS: u32 = 8;
/// Places of the table: more than a node has pods.
const PLACES: usize = 1_024;

/// The shares of one worker's clients.
pub(super) struct Share {
    full_in_a_row: u32,
    is_overloaded: bool,
    seen: u32,
    active: u32,
    by_client: Box<[Place; PLACES]>,
    hasher: RandomState,
}

#[derive(Clone, Copy, Default)]
struct Place {
    asked: u16,
    /// In the last window it asked far more than its share.
    is_greedy: bool,
}

impl Share {
    pub(super) fn new() -> Self {
        Share {
            full_in_a_row: 0,
            is_overloaded: false,
            seen: 0,
            active: 0,
            by_client: Box::new([Place::default(); PLACES]),
            hasher: RandomState::new(),
        }
    }

    /// A batch was received. `full`: more may wait; then `backlogged` says now and then whether much waits.
    pub(super) fn next_batch(&mut self, full: bool, backlogged: impl FnOnce() -> bool) {
        if !full {
            (self.full_in_a_row, self.is_overloaded) = (0, false);
            return;
        }
        self.full_in_a_row += 1;
        if self.full_in_a_row == LOOK_EVERY {
            (self.full_in_a_row, self.is_overloaded) = (0, backlogged());
        }
    }

    /// Whether this client's next question is answered. A client that is alone always is.
    pub(super) fn admit(&mut self, client: IpAddr) -> bool {
        if !self.is_overloaded {
            return true;
        }
        if self.seen == WINDOW {
            self.judge();
        }
        let place = &mut self.by_client[self.hasher.hash_one(client) as usize % PLACES];
        self.active += u32::from(place.asked == 0);
        place.asked += 1;
        self.seen += 1;
        !place.is_greedy || u32::from(place.asked) <= WINDOW / self.active / STRICTNESS
    }

    fn judge(&mut self) {
        let even = WINDOW / self.active.max(1);
        for place in self.by_client.iter_mut() {
            let is_greedy = u32::from(place.asked) > even + even / 2;
            *place = Place { asked: 0, is_greedy };
        }
        (self.seen, self.active) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(n: u32) -> IpAddr {
        [10, 244, 0, n as u8].into()
    }

    fn overloaded() -> Share {
        let mut share = Share::new();
        (0..LOOK_EVERY).for_each(|_| share.next_batch(true, || true));
        share
    }

    #[test]
    fn who_keeps_up_who_is_alone_and_who_asks_as_much_as_others_loses_nothing() {
        let mut busy = Share::new();
        (0..100).for_each(|_| busy.next_batch(true, || false));
        assert!((0..100_000).all(|n| busy.admit(client(n % 50 / 49))));
        let mut share = overloaded();
        assert!((0..100_000).all(|_| share.admit(client(1))));
        let mut share = overloaded();
        assert!((0..100_000).all(|n| share.admit(client(n % 4))));
    }

    #[test]
    fn a_flood_gets_little_and_others_all_of_theirs() {
        let mut share = overloaded();
        let (mut flood, mut others) = (0, 0);
        for n in 0..WINDOW * 16 {
            if n % 16 == 0 {
                others += u32::from(share.admit(client(2 + n / 16 % 3)));
            } else {
                flood += u32::from(share.admit(client(1)));
            }
        }
        assert_eq!(others, WINDOW);
        assert!((1..WINDOW * 2).contains(&flood), "{flood}");
        share.next_batch(false, || true);
        assert!((0..10_000).all(|_| share.admit(client(1))), "recovers at once");
    }
}
