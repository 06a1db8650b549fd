// SPDX-License-Identifier: Apache-2.0
//! From one Service to the frontends that the maps should hold: names and values, no identifiers yet.
//!
//! | Frontend | asked by | backends |
//! | --- | --- | --- |
//! | ClusterIP | pods and nodes | by `internalTrafficPolicy` |
//! | ClusterIP, any other port | pods and nodes | none: refused |
//! | node port, load balancer (`ipMode: VIP`), externalIP | pods and nodes | as with policy `Cluster` |
//! | the same | the world | by `externalTrafficPolicy` |
//! | a load balancer's, with source ranges | both of these | for clients in the ranges |
//! | the same, with DSR | another node that sends on | this node's |
//! | a server of the agent itself, while that is silent | pods and nodes | as with policy `Cluster` |

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ebpf_abi::service::{
    SERVICE_AGENT_SILENT, SERVICE_DSR, SERVICE_KEEP_SOURCE, SERVICE_NODE_PORT, SERVICE_SOURCE_RANGES,
};
use ebpf_abi::{BackendValue, FrontendKey, SCOPE_DSR, SCOPE_EXTERNAL, SCOPE_INTERNAL};
use ipnet::IpNet;

use crate::choose::{self, Empty, Group, Member, Variant};
use crate::fault::Injection;
use crate::maglev::{self, Candidate, Fill, mix};
use crate::{
    Algorithm, Backend, Family, Forwarding, IpMode, NodeView, Problem, Protocol, ServiceEntry, ServiceName,
    ServicePort, ServiceTable, TrafficPolicy, VerdictState,
};

/// All that the maps should hold of one Service.
#[derive(Debug, Default)]
pub(crate) struct Wishes {
    pub(crate) frontends: BTreeMap<FrontendKey, FrontendWish>,
    pub(crate) sets: BTreeMap<SetKey, SetWish>,
    /// Every backend that the Service names, whatever its state.
    pub(crate) listed: BTreeMap<BackendValue, VerdictState>,
    /// Addresses of backends that are up.
    pub(crate) up: BTreeSet<IpAddr>,
    /// Other Services that this depends upon.
    pub(crate) depends: BTreeSet<ServiceName>,
    pub(crate) problems: Vec<Problem>,
}

impl Wishes {
    /// Those of the listed backends that are this one, on whatever node.
    pub(crate) fn like(&self, value: &BackendValue) -> impl Iterator<Item = BackendValue> {
        let first = BackendValue { flags: 0, node: 0, ..*value };
        let last = BackendValue { flags: u8::MAX, node: u32::MAX, ..*value };
        self.listed.range(first..=last).map(|(listed, _)| *listed)
    }
}

/// A frontend as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FrontendWish {
    /// Where its backends come from; `None` refuses: a wildcard.
    pub(crate) set: Option<SetKey>,
    /// `SERVICE_*`, as far as they do not depend on the backends.
    pub(crate) flags: u32,
    /// To how many of a hundred the fault in `flags` happens.
    pub(crate) fault_percent: u8,
    /// Who may ask, with SERVICE_SOURCE_RANGES; whom the fault befalls, with SERVICE_FAULT_CLIENTS.
    pub(crate) ranges: Vec<IpNet>,
}

/// What several frontends of a Service share: the slots, and which backend a client stays with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SetKey {
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
    pub(crate) family: Family,
    pub(crate) variant: Variant,
}

/// Backends and how often each is to be chosen.
#[derive(Debug)]
pub(crate) struct SetWish {
    pub(crate) recipe: Recipe,
    pub(crate) empty: Empty,
    pub(crate) reason: &'static str,
}

/// What slots are made of: equal recipes give equal slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recipe {
    /// `None`: one slot for each.
    fill: Option<Fill>,
    /// In order, each once, with its weight.
    pub(crate) members: Vec<(BackendValue, u32)>,
}

impl Recipe {
    fn new(members: BTreeMap<BackendValue, u64>, algorithm: Algorithm) -> Self {
        let divisor = members.values().copied().fold(0, gcd).max(1);
        let reduced = |weight: u64| u32::try_from(weight / divisor).unwrap_or(u32::MAX).max(1);
        let mut members: Vec<(BackendValue, u32)> =
            members.into_iter().map(|(value, weight)| (value, reduced(weight))).collect();
        members.sort_by_key(|(value, _)| !value.is_of_agent());
        let equal = members.iter().all(|(_, weight)| *weight == 1);
        let fill = match algorithm {
            _ if members.len() < 2 => None,
            Algorithm::Maglev => Some(Fill::Stable),
            Algorithm::LeastConnections | Algorithm::Random if equal => None,
            Algorithm::LeastConnections | Algorithm::Random => Some(Fill::Exact),
        };
        Self { fill, members }
    }

    /// Whether the first slot goes before the others.
    pub(crate) fn is_agent_first(&self) -> bool {
        self.fill.is_none() && self.members.len() > 1 && self.members[0].0.is_of_agent()
    }

    /// With these, too, each chosen as often as the one that is chosen most.
    pub(crate) fn extend(&mut self, more: impl Iterator<Item = BackendValue>, algorithm: Algorithm) {
        let weight = self.members.iter().map(|(_, weight)| u64::from(*weight)).max().unwrap_or(1);
        let mut members: BTreeMap<BackendValue, u64> =
            self.members.iter().map(|(value, weight)| (*value, u64::from(*weight))).collect();
        let before = members.len();
        for value in more {
            members.entry(value).or_insert(weight);
        }
        if members.len() > before {
            *self = Self::new(members, algorithm);
        }
    }

    /// How many slots there will be.
    pub(crate) fn len(&self) -> u32 {
        match self.fill {
            None => u32::try_from(self.members.len()).unwrap_or(u32::MAX),
            Some(fill) => maglev::size_for(self.members.len(), fill),
        }
    }

    /// The slots, where `ids` are those of the members.
    pub(crate) fn fill_with(&self, ids: &[u32]) -> Vec<u32> {
        self.slots().iter().filter_map(|index| ids.get(*index as usize)).copied().collect()
    }

    /// For each slot the index of a member.
    pub(crate) fn slots(&self) -> Vec<u32> {
        match self.fill {
            None => (0..self.len()).collect(),
            Some(fill) => {
                let candidates = self
                    .members
                    .iter()
                    .map(|(value, weight)| Candidate { seed: seed(value), weight: *weight });
                maglev::table(self.len(), &candidates.collect::<Vec<_>>(), fill)
            }
        }
    }
}

/// What a backend is, hashed: its address, port and protocol, wherever it runs.
pub(crate) fn seed(value: &BackendValue) -> u64 {
    let words = value.addr.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word));
    let port = u64::from(value.port_number()) << 8 | u64::from(value.proto);
    words.chain([port]).fold(0x57ef_7001, |state, word| mix(state.rotate_left(23) ^ word))
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The frontends that choose from a set.
pub(crate) fn frontends_of(set: SetKey, wishes: &Wishes) -> Vec<FrontendKey> {
    let frontends = wishes.frontends.iter().filter(|(_, wish)| wish.set == Some(set));
    frontends.map(|(key, _)| *key).collect()
}

/// Everything of one Service on this node. `warmth`: see [`choose::weigh`].
pub(crate) fn wishes(
    name: &ServiceName,
    entry: &ServiceEntry,
    table: &ServiceTable,
    view: &NodeView,
    warmth: impl Fn(IpAddr) -> u64,
) -> Wishes {
    let mut wishes = Wishes::default();
    if !entry.is_served() {
        return wishes;
    }
    let groups = choose::groups(name, entry, table, &mut wishes.depends, &mut wishes.problems);
    let fault = entry.extras.fault.as_ref();
    let fault = fault.and_then(|fault| Injection::new(fault, name, view, &mut wishes.problems));
    let mut maker = Maker { entry, view, groups, fault, warmth, wishes };
    let outside = maker.outside_addresses(name);
    for ip in &entry.cluster_ips {
        let wildcard = FrontendWish { set: None, flags: 0, fault_percent: 0, ranges: Vec::new() };
        maker.wishes.frontends.insert(FrontendKey::wildcard(*ip, SCOPE_INTERNAL), wildcard);
    }
    for port in &entry.ports {
        let protocol = port.protocol.into();
        for ip in &entry.cluster_ips {
            let key = FrontendKey::new(*ip, port.port, protocol, SCOPE_INTERNAL);
            maker.add(key, port, entry.internal_policy, 0, &[]);
        }
        for (ip, ranges) in &outside {
            maker.add_outside(*ip, port.port, port, 0, ranges);
        }
        for server in entry.backends.iter().filter(|backend| backend.of_agent) {
            for number in server.ports_for(port) {
                let key = FrontendKey::new(server.address, number, protocol, SCOPE_INTERNAL);
                maker.add(key, port, TrafficPolicy::Cluster, SERVICE_AGENT_SILENT, &[]);
            }
        }
        for family in entry.ip_families.iter().filter(|_| port.node_port.is_some()) {
            let any = match family {
                Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            };
            maker.add_outside(any, port.node_port.unwrap_or_default(), port, SERVICE_NODE_PORT, &[]);
        }
    }
    maker.wishes
}

struct Maker<'a, W> {
    entry: &'a ServiceEntry,
    view: &'a NodeView,
    groups: Vec<Group<'a>>,
    fault: Option<Injection>,
    warmth: W,
    wishes: Wishes,
}

impl<'a, W: Fn(IpAddr) -> u64> Maker<'a, W> {
    /// Addresses that are not the cluster's own, with the source ranges of each.
    fn outside_addresses(&mut self, name: &ServiceName) -> Vec<(IpAddr, &'a [IpNet])> {
        let entry = self.entry;
        let balancer = &entry.load_balancer;
        let vips = balancer.ips.iter().filter(|ip| ip.mode == IpMode::Vip);
        let vips = vips.map(|ip| ("status.loadBalancer.ingress", ip.ip, balancer.source_ranges.as_slice()));
        let external = entry.external_ips.iter().map(|ip| ("spec.externalIPs", *ip, [].as_slice()));
        let mut found = Vec::new();
        for (field, ip, ranges) in vips.chain(external) {
            let reason = if field == "spec.externalIPs" && !self.view.external_ips_enabled {
                "not served: the option external-ips is off"
            } else if !entry.ip_families.contains(&Family::of(ip)) {
                "not served: the Service is not of this family"
            } else {
                found.push((ip, ranges));
                continue;
            };
            self.wishes.problems.push(Problem {
                object: format!("Service {name}"),
                field: field.to_owned(),
                reason: format!("{ip} is {reason}"),
            });
        }
        found
    }

    fn add_outside(&mut self, ip: IpAddr, number: u16, port: &'a ServicePort, flags: u32, ranges: &[IpNet]) {
        let key = |scope| FrontendKey::new(ip, number, port.protocol.into(), scope);
        let policy = self.entry.external_policy;
        // Who is inside needs nobody's source kept, and no node between: short-circuited, as in Kubernetes.
        let asked = if ranges.is_empty() { flags } else { flags | SERVICE_SOURCE_RANGES };
        self.add(key(SCOPE_INTERNAL), port, TrafficPolicy::Cluster, asked, ranges);
        let mut outside = asked;
        if self.entry.extras.forwarding == Forwarding::Dsr && policy == TrafficPolicy::Cluster {
            outside |= SERVICE_DSR;
            self.add(key(SCOPE_DSR), port, TrafficPolicy::Local, flags, &[]);
        }
        self.add(key(SCOPE_EXTERNAL), port, policy, outside, ranges);
    }

    fn add(
        &mut self,
        key: FrontendKey,
        port: &'a ServicePort,
        policy: TrafficPolicy,
        flags: u32,
        ranges: &[IpNet],
    ) {
        let (variant, keeps) = match policy {
            TrafficPolicy::Cluster => (Variant::Cluster, 0),
            TrafficPolicy::Local => (Variant::Local, SERVICE_KEEP_SOURCE),
        };
        let family = Family::of(key.address());
        let set = SetKey { port: port.port, protocol: port.protocol, family, variant };
        let ranges = ranges.to_vec();
        let mut wish = FrontendWish { set: Some(set), flags: flags | keeps, fault_percent: 0, ranges };
        if let Some(fault) = &self.fault {
            fault.inject(key.scope, &mut wish);
        }
        self.wishes.frontends.entry(key).or_insert(wish);
        if !self.wishes.sets.contains_key(&set) {
            let made = self.set(port, family, variant);
            self.wishes.sets.insert(set, made);
        }
    }

    fn set(&mut self, port: &'a ServicePort, family: Family, variant: Variant) -> SetWish {
        let members = choose::members(&self.groups, self.entry, port, family);
        for Member { backend, port: number, state: found, .. } in &members {
            let listed = self.wishes.listed.entry(value(backend, *number, port.protocol, self.view));
            listed.and_modify(|state| *state = (*state).min(*found)).or_insert(*found);
            if *found == VerdictState::Up {
                self.wishes.up.insert(backend.address);
            }
        }
        let choice = choose::choose(&members, variant, self.view);
        let weighed = choose::weigh(&choice, &self.groups, &self.warmth);
        let mut values: BTreeMap<BackendValue, u64> = BTreeMap::new();
        for ((_, number), (member, weight)) in weighed {
            *values.entry(value(member.backend, number, port.protocol, self.view)).or_default() += weight;
        }
        let recipe = Recipe::new(values, self.entry.extras.algorithm);
        SetWish { recipe, empty: choice.empty, reason: choice.reason }
    }
}

/// A backend as it lies in the map.
pub(crate) fn value(backend: &Backend, port: u16, protocol: Protocol, view: &NodeView) -> BackendValue {
    let index = backend.node.as_ref().and_then(|node| view.nodes.get(node)).map_or(0, |node| node.index);
    let local = backend.node.as_deref() == Some(&view.name);
    let value = BackendValue::new(backend.address, port, protocol.into()).on_node(index, local);
    if backend.of_agent { value.of_agent() } else { value }
}
