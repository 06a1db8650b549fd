// SPDX-License-Identifier: Apache-2.0
//! Whose turn it is: an owner is being given addresses, or what is left of it is being given back, never both at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ipam::Owner;

use crate::node::lock;

/// Between two looks whether a record that is being given back is gone: some trips to the store.
const PAUSE: Duration = Duration::from_millis(5);

/// Who is busy.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    busy: Mutex<Busy>,
}

#[derive(Debug, Default)]
struct Busy {
    /// How many requests at once: two of one sticky name are possible.
    giving: BTreeMap<Owner, u32>,
    settling: BTreeSet<Owner>,
}

impl Turns {
    /// The owner is being given addresses, for as long as the result lives. Waits while what it left is given back.
    pub(super) async fn give(self: &Arc<Self>, owner: Owner) -> InFlight {
        while !self.try_give(&owner) {
            tokio::time::sleep(PAUSE).await;
        }
        InFlight { turns: self.clone(), owner }
    }

    fn try_give(&self, owner: &Owner) -> bool {
        let mut busy = lock(&self.busy);
        let free = !busy.settling.contains(owner);
        if free {
            *busy.giving.entry(owner.clone()).or_default() += 1;
        }
        free
    }

    /// What the owner left may be given back, for as long as the result lives; `None` while it is being given addresses.
    pub(super) fn settle(self: &Arc<Self>, owner: &Owner) -> Option<Settling> {
        let mut busy = lock(&self.busy);
        if busy.giving.contains_key(owner) || !busy.settling.insert(owner.clone()) {
            return None;
        }
        Some(Settling { turns: self.clone(), owner: owner.clone() })
    }

    /// Who is being given addresses right now.
    pub(super) fn in_flight(&self) -> BTreeSet<Owner> {
        lock(&self.busy).giving.keys().cloned().collect()
    }
}

/// While it lives, what belongs to the owner is not settled.
#[derive(Debug)]
pub(super) struct InFlight {
    turns: Arc<Turns>,
    owner: Owner,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut busy = lock(&self.turns.busy);
        if let Some(count) = busy.giving.get_mut(&self.owner) {
            *count -= 1;
            if *count == 0 {
                busy.giving.remove(&self.owner);
            }
        }
    }
}

/// While it lives, the owner is given nothing.
#[derive(Debug)]
pub(super) struct Settling {
    turns: Arc<Turns>,
    owner: Owner,
}

impl Drop for Settling {
    fn drop(&mut self) {
        lock(&self.turns.busy).settling.remove(&self.owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_owner_that_two_requests_serve_is_settled_after_both_and_a_third_waits_for_that() {
        let turns = Arc::new(Turns::default());
        let owner = Owner::Sticky("db-0".into());
        let (one, two) = (turns.give(owner.clone()).await, turns.give(owner.clone()).await);
        drop(one);
        assert!(turns.settle(&owner).is_none(), "the other is not done");
        drop(two);
        let settling = turns.settle(&owner).unwrap();
        assert!(turns.settle(&owner).is_none());
        assert!(!turns.try_give(&owner));
        drop(settling);
        drop(turns.give(owner.clone()).await);
        assert!(turns.in_flight().is_empty());
    }
}
