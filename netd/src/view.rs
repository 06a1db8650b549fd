// SPDX-License-Identifier: Apache-2.0
//! The store's content as typed records. A value that does not parse is reported with its key and skipped; the rest goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use ipam::{BlockRecord, Pool};
use ipnet::IpNet;
use lb::{Backend, ChunkMap, Service, ServiceName, ServiceTable};
use netd_api::BadValue;
use netd_plan::NodeFacts;
use netd_store::records::{
    AddressRecord, ClusterConfig, MemberRecord, NodePortRecord, NodeRecord, PodRecord, ServiceIpRecord,
    StickyRecord, Tombstone, decode,
};
use netd_store::{Items, Key, KeyValue, Keys, MirrorState};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::addressing::Picture;
use crate::services::Objects;

/// The cluster as the store tells it at one revision.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub revision: u64,
    pub in_sync: bool,
    /// A store that was restored may come back at the revision that it had.
    pub listings: u64,
    /// The cluster's configuration; until there is one in the store, what this node would make it.
    pub config: ClusterConfig,
    pub configured: bool,
    pub nodes: BTreeMap<Uuid, NodeRecord>,
    /// Every node with a key, also where its record does not read.
    pub node_keys: BTreeSet<Uuid>,
    pub alive: BTreeSet<Uuid>,
    pub pods: Vec<(Uuid, Arc<PodRecord>)>,
    pub pools: BTreeMap<String, Pool>,
    pub blocks: BTreeMap<IpNet, BlockRecord>,
    /// Addresses lent from one node's block to another.
    pub borrowed: BTreeMap<IpAddr, AddressRecord>,
    pub sticky: BTreeMap<String, StickyRecord>,
    /// Machines outside the cluster that are peers of every node.
    pub members: BTreeMap<String, MemberRecord>,
    /// Nodes that an operator removed.
    pub tombstones: BTreeMap<Uuid, Tombstone>,
    pub service_ips: ChunkMap<IpAddr, ServiceIpRecord>,
    pub node_ports: ChunkMap<u16, NodePortRecord>,
    /// Those in force, by key.
    pub services: ChunkMap<String, Service>,
    /// Services whose present value does not read or is refused: what they hold is not known.
    pub doubted: BTreeSet<ServiceName>,
    pub table: ServiceTable,
    /// Some service wants direct server return.
    pub dsr: bool,
    /// Ports where load balancers ask for the health of services.
    pub health_checked: Arc<BTreeMap<ServiceName, u16>>,
    pub bad_values: Vec<BadValue>,
}

impl View {
    /// Parses all of `state`. `initial` stands in for a configuration that is not there yet; `own` makes the
    /// service that netd itself provides (cluster DNS).
    pub(crate) fn parse(
        state: &MirrorState,
        keys: &Keys,
        initial: &ClusterConfig,
        own: impl Fn(&Self) -> Option<(Service, Vec<Backend>)>,
        known: &mut Known,
    ) -> Self {
        let mut view = Self {
            revision: state.revision,
            in_sync: state.in_sync,
            listings: state.listings,
            // A configuration that does not parse changes nothing: the last good one stands.
            configured: known.config.is_some(),
            config: known.config.clone().unwrap_or_else(|| initial.clone()),
            ..Self::default()
        };
        // Those are most of them, and followed by themselves.
        let followed = [keys.services(), keys.endpoints(), keys.service_ips(), keys.node_ports(), keys.dns()];
        for item in outside(&state.items, followed) {
            if let Err(reason) = view.take(item, keys, known) {
                view.bad_values.push(BadValue { key: item.key.clone(), reason });
            }
        }
        known.config = view.configured.then(|| view.config.clone());
        view.settle_pools(keys, &known.pools);
        known.pools = view.pools.clone();
        known.pods.forget_unseen();
        view.bad_values.extend(known.objects.update(state, keys));
        // A Service of that name in the store is the cluster's own cluster DNS, and wins.
        known.objects.set_own(own(&view));
        let (table, problems) = known.objects.table(state.revision, &view.config.service_cidrs());
        view.services = known.objects.services();
        view.doubted = known.objects.doubted();
        view.service_ips = known.objects.service_ips();
        view.node_ports = known.objects.node_ports();
        view.dsr = known.objects.has_dsr();
        view.health_checked = known.objects.health_checked();
        view.table = table;
        view.bad_values.extend(problems);
        view
    }

    fn take(&mut self, item: &KeyValue, keys: &Keys, known: &mut Known) -> Result<(), String> {
        let (key, value) = (item.key.as_str(), item.value.as_ref());
        let Some(parsed) = keys.parse(key) else {
            // Newer versions have more kinds of keys: they are not ours to judge.
            return Ok(());
        };
        let reason = |e: netd_store::records::BadRecord| e.reason;
        match parsed {
            Key::Address(ip) => {
                let record: AddressRecord = decode(key, value).map_err(reason)?;
                same("ip", &record.ip, &ip)?;
                self.borrowed.insert(ip, record);
            }
            Key::Alive(node) => drop(self.alive.insert(node)),
            Key::Block(cidr) => {
                let record: BlockRecord = decode(key, value).map_err(reason)?;
                same("cidr", &record.cidr, &cidr)?;
                self.blocks.insert(cidr, record);
            }
            Key::Config => {
                self.config = decode(key, value).map_err(reason)?;
                self.configured = true;
            }
            // Not among these items: see `parse`.
            Key::DnsLink(_)
            | Key::DnsRecord(_)
            | Key::DnsRewrite(_)
            | Key::Endpoint { .. }
            | Key::NodePort(_)
            | Key::Service { .. }
            | Key::ServiceIp(_) => {}
            Key::Member(name) => {
                let record: MemberRecord = decode(key, value).map_err(reason)?;
                same("name", &record.name, &name)?;
                if let Err(error) = record.public_key.parse::<netd_wireguard::PublicKey>() {
                    return Err(format!("public_key: {error}"));
                }
                self.members.insert(name, record);
            }
            Key::Node(uuid) => {
                self.node_keys.insert(uuid);
                let record: NodeRecord = decode(key, value).map_err(reason)?;
                same("uuid", &record.uuid, &uuid)?;
                self.nodes.insert(uuid, record);
            }
            Key::Pod { node, .. } => self.pods.push((node, known.pods.get(key, &item.value)?)),
            Key::Pool(name) => {
                let pool = decode::<Pool>(key, value).map_err(reason);
                match pool.and_then(|pool| same("name", &pool.name, &name).map(|()| pool)) {
                    Ok(pool) => drop(self.pools.insert(name, pool)),
                    Err(reason) => {
                        // Its pods are still there: the last good one stands.
                        self.pools.extend(known.pools.get(&name).map(|pool| (name, pool.clone())));
                        return Err(reason);
                    }
                }
            }
            Key::Sticky(name) => {
                let record: StickyRecord = decode(key, value).map_err(reason)?;
                same("name", &record.name, &name)?;
                self.sticky.insert(name, record);
            }
            Key::Tombstone(uuid) => {
                let record: Tombstone = decode(key, value).map_err(reason)?;
                same("uuid", &record.uuid, &uuid)?;
                self.tombstones.insert(uuid, record);
            }
        }
        Ok(())
    }

    /// The pools of the configuration and those with keys of their own, less those that would do harm: each pool is what
    /// this node filters, masquerades and refuses from outside, so one wrong prefix could cut the nodes off for good.
    fn settle_pools(&mut self, keys: &Keys, known: &BTreeMap<String, Pool>) {
        let stored = std::mem::take(&mut self.pools);
        let configured = self.config.pools.clone();
        let from_config = configured.into_iter().filter(|pool| !stored.contains_key(&pool.name));
        let candidates: Vec<(String, Pool)> = from_config
            .map(|pool| (keys.config(), pool))
            .chain(stored.iter().map(|(name, pool)| (keys.pool(name), pool.clone())))
            .collect();
        for (key, pool) in candidates {
            match self.objection(&pool) {
                None => drop(self.pools.insert(pool.name.clone(), pool)),
                Some(reason) => {
                    let reason = format!("pool {} ({}): {reason}", pool.name, pool.cidr);
                    self.bad_values.push(BadValue { key, reason });
                    let last = known.get(&pool.name).filter(|last| self.objection(last).is_none()).cloned();
                    self.pools.extend(last.map(|last| (pool.name, last)));
                }
            }
        }
    }

    pub(crate) fn objection(&self, pool: &Pool) -> Option<String> {
        if let Err(error) = pool.validate() {
            return Some(error.to_string());
        }
        let overlaps = |other: &IpNet| other.contains(&pool.cidr) || pool.cidr.contains(other);
        if let Some(other) = self.pools.values().find(|other| overlaps(&other.cidr)) {
            return Some(format!("overlaps pool {} ({})", other.name, other.cidr));
        }
        if let Some(services) = self.config.service_cidrs().iter().find(|cidr| overlaps(cidr)) {
            return Some(format!("overlaps the service CIDR {services}"));
        }
        let node = self.nodes.values().find(|node| pool.cidr.contains(&node.underlay))?;
        Some(format!("covers the underlay address {} of node {}", node.underlay, node.name))
    }

    /// The other nodes as tunnel ends: those with a usable record that nobody removed, with what is routed to them. A node
    /// that was removed itself has none: it sends nothing to those who no longer know it.
    pub(crate) fn peers(&self, own: Uuid) -> Vec<NodeFacts> {
        if self.tombstones.contains_key(&own) {
            return Vec::new();
        }
        let is_peer =
            |record: &&NodeRecord| record.uuid != own && !self.tombstones.contains_key(&record.uuid);
        // Seldom anything: then nothing is copied for it.
        let moved = (!self.borrowed.is_empty() || !self.sticky.is_empty())
            .then(|| self.picture(own, BTreeMap::new(), None));
        self.nodes
            .values()
            .filter(is_peer)
            .map(|record| NodeFacts {
                uuid: record.uuid,
                name: record.name.clone(),
                underlay: record.underlay,
                overlays: record.overlay.into_iter().chain(record.overlay6).collect(),
                vtep_mac: record.vtep_mac.parse().unwrap_or_else(|_| netd_plan::vtep_mac(record.uuid)),
                blocks: self
                    .blocks_of(record.uuid)
                    .map(|block| block.cidr)
                    .chain(moved.iter().flat_map(|moved| moved.moved_to(record.uuid)).map(IpNet::from))
                    .collect(),
            })
            .collect()
    }

    /// What concerns addresses, for `own` with its labels; `away` says why nothing can be written now.
    pub(crate) fn picture(
        &self,
        own: Uuid,
        labels: BTreeMap<String, String>,
        away: Option<String>,
    ) -> Picture {
        Picture {
            in_sync: self.in_sync,
            away,
            configured: self.configured,
            pools: self.pools.clone(),
            blocks: self.blocks.clone(),
            borrowed: self.borrowed.clone(),
            sticky: self.sticky.clone(),
            members: self.members.clone(),
            names: self.nodes.values().map(|node| (node.uuid, node.name.clone())).collect(),
            labels,
            removed: self.tombstones.contains_key(&own),
        }
    }

    /// Blocks that `node` owns.
    pub(crate) fn blocks_of(&self, node: Uuid) -> impl Iterator<Item = &BlockRecord> {
        self.blocks.values().filter(move |block| block.owner == node)
    }

    /// CIDRs that pods get addresses from.
    pub(crate) fn pod_cidrs(&self) -> Vec<IpNet> {
        self.pools.values().map(|pool| pool.cidr).collect()
    }

    /// Those, and what pods have addresses of though its pool is not known: they may ask for names.
    pub(crate) fn cidrs_of_pods(&self) -> Vec<IpNet> {
        let pools = self.pod_cidrs();
        let is_known = |block: &&IpNet| pools.iter().any(|pool| pool.contains(*block));
        let blocks: Vec<IpNet> = self.blocks.keys().filter(|block| !is_known(block)).copied().collect();
        [pools, blocks].concat()
    }
}

/// What lies under none of the prefixes (each ends with `/`), without a look at what does.
fn outside<const N: usize>(items: &Items, mut prefixes: [String; N]) -> impl Iterator<Item = &KeyValue> {
    prefixes.sort_unstable();
    // The first key behind all that begin with a prefix: `0` follows `/`.
    let behind = |prefix: &String| format!("{}0", prefix.trim_end_matches('/'));
    let begins: Vec<String> = [String::new()].into_iter().chain(prefixes.iter().map(behind)).collect();
    let ends = prefixes.into_iter().map(Some).chain([None]);
    begins.into_iter().zip(ends).flat_map(|(begin, end)| {
        let is_before = move |key: &String| end.as_ref().is_none_or(|end| key < end);
        items.range_from(&begin).take_while(move |(key, _)| is_before(key)).map(|(_, item)| item.as_ref())
    })
}

/// A record says of itself what its key says of it.
fn same<T: PartialEq + std::fmt::Display>(field: &str, value: &T, key: &T) -> Result<(), String> {
    if value == key { Ok(()) } else { Err(format!("{field}: {value} does not agree with the key")) }
}

/// Values that were parsed before: of thousands of objects one change makes one be parsed again.
#[derive(Debug, Default)]
pub(crate) struct Known {
    config: Option<ClusterConfig>,
    pools: BTreeMap<String, Pool>,
    pods: Cache<PodRecord>,
    pub(crate) objects: Objects,
}

#[derive(Debug)]
struct Cache<T> {
    /// Key to (value, parsed value, seen in this round). By value, not by revision: a restored store counts anew.
    items: BTreeMap<String, (Bytes, Arc<T>, bool)>,
}

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Self { items: BTreeMap::new() }
    }
}

impl<T: DeserializeOwned> Cache<T> {
    fn get(&mut self, key: &str, value: &Bytes) -> Result<Arc<T>, String> {
        if let Some((at, parsed, seen)) = self.items.get_mut(key)
            && *at == *value
        {
            *seen = true;
            return Ok(parsed.clone());
        }
        let parsed = Arc::new(decode::<T>(key, value).map_err(|e| e.reason)?);
        self.items.insert(key.to_owned(), (value.clone(), parsed.clone(), true));
        Ok(parsed)
    }

    fn forget_unseen(&mut self) {
        self.items.retain(|_, (_, _, seen)| std::mem::take(seen));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_that_does_not_read_any_more_is_the_one_that_it_was() {
        let keys = Keys::new("weft").unwrap();
        let item = |key: String, value: String| {
            let value = Bytes::from(value);
            let item = KeyValue { key: key.clone(), value, create_revision: 1, mod_revision: 1 };
            (key, Arc::new(item))
        };
        let pool = |cidr: &str| {
            let pool = serde_json::from_value::<Pool>(
                serde_json::json!({"name": "a", "cidr": cidr, "block_prefix": 26}),
            )
            .unwrap();
            serde_json::to_string(&pool).unwrap()
        };
        let block: IpNet = "10.5.1.0/26".parse().unwrap();
        let record = serde_json::json!({"schema": 1, "cidr": block, "pool": "a", "owner": Uuid::from_u128(1), "epoch": 1, "state": "active"});
        let config = ClusterConfig { pools: Vec::new(), ..ClusterConfig::default() };
        let parse = |values: &[&str], known: &mut Known| {
            let pools = values.iter().map(|value| item(keys.pool("a"), (*value).to_owned()));
            let mut state = MirrorState::default();
            let items = pools.chain([item(keys.block(block), record.to_string())]);
            state.mirror.items = items.collect();
            View::parse(&state, &keys, &config, |_| None, known)
        };
        let (mut known, cidr) = (Known::default(), vec!["10.5.0.0/16".parse::<IpNet>().unwrap()]);
        assert_eq!(parse(&[&pool("10.5.0.0/16")], &mut known).cidrs_of_pods(), cidr);
        for bad in ["{", &pool("10.5.0.0/16").replace("\"a\"", "\"b\""), &pool("10.96.0.0/12")] {
            let view = parse(&[bad], &mut known);
            assert_eq!(
                (view.pod_cidrs(), view.bad_values.len()),
                (cidr.clone(), 1),
                "{bad}: {:?}",
                view.bad_values
            );
        }
        assert_eq!(parse(&[], &mut known).pod_cidrs(), [], "one that was removed is none");
        let restarted = parse(&["{"], &mut Known::default());
        assert_eq!((restarted.pod_cidrs(), restarted.cidrs_of_pods()), (vec![], vec![block]));
    }

    #[test]
    fn what_is_followed_by_itself_is_stepped_over() {
        let item = |key: &str| {
            let value =
                KeyValue { key: key.to_owned(), value: Bytes::new(), create_revision: 1, mod_revision: 1 };
            (key.to_owned(), Arc::new(value))
        };
        let all = ["a/b", "a/c/", "a/c/x", "a/c/y/z", "a/c0", "a/cd", "a/p/1", "a/p/2", "b"];
        let items: Items = all.into_iter().map(item).collect();
        let left = |prefixes| outside(&items, prefixes).map(|item| item.key.as_str()).collect::<Vec<_>>();
        assert_eq!(left(["a/p/".to_owned(), "a/c/".to_owned()]), ["a/b", "a/c0", "a/cd", "b"]);
        assert_eq!(left(["x/".to_owned(), "A/".to_owned()]).len(), all.len());
    }
}
