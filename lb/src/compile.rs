// SPDX-License-Identifier: Apache-2.0
//! From the service table to the content of the maps, step by step, without disturbing what is in use.
//!
//! A frontend whose backends changed gets a fresh range of slots; the writer fills it and then flips the service
//! entry, so a program sees either the old set or the new one. What the old entry pointed at (slots, backends,
//! identifiers) is *retired*: it stays in the image and is given out again [`GRACE_MS`] after the writer said
//! ([`Compiler::written`]) that the kernel no longer points at it, and in no other way.
//!
//! ```text
//!            taken by compile                  no frontend needs it            written(now)
//!   free ───────────────────────► live ──────────────────────────► retired ───────────────► retired, due now + GRACE_MS
//!    ▲                             ▲                                  │                              │
//!    │                             └──── needed again (identifiers) ──┘                              │
//!    └──────────────────────────────────── compile, once due ────────────────────────────────────────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};

use ebpf_abi::v1::{BackendValue, ServiceKey, ServiceValue};

use crate::frontends::{self, Desired};
use crate::ids::IdSpace;
use crate::slots::{Range, SlotSpace};
use crate::{CapacityError, Image, Limit, Limits, Problem, ServiceTable};

/// How long retired slots and identifiers rest: far longer than a BPF program runs between reading a service entry
/// and its slot, short enough that churn does not pile up.
pub const GRACE_MS: u64 = 1_000;

/// What [`Compiler::compile`] gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileOutcome {
    /// What the maps should hold.
    pub image: Image,
    /// What the maps cannot express and the image leaves out; sorted.
    pub problems: Vec<Problem>,
    /// Frontends that did not fit; in order of frontend.
    pub capacity: Vec<CapacityError>,
}

impl CompileOutcome {
    /// Something did not fit, and may fit after the next grace period: compile again then.
    #[must_use]
    pub fn is_worth_retrying(&self) -> bool {
        self.capacity.iter().any(|error| error.waiting > 0)
    }
}

/// Gives out slots and identifiers. One for each set of maps; its state is what the maps hold.
#[derive(Clone, Debug)]
pub struct Compiler {
    limits: Limits,
    service_ids: IdSpace,
    backend_ids: IdSpace,
    slot_space: SlotSpace,
    frontends: BTreeMap<ServiceKey, Frontend>,
    /// Every backend with an identifier, live or retired; `id_of` is its inverse (an adopted image may name one
    /// backend twice: then one of the identifiers is found by value, and the other is used up).
    backends: BTreeMap<u32, BackendValue>,
    id_of: BTreeMap<BackendValue, u32>,
    retired_backends: BTreeMap<u32, Due>,
    /// A frontend that comes back in time finds its identifier, and its counters, again.
    retired_services: BTreeMap<ServiceKey, (u32, Due)>,
    retired_slots: Vec<(RetiredSlots, Due)>,
}

/// A frontend as it is in the maps.
#[derive(Clone, Debug)]
struct Frontend {
    service_id: u32,
    /// Name of the last wish; unknown when adopted.
    name: Option<String>,
    range: Range,
    /// Identifiers in slot order, as many as the range is long.
    backends: Vec<u32>,
}

#[derive(Clone, Debug)]
struct RetiredSlots {
    range: Range,
    content: Vec<u32>,
}

/// When a retired thing is free: `None` until the kernel is known not to point at it.
type Due = Option<u64>;

impl Compiler {
    /// For empty maps of these sizes.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            service_ids: IdSpace::new(limits.services),
            backend_ids: IdSpace::new(limits.backends),
            slot_space: SlotSpace::new(limits.slots),
            frontends: BTreeMap::new(),
            backends: BTreeMap::new(),
            id_of: BTreeMap::new(),
            retired_backends: BTreeMap::new(),
            retired_services: BTreeMap::new(),
            retired_slots: Vec::new(),
        }
    }

    /// Starts over from what the maps hold, so that identifiers and ranges stay as they are. Whatever in the image
    /// is not consistent (a slot without a backend, a range shared by two frontends, an identifier out of range) is
    /// left untouched as long as the kernel may use it, and written anew by the next image.
    pub fn adopt(&mut self, image: &Image) {
        *self = Self::new(self.limits);
        for (&id, &value) in image.backends.iter().filter(|(_, value)| !value.is_unused()) {
            if self.backend_ids.reserve(id) {
                self.backends.insert(id, value);
                self.id_of.entry(value).or_insert(id);
            }
        }
        for &id in image.slots.values() {
            // Some program may still follow the slot: nobody else gets the identifier before the grace is over.
            if self.backend_ids.reserve(id) {
                self.retired_backends.insert(id, None);
            }
        }
        let mut foreign = Vec::new();
        for (key, value) in &image.services {
            match self.adopt_frontend(value, image) {
                Some(frontend) => drop(self.frontends.insert(*key, frontend)),
                None => foreign.push((*key, *value)),
            }
        }
        for (key, value) in foreign {
            if self.service_ids.reserve(value.service_id) {
                self.retired_services.insert(key, (value.service_id, None));
            }
            let end = value.slot_offset.saturating_add(value.slot_count).min(self.limits.slots);
            self.retire_free(value.slot_offset.min(end), end, image);
        }
        for run in runs(image.slots.range(..self.limits.slots).map(|(slot, _)| *slot)) {
            self.retire_free(run.offset, run.end(), image);
        }
        self.retire_unused_backends();
    }

    /// Computes what the maps should hold for `table`. Frontends that did not change keep slots and identifiers.
    ///
    /// A frontend that does not fit keeps its last good backends; a new one is left out, so that its ClusterIP's
    /// entry for other ports, if there is one, refuses it. `now_ms`: any monotonic milliseconds.
    pub fn compile(&mut self, table: &ServiceTable, now_ms: u64) -> CompileOutcome {
        self.release_due(now_ms);
        let mut problems = Vec::new();
        let desired = frontends::desired(table, &mut problems);
        problems.sort();

        let gone: Vec<ServiceKey> =
            self.frontends.keys().filter(|key| !desired.contains_key(key)).copied().collect();
        for key in gone {
            if let Some(frontend) = self.frontends.remove(&key) {
                self.retired_services.insert(key, (frontend.service_id, None));
                self.retire_slots(frontend.range, frontend.backends);
            }
        }
        let mut capacity = Vec::new();
        for (key, wish) in &desired {
            if let Err(error) = self.place(*key, wish) {
                self.drop_if_anothers(*key, wish);
                capacity.push(error);
            }
        }
        self.retire_unused_backends();
        for error in &mut capacity {
            error.waiting = self.waiting(error.limit);
        }
        CompileOutcome { image: self.image(), problems, capacity }
    }

    /// The last compiled image is in the kernel, all of it, since `now_ms`: what it retired is free [`GRACE_MS`]
    /// later. Without this call nothing retired is ever given out again.
    pub fn written(&mut self, now_ms: u64) {
        let due = now_ms.saturating_add(GRACE_MS);
        let backends = self.retired_backends.values_mut();
        let services = self.retired_services.values_mut().map(|(_, due)| due);
        let slots = self.retired_slots.iter_mut().map(|(_, due)| due);
        for waiting in backends.chain(services).chain(slots) {
            waiting.get_or_insert(due);
        }
    }

    /// Something retired is still in the image: compile (and write) again after the grace period, then it goes.
    #[must_use]
    pub fn has_retired(&self) -> bool {
        !(self.retired_backends.is_empty()
            && self.retired_services.is_empty()
            && self.retired_slots.is_empty())
    }

    /// Gives `key` the backends of `wish`, or changes nothing.
    fn place(&mut self, key: ServiceKey, wish: &Desired) -> Result<(), CapacityError> {
        if let Some(frontend) = self.frontends.get_mut(&key) {
            let current = frontend.backends.iter().map(|id| self.backends.get(id));
            if current.eq(wish.backends.iter().map(Some)) {
                frontend.name = Some(wish.name.clone());
                return Ok(());
            }
        }
        let known_id = match self.frontends.get(&key) {
            Some(frontend) => Some(frontend.service_id),
            None => self.retired_services.get(&key).map(|(id, _)| *id),
        };
        let refuse = |limit, wanted: usize, free| CapacityError {
            frontend: wish.name.clone(),
            limit,
            max: self.limits.max(limit),
            wanted: u32::try_from(wanted).unwrap_or(u32::MAX),
            free,
            waiting: 0,
        };
        if known_id.is_none() && self.service_ids.free() == 0 {
            return Err(refuse(Limit::Services, 1, 0));
        }
        let new_backends = wish.backends.iter().filter(|value| !self.id_of.contains_key(value)).count();
        if new_backends > self.backend_ids.free() as usize {
            return Err(refuse(Limit::Backends, new_backends, self.backend_ids.free()));
        }
        let range = u32::try_from(wish.backends.len()).ok().and_then(|length| self.slot_space.take(length));
        let Some(range) = range else {
            return Err(refuse(Limit::Slots, wish.backends.len(), self.slot_space.longest()));
        };

        // Everything fits: from here on nothing fails.
        let Some(service_id) = known_id.or_else(|| self.service_ids.take()) else { return Ok(()) };
        self.retired_services.remove(&key);
        let backends = wish.backends.iter().filter_map(|value| self.backend_id(*value)).collect();
        let frontend = Frontend { service_id, name: Some(wish.name.clone()), range, backends };
        if let Some(old) = self.frontends.insert(key, frontend) {
            self.retire_slots(old.range, old.backends);
        }
        Ok(())
    }

    /// The last good value of a frontend is good only for the Service that it was made for.
    fn drop_if_anothers(&mut self, key: ServiceKey, wish: &Desired) {
        let Some(frontend) = self.frontends.get_mut(&key) else { return };
        if frontend.name.as_ref().is_some_and(|name| *name != wish.name) {
            frontend.name = Some(wish.name.clone());
            let (range, backends) =
                (std::mem::take(&mut frontend.range), std::mem::take(&mut frontend.backends));
            self.retire_slots(range, backends);
        }
    }

    fn backend_id(&mut self, value: BackendValue) -> Option<u32> {
        if let Some(id) = self.id_of.get(&value) {
            return Some(*id);
        }
        let id = self.backend_ids.take()?;
        self.backends.insert(id, value);
        self.id_of.insert(value, id);
        Some(id)
    }

    fn adopt_frontend(&mut self, value: &ServiceValue, image: &Image) -> Option<Frontend> {
        let range = Range { offset: value.slot_offset, length: value.slot_count };
        let end = value.slot_offset.checked_add(value.slot_count).filter(|end| *end <= self.limits.slots)?;
        let slots = (range.offset..end).map(|slot| image.slots.get(&slot).copied());
        let backends: Vec<u32> = slots.collect::<Option<_>>()?;
        if !backends.iter().all(|id| self.backends.contains_key(id))
            || !self.service_ids.reserve(value.service_id)
        {
            return None;
        }
        let taken = if range.length == 0 { Vec::new() } else { self.slot_space.reserve(range) };
        if range.length == 0 || taken == [range] {
            let range = if range.length == 0 { Range::default() } else { range };
            return Some(Frontend { service_id: value.service_id, name: None, range, backends });
        }
        // Shared with another frontend: neither part is ours to change.
        taken.into_iter().for_each(|piece| self.slot_space.release(piece));
        self.service_ids.release(value.service_id);
        None
    }

    /// Retires what is free of `start..end`, as far as the image says something about it.
    fn retire_free(&mut self, start: u32, end: u32, image: &Image) {
        for range in self.slot_space.reserve(Range { offset: start, length: end - start }) {
            let content =
                (range.offset..range.end()).map(|slot| image.slots.get(&slot).copied().unwrap_or(0));
            self.retire_slots(range, content.collect());
        }
    }

    fn retire_slots(&mut self, range: Range, content: Vec<u32>) {
        if range.length > 0 {
            self.retired_slots.push((RetiredSlots { range, content }, None));
        }
    }

    fn retire_unused_backends(&mut self) {
        let used: BTreeSet<u32> =
            self.frontends.values().flat_map(|frontend| &frontend.backends).copied().collect();
        self.retired_backends.retain(|id, _| !used.contains(id));
        for id in self.backends.keys().filter(|id| !used.contains(id)) {
            self.retired_backends.entry(*id).or_insert(None);
        }
    }

    fn release_due(&mut self, now_ms: u64) {
        let is_due = |due: &Due| due.is_some_and(|due| due <= now_ms);
        for (retired, _) in self.retired_slots.extract_if(.., |(_, due)| is_due(due)) {
            self.slot_space.release(retired.range);
        }
        for (_, (id, _)) in self.retired_services.extract_if(.., |_, (_, due)| is_due(due)) {
            self.service_ids.release(id);
        }
        for (id, _) in self.retired_backends.extract_if(.., |_, due| is_due(due)) {
            self.backend_ids.release(id);
            let value = self.backends.remove(&id);
            if let Some(value) = value.filter(|value| self.id_of.get(value) == Some(&id)) {
                self.id_of.remove(&value);
            }
        }
    }

    fn waiting(&self, limit: Limit) -> u32 {
        match limit {
            Limit::Backends => self.retired_backends.len() as u32,
            Limit::Services => self.retired_services.len() as u32,
            Limit::Slots => self.retired_slots.iter().map(|(retired, _)| retired.range.length).sum(),
        }
    }

    fn image(&self) -> Image {
        let mut image = Image { backends: self.backends.clone(), ..Image::default() };
        for (retired, _) in &self.retired_slots {
            let filled = (retired.range.offset..).zip(retired.content.iter().copied());
            image.slots.extend(filled.filter(|(_, id)| *id != 0));
        }
        for (key, frontend) in &self.frontends {
            let value = ServiceValue {
                service_id: frontend.service_id,
                slot_offset: frontend.range.offset,
                slot_count: frontend.range.length,
                flags: 0,
            };
            image.services.insert(*key, value);
            image.slots.extend((frontend.range.offset..).zip(frontend.backends.iter().copied()));
            image.names.extend(frontend.name.clone().map(|name| (frontend.service_id, name)));
        }
        image
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

impl Limits {
    fn max(&self, limit: Limit) -> u32 {
        match limit {
            Limit::Backends => self.backends,
            Limit::Services => self.services,
            Limit::Slots => self.slots,
        }
    }
}
