// SPDX-License-Identifier: Apache-2.0
//! `GET /v1/ipam`: how full pools and blocks are, who has what, and when it will be too little.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ipam::{BlockRecord, Pool, PoolState, Timestamp, forecast};
use ipnet::IpNet;
use netd_api::{AddressInfo, BlockInfo, IpamInfo, PoolInfo, StickyInfo};

use crate::node::{Node, lock};

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
        }
    };
    let name_of = |uuid| view.nodes.get(&uuid).map(|node| node.name.clone());
    let block_info = |block: &BlockRecord| BlockInfo {
        cidr: block.cidr,
        pool: block.pool.clone(),
        owner: block.owner,
        node: name_of(block.owner),
        used: block.allocations.len() as u64,
        free: u64::from(block.size()).saturating_sub(block.allocations.len() as u64),
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
            })
            .collect(),
    }
}

fn addresses(node: &Node) -> Vec<AddressInfo> {
    let addresses = node.addressing.addresses();
    let info = |allocation: ipam::Allocation| AddressInfo {
        address: allocation.ip,
        owner: allocation.owner.to_string(),
        state: match allocation.phase {
            ipam::Phase::Committed => "committed".into(),
            ipam::Phase::Pending => "pending".into(),
        },
    };
    addresses.allocations().map(info).collect()
}
