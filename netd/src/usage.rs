// SPDX-License-Identifier: Apache-2.0
//! `GET /v1/ipam`: how full pools and blocks are, who has what, and when it will be too little.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use ipam::forecast::FORECAST_SPAN_MIN;
use ipam::{AttachmentKey, BlockRecord, Owner, Pool, PoolState, Timestamp, forecast};
use ipnet::IpNet;
use netd_api::{AddressInfo, BlockInfo, IpamInfo, PoolInfo, StickyInfo};
use uuid::Uuid;

use crate::names;
use crate::node::{Node, lock};
use crate::view::View;

/// A look at the pools this often.
const SAMPLE_EVERY: Duration = Duration::from_secs(60);
/// Samples kept: a day of them.
const SAMPLES_MAX: usize = 24 * 60;

/// Claimed blocks of each pool over time.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    samples: BTreeMap<String, VecDeque<(Timestamp, u64)>>,
    noted: Option<Timestamp>,
}

impl Usage {
    /// Whether it is time for another sample.
    pub(crate) fn is_due(&self, now: Timestamp) -> bool {
        self.noted.is_none_or(|at| now.since(at) >= SAMPLE_EVERY || at > now)
    }

    /// Notes how many blocks each pool has claimed, at most once a minute.
    pub(crate) fn note(&mut self, now: Timestamp, claimed: &BTreeMap<String, u64>) {
        self.noted = Some(now);
        self.samples.retain(|pool, _| claimed.contains_key(pool));
        for (pool, blocks) in claimed {
            let samples = self.samples.entry(pool.clone()).or_default();
            if samples.back().is_some_and(|(at, _)| now.since(*at) < SAMPLE_EVERY) {
                continue;
            }
            samples.push_back((now, *blocks));
            if samples.len() > SAMPLES_MAX {
                samples.pop_front();
            }
        }
    }

    /// Whether what was seen spans too little for a forecast.
    fn is_too_early(&self, pool: &str, now: Timestamp) -> bool {
        let first = self.samples.get(pool).and_then(VecDeque::front);
        first.is_none_or(|(at, _)| now.since(*at) < FORECAST_SPAN_MIN)
    }

    fn full_in_secs(&self, pool: &str, capacity: u64, now: Timestamp) -> Option<u64> {
        let samples: Vec<(Timestamp, u64)> = self.samples.get(pool)?.iter().copied().collect();
        forecast(&samples, capacity, now).map(|left| left.as_secs())
    }
}

/// Claimed blocks by pool, as the store and this node's own allocator have them.
pub(crate) fn claimed(node: &Node) -> BTreeMap<String, u64> {
    let view = node.view.load();
    let blocks = blocks(node);
    let count = |pool: &Pool| blocks.values().filter(|block| block.pool == pool.name).count() as u64;
    view.pools.values().map(|pool| (pool.name.clone(), count(pool))).collect()
}

/// Our own blocks from the allocator: the mirror in the store is a moment behind.
fn blocks(node: &Node) -> BTreeMap<IpNet, BlockRecord> {
    let mut blocks = node.view.load().blocks.clone();
    blocks.extend(node.addressing.addresses().mirrors().into_iter().map(|record| (record.cidr, record)));
    blocks
}

/// The whole answer.
pub(crate) fn ipam(node: &Node) -> IpamInfo {
    let (view, blocks) = (node.view.load(), blocks(node));
    let now = node.addressing.now();
    let usage = lock(&node.usage);
    let pool_info = |pool: &Pool| {
        let members: Vec<&BlockRecord> = blocks.values().filter(|block| block.pool == pool.name).collect();
        let total = u64::try_from(pool.block_count()).unwrap_or(u64::MAX);
        PoolInfo {
            name: pool.name.clone(),
            cidr: pool.cidr,
            block_prefix: pool.block_prefix,
            blocks_total: total,
            blocks_claimed: members.len() as u64,
            used: members.iter().map(|block| block.allocations.len() as u64).sum(),
            state: match pool.state {
                PoolState::Active => "active".into(),
                PoolState::Draining => "draining".into(),
            },
            node_selector: pool.node_selector.clone(),
            full_in_secs: usage.full_in_secs(&pool.name, total, now),
            too_early: usage.is_too_early(&pool.name, now),
        }
    };
    let name_of = |uuid| view.nodes.get(&uuid).map(|node| node.name.clone());
    let resting: Vec<IpAddr> = node.addressing.addresses().allocator().cooling(now).collect();
    let resting_in = |block: &BlockRecord| {
        (block.owner == node.uuid)
            .then(|| resting.iter().filter(|ip| block.cidr.contains(*ip)).count() as u64)
    };
    let block_info = |block: &BlockRecord| BlockInfo {
        cidr: block.cidr,
        pool: block.pool.clone(),
        owner: block.owner,
        node: name_of(block.owner),
        used: block.allocations.len() as u64,
        free: u64::from(block.size())
            .saturating_sub(block.allocations.len() as u64)
            .saturating_sub(resting_in(block).unwrap_or_default()),
        resting: resting_in(block),
        state: if view.tombstones.contains_key(&block.owner) {
            "releasing".into()
        } else {
            format!("{:?}", block.state).to_lowercase()
        },
    };
    IpamInfo {
        pools: view.pools.values().map(pool_info).collect(),
        blocks: blocks.values().map(block_info).collect(),
        addresses: addresses(node),
        sticky: view
            .sticky
            .values()
            .map(|record| StickyInfo {
                name: record.name.clone(),
                addresses: record.ips.clone(),
                node: record
                    .attachment
                    .as_ref()
                    .and(record.node)
                    .map(|uuid| name_of(uuid).unwrap_or_else(|| uuid.to_string())),
                pod: record.attachment.as_ref().and_then(|key| names::pod_of(node, key)),
            })
            .collect(),
    }
}

fn addresses(node: &Node) -> Vec<AddressInfo> {
    let view = node.view.load();
    let allocations: Vec<ipam::Allocation> = node.addressing.addresses().allocations().collect();
    let own: BTreeSet<IpAddr> = allocations.iter().map(|allocation| allocation.ip).collect();
    let mut infos: Vec<AddressInfo> = allocations
        .into_iter()
        .map(|allocation| {
            let (state, pod) = use_of(node, &view, &allocation);
            AddressInfo {
                address: allocation.ip,
                owner: allocation.owner.to_string(),
                state: state.into(),
                pod,
            }
        })
        .collect();
    let borrowed = view.borrowed.values().filter(|record| record.granted && record.node == Some(node.uuid));
    let borrowed = borrowed.map(|record| (record.ip, record.owner.to_string(), attachment_of(&record.owner)));
    let moved = view.sticky.values().filter(|record| record.node == Some(node.uuid));
    let moved = moved.flat_map(|record| {
        let owner = Owner::Sticky(record.name.clone()).to_string();
        record.ips.iter().map(move |ip| (*ip, owner.clone(), record.attachment.clone()))
    });
    let elsewhere = borrowed.chain(moved).filter(|(ip, ..)| !own.contains(ip));
    infos.extend(elsewhere.map(|(address, owner, key)| AddressInfo {
        address,
        owner,
        state: "borrowed".into(),
        pod: key.and_then(|key| names::pod_of(node, &key)),
    }));
    infos
}

/// What is done with an address of an own block, and by which pod.
fn use_of(node: &Node, view: &View, allocation: &ipam::Allocation) -> (&'static str, Option<String>) {
    let user = |key: Option<AttachmentKey>, on: Option<Uuid>| {
        let pod = names::pod_of(node, &key?)?;
        let on = on.filter(|uuid| *uuid != node.uuid).and_then(|uuid| view.nodes.get(&uuid));
        Some(on.map_or_else(|| pod.clone(), |on| format!("{pod} on {}", on.name)))
    };
    match &allocation.owner {
        Owner::Sticky(name) => match view.sticky.get(name).filter(|record| record.attachment.is_some()) {
            Some(record) => ("in use", user(record.attachment.clone(), record.node)),
            None => ("kept", None),
        },
        owner if owner.as_granted().is_some() => {
            let record = view.borrowed.get(&allocation.ip);
            ("lent", record.and_then(|record| user(attachment_of(&record.owner), record.node)))
        }
        owner => {
            let state = match allocation.phase {
                ipam::Phase::Committed => "committed",
                ipam::Phase::Pending => "pending",
            };
            (state, user(attachment_of(owner), None))
        }
    }
}

fn attachment_of(owner: &Owner) -> Option<AttachmentKey> {
    match owner {
        Owner::Attachment(key) => Some(key.clone()),
        Owner::Node(_) | Owner::Reserved(_) | Owner::Sticky(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_that_was_just_made_is_told_to_be_too_young_for_a_forecast() {
        let at = |minutes: u64| Timestamp(1_000_000_000_000 + minutes * 60_000);
        let mut usage = Usage::default();
        assert!(usage.is_too_early("default", at(0)));
        // Three nodes join within minutes, and nothing happens after that.
        for minute in 0..=720 {
            usage.note(at(minute), &BTreeMap::from([("default".to_owned(), minute.min(3) + 1)]));
            if minute == 12 {
                assert!(usage.is_too_early("default", at(minute)));
                assert_eq!(usage.full_in_secs("default", 1024, at(minute)), None, "a false alarm");
            }
        }
        assert!(!usage.is_too_early("default", at(720)));
        assert_eq!(usage.full_in_secs("default", 4, at(720)), Some(0));
    }
}
