// SPDX-License-Identifier: Apache-2.0
//! Starting over from what the maps hold, so that identifiers and slots stay as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ebpf_abi::service::SERVICE_DROP_EMPTY;
use ebpf_abi::{AffinityBackendKey, FrontendKey, ServiceValue, SourceRangeKey};

use crate::slots::Range;
use crate::{Compiler, Image, ServiceName};

/// What was found in the maps, and that no Service has claimed yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Adopted {
    /// There is something to be settled by the next update.
    active: bool,
    pub(crate) services: BTreeMap<FrontendKey, AdoptedService>,
    /// Content of ranges, by offset and length.
    ranges: BTreeMap<(u32, u32), Vec<u32>>,
    affinity_ids: BTreeSet<u32>,
    pub(crate) affinity: BTreeSet<AffinityBackendKey>,
    pub(crate) source_ranges: BTreeSet<SourceRangeKey>,
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

    /// After all services were looked at: what nobody claimed goes.
    pub(crate) fn disown_adopted(&mut self) {
        let adopted = std::mem::take(&mut self.adopted);
        if !adopted.active {
            return;
        }
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
        self.holdings.rest_unused_backends();
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
