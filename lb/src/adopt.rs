// SPDX-License-Identifier: Apache-2.0
//! Starting over from what the maps hold, so that identifiers and slots stay as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ebpf_abi::service::SERVICE_DROP_EMPTY;
use ebpf_abi::{AffinityBackendKey, BackendValue, FrontendKey, ServiceValue, SourceRangeKey};

use crate::frontends::{Wishes, frontends_of};
use crate::slots::Range;
use crate::unread::{Found, Unread};
use crate::{Compiler, Image, ServiceName, Standing, VerdictState};

/// What was found in the maps, and that no Service has claimed yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Adopted {
    /// There is something to be settled by the next update.
    active: bool,
    /// All services were looked at since: what is left is kept for Services of which nothing is known.
    settled: bool,
    pub(crate) services: BTreeMap<FrontendKey, AdoptedService>,
    /// Content of ranges, by offset and length.
    ranges: BTreeMap<(u32, u32), Vec<u32>>,
    affinity_ids: BTreeSet<u32>,
    pub(crate) affinity: BTreeSet<AffinityBackendKey>,
    pub(crate) source_ranges: BTreeSet<SourceRangeKey>,
    /// Frontends and backends, by their identifiers, that connections go by.
    spared: BTreeSet<(u32, u32)>,
    /// The same of what is kept, and what its slots hold.
    kept: BTreeSet<(u32, u32)>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct AdoptedService {
    pub(crate) value: ServiceValue,
    /// 0: the one in the value cannot be had.
    pub(crate) service_id: u32,
}

impl Adopted {
    pub(crate) fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// Nobody has looked at it yet.
    pub(crate) fn is_fresh(&self) -> bool {
        self.active && !self.settled
    }

    /// Whether a frontend is kept for a Service of which nothing is known.
    pub(crate) fn keeps(&self, service_id: u32) -> bool {
        self.settled && self.services.values().any(|found| found.service_id == service_id)
    }

    /// How many members of affinity and source ranges are kept beside those of services that are known.
    pub(crate) fn kept_entries(&self) -> (usize, usize) {
        if self.settled { (self.affinity.len(), self.source_ranges.len()) } else { (0, 0) }
    }

    /// Puts what is kept into the image of what the maps should hold.
    pub(crate) fn show(&self, image: &mut Image) {
        if !self.settled {
            return;
        }
        image.services.extend(self.services.iter().map(|(key, found)| (*key, found.value)));
        for ((offset, _), ids) in &self.ranges {
            image.slots.extend((*offset..).zip(ids.iter().copied()));
        }
        image.affinity.extend(self.affinity.iter().copied());
        image.ranges.extend(self.source_ranges.iter().copied());
    }

    /// The backends that the sets of a Service were found with, and those that connections went to by its frontends.
    pub(crate) fn found(&self, wishes: &Wishes, backend: impl Fn(u32) -> Option<BackendValue>) -> Found {
        let mut sets = Found::new();
        for key in wishes.sets.keys() {
            let mut found = BTreeMap::new();
            for service in frontends_of(*key, wishes).iter().filter_map(|key| self.services.get(key)) {
                let at = (service.value.slot_offset, service.value.slot_count);
                let chosen = self.ranges.get(&at).into_iter().flatten();
                found.extend(chosen.filter_map(|id| Some((backend(*id)?, VerdictState::Up))));
                let connections = self.spared.range((service.service_id, 0)..=(service.service_id, u32::MAX));
                for value in connections.filter_map(|(_, id)| backend(*id)) {
                    found.entry(value).or_insert(VerdictState::Draining);
                }
            }
            sets.insert(*key, found);
        }
        sets
    }

    /// The range and the affinity identifier of the first of `frontends` that has them: the range only if it holds just
    /// `content`.
    pub(crate) fn claim(
        &mut self,
        frontends: &[FrontendKey],
        content: Option<&[u32]>,
    ) -> (Option<Range>, u32) {
        let (mut range, mut affinity_id) = (None, 0);
        for found in frontends.iter().filter_map(|key| self.services.get(key)) {
            let at = (found.value.slot_offset, found.value.slot_count);
            if range.is_none() && content.is_some() && self.ranges.get(&at).map(Vec::as_slice) == content {
                self.ranges.remove(&at);
                range = Some(Range { offset: at.0, length: at.1 });
            }
            if affinity_id == 0 && self.affinity_ids.remove(&found.value.affinity_id) {
                affinity_id = found.value.affinity_id;
            }
        }
        (range, affinity_id)
    }

    /// What the first of `frontends` that has something was found with. A Service that got its address while nobody looked must
    /// not be left with the backends of the one that had it before: some of them have to be its own, by `is_own`.
    pub(crate) fn last_good(
        &mut self,
        frontends: &[FrontendKey],
        is_own: impl Fn(u32) -> bool,
    ) -> Option<LastGood> {
        let mut empty = None;
        for found in frontends.iter().filter_map(|key| self.services.get(key)) {
            let at = (found.value.slot_offset, found.value.slot_count);
            let drops = found.value.flags & SERVICE_DROP_EMPTY != 0;
            if at.1 == 0 {
                empty = empty.or(Some(LastGood { range: Range::default(), content: Vec::new(), drops }));
            } else if self.ranges.get(&at).is_some_and(|ids| ids.iter().any(|id| is_own(*id))) {
                let range = Range { offset: at.0, length: at.1 };
                return self.ranges.remove(&at).map(|content| LastGood { range, content, drops });
            }
        }
        empty
    }
}

/// What a set was found with.
#[derive(Debug)]
pub(crate) struct LastGood {
    pub(crate) range: Range,
    /// Identifiers, slot by slot.
    pub(crate) content: Vec<u32>,
    /// Without slots: drop instead of refuse.
    pub(crate) drops: bool,
}

impl Compiler {
    /// Starts over from what the maps hold, so that identifiers and ranges stay as they are. Whatever in the image
    /// is not consistent (a slot without a backend, overlapping ranges, an identifier out of range) is left untouched as
    /// long as the kernel may use it, and written anew by the next update, which looks at all services.
    ///
    /// Which backends left while nobody looked is not known: whoever ends connections looks at all of them once.
    pub fn adopt(&mut self, image: &Image) {
        *self = Self::new(self.limits);
        for (&id, &value) in image.backends.iter().filter(|(_, value)| !value.is_unused()) {
            self.holdings.adopt_backend(id, value);
        }
        for id in image.slots.values() {
            self.holdings.adopt_bare_backend(*id);
        }
        // In ascending order, for only what lies above the last one can be reserved.
        let affinity_ids: BTreeSet<u32> = image.services.values().map(|value| value.affinity_id).collect();
        for id in affinity_ids {
            if self.holdings.affinity_ids.reserve(id) {
                self.adopted.affinity_ids.insert(id);
            }
        }
        for (key, value) in &image.services {
            let service_id =
                if self.holdings.service_ids.reserve(value.service_id) { value.service_id } else { 0 };
            self.adopt_range(value, image);
            self.adopted.services.insert(*key, AdoptedService { value: *value, service_id });
        }
        // What else has content, or is pointed at without having any, may be read by a program that is running.
        for value in image.services.values() {
            let end = value.slot_offset.saturating_add(value.slot_count).min(self.limits.slots);
            self.rest_what_is_free(Range {
                offset: value.slot_offset.min(end),
                length: end.saturating_sub(value.slot_offset),
            });
        }
        for run in runs(image.slots.range(..self.limits.slots).map(|(slot, _)| *slot)) {
            self.rest_what_is_free(run);
        }
        let endpoints = self.holdings.endpoints().clone();
        for key in image.endpoints.keys().filter(|key| !endpoints.contains_key(key)) {
            self.holdings.writes().set_endpoint(*key, 0);
        }
        for (key, count) in endpoints.iter().filter(|(key, count)| image.endpoints.get(key) != Some(count)) {
            self.holdings.writes().set_endpoint(*key, *count);
        }
        self.adopted.affinity.clone_from(&image.affinity);
        self.adopted.source_ranges.clone_from(&image.ranges);
        self.adopted.active = true;
    }

    /// Frontends and backends, by their identifiers, that connections still go by: after [`Self::adopt`]. Some of these identifiers
    /// may have become free just before; they rest as if they had done so now, for a new meaning would be taken for the old one.
    pub fn spare(&mut self, connections: &BTreeSet<(u32, u32)>) {
        for (service_id, backend_id) in connections {
            self.holdings.spare_service(*service_id);
            self.holdings.adopt_bare_backend(*backend_id);
        }
        self.adopted.spared.clone_from(connections);
    }

    fn adopt_range(&mut self, value: &ServiceValue, image: &Image) {
        let at = (value.slot_offset, value.slot_count);
        let end = value.slot_offset.checked_add(value.slot_count).filter(|end| *end <= self.limits.slots);
        let Some(end) = end.filter(|_| value.slot_count > 0 && !self.adopted.ranges.contains_key(&at)) else {
            return;
        };
        let ids = (value.slot_offset..end).map(|slot| image.slots.get(&slot).copied());
        let Some(ids) = ids.collect::<Option<Vec<u32>>>() else { return };
        if ids.iter().any(|id| self.holdings.backend(*id).is_none()) {
            return;
        }
        let range = Range { offset: at.0, length: at.1 };
        let taken = self.holdings.slots.reserve(range);
        if taken == [range] {
            self.adopted.ranges.insert(at, ids);
        } else {
            // Part of another's: neither is ours to change.
            taken.into_iter().for_each(|piece| self.holdings.slots.release(piece));
        }
    }

    fn rest_what_is_free(&mut self, range: Range) {
        for piece in self.holdings.slots.reserve(range) {
            self.holdings.rest_slots(piece);
        }
    }

    /// After all services were looked at: what nobody claimed goes, but for what may belong to a Service of which nothing is known.
    pub(crate) fn disown_adopted(&mut self, unread: &Unread) {
        let mut adopted = std::mem::take(&mut self.adopted);
        if !adopted.active {
            return;
        }
        self.adopted = adopted.take_kept(unread, |id| self.holdings.backend(id).is_some());
        // Before the others are let go: what is in both does not rest.
        self.adopted.kept.iter().for_each(|(_, id)| self.holdings.hold(*id));
        adopted.kept.iter().for_each(|(_, id)| self.holdings.let_go(*id));
        let left = adopted.kept.difference(&self.adopted.kept);
        let left = left.filter(|(service_id, id)| self.standing(*service_id, *id) != Standing::Current);
        let left: Vec<(u32, u32)> = left.copied().collect();
        self.holdings.writes().left.extend(left);
        let nobody = Arc::new(ServiceName::new("", ""));
        for (key, found) in adopted.services {
            self.holdings.writes().del_service(key);
            self.holdings.rest_service(key, nobody.clone(), found.service_id);
        }
        for (offset, length) in adopted.ranges.into_keys() {
            self.holdings.rest_slots(Range { offset, length });
        }
        adopted.affinity_ids.into_iter().for_each(|id| self.holdings.rest_affinity(id));
        adopted.affinity.into_iter().for_each(|key| self.holdings.writes().del_affinity(key));
        adopted.source_ranges.into_iter().for_each(|key| self.holdings.writes().del_range(key));
        if !adopted.settled {
            self.holdings.rest_unused_backends();
        }
    }
}

impl Adopted {
    /// Takes out of this what may belong to a Service of which nothing is known.
    fn take_kept(&mut self, unread: &Unread, is_known: impl Fn(u32) -> bool) -> Self {
        // One without an identifier of its own would be mixed up with another. One whose slots or affinity a Service has claimed
        // that is known was that Service's: what it points at is not ours to hold, and means something else before long.
        let is_kept = |key: &FrontendKey, found: &mut AdoptedService| {
            let ServiceValue { slot_offset, slot_count, affinity_id, .. } = found.value;
            found.service_id != 0
                && unread.may_have(key)
                && (slot_count == 0 || self.ranges.contains_key(&(slot_offset, slot_count)))
                && (affinity_id == 0 || self.affinity_ids.contains(&affinity_id))
        };
        let services: BTreeMap<FrontendKey, AdoptedService> = self.services.extract_if(.., is_kept).collect();
        if services.is_empty() {
            return Self::default();
        }
        let ids: BTreeSet<u32> = services.values().map(|found| found.service_id).collect();
        let affinity_ids: BTreeSet<u32> = services.values().map(|found| found.value.affinity_id).collect();
        let spared: BTreeSet<(u32, u32)> = self.spared.extract_if(.., |pair| ids.contains(&pair.0)).collect();
        let mut kept: BTreeSet<(u32, u32)> = spared.iter().filter(|(_, id)| is_known(*id)).copied().collect();
        let mut ranges = BTreeMap::new();
        for found in services.values() {
            let at = (found.value.slot_offset, found.value.slot_count);
            ranges.extend(self.ranges.remove_entry(&at));
            let slots = ranges.get(&at).into_iter().flatten();
            kept.extend(slots.map(|id: &u32| (found.service_id, *id)));
        }
        let is_own = |range: &SourceRangeKey| ids.contains(&u32::from_be_bytes(range.service_id));
        Self {
            active: true,
            settled: true,
            services,
            ranges,
            affinity: self.affinity.extract_if(.., |key| affinity_ids.contains(&key.affinity_id)).collect(),
            source_ranges: self.source_ranges.extract_if(.., |range| is_own(range)).collect(),
            affinity_ids: self.affinity_ids.extract_if(.., |id| affinity_ids.contains(id)).collect(),
            spared,
            kept,
        }
    }
}

/// Neighbouring slots, joined.
fn runs(slots: impl Iterator<Item = u32>) -> Vec<Range> {
    let mut runs: Vec<Range> = Vec::new();
    for slot in slots {
        match runs.last_mut() {
            Some(run) if run.end() == slot => run.length += 1,
            _ => runs.push(Range { offset: slot, length: 1 }),
        }
    }
    runs
}
