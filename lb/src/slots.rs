// SPDX-License-Identifier: Apache-2.0
//! Which slots are free.

use std::collections::{BTreeMap, BTreeSet};

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

/// The free runs of SLOTS, never touching each other. The shortest run that suffices, of those the first: the same
/// requests give the same ranges, and long runs stay for those who need them.
#[derive(Clone, Debug)]
pub(crate) struct SlotSpace {
    /// Length by offset.
    free: BTreeMap<u32, u32>,
    /// The same as (length, offset).
    by_length: BTreeSet<(u32, u32)>,
}

impl SlotSpace {
    pub(crate) fn new(size: u32) -> Self {
        let mut space = Self { free: BTreeMap::new(), by_length: BTreeSet::new() };
        space.add(Range { offset: 0, length: size });
        space
    }

    /// Takes `length` slots; `None` where no free run is long enough.
    pub(crate) fn take(&mut self, length: u32) -> Option<Range> {
        if length == 0 {
            return Some(Range::default());
        }
        let &(run, offset) = self.by_length.range((length, 0)..).next()?;
        self.remove(Range { offset, length: run });
        self.add(Range { offset: offset + length, length: run - length });
        Some(Range { offset, length })
    }

    /// Takes what is still free of `range` and returns it, piece by piece.
    pub(crate) fn reserve(&mut self, range: Range) -> Vec<Range> {
        let touching = self.free.range(..range.end()).map(|(&offset, &length)| Range { offset, length });
        let touching: Vec<Range> = touching.filter(|run| run.end() > range.offset).collect();
        let mut taken = Vec::new();
        for run in touching {
            self.remove(run);
            let (start, end) = (run.offset.max(range.offset), run.end().min(range.end()));
            self.add(Range { offset: run.offset, length: start - run.offset });
            self.add(Range { offset: end, length: run.end() - end });
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
            self.remove(Range { offset, length });
            merged = Range { offset, length: length + range.length };
        }
        if let Some(&length) = self.free.get(&merged.end()) {
            self.remove(Range { offset: merged.end(), length });
            merged.length += length;
        }
        self.add(merged);
    }

    /// The longest range that [`take`](Self::take) could give.
    pub(crate) fn longest(&self) -> u32 {
        self.by_length.last().map_or(0, |(length, _)| *length)
    }

    fn add(&mut self, run: Range) {
        if run.length > 0 {
            self.free.insert(run.offset, run.length);
            self.by_length.insert((run.length, run.offset));
        }
    }

    fn remove(&mut self, run: Range) {
        self.free.remove(&run.offset);
        self.by_length.remove(&(run.length, run.offset));
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
