// SPDX-License-Identifier: Apache-2.0
//! One Service into the maps: its sets, then its frontends, then what nobody points at any more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ebpf_abi::service::{
    ALGORITHM_AGENT_FIRST, ALGORITHM_HASH, ALGORITHM_LEAST_CONNECTIONS, ALGORITHM_RANDOM, SERVICE_AFFINITY,
    SERVICE_DROP_EMPTY,
};
use ebpf_abi::{AffinityBackendKey, FrontendKey, SCOPE_INTERNAL, ServiceValue, SourceRangeKey};
use ipnet::IpNet;

use crate::choose::Empty;
use crate::compile::{Compiled, Frontend, Set};
use crate::frontends::{FrontendWish, Recipe, SetKey, SetWish, Wishes, frontends_of};
use crate::slots::Range;
use crate::{Algorithm, CapacityError, Compiler, Limit, Problem, ServiceName};

impl Compiler {
    /// Makes the maps hold `wishes`, as far as they fit. Returns Services that may want a frontend that is free now, or
    /// that lost one.
    pub(crate) fn place(
        &mut self,
        name: &ServiceName,
        compiled: &mut Compiled,
        wishes: &Wishes,
        affinity_secs: Option<u32>,
        algorithm: Algorithm,
    ) -> BTreeSet<ServiceName> {
        self.move_backends(compiled, wishes);
        let before = self.connections(compiled);
        let mut next = BTreeSet::new();
        self.give_up_frontends(name, compiled, wishes, &mut next);
        let mut granted = Vec::new();
        for (key, wish) in &wishes.frontends {
            match self.claim(*key, name, compiled, &mut next) {
                Ok(()) => granted.push((*key, wish)),
                // Once for all who ask there.
                Err(owner) if key.scope == SCOPE_INTERNAL => compiled.problems.push(Problem {
                    object: format!("Service {name}"),
                    field: if key.is_node_port() { "spec.ports.nodePort" } else { "spec" }.to_owned(),
                    reason: format!("{key} already belongs to Service {owner}; change one of the two"),
                }),
                Err(_) => {}
            }
        }
        let used: BTreeSet<SetKey> = granted.iter().filter_map(|(_, wish)| wish.set).collect();
        for (key, wish) in wishes.sets.iter().filter(|(key, _)| used.contains(key)) {
            if let Err(error) = self.place_set(name, compiled, *key, wish, wishes) {
                compiled.capacity.push(error);
            }
            self.place_affinity(name, compiled, *key, affinity_secs.is_some());
        }
        let owner = Arc::new(name.clone());
        let options = Options { affinity_secs: affinity_secs.unwrap_or(0), algorithm };
        for (key, wish) in granted {
            if let Err(error) = self.place_frontend(key, &owner, compiled, wish, options) {
                compiled.capacity.push(error);
            }
        }
        compiled.problems.sort();
        self.drop_unused_sets(compiled);
        self.list(compiled, wishes);
        self.note_who_left(compiled, before);
        next
    }

    /// Backends whose node has another index now keep their identifier: connections go by it, and go on to where they went.
    fn move_backends(&mut self, compiled: &Compiled, wishes: &Wishes) {
        if self.moved.is_empty() {
            return;
        }
        let listed = compiled.listed.keys().filter_map(|id| Some((*id, self.holdings.backend(*id)?)));
        for (id, value) in listed.collect::<Vec<_>>() {
            if wishes.listed.contains_key(&value) {
                continue;
            }
            let now = wishes.like(&value).find(|wished| {
                self.moved.contains(&(value.node, wished.node)) && self.holdings.id_of(wished).is_none()
            });
            if let Some(now) = now {
                self.holdings.claim(id, now);
            }
        }
    }

    /// Gives a set its backends, or changes nothing.
    fn place_set(
        &mut self,
        name: &ServiceName,
        compiled: &mut Compiled,
        key: SetKey,
        wish: &SetWish,
        wishes: &Wishes,
    ) -> Result<(), CapacityError> {
        let drops = wish.empty == Empty::Drop;
        if let Some(set) = compiled.sets.get_mut(&key)
            && set.recipe.as_ref() == Some(&wish.recipe)
        {
            set.drops = drops;
            return Ok(());
        }
        let frontend = || format!("{name}:{}/{}", key.port, key.protocol.as_lower());
        let unnamed = wish
            .recipe
            .members
            .iter()
            .filter(|(value, _)| self.holdings.id_to_be_of(value).is_none())
            .count();
        let free = self.holdings.backend_ids.free();
        if unnamed > free as usize {
            self.adopt_last_good(compiled, key, wishes, 0);
            return Err(self.refuse(frontend(), Limit::Backends, unnamed, free));
        }
        let slots = wish.recipe.slots();
        let (adopted, affinity_id) = match compiled.sets.get(&key) {
            Some(set) => (None, set.affinity_id),
            None => self.adopt_set(key, wish, &slots, wishes),
        };
        let Some(range) = adopted.or_else(|| self.holdings.slots.take(wish.recipe.len())) else {
            self.adopt_last_good(compiled, key, wishes, affinity_id);
            let free = self.holdings.slots.longest();
            return Err(self.refuse(frontend(), Limit::Slots, wish.recipe.len() as usize, free));
        };

        // Everything fits: from here on nothing fails.
        let members = wish.recipe.members.iter();
        let ids: Vec<u32> = members.filter_map(|(value, _)| self.holdings.hold_backend(*value)).collect();
        if adopted.is_none() && range.length > 0 {
            let filled = slots.iter().filter_map(|index| ids.get(*index as usize)).copied();
            self.holdings.writes().slots_put.insert(range.offset, filled.collect());
        }
        let named: Arc<[u32]> = ids.as_slice().into();
        let mut unique = ids;
        unique.sort_unstable();
        let old = compiled.sets.remove(&key).unwrap_or_default();
        self.holdings.rest_slots(old.range);
        old.ids.iter().for_each(|id| self.holdings.let_go(*id));
        let set = Set {
            range,
            recipe: Some(wish.recipe.clone()),
            named,
            ids: unique.into(),
            affinity_id,
            members: old.members,
            drops,
        };
        compiled.sets.insert(key, set);
        Ok(())
    }

    /// Says which backends of a set clients may stay with. A set that does not fit does without affinity.
    fn place_affinity(&mut self, name: &ServiceName, compiled: &mut Compiled, key: SetKey, wanted: bool) {
        let Some(set) = compiled.sets.get_mut(&key) else { return };
        if wanted && set.affinity_id == 0 {
            set.affinity_id = self.holdings.affinity_ids.take().unwrap_or(0);
        }
        let mut members: Arc<[u32]> = if wanted { set.ids.clone() } else { Arc::default() };
        let id = set.affinity_id;
        let member = |backend_id: &u32| AffinityBackendKey { affinity_id: id, backend_id: *backend_id };
        let new = members.iter().map(member).filter(|key| !self.affinity.contains(key)).count();
        let (kept, _) = self.adopted.kept_entries();
        let free = (self.limits.affinity_backends as usize).saturating_sub(self.affinity.len() + kept);
        let mut failed = None;
        if new > free {
            let frontend = format!("{name}:{}/{}", key.port, key.protocol.as_lower());
            failed = Some((frontend, new, free as u32));
            members = Arc::default();
        }
        for key in members.iter().map(member) {
            if self.affinity.insert(key) && !self.adopted.affinity.remove(&key) {
                self.holdings.writes().put_affinity(key);
            }
        }
        for key in set.members.iter().filter(|id| members.binary_search(id).is_err()).map(member) {
            self.affinity.remove(&key);
            self.holdings.writes().del_affinity(key);
            self.holdings.freed = true;
        }
        set.members = members;
        if !wanted || failed.is_some() {
            self.holdings.rest_affinity(std::mem::take(&mut set.affinity_id));
        }
        if let Some((frontend, wanted, free)) = failed {
            compiled.capacity.push(self.refuse(frontend, Limit::AffinityBackends, wanted, free));
        }
    }

    /// Frontends that are not wished for any more go, and so do claims to those of others.
    fn give_up_frontends(
        &mut self,
        name: &ServiceName,
        compiled: &mut Compiled,
        wishes: &Wishes,
        next: &mut BTreeSet<ServiceName>,
    ) {
        for key in compiled.waits_for.clone() {
            if !wishes.frontends.contains_key(&key) {
                self.stop_waiting(key, name, compiled);
            }
        }
        for key in compiled.keys.extract_if(.., |key| !wishes.frontends.contains_key(key)) {
            if let Some(frontend) = self.frontends.remove(&key) {
                self.forget_frontend(key, frontend);
                self.holdings.writes().del_service(key);
                next.extend(self.waiting.get(&key).and_then(BTreeSet::first).cloned());
            }
        }
    }

    /// Takes the identifier, the ranges and the place in the index from a frontend; the entry is the caller's to change.
    fn forget_frontend(&mut self, key: FrontendKey, frontend: Frontend) {
        for range in &frontend.ranges {
            self.ranges.remove(range);
            self.holdings.writes().del_range(*range);
            self.holdings.freed = true;
        }
        self.by_id.remove(&frontend.value.service_id);
        self.holdings.rest_service(key, frontend.owner, frontend.value.service_id);
    }

    /// The first by name has a frontend that several want, on every node alike. `Err`: its owner.
    fn claim(
        &mut self,
        key: FrontendKey,
        name: &ServiceName,
        compiled: &mut Compiled,
        next: &mut BTreeSet<ServiceName>,
    ) -> Result<(), ServiceName> {
        if let Some(frontend) = self.frontends.get(&key)
            && *frontend.owner != *name
        {
            let owner = (*frontend.owner).clone();
            if owner < *name {
                self.waiting.entry(key).or_default().insert(name.clone());
                compiled.waits_for.insert(key);
                return Err(owner);
            }
            // It hears of it when it is looked at next.
            if let Some(loser) = self.services.get_mut(&owner) {
                loser.keys.remove(&key);
            }
            if let Some(frontend) = self.frontends.remove(&key) {
                self.leave(&frontend, &owner);
                self.forget_frontend(key, frontend);
                self.holdings.writes().del_service(key);
            }
            next.insert(owner);
        }
        self.stop_waiting(key, name, compiled);
        Ok(())
    }

    fn stop_waiting(&mut self, key: FrontendKey, name: &ServiceName, compiled: &mut Compiled) {
        if compiled.waits_for.remove(&key)
            && let Some(waiting) = self.waiting.get_mut(&key)
        {
            waiting.remove(name);
            if waiting.is_empty() {
                self.waiting.remove(&key);
            }
        }
    }

    fn place_frontend(
        &mut self,
        key: FrontendKey,
        owner: &Arc<ServiceName>,
        compiled: &mut Compiled,
        wish: &FrontendWish,
        options: Options,
    ) -> Result<(), CapacityError> {
        let set = wish.set.and_then(|set| compiled.sets.get(&set));
        if wish.set.is_some() && set.is_none() {
            // It did not fit, which place_set has said. The last good backends may stay.
            return Ok(());
        }
        let (flags, fault_percent) = (wish.flags, wish.fault_percent);
        let mut value = ServiceValue { flags, fault_percent, ..ServiceValue::default() };
        if let Some(set) = set {
            value.slot_offset = set.range.offset;
            value.slot_count = set.range.length;
            if set.drops {
                value.flags |= SERVICE_DROP_EMPTY;
            }
            if set.affinity_id != 0 {
                value.flags |= SERVICE_AFFINITY;
                value.affinity_id = set.affinity_id;
                value.affinity_secs = options.affinity_secs;
            }
            value.algorithm = match options.algorithm {
                _ if set.recipe.as_ref().is_some_and(Recipe::is_agent_first) => ALGORITHM_AGENT_FIRST,
                Algorithm::LeastConnections => ALGORITHM_LEAST_CONNECTIONS,
                Algorithm::Maglev => ALGORITHM_HASH,
                Algorithm::Random => ALGORITHM_RANDOM,
            };
        }
        let found = self.frontends.get(&key).map(|frontend| frontend.value.service_id);
        let adopted = self.adopted.services.remove(&key);
        let known = found.or_else(|| adopted.map(|old| old.service_id).filter(|id| *id != 0));
        let known = known.or_else(|| self.holdings.wake_service(&key, owner));
        let Some(service_id) = known.or_else(|| self.holdings.new_service()) else {
            if adopted.is_some() {
                self.adopted.services.extend(adopted.map(|old| (key, old)));
            }
            let name =
                wish.set.map_or("*".to_owned(), |set| format!("{}/{}", set.port, set.protocol.as_lower()));
            return Err(self.refuse(format!("{owner}:{name}"), Limit::Services, 1, 0));
        };
        value.service_id = service_id;
        // Those of the other family would match nobody here.
        let own_family = |net: &&IpNet| net.addr().is_ipv4() == key.address().is_ipv4();
        let ranges = wish.ranges.iter().filter(own_family);
        let ranges = ranges.map(|net| SourceRangeKey::new(service_id, net.addr(), net.prefix_len()));
        let mut ranges: BTreeSet<SourceRangeKey> = ranges.collect();
        let new = ranges.iter().filter(|range| !self.ranges.contains(range)).count();
        let (_, kept) = self.adopted.kept_entries();
        let free = (self.limits.source_ranges as usize).saturating_sub(self.ranges.len() + kept);
        let mut failed = Ok(());
        if new > free {
            // Nobody rather than anybody: the flag stands, and no range does.
            failed = Err(self.refuse(format!("{owner} at {key}"), Limit::SourceRanges, new, free as u32));
            ranges.clear();
        }
        for range in &ranges {
            if self.ranges.insert(*range) && !self.adopted.source_ranges.remove(range) {
                self.holdings.writes().put_range(*range);
            }
        }
        let old = self.frontends.remove(&key);
        let held = old.as_ref().map(|old| old.value).or_else(|| adopted.map(|old| old.value));
        for range in old.iter().flat_map(|old| old.ranges.difference(&ranges)) {
            self.ranges.remove(range);
            self.holdings.writes().del_range(*range);
            self.holdings.freed = true;
        }
        if held != Some(value) {
            self.holdings.writes().put_service(key, value);
        }
        self.by_id.insert(service_id, key);
        compiled.keys.insert(key);
        self.frontends.insert(key, Frontend { owner: owner.clone(), set: wish.set, value, ranges });
        failed
    }

    /// Sets that no frontend uses any more: those of a frontend that could not be changed stay.
    fn drop_unused_sets(&mut self, compiled: &mut Compiled) {
        let used: BTreeSet<SetKey> =
            compiled.keys.iter().filter_map(|key| self.frontends.get(key)?.set).collect();
        for (_, set) in compiled.sets.extract_if(.., |key, _| !used.contains(key)) {
            for id in &*set.members {
                let key = AffinityBackendKey { affinity_id: set.affinity_id, backend_id: *id };
                self.affinity.remove(&key);
                self.holdings.writes().del_affinity(key);
            }
            self.holdings.rest_affinity(set.affinity_id);
            self.holdings.rest_slots(set.range);
            set.ids.iter().for_each(|id| self.holdings.let_go(*id));
        }
    }

    /// Backends that the Service names keep the identifier that they have, whatever their state: connections refer to it.
    fn list(&mut self, compiled: &mut Compiled, wishes: &Wishes) {
        let named =
            wishes.listed.iter().filter_map(|(value, state)| Some((self.holdings.id_of(value)?, *state)));
        let listed: BTreeMap<u32, _> = named.collect();
        listed.keys().for_each(|id| self.holdings.hold(*id));
        let before = std::mem::replace(&mut compiled.listed, listed);
        before.keys().for_each(|id| self.holdings.let_go(*id));
    }

    /// By frontend, which backends its connections may have.
    fn connections(&self, compiled: &Compiled) -> Connections {
        let frontends = compiled.keys.iter().filter_map(|key| self.frontends.get(key));
        let used = frontends.filter_map(|frontend| {
            let set = compiled.sets.get(&frontend.set?);
            Some((frontend.value.service_id, set.map(|set| set.ids.clone()).unwrap_or_default()))
        });
        Connections { used: used.collect(), listed: compiled.listed.keys().copied().collect() }
    }

    fn note_who_left(&mut self, compiled: &Compiled, before: Connections) {
        let now = self.connections(compiled);
        for (service_id, ids) in &before.used {
            let kept = now.used.get(service_id);
            let left = ids.iter().filter(|id| kept.is_none_or(|kept| kept.binary_search(id).is_err()));
            self.holdings.writes().left.extend(left.map(|id| (*service_id, *id)));
            let unlisted =
                before.listed.iter().filter(|id| kept.is_none() || now.listed.binary_search(id).is_err());
            self.holdings.writes().left.extend(unlisted.map(|id| (*service_id, *id)));
        }
    }

    /// All connections of a frontend that another Service takes.
    fn leave(&mut self, frontend: &Frontend, owner: &ServiceName) {
        let Some(compiled) = self.services.get(owner) else { return };
        let ids = compiled.listed.keys();
        self.holdings.writes().left.extend(ids.map(|id| (frontend.value.service_id, *id)));
    }

    fn refuse(&self, frontend: String, limit: Limit, wanted: usize, free: u32) -> CapacityError {
        CapacityError {
            frontend,
            limit,
            max: self.limits.max(limit),
            wanted: u32::try_from(wanted).unwrap_or(u32::MAX),
            free,
            waiting: self.waiting_for(limit),
        }
    }

    pub(crate) fn waiting_for(&self, limit: Limit) -> u32 {
        let [slots, backends, services] = self.holdings.resting();
        match limit {
            Limit::AffinityBackends | Limit::SourceRanges => 0,
            Limit::Backends => backends,
            Limit::Services => services,
            Limit::Slots => slots,
        }
    }

    /// The range that a set was found with, by one of its frontends, when it holds the same; and its affinity identifier.
    fn adopt_set(
        &mut self,
        key: SetKey,
        wish: &SetWish,
        slots: &[u32],
        wishes: &Wishes,
    ) -> (Option<Range>, u32) {
        if self.adopted.is_empty() {
            return (None, 0);
        }
        let frontends = frontends_of(key, wishes);
        let ids = wish.recipe.members.iter().map(|(value, _)| self.holdings.id_to_be_of(value));
        let ids: Option<Vec<u32>> = ids.collect();
        let content = |ids: Vec<u32>| -> Vec<u32> {
            slots.iter().filter_map(|index| ids.get(*index as usize)).copied().collect()
        };
        self.adopted.claim(&frontends, ids.map(content).as_deref())
    }

    /// A set that does not fit keeps the backends that it was found with, if it was. `affinity_id`: it has claimed this.
    fn adopt_last_good(&mut self, compiled: &mut Compiled, key: SetKey, wishes: &Wishes, affinity_id: u32) {
        if compiled.sets.contains_key(&key) {
            return;
        }
        let frontends = frontends_of(key, wishes);
        let is_listed =
            |id: u32| self.holdings.backend(id).is_some_and(|value| wishes.like(&value).next().is_some());
        let Some(found) = self.adopted.last_good(&frontends, is_listed) else {
            self.holdings.rest_affinity(affinity_id);
            return;
        };
        let affinity_id = match affinity_id {
            0 => self.adopted.claim(&frontends, None).1,
            claimed => claimed,
        };
        let unique: BTreeSet<u32> = found.content.iter().copied().collect();
        unique.iter().for_each(|id| self.holdings.hold(*id));
        let set = Set {
            range: found.range,
            recipe: None,
            named: found.content.into(),
            ids: unique.into_iter().collect(),
            affinity_id,
            members: Arc::default(),
            drops: found.drops,
        };
        compiled.sets.insert(key, set);
    }
}

/// What of a Service's options is in the entry of each frontend.
#[derive(Clone, Copy)]
struct Options {
    affinity_secs: u32,
    algorithm: Algorithm,
}

struct Connections {
    used: BTreeMap<u32, Arc<[u32]>>,
    listed: Vec<u32>,
}
