// SPDX-License-Identifier: Apache-2.0
//! Which identifiers are free.

use std::collections::{BTreeMap, VecDeque};

/// Identifiers 1 to size − 1: those that were never given out, lowest first, then the one that has been free for
/// longest, so that whoever still knows an old meaning is wrong as late as can be. 0 means "none" in the maps.
#[derive(Clone, Debug)]
pub(crate) struct IdSpace {
    size: u32,
    /// Never given out from here on.
    next: u32,
    /// Below `next` and free, in the order of being given back; an identifier that was reserved since is out of date
    /// in the queue and counts by its ticket.
    queue: VecDeque<(u32, u64)>,
    free: BTreeMap<u32, u64>,
    tickets: u64,
    /// There are so many that those below a reserved one need not be remembered.
    plenty: bool,
}

impl IdSpace {
    pub(crate) fn new(size: u32) -> Self {
        Self { size, next: 1, queue: VecDeque::new(), free: BTreeMap::new(), tickets: 0, plenty: false }
    }

    /// More than anybody uses up; those that can be reserved leave as many again.
    pub(crate) fn plenty() -> Self {
        Self { plenty: true, ..Self::new(u32::MAX) }
    }

    pub(crate) fn take(&mut self) -> Option<u32> {
        if self.next < self.size {
            self.next += 1;
            return Some(self.next - 1);
        }
        while let Some((id, ticket)) = self.queue.pop_front() {
            if self.free.get(&id) == Some(&ticket) {
                self.free.remove(&id);
                return Some(id);
            }
        }
        None
    }

    /// Takes this one; false where it is 0, too large or taken.
    pub(crate) fn reserve(&mut self, id: u32) -> bool {
        if id == 0 || id >= self.size {
            return false;
        }
        if id < self.next {
            return self.free.remove(&id).is_some();
        }
        if self.plenty && id > self.size / 2 {
            return false;
        }
        let skipped = if self.plenty { id..id } else { self.next..id };
        skipped.for_each(|id| self.release(id));
        self.next = id + 1;
        true
    }

    pub(crate) fn release(&mut self, id: u32) {
        self.tickets += 1;
        self.free.insert(id, self.tickets);
        self.queue.push_back((id, self.tickets));
    }

    pub(crate) fn free(&self) -> u32 {
        self.size.saturating_sub(self.next) + self.free.len() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_identifiers_are_skipped_and_gaps_are_filled_last() {
        let mut ids = IdSpace::new(6);
        assert!(ids.reserve(3));
        assert!(!ids.reserve(3) && !ids.reserve(0) && !ids.reserve(6));
        assert_eq!(ids.free(), 4);
        assert!(ids.reserve(2));
        assert_eq!(std::iter::from_fn(|| ids.take()).collect::<Vec<_>>(), [4, 5, 1]);
    }

    #[test]
    fn among_plenty_no_number_is_too_far_off_to_be_reserved() {
        let mut ids = IdSpace::plenty();
        assert!(ids.reserve(2_000_000_000) && !ids.reserve(4_000_000_000));
        assert_eq!(ids.take(), Some(2_000_000_001));
        assert!(!ids.reserve(7), "below, and not remembered");
    }

    #[test]
    fn the_one_that_rested_longest_comes_first() {
        let mut ids = IdSpace::new(4);
        let all: Vec<u32> = std::iter::from_fn(|| ids.take()).collect();
        assert_eq!(all, [1, 2, 3]);
        [3, 1, 2].into_iter().for_each(|id| ids.release(id));
        assert!(ids.reserve(1));
        ids.release(1);
        assert_eq!(std::iter::from_fn(|| ids.take()).collect::<Vec<_>>(), [3, 2, 1]);
    }
}
