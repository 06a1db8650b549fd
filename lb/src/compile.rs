// SPDX-License-Identifier: Apache-2.0
//! From the service table to the content of the maps, change by change, without disturbing what is in use.
//!
//! The frontends of a Service that choose among the same backends share a *set*: a range of slots. A set whose backends
//! changed gets a fresh range; the writer fills it and then flips the service entries, so a program sees either the old
//! set or the new one. What the old entries pointed at (slots, backends, identifiers) *rests*: it stays in the maps and
//! is given out again [`GRACE_MS`] after the writer said ([`Compiler::written`]) that the kernel no longer points at it,
//! and in no other way (`holdings.rs`).
//!
//! Only Services that changed are looked at, with those that depend on them by weights or want the same frontend. The
//! result is what all of them from scratch would give, but for identifiers and the place of slots.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ebpf_abi::{AffinityBackendKey, BackendValue, FrontendKey, ServiceValue, SourceRangeKey};

use crate::adopt::Adopted;
use crate::frontends::{self, Recipe, SetKey, Wishes};
use crate::holdings::Holdings;
use crate::slots::Range;
use crate::unread::Found;
use crate::warmth::Warmth;
use crate::{
    CapacityError, Image, Limit, Limits, NodeView, Problem, ServiceEntry, ServiceName, ServiceTable,
    VerdictState, Writes,
};

/// How long retired slots and identifiers rest: far longer than a BPF program runs between reading a service entry
/// and its slot, short enough that churn does not pile up.
pub const GRACE_MS: u64 = 1_000;

/// Gives out slots and identifiers. One for each set of maps; its state is what the maps hold.
#[derive(Clone, Debug)]
pub struct Compiler {
    pub(crate) limits: Limits,
    pub(crate) holdings: Holdings,
    pub(crate) services: BTreeMap<ServiceName, Compiled>,
    pub(crate) frontends: BTreeMap<FrontendKey, Frontend>,
    pub(crate) by_id: BTreeMap<u32, FrontendKey>,
    /// Who wants a frontend that another Service has; the first by name gets it next.
    pub(crate) waiting: BTreeMap<FrontendKey, BTreeSet<ServiceName>>,
    pub(crate) affinity: BTreeSet<AffinityBackendKey>,
    pub(crate) ranges: BTreeSet<SourceRangeKey>,
    /// Services of which something did not fit.
    pub(crate) starved: BTreeSet<ServiceName>,
    /// Services with problems or something that did not fit.
    troubled: BTreeSet<ServiceName>,
    /// Who is to be looked at when a Service changes, because of weights.
    dependents: BTreeMap<ServiceName, BTreeSet<ServiceName>>,
    warming: BTreeSet<(u64, ServiceName)>,
    /// Services with faults that befall some of this node's pods.
    choosy: BTreeSet<ServiceName>,
    view: Option<NodeView>,
    /// (before, now) of nodes' indexes that differ between the views of the last update and this one.
    pub(crate) moved: BTreeSet<(u32, u32)>,
    /// What was found in the maps and is not claimed yet.
    pub(crate) adopted: Adopted,
}

/// A Service as it is in the maps.
#[derive(Clone, Debug, Default)]
pub(crate) struct Compiled {
    pub(crate) sets: BTreeMap<SetKey, Set>,
    /// Its frontends.
    pub(crate) keys: BTreeSet<FrontendKey>,
    /// Frontends that another Service has.
    pub(crate) waits_for: BTreeSet<FrontendKey>,
    /// Identifiers of all backends that it names, as far as they have one.
    pub(crate) listed: BTreeMap<u32, VerdictState>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) capacity: Vec<CapacityError>,
    pub(crate) depends: BTreeSet<ServiceName>,
    /// Backends that it was found with, while some of its slices are not known.
    pub(crate) found: Found,
    warmth: Warmth,
}

/// Slots that frontends of one Service share.
#[derive(Clone, Debug, Default)]
pub(crate) struct Set {
    pub(crate) range: Range,
    /// What the slots were made of; unknown when adopted.
    pub(crate) recipe: Option<Recipe>,
    /// Identifiers of the recipe's members; without a recipe those in the slots.
    pub(crate) named: Arc<[u32]>,
    /// The backends in it, each once, in order.
    pub(crate) ids: Arc<[u32]>,
    /// 0 without affinity.
    pub(crate) affinity_id: u32,
    /// Those of `ids` that clients may stay with.
    pub(crate) members: Arc<[u32]>,
    /// Without slots: drop instead of refuse.
    pub(crate) drops: bool,
}

/// A frontend as it is in the maps.
#[derive(Clone, Debug)]
pub(crate) struct Frontend {
    pub(crate) owner: Arc<ServiceName>,
    pub(crate) set: Option<SetKey>,
    pub(crate) value: ServiceValue,
    pub(crate) ranges: BTreeSet<SourceRangeKey>,
}

/// What became of a backend that a connection went to by a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is used, or could be: it is up.
    Current,
    /// It terminates and still serves: connections may finish, datagrams go elsewhere.
    Draining,
    /// It is not among the Service's backends any more.
    Removed,
    /// The frontend is gone.
    ServiceGone,
    /// It is not ready: connections may live through it, datagrams go elsewhere.
    Unready,
}

impl Compiler {
    /// For empty maps of these sizes.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            holdings: Holdings::new(limits),
            services: BTreeMap::new(),
            frontends: BTreeMap::new(),
            by_id: BTreeMap::new(),
            waiting: BTreeMap::new(),
            affinity: BTreeSet::new(),
            ranges: BTreeSet::new(),
            starved: BTreeSet::new(),
            troubled: BTreeSet::new(),
            dependents: BTreeMap::new(),
            warming: BTreeSet::new(),
            choosy: BTreeSet::new(),
            view: None,
            moved: BTreeSet::new(),
            adopted: Adopted::default(),
        }
    }

    /// What the maps lack of what they should hold for `table` on the node of `view`, together with all that was
    /// returned since the last [`Self::written`]: a failed write is made up for by the next one.
    ///
    /// `changed` names the Services that differ from the table of the last call; `None`: any may. After [`Self::new`],
    /// [`Self::adopt`] and where `view` differs in this node, all are looked at anyhow, and where it differs in other nodes,
    /// those with backends on them. `now_ms`: any monotonic milliseconds.
    ///
    /// A set that does not fit keeps its last good backends; a new frontend is left out, so that its ClusterIP's entry for
    /// other ports, if there is one, refuses it.
    pub fn update(
        &mut self,
        table: &ServiceTable,
        view: &NodeView,
        changed: Option<&BTreeSet<ServiceName>>,
        now_ms: u64,
    ) -> Arc<Writes> {
        self.holdings.release_due(now_ms);
        let before = self.view.take();
        let moved = before.as_ref().map(|before| before.moved(view)).unwrap_or_default();
        let is_same_node = before.as_ref().is_some_and(|before| before.is_same_node(view));
        let mut work: BTreeSet<ServiceName> = match changed {
            Some(changed) if is_same_node => {
                let changed: BTreeSet<&ServiceName> = table.naming(&moved).chain(changed).collect();
                let dependents = changed.iter().filter_map(|name| self.dependents.get(*name)).flatten();
                dependents.chain(changed.iter().copied()).cloned().collect()
            }
            _ => table.services.keys().chain(self.services.keys()).cloned().collect(),
        };
        if before.as_ref().is_some_and(|before| before.pods != view.pods) {
            work.extend(self.choosy.iter().cloned());
        }
        self.moved = moved.into_values().collect();
        self.view = before.filter(|before| before == view).or_else(|| Some(view.clone()));
        work.extend(self.warming.iter().take_while(|(at, _)| *at <= now_ms).map(|(_, name)| name.clone()));
        self.run(work, table, view, now_ms);
        self.disown_adopted(&table.unread);
        // What became free may be enough for those who got too little.
        if std::mem::take(&mut self.holdings.freed) {
            let starved = self.starved.clone();
            self.run(starved, table, view, now_ms);
        }
        self.holdings.unwritten()
    }

    /// All of the last [`Self::update`] is in the kernel since `now_ms`: what it retired is free [`GRACE_MS`] later.
    /// Without this call nothing retired is ever given out again.
    pub fn written(&mut self, now_ms: u64) {
        self.holdings.written(now_ms);
    }

    /// What was retired at `since_ms` or later ([`Self::written`]'s clock) is not given out again, however long ago that is:
    /// somebody looks for the connections that go by it yet. `None`: nobody does. The next [`Self::update`] acts on it.
    pub fn keep_since(&mut self, since_ms: Option<u64>) {
        self.holdings.kept_since_ms = since_ms;
    }

    /// When there is something to do without any change: a grace period ends, or a backend warms up. Then
    /// [`Self::update`] with no changed Service does it.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let warming = self.warming.first().map(|(at, _)| *at);
        self.holdings.next_due().into_iter().chain(warming).min()
    }

    /// What the maps cannot express and is left out; sorted.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let troubled = self.troubled.iter().filter_map(|name| self.services.get(name));
        let mut problems: Vec<Problem> = troubled.flat_map(|compiled| compiled.problems.clone()).collect();
        problems.sort();
        problems
    }

    /// What did not fit, by Service. It is tried again when something becomes free.
    #[must_use]
    pub fn capacity(&self) -> Vec<CapacityError> {
        let troubled = self.troubled.iter().filter_map(|name| self.services.get(name));
        let mut errors: Vec<CapacityError> =
            troubled.flat_map(|compiled| compiled.capacity.clone()).collect();
        for error in &mut errors {
            error.waiting = self.waiting_for(error.limit);
        }
        errors
    }

    /// Names of frontends by service identifier: `default/web:80/tcp`, `default/web:*`.
    #[must_use]
    pub fn names(&self) -> BTreeMap<u32, String> {
        self.frontends.values().map(|frontend| (frontend.value.service_id, frontend.name())).collect()
    }

    /// The frontend with this service identifier, and whose it is.
    #[must_use]
    pub fn frontend(&self, service_id: u32) -> Option<(&ServiceName, FrontendKey)> {
        let key = self.by_id.get(&service_id)?;
        Some((&self.frontends.get(key)?.owner, *key))
    }

    /// The entry of a frontend.
    #[must_use]
    pub fn service(&self, key: &FrontendKey) -> Option<&ServiceValue> {
        self.frontends.get(key).map(|frontend| &frontend.value)
    }

    /// The backend with this identifier, in use or resting.
    #[must_use]
    pub fn backend(&self, id: u32) -> Option<BackendValue> {
        self.holdings.backend(id)
    }

    /// What became of a backend that a connection went to by a frontend.
    #[must_use]
    pub fn standing(&self, service_id: u32, backend_id: u32) -> Standing {
        let Some(frontend) = self.by_id.get(&service_id).and_then(|key| self.frontends.get(key)) else {
            // What became of the backends of a Service that does not read is not known.
            let is_kept = self.adopted.keeps(service_id);
            return if is_kept { Standing::Current } else { Standing::ServiceGone };
        };
        let Some(compiled) = self.services.get(&*frontend.owner) else { return Standing::ServiceGone };
        let set = frontend.set.and_then(|set| compiled.sets.get(&set));
        if set.is_some_and(|set| set.ids.binary_search(&backend_id).is_ok()) {
            return Standing::Current;
        }
        match compiled.listed.get(&backend_id) {
            None => Standing::Removed,
            Some(VerdictState::Up) => Standing::Current,
            Some(VerdictState::Draining) => Standing::Draining,
            Some(VerdictState::Down) => Standing::Unready,
        }
    }

    /// What the maps should hold, without what rests.
    #[must_use]
    pub fn image(&self) -> Image {
        let mut image = Image {
            backends: self.holdings.backends().collect(),
            endpoints: self.holdings.endpoints().clone(),
            affinity: self.affinity.clone(),
            ranges: self.ranges.clone(),
            names: self.names(),
            ..Image::default()
        };
        for (key, frontend) in &self.frontends {
            image.services.insert(*key, frontend.value);
        }
        for set in self.services.values().flat_map(|compiled| compiled.sets.values()) {
            let slots: Vec<u32> = match &set.recipe {
                None => set.named.to_vec(),
                Some(recipe) => recipe.fill_with(&set.named),
            };
            image.slots.extend((set.range.offset..).zip(slots));
        }
        self.adopted.show(&mut image);
        image
    }

    fn run(&mut self, mut work: BTreeSet<ServiceName>, table: &ServiceTable, view: &NodeView, now_ms: u64) {
        while let Some(name) = work.pop_first() {
            let entry = table.services.get(&name).map(Arc::as_ref);
            let next = self.compile(&name, entry, table, view, now_ms);
            work.extend(next);
        }
    }

    /// One Service; returns the names of others that are to be looked at for it.
    fn compile(
        &mut self,
        name: &ServiceName,
        entry: Option<&ServiceEntry>,
        table: &ServiceTable,
        view: &NodeView,
        now_ms: u64,
    ) -> BTreeSet<ServiceName> {
        let known = self.services.remove(name);
        let mut compiled = match (known, entry) {
            (None, None) => return BTreeSet::new(),
            (known, _) => known.unwrap_or_default(),
        };
        if let Some(at) = compiled.warmth.next_step() {
            self.warming.remove(&(at, name.clone()));
        }
        let mut wishes = Wishes::default();
        if let Some(entry) = entry {
            // Who is up is seen only by looking, and warmth goes by who is up.
            let slow = entry.extras.slow_start;
            let up = |wishes: &Wishes| wishes.up.iter().copied().collect::<Vec<IpAddr>>();
            if slow.is_some() {
                let cold = frontends::wishes(name, entry, table, view, |_| 10);
                compiled.warmth.see(up(&cold), slow, now_ms);
            } else {
                compiled.warmth = Warmth::default();
            }
            let warmth = &compiled.warmth;
            wishes = frontends::wishes(name, entry, table, view, |address| warmth.tenths(address, now_ms));
        } else {
            compiled.warmth = Warmth::default();
        }
        if let Some(at) = compiled.warmth.next_step() {
            self.warming.insert((at, name.clone()));
        }
        for other in compiled.depends.difference(&wishes.depends) {
            if let Some(dependents) = self.dependents.get_mut(other) {
                dependents.remove(name);
                if dependents.is_empty() {
                    self.dependents.remove(other);
                }
            }
        }
        for other in wishes.depends.difference(&compiled.depends) {
            self.dependents.entry(other.clone()).or_default().insert(name.clone());
        }
        compiled.depends = std::mem::take(&mut wishes.depends);
        compiled.problems = std::mem::take(&mut wishes.problems);
        compiled.capacity.clear();

        let affinity_secs = entry.and_then(|entry| entry.affinity_secs);
        let algorithm = entry.map(|entry| entry.extras.algorithm).unwrap_or_default();
        self.stand_in(name, &mut compiled, &mut wishes, &table.unread, algorithm);
        let next = self.place(name, &mut compiled, &wishes, affinity_secs, algorithm);

        set_member(&mut self.starved, name, !compiled.capacity.is_empty());
        let troubled = !compiled.capacity.is_empty() || !compiled.problems.is_empty();
        set_member(&mut self.troubled, name, troubled);
        let fault = entry.and_then(|entry| entry.extras.fault.as_ref());
        set_member(&mut self.choosy, name, fault.is_some_and(|fault| !fault.clients.is_empty()));
        if entry.is_some() {
            self.services.insert(name.clone(), compiled);
        }
        next
    }
}

impl Frontend {
    fn name(&self) -> String {
        match &self.set {
            None => format!("{}:*", self.owner),
            Some(set) => format!("{}:{}/{}", self.owner, set.port, set.protocol.as_lower()),
        }
    }
}

fn set_member(names: &mut BTreeSet<ServiceName>, name: &ServiceName, is_member: bool) {
    if is_member {
        if !names.contains(name) {
            names.insert(name.clone());
        }
    } else {
        names.remove(name);
    }
}

impl Limits {
    pub(crate) fn max(&self, limit: Limit) -> u32 {
        match limit {
            Limit::AffinityBackends => self.affinity_backends,
            Limit::Backends => self.backends,
            Limit::Services => self.services,
            Limit::Slots => self.slots,
            Limit::SourceRanges => self.source_ranges,
        }
    }
}
