// SPDX-License-Identifier: Apache-2.0
//! Who may have how many questions in flight to the upstreams. What does not get in is refused at once, never queued.
//!
//! Places are counted by client address in a table of fixed size. Clients that fall into one place of the table share their
//! part; the hash is keyed, so nobody can choose whom to share it with.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Places of the table: more than a node has pods.
const PLACES: usize = 1_024;
/// One client has at most this part of all.
const CLIENT_SHARE: usize = 4;
/// While little is left, one client has at most this part: those who ask a question now and then get through.
const SCARCE_SHARE: usize = 16;

/// The places.
pub(crate) struct Admission {
    max: usize,
    total: AtomicUsize,
    by_client: Box<[AtomicUsize; PLACES]>,
    hasher: RandomState,
}

/// A place, given back when dropped.
pub(crate) struct Ticket {
    admission: Arc<Admission>,
    place: usize,
}

impl Admission {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        let by_client = Box::new(std::array::from_fn(|_| AtomicUsize::new(0)));
        Arc::new(Admission { max, total: AtomicUsize::new(0), by_client, hasher: RandomState::new() })
    }

    /// A place for this client's question, if there is one. Never waits.
    pub(crate) fn enter(self: &Arc<Self>, client: IpAddr) -> Option<Ticket> {
        let place = self.hasher.hash_one(client) as usize % PLACES;
        let total = self.total.fetch_add(1, Relaxed);
        let of_client = self.by_client[place].fetch_add(1, Relaxed);
        let ticket = Ticket { admission: self.clone(), place };
        let is_scarce = total >= self.max - self.max / 4;
        let share = (self.max / if is_scarce { SCARCE_SHARE } else { CLIENT_SHARE }).max(1);
        // On refusal the ticket is dropped, which takes both counts back.
        (total < self.max && of_client < share).then_some(ticket)
    }

    /// Questions in flight now.
    #[cfg(test)]
    pub(crate) fn in_flight(&self) -> usize {
        self.total.load(Relaxed)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.admission.by_client[self.place].fetch_sub(1, Relaxed);
        self.admission.total.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(n: u8) -> IpAddr {
        [10, 244, 0, n].into()
    }

    #[test]
    fn one_client_has_a_quarter_and_others_get_in() {
        let admission = Admission::new(64);
        let greedy: Vec<_> = (0..100).filter_map(|_| admission.enter(client(1))).collect();
        assert_eq!(greedy.len(), 16);
        assert!(admission.enter(client(2)).is_some());
        drop(greedy);
        assert_eq!(admission.in_flight(), 0);
    }

    #[test]
    fn while_little_is_left_everybody_has_a_little() {
        let admission = Admission::new(64);
        let many: Vec<_> = (0..200).filter_map(|n| admission.enter(client(n % 10))).collect();
        assert_eq!(many.len(), 64.min(admission.in_flight()));
        assert!(admission.in_flight() <= 64);
        let mut all = many;
        while let Some(ticket) = admission.enter(client(200)) {
            all.push(ticket);
        }
        assert!(admission.in_flight() <= 64);
    }
}
