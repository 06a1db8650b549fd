// SPDX-License-Identifier: Apache-2.0
//! Faults of the memory store, injected by tests and simulation.

use std::sync::Arc;
use std::time::Duration;

use super::{ENDPOINT, Shared};
use crate::StoreError;

/// Injects faults into a [`super::Memory`]. Everything is off until asked for.
#[derive(Debug, Clone)]
pub struct Faults {
    pub(super) shared: Arc<Shared>,
}

#[derive(Debug, Default)]
pub(super) struct FaultPlan {
    pub(super) outage: bool,
    pub(super) duplicates: bool,
    pub(super) delay: Duration,
    pub(super) watch_delay: Duration,
    /// A watch of an older epoch is broken.
    pub(super) epoch: u64,
    /// A watch that saw fewer owes a progress notification.
    pub(super) progress: u64,
    fail: u32,
    lose_replies: u32,
    dice: Option<Dice>,
}

#[derive(Debug)]
struct Dice {
    seed: u64,
    percent: u64,
}

impl FaultPlan {
    /// How often the next request gives way to other tasks.
    pub(super) fn yields(&mut self) -> u64 {
        self.dice.as_mut().map_or(0, |dice| dice.next() % (YIELDS_MAX + 1))
    }

    /// `Err` when the request fails before it is served, `Ok(true)` when it is served and its reply is lost.
    pub(super) fn admit(&mut self) -> Result<bool, StoreError> {
        if self.outage {
            return Err(unavailable());
        }
        if let Some(left) = self.fail.checked_sub(1) {
            self.fail = left;
            return Err(unavailable());
        }
        if let Some(left) = self.lose_replies.checked_sub(1) {
            self.lose_replies = left;
            return Ok(true);
        }
        match self.dice.as_mut().map(Dice::roll) {
            Some(Roll::Fail) => Err(unavailable()),
            Some(Roll::LoseReply) => Ok(true),
            Some(Roll::Nothing) | None => Ok(false),
        }
    }
}

/// A request gives way to other tasks at most this often before it is served.
const YIELDS_MAX: u64 = 4;

enum Roll {
    Fail,
    LoseReply,
    Nothing,
}

impl Dice {
    fn roll(&mut self) -> Roll {
        let number = self.next();
        if number % 100 >= self.percent {
            Roll::Nothing
        } else if number & 0x8000_0000_0000_0000 == 0 {
            Roll::Fail
        } else {
            Roll::LoseReply
        }
    }

    /// SplitMix64: short, and any seed is a good one.
    fn next(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

fn unavailable() -> StoreError {
    StoreError::Unavailable { endpoint: ENDPOINT.into(), reason: "injected".into() }
}

impl Faults {
    /// While on, requests fail and watches are broken.
    pub fn outage(&self, on: bool) {
        self.change(|plan| {
            plan.outage = on;
            plan.epoch += 1;
        });
    }

    /// Breaks every open watch.
    pub fn disconnect(&self) {
        self.change(|plan| plan.epoch += 1);
    }

    /// While on, a watch delivers every batch twice.
    pub fn duplicates(&self, on: bool) {
        self.change(|plan| plan.duplicates = on);
    }

    /// Every request takes this long (tokio's time) before it is served.
    pub fn delay(&self, delay: Duration) {
        self.change(|plan| plan.delay = delay);
    }

    /// Every look of a watch takes this long (tokio's time).
    pub fn watch_delay(&self, delay: Duration) {
        self.change(|plan| plan.watch_delay = delay);
    }

    /// The next requests fail unserved.
    pub fn fail(&self, requests: u32) {
        self.change(|plan| plan.fail = requests);
    }

    /// The next requests are served, and their replies are lost: the caller sees a time-out.
    pub fn lose_replies(&self, requests: u32) {
        self.change(|plan| plan.lose_replies = requests);
    }

    /// From now on this share of requests fails or loses its reply, and all of them mix with those of other tasks; all of
    /// it chosen by `seed`.
    pub fn at_random(&self, seed: u64, percent: u64) {
        self.change(|plan| plan.dice = Some(Dice { seed, percent }));
    }

    /// Ends what [`Faults::at_random`] began.
    pub fn calm(&self) {
        self.change(|plan| plan.dice = None);
    }

    /// Every open watch gets a progress notification.
    pub fn progress(&self) {
        self.change(|plan| plan.progress += 1);
    }

    fn change(&self, change: impl FnOnce(&mut FaultPlan)) {
        change(&mut self.shared.lock().plan);
        self.shared.wake();
    }
}
