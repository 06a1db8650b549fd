// SPDX-License-Identifier: Apache-2.0
//! Pending allocations that nobody will commit: the runtime died between ADD's first call and its last.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::allocator::Allocator;
use crate::owner::Owner;
use crate::time::Timestamp;

/// A pending allocation younger than this is never suspected: an ADD may take as long as the runtime lets it.
pub const PENDING_AGE_MIN: Duration = Duration::from_secs(120);

/// Watches pending allocations. One is given up only after two observations in a row, at least
/// [`PENDING_AGE_MIN`] apart, found nothing that belongs to it: one observation may race with an ADD under way.
///
/// The memory is not durable: after a restart two new observations are needed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PendingWatch {
    missed: BTreeMap<Owner, (Timestamp, Timestamp)>,
}

impl PendingWatch {
    /// Nothing is suspected yet.
    pub fn new() -> PendingWatch {
        PendingWatch::default()
    }

    /// One observation: `present` are the owners of which something was found (an interface, a sandbox). Returns the
    /// owners to release now.
    pub fn observe(
        &mut self,
        allocator: &Allocator,
        present: &BTreeSet<Owner>,
        now: Timestamp,
    ) -> Vec<Owner> {
        let mut expired = BTreeSet::new();
        let mut missed = BTreeMap::new();
        for allocation in allocator.pending() {
            let young = now.since(allocation.since) < PENDING_AGE_MIN;
            if young || present.contains(&allocation.owner) {
                continue;
            }
            // The time of the allocation tells a suspect from a later allocation of the same owner.
            let former = self.missed.get(&allocation.owner).filter(|(since, _)| *since == allocation.since);
            match former {
                Some((_, first)) if now.since(*first) >= PENDING_AGE_MIN => {
                    expired.insert(allocation.owner);
                }
                Some(former) => drop(missed.insert(allocation.owner, *former)),
                None => drop(missed.insert(allocation.owner, (allocation.since, now))),
            }
        }
        self.missed = missed;
        expired.into_iter().collect()
    }
}
