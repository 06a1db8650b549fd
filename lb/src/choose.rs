// SPDX-License-Identifier: Apache-2.0
//! Which backends a client may get at a frontend, and how often: conditions, traffic policy, hints, weights.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::{
    Backend, Family, NodeView, Problem, ServiceEntry, ServiceName, ServicePort, ServiceTable, VerdictState,
};

/// What a weight of 1 stands for, so that it can be divided among the backends of a group.
pub(crate) const WEIGHT_ONE: u64 = 1 << 16;

/// Backends that have a weight together or each.
#[derive(Debug)]
pub(crate) struct Group<'a> {
    /// Whose they are; its ports tell where they listen.
    entry: &'a ServiceEntry,
    backends: Vec<&'a Backend>,
    /// In [`WEIGHT_ONE`]s.
    weight: u64,
    /// The weight is divided among those that are chosen; else each has it.
    shared: bool,
}

/// The groups of a Service by `weft.dev/weights`; without, one of all its backends. A name is a backend of the Service
/// (its pod, hostname or address) or else a Service of the namespace, whose name goes into `depends`, whether it is there
/// or not. Where Services are named, own backends take part only by name; else those that are not named weigh as much as
/// the named ones on average.
pub(crate) fn groups<'a>(
    name: &ServiceName,
    entry: &'a ServiceEntry,
    table: &'a ServiceTable,
    depends: &mut BTreeSet<ServiceName>,
    problems: &mut Vec<Problem>,
) -> Vec<Group<'a>> {
    let all = || entry.backends.iter().collect::<Vec<_>>();
    let weights = &entry.extras.weights;
    if weights.is_empty() {
        return vec![Group { entry, backends: all(), weight: WEIGHT_ONE, shared: false }];
    }
    let mut groups = Vec::new();
    let mut services = false;
    let mut unknown = Vec::new();
    for (named, weight) in weights {
        let weight = u64::from(*weight) * WEIGHT_ONE;
        let own: Vec<&Backend> = entry.backends.iter().filter(|backend| is_called(backend, named)).collect();
        if !own.is_empty() {
            groups.push(Group { entry, backends: own, weight, shared: false });
            continue;
        }
        let other = ServiceName::new(&name.namespace, named);
        if other == *name {
            services = true;
            groups.push(Group { entry, backends: all(), weight, shared: true });
            continue;
        }
        match table.services.get(&other) {
            None => unknown.push(named.as_str()),
            Some(other) => {
                services = true;
                let backends = other.backends.iter().collect();
                groups.push(Group { entry: other, backends, weight, shared: true });
            }
        }
        depends.insert(other);
    }
    if !unknown.is_empty() {
        problems.push(Problem {
            object: format!("Service {name}"),
            field: "metadata.annotations[\"weft.dev/weights\"]".to_owned(),
            reason: format!(
                "{}: neither a backend of this Service nor a Service of the namespace; the others get its share",
                unknown.join(", ")
            ),
        });
    }
    if !services {
        let rest: Vec<&Backend> = entry
            .backends
            .iter()
            .filter(|backend| !weights.iter().any(|(named, _)| is_called(backend, named)))
            .collect();
        let named = weights.len() as u64;
        let weight = weights.iter().map(|(_, weight)| u64::from(*weight) * WEIGHT_ONE).sum::<u64>() / named;
        groups.push(Group { entry, backends: rest, weight, shared: false });
    }
    groups
}

fn is_called(backend: &Backend, name: &str) -> bool {
    let pod = backend.pod.as_deref().and_then(|pod| pod.rsplit_once('/')).map(|(_, pod)| pod);
    pod == Some(name)
        || backend.hostname.as_deref() == Some(name)
        || name.parse::<IpAddr>().is_ok_and(|address| address == backend.address)
}

/// A backend that listens for a Service's port, chosen or not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member<'a> {
    pub(crate) backend: &'a Backend,
    /// Where it listens.
    pub(crate) port: u16,
    /// Of this port.
    pub(crate) state: VerdictState,
    group: usize,
}

/// Everyone who listens for `port` in `family`.
pub(crate) fn members<'a>(
    groups: &[Group<'a>],
    entry: &'a ServiceEntry,
    port: &'a ServicePort,
    family: Family,
) -> Vec<Member<'a>> {
    let mut members = Vec::new();
    for (group, found) in groups.iter().enumerate() {
        let Some(port) = matching_port(found.entry, entry, port) else { continue };
        for backend in found.backends.iter().filter(|backend| Family::of(backend.address) == family) {
            members.extend(backend.ports_for(port).map(|number| {
                let state = backend.verdict_of(port.protocol, number).state;
                Member { backend, port: number, state, group }
            }));
        }
    }
    members
}

/// The port of another Service that stands for one of this: of the same name, else of the same number.
fn matching_port<'a>(
    of: &'a ServiceEntry,
    own: &ServiceEntry,
    port: &'a ServicePort,
) -> Option<&'a ServicePort> {
    if std::ptr::eq(of, own) {
        return Some(port);
    }
    let mut same_protocol = of.ports.iter().filter(|p| p.protocol == port.protocol);
    let by_name = same_protocol.clone().find(|p| p.name == port.name);
    by_name.or_else(|| same_protocol.find(|p| p.port == port.port))
}

/// Whose backends may be chosen at a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Variant {
    /// Those of all nodes, near ones where hints say so.
    Cluster,
    /// Those of this node.
    Local,
}

/// What comes of a choice without backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Empty {
    /// There are backends, but none that this node may choose.
    Drop,
    /// There is none at all.
    Refuse,
}

/// Where new connections go.
#[derive(Clone, Debug)]
pub(crate) struct Choice<'a> {
    pub(crate) chosen: Vec<Member<'a>>,
    pub(crate) empty: Empty,
    /// Why these, for people.
    pub(crate) reason: &'static str,
}

/// After kube-proxy: ready backends, of which hints may pick the near ones; where there is none, those that terminate and
/// still serve. With policy Local the same among this node's.
pub(crate) fn choose<'a>(members: &[Member<'a>], variant: Variant, view: &NodeView) -> Choice<'a> {
    let in_state = |state: VerdictState, local: bool| -> Vec<Member<'a>> {
        let here = |m: &Member<'_>| !local || m.backend.node.as_deref() == Some(&view.name);
        members.iter().filter(|m| m.state == state && here(m)).copied().collect()
    };
    let local = variant == Variant::Local;
    let ready = in_state(VerdictState::Up, local);
    if !ready.is_empty() {
        let (chosen, reason) = if local { (ready, "ready, of this node") } else { near(ready, view) };
        return Choice { chosen, empty: Empty::Refuse, reason };
    }
    let draining = in_state(VerdictState::Draining, local);
    if !draining.is_empty() {
        return Choice {
            chosen: draining,
            empty: Empty::Refuse,
            reason: "terminating but serving: no other is left",
        };
    }
    let elsewhere = members.iter().any(|m| m.state != VerdictState::Down);
    let (empty, reason) = if elsewhere {
        (Empty::Drop, "traffic policy Local, and no backend of this node: dropped")
    } else {
        (Empty::Refuse, "no backend: refused")
    };
    Choice { chosen: Vec::new(), empty, reason }
}

/// Those that are meant for this node, else for this zone. Where one has no such hint, or none is meant for here, hints
/// say nothing and all are taken: somebody is better than nobody.
fn near<'a>(ready: Vec<Member<'a>>, view: &NodeView) -> (Vec<Member<'a>>, &'static str) {
    let all_say = |hints: fn(&Backend) -> &[String]| ready.iter().all(|m| !hints(m.backend).is_empty());
    let meant = |hints: fn(&Backend) -> &[String], name: &str| -> Vec<Member<'a>> {
        ready.iter().filter(|m| hints(m.backend).iter().any(|hint| hint == name)).copied().collect()
    };
    let nodes: fn(&Backend) -> &[String] = |backend| backend.hints.as_ref().map_or(&[], |hints| &hints.nodes);
    let zones: fn(&Backend) -> &[String] = |backend| backend.hints.as_ref().map_or(&[], |hints| &hints.zones);
    if all_say(nodes) {
        let same_node = meant(nodes, &view.name);
        if !same_node.is_empty() {
            return (same_node, "ready, meant for this node");
        }
    }
    if let Some(zone) = &view.zone
        && all_say(zones)
    {
        let same_zone = meant(zones, zone);
        if !same_zone.is_empty() {
            return (same_zone, "ready, meant for this zone");
        }
    }
    (ready, "ready")
}

/// The weight of each chosen member, by address and port. `warmth`: tenths of its weight that a backend gets already.
/// Backends of weight 0 are left out, unless that leaves nobody: then all count alike.
pub(crate) fn weigh<'a>(
    choice: &Choice<'a>,
    groups: &[Group<'_>],
    warmth: impl Fn(IpAddr) -> u64,
) -> BTreeMap<(IpAddr, u16), (Member<'a>, u64)> {
    let mut sizes = vec![0u64; groups.len()];
    for member in &choice.chosen {
        sizes[member.group] += 1;
    }
    let mut weights: BTreeMap<(IpAddr, u16), (Member<'a>, u64)> = BTreeMap::new();
    for member in &choice.chosen {
        let group = &groups[member.group];
        let full = if group.shared { group.weight / sizes[member.group] } else { group.weight };
        let weight = if full == 0 { 0 } else { (full * warmth(member.backend.address) / 10).max(1) };
        let of = weights.entry((member.backend.address, member.port)).or_insert((*member, 0));
        of.1 += weight;
    }
    if weights.values().all(|(_, weight)| *weight == 0) {
        weights.values_mut().for_each(|(_, weight)| *weight = WEIGHT_ONE);
    }
    weights.retain(|_, (_, weight)| *weight > 0);
    weights
}
