// SPDX-License-Identifier: Apache-2.0
//! How many connections there are, of all and of each client.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The places for connections.
#[derive(Debug)]
pub(crate) struct Places {
    max: usize,
    per_client_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    /// Only clients that have any, so never more than `max`.
    by_client: HashMap<IpAddr, usize>,
}

/// One place, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    client: IpAddr,
}

impl Places {
    pub(crate) fn new(max: usize, per_client_max: usize) -> Arc<Self> {
        Arc::new(Places { max, per_client_max, taken: Mutex::default() })
    }

    /// A place for one more connection of this client, if there is one.
    pub(crate) fn enter(self: &Arc<Self>, client: IpAddr) -> Option<Place> {
        let mut taken = self.taken();
        if taken.total >= self.max
            || taken.by_client.get(&client).is_some_and(|count| *count >= self.per_client_max)
        {
            return None;
        }
        taken.total += 1;
        *taken.by_client.entry(client).or_default() += 1;
        Some(Place { places: self.clone(), client })
    }

    /// Whether so many places are taken that nobody should keep one for nothing.
    pub(crate) fn is_scarce(&self) -> bool {
        self.taken().total > self.max / 2
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.total -= 1;
        if let Some(count) = taken.by_client.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                taken.by_client.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_cannot_take_all_places() {
        let places = Places::new(4, 2);
        let client = |n: u8| IpAddr::from([10, 244, 0, n]);
        let mut taken: Vec<_> = (0..5).filter_map(|_| places.enter(client(1))).collect();
        assert_eq!((taken.len(), places.is_scarce()), (2, false));
        taken.extend((0..5).filter_map(|_| places.enter(client(2))));
        assert_eq!((taken.len(), places.is_scarce()), (4, true));
        assert!(places.enter(client(3)).is_none());
        taken.clear();
        assert!(places.enter(client(3)).is_some());
        assert!(places.taken().by_client.is_empty());
    }
}
