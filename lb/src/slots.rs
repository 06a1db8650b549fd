// SPDX-License-Identifier: Apache-2.0
//! Which slots are free.

use std::collections::BTreeMap;

/// Neighbouring slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) offset: u32,
    pub(crate) length: u32,
}

impl Range {
    /// One past the last slot.
    pub(crate) fn end(self) -> u32 {
        self.offset.saturating_add(self.length)
    }
}

/// The free runs of SLOTS, never touching each other. First fit from the lowest offset: the same requests give the
/// same ranges, and the used part of the map stays dense.
#[derive(Clone, Debug)]
pub(crate) struct SlotSpace {
    /// Length by offset.
    free: BTreeMap<u32, u32>,
}

impl SlotSpace {
    pub(crate) fn new(size: u32) -> Self {
        Self { free: if size == 0 { BTreeMap::new() } else { BTreeMap::from([(0, size)]) } }
    }

    /// Takes `length` slots; `None` where no free run is long enough.
    pub(crate) fn take(&mut self, length: u32) -> Option<Range> {
        if length == 0 {
            return Some(Range::default());
        }
        let (&offset, &run) = self.free.iter().find(|&(_, &run)| run >= length)?;
        self.free.remove(&offset);
        if run > length {
            self.free.insert(offset + length, run - length);
        }
        Some(Range { offset, length })
    }

    /// Takes what is still free of `range` and returns it, piece by piece.
    pub(crate) fn reserve(&mut self, range: Range) -> Vec<Range> {
        let touching = self.free.range(..range.end()).map(|(&offset, &length)| Range { offset, length });
        let touching: Vec<Range> = touching.filter(|run| run.end() > range.offset).collect();
        let mut taken = Vec::new();
        for run in touching {
            self.free.remove(&run.offset);
            let (start, end) = (run.offset.max(range.offset), run.end().min(range.end()));
            if run.offset < start {
                self.free.insert(run.offset, start - run.offset);
            }
            if end < run.end() {
                self.free.insert(end, run.end() - end);
            }
            taken.push(Range { offset: start, length: end - start });
        }
        taken
    }

    /// Gives back a range that was taken.
    pub(crate) fn release(&mut self, range: Range) {
        if range.length == 0 {
            return;
        }
        let mut merged = range;
        if let Some((&offset, &length)) = self.free.range(..range.offset).next_back()
            && offset + length == range.offset
        {
            self.free.remove(&offset);
            merged = Range { offset, length: length + range.length };
        }
        if let Some(length) = self.free.remove(&merged.end()) {
            merged.length += length;
        }
        self.free.insert(merged.offset, merged.length);
    }

    /// The longest range that [`take`](Self::take) could give.
    pub(crate) fn longest(&self) -> u32 {
        self.free.values().copied().max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn released_neighbours_become_one_run_again() {
        let mut space = SlotSpace::new(10);
        let ranges: Vec<Range> = (0..3).map(|_| space.take(3).unwrap()).collect();
        assert_eq!(space.take(2), None);
        for index in [0, 2, 1] {
            space.release(ranges[index]);
        }
        assert_eq!(space.longest(), 10);
    }

    #[test]
    fn a_reserved_middle_splits_the_run() {
        let mut space = SlotSpace::new(10);
        assert_eq!(space.reserve(Range { offset: 4, length: 2 }), [Range { offset: 4, length: 2 }]);
        assert_eq!(space.reserve(Range { offset: 3, length: 4 }).len(), 2, "around what was taken before");
        assert_eq!(space.take(3), Some(Range { offset: 0, length: 3 }));
        assert_eq!(space.take(4), None);
    }

    proptest! {
        /// Against the naive model: a set of used slots.
        #[test]
        fn no_slot_is_given_out_twice(steps in prop::collection::vec((0u8..3, 0u32..40, 0u32..8), 1..60)) {
            let mut space = SlotSpace::new(40);
            let mut used = [false; 40];
            let mut held: Vec<Range> = Vec::new();
            for (kind, offset, length) in steps {
                let taken = match kind {
                    0 => space.take(length).into_iter().collect(),
                    1 => space.reserve(Range { offset, length: length.min(40 - offset) }),
                    _ if held.is_empty() => Vec::new(),
                    _ => {
                        let range = held.swap_remove(offset as usize % held.len());
                        used[range.offset as usize..range.end() as usize].fill(false);
                        space.release(range);
                        Vec::new()
                    }
                };
                for range in taken {
                    for slot in range.offset..range.end() {
                        prop_assert!(!std::mem::replace(&mut used[slot as usize], true), "slot {slot} twice");
                    }
                    held.push(range);
                }
                let free = used.iter().filter(|used| !**used).count() as u32;
                prop_assert_eq!(space.free.values().sum::<u32>(), free);
            }
        }
    }
}
