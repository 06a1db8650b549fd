// SPDX-License-Identifier: Apache-2.0
//! Which identifiers are free.

use std::collections::BTreeSet;

/// Identifiers 1 to size − 1, the lowest free one first. 0 is never given out: in the maps it means "none".
#[derive(Clone, Debug)]
pub(crate) struct IdSpace {
    size: u32,
    /// Never given out from here on.
    next: u32,
    /// Below `next` and free.
    returned: BTreeSet<u32>,
}

impl IdSpace {
    pub(crate) fn new(size: u32) -> Self {
        Self { size, next: 1, returned: BTreeSet::new() }
    }

    pub(crate) fn take(&mut self) -> Option<u32> {
        if let Some(id) = self.returned.pop_first() {
            return Some(id);
        }
        if self.next >= self.size {
            return None;
        }
        self.next += 1;
        Some(self.next - 1)
    }

    /// Takes this one; false where it is 0, too large or taken.
    pub(crate) fn reserve(&mut self, id: u32) -> bool {
        if id == 0 || id >= self.size {
            return false;
        }
        if id < self.next {
            return self.returned.remove(&id);
        }
        self.returned.extend(self.next..id);
        self.next = id + 1;
        true
    }

    pub(crate) fn release(&mut self, id: u32) {
        self.returned.insert(id);
    }

    pub(crate) fn free(&self) -> u32 {
        self.size.saturating_sub(self.next) + self.returned.len() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_identifiers_are_skipped_and_gaps_are_filled() {
        let mut ids = IdSpace::new(6);
        assert!(ids.reserve(3));
        assert!(!ids.reserve(3) && !ids.reserve(0) && !ids.reserve(6));
        assert_eq!(ids.free(), 4);
        assert_eq!(std::iter::from_fn(|| ids.take()).collect::<Vec<_>>(), [1, 2, 4, 5]);
        ids.release(4);
        assert_eq!(ids.take(), Some(4));
    }
}
