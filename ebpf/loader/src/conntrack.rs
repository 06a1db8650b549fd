// SPDX-License-Identifier: Apache-2.0
//! Flows of the packet path: those that are over removed, the others counted and listed.
//!
//! The programs look at a flow's age themselves; an entry that stays too long takes room, nothing else. So a sweep goes
//! through the maps in steps of a bounded size, and begins again at their end.

use std::{io, time::Duration};

use ebpf_abi::{CtKey, conntrack::CtValue};
use nix::time::{ClockId, clock_gettime};

use crate::{
    datapath::Datapath,
    error::MapAccessError,
    map::{BpfMap, Walk},
};

/// Entries per system call of a walk.
const STEP: usize = 4_096;

/// Which of the two maps a flow is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FlowMap {
    /// CT_LIVE: both sides have spoken.
    Live,
    /// CT_NEW: half open; what a flood fills.
    New,
}

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrackedFlow {
    /// Where it is.
    pub map: FlowMap,
    /// What its packets arrive with.
    pub key: CtKey,
    /// What they become.
    pub value: CtValue,
}

/// How full a map of flows is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    /// Entries whose flow goes on, at the end of the last whole round; two for each flow.
    pub entries: usize,
    /// Entries that there is room for: then the least recently used go.
    pub max_entries: u32,
}

/// What one step of a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Entries looked at.
    pub seen: usize,
    /// Of them, removed: their flow was over.
    pub removed: usize,
    /// Both maps were gone through to their end: the next step begins anew.
    pub is_round_over: bool,
}

/// Where a sweep is.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    walk: Walk,
    in_new: bool,
    counted: [usize; 2],
    /// Of the last whole round.
    fill: [usize; 2],
}

impl Datapath {
    /// Looks at the next entries, `budget` or somewhat more, and removes those whose flow is over at `now_secs`
    /// ([`monotonic_secs`]).
    pub fn sweep_conntrack(&mut self, now_secs: u32, budget: usize) -> Result<Swept, MapAccessError> {
        let mut swept = Swept::default();
        while swept.seen < budget && !swept.is_round_over {
            let map = if self.sweep.in_new { &self.maps.ct_new } else { &self.maps.ct_live };
            let wanted = STEP.min(budget - swept.seen);
            let Some(entries) = map.step(&mut self.sweep.walk, wanted)? else {
                swept.is_round_over = self.sweep.end_of_map();
                continue;
            };
            swept.seen += entries.len();
            let mut going_on = entries.len();
            let is_crowded = self.sweep.is_crowded(map.max_entries(), entries.len());
            let is_over = |key: &CtKey, value: &CtValue| match is_crowded {
                true => value.is_free(key.proto, now_secs),
                false => value.is_expired(key.proto, now_secs),
            };
            for (key, value) in entries {
                if is_over(&key, &value) && remove_over(map, &key, is_over)? {
                    swept.removed += 1;
                    going_on -= 1;
                }
            }
            self.sweep.count(going_on);
        }
        Ok(swept)
    }

    /// How full the maps of flows were after the last whole round of [`Self::sweep_conntrack`]: CT_LIVE, CT_NEW.
    pub fn conntrack_fill(&self) -> [Fill; 2] {
        let [live, new] = self.sweep.fill;
        [
            Fill { entries: live, max_entries: self.maps.ct_live.max_entries() },
            Fill { entries: new, max_entries: self.maps.ct_new.max_entries() },
        ]
    }

    /// Flows, both directions of each, that are wanted and not over; `limit` at most.
    pub fn tracked_flows(
        &self,
        now_secs: u32,
        limit: usize,
        is_wanted: impl Fn(&CtKey, &CtValue) -> bool,
    ) -> Result<Vec<TrackedFlow>, MapAccessError> {
        let mut found = Vec::new();
        for (name, map) in [(FlowMap::Live, &self.maps.ct_live), (FlowMap::New, &self.maps.ct_new)] {
            let mut walk = Walk::default();
            while let Some(entries) = map.step(&mut walk, STEP)? {
                let wanted = entries
                    .into_iter()
                    .filter(|(key, value)| !value.is_expired(key.proto, now_secs) && is_wanted(key, value))
                    .map(|(key, value)| TrackedFlow { map: name, key, value });
                found.extend(wanted.take(limit - found.len()));
                if found.len() >= limit {
                    return Ok(found);
                }
            }
        }
        Ok(found)
    }
}

/// The clock that the programs write into maps: whole seconds of CLOCK_MONOTONIC.
///
/// # Errors
/// Of clock_gettime(2).
pub fn monotonic_secs() -> io::Result<u32> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
    Ok(now.as_secs() as u32)
}

impl Sweep {
    fn count(&mut self, going_on: usize) {
        let [live, new] = &mut self.counted;
        *if self.in_new { new } else { live } += going_on;
    }

    /// Whether the map that it is in was half full at the end of the last round, or is by now, with `more`: then flows go that
    /// others may have the ports of, so that the kernel need not make room among those that go on.
    fn is_crowded(&self, max_entries: u32, more: usize) -> bool {
        let of = |[live, new]: [usize; 2]| if self.in_new { new } else { live };
        of(self.fill).max(of(self.counted) + more) > max_entries as usize / 2
    }

    /// Goes on to the other map; `true` after both.
    fn end_of_map(&mut self) -> bool {
        self.in_new = !self.in_new;
        if !self.in_new {
            self.fill = std::mem::take(&mut self.counted);
        }
        !self.in_new
    }
}

/// Unless a packet of it has come since it was listed.
fn remove_over(
    map: &BpfMap<CtKey, CtValue>,
    key: &CtKey,
    is_over: impl Fn(&CtKey, &CtValue) -> bool,
) -> Result<bool, MapAccessError> {
    match map.get(key)? {
        Some(value) if is_over(key, &value) => map.remove(key),
        _ => Ok(false),
    }
}
