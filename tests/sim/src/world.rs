// SPDX-License-Identifier: Apache-2.0
//! The cluster, the model beside it, and random days in its life.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use ipam::{AttachmentKey, BlockRecord, Owner, Pool, PoolState};
use ipnet::IpNet;
use netd::addressing::{GiveError, Wish};
use netd_store::claim::{confirm_fence, finish_removal, remove_node};
use netd_store::records::{decode_all, encode};
use netd_store::{Keys, Memory, Store};
use uuid::Uuid;

use crate::cable::Cable;
use crate::node::{Node, add, del, lock, picture, record};
use crate::rest::come_to_rest;
use crate::wish;

/// Operations that run at the same time.
const AT_ONCE: usize = 4;
/// How long the cluster may take, in real time, to come to rest.
const REST_LIMIT: Duration = Duration::from_secs(30);
/// A node that was removed hears of it within this, in real time.
const TOLD_LIMIT: Duration = Duration::from_secs(10);

/// A cluster of simulated nodes.
pub struct World {
    /// The nodes, in the order of their making.
    pub nodes: Vec<Node>,
    store: Arc<Memory>,
    keys: Keys,
    clock: Arc<AtomicU64>,
    random: fastrand::Rng,
    next: u64,
    /// Blocks that came with somebody's addresses from a removed node, whatever the heir's labels.
    inherited: BTreeSet<IpNet>,
    /// What happened how often, for the curious.
    pub counts: BTreeMap<&'static str, u32>,
    /// Why an ADD was refused last.
    pub last_refusal: String,
}

impl World {
    /// `nodes` nodes, every other one labelled `disk=ssd`, and the pools; everything random comes from `seed`.
    pub async fn new(seed: u64, nodes: usize, pools: &[Pool]) -> Result<World> {
        let store = Arc::new(Memory::new());
        let keys = Keys::new("sim")?;
        let clock = Arc::new(AtomicU64::new(1_000_000));
        for pool in pools {
            let key = keys.pool(&pool.name);
            store.put(&key, encode(&key, pool)?, None).await?;
        }
        let mut world = World {
            nodes: Vec::new(),
            store,
            keys,
            clock,
            random: fastrand::Rng::with_seed(seed),
            next: 0,
            inherited: BTreeSet::new(),
            counts: BTreeMap::new(),
            last_refusal: String::new(),
        };
        for index in 0..nodes {
            let uuid = Uuid::from_u128(u128::from(seed) << 64 | (index as u128 + 1));
            let cable = Arc::new(Cable::new(world.store.clone()));
            let key = world.keys.node(uuid);
            world.store.put(&key, record(uuid, &format!("n{index}")).into(), None).await?;
            let mut node = Node::new(uuid, cable, world.keys.clone(), world.clock.clone())?;
            if index % 2 == 0 {
                node.labels.insert("disk".into(), "ssd".into());
            }
            node.start()?;
            world.nodes.push(node);
        }
        Ok(world)
    }

    /// One step: some ADDs and DELs at once, or something that goes wrong. The model is asked after each.
    pub async fn step(&mut self) -> Result<()> {
        match self.random.u32(0..100) {
            0..72 => self.attachments().await?,
            72..78 => {
                let node = self.any();
                self.count("killed");
                self.nodes[node].kill().await;
                self.nodes[node].start()?;
            }
            78..83 => {
                let node = self.any();
                let cut = !self.nodes[node].cable.is_cut();
                self.count(if cut { "cut off" } else { "mended" });
                self.nodes[node].cable.cut(cut);
            }
            83..87 => {
                let (node, percent) = (self.any(), self.random.u32(0..40));
                self.nodes[node].cable.lose(percent);
                self.count("lossy");
            }
            87..93 => self.clock_step(),
            93..97 => self.machine_crash().await?,
            97 => self.drain_or_undrain().await?,
            98 => self.remove_a_node().await?,
            _ => self.a_removed_node_comes_back().await?,
        }
        self.check_selectors().await?;
        self.check()
    }

    /// No address is in use twice, and none on a node that is not its owner's.
    pub fn check(&self) -> Result<()> {
        let mut seen: BTreeMap<IpAddr, String> = BTreeMap::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let mut note = |ip: IpAddr, what: String| match seen.insert(ip, what.clone()) {
                Some(other) => bail!("{ip} is in use twice: {other} and {what}"),
                None => Ok(()),
            };
            for (key, ips) in lock(&node.attachments).iter() {
                let families: BTreeSet<bool> = ips.iter().map(IpAddr::is_ipv4).collect();
                ensure!(
                    families.len() == ips.len() && !ips.is_empty(),
                    "{key} has {ips:?}: not one of each family"
                );
                for ip in ips {
                    note(*ip, format!("{key} on node {index}"))?;
                }
            }
            ensure!(
                !node.removed || lock(&node.attachments).is_empty(),
                "removed node {index} has attachments"
            );
            // A removed node has no overlay any more, whatever its journal says.
            let Some(addressing) = node.addressing().filter(|_| !node.removed) else { continue };
            for (ip, owner) in addressing.allocations() {
                if let Owner::Node(_) = owner {
                    note(ip, format!("the overlay address of node {index}"))?;
                }
            }
        }
        Ok(())
    }

    /// Every block is of a node that its pool is for.
    async fn check_selectors(&self) -> Result<()> {
        let shown = picture(&self.store.list(self.keys.root()).await?, &self.keys, Uuid::nil());
        for block in shown.blocks.values().filter(|block| !self.inherited.contains(&block.cidr)) {
            let (pool, owner) =
                (&shown.pools[&block.pool], self.nodes.iter().find(|node| node.uuid == block.owner));
            let fits = owner.is_some_and(|owner| pool.admits(&owner.labels));
            ensure!(
                fits,
                "block {} of pool {} is of node {}, which it is not for",
                block.cidr,
                pool.name,
                block.owner
            );
        }
        Ok(())
    }

    /// Everything is mended and every attachment deleted: after a quiet time nothing is held by anybody, and every node can
    /// add again.
    pub async fn come_to_rest(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.cable.cut(false);
            node.cable.lose(0);
            node.start()?;
        }
        for node in &self.nodes {
            let Some(addressing) = node.addressing() else { continue };
            let keys: Vec<AttachmentKey> = lock(&node.attachments).keys().cloned().collect();
            for key in keys {
                del(&addressing, &node.attachments, &key)?;
            }
        }
        self.clock.fetch_add(3_600_000, Ordering::SeqCst);
        come_to_rest(self.store.as_ref(), &self.keys, &self.nodes, REST_LIMIT).await
    }

    /// Some ADDs and DELs, on any nodes, at the same time.
    async fn attachments(&mut self) -> Result<()> {
        let mut work = Vec::new();
        for _ in 0..AT_ONCE {
            let index = self.any();
            let Some(addressing) = self.nodes[index].addressing() else { continue };
            let attachments = self.nodes[index].attachments.clone();
            let victim = {
                let live = lock(&attachments);
                let nth = self.random.usize(0..live.len().max(1));
                live.keys().nth(nth).cloned()
            };
            if let Some(key) = victim.filter(|_| self.random.u32(0..100) < 45) {
                self.count("DEL");
                del(&addressing, &attachments, &key)?;
                continue;
            }
            self.next += 1;
            let key = AttachmentKey::new("sim", format!("c{}", self.next), "eth0");
            let wish = wish::any(&mut self.random, 256);
            self.count("ADD");
            work.push(tokio::spawn(
                async move { add(&addressing, &attachments, key, &wish).await.map(drop) },
            ));
        }
        for one in work {
            match one.await? {
                Ok(()) => self.count("given"),
                Err(error) => {
                    self.count("refused");
                    self.last_refusal = error.to_string();
                }
            }
        }
        Ok(())
    }

    /// A clock may also go back.
    fn clock_step(&mut self) {
        let by = self.random.u64(0..120_000);
        if self.random.u32(0..5) == 0 {
            let _ = self
                .clock
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |now| Some(now.saturating_sub(by)));
            self.count("clock back");
        } else {
            self.clock.fetch_add(by, Ordering::SeqCst);
            self.count("clock on");
        }
    }

    /// A machine loses its pods and comes back: what netd finds on record without a link it releases.
    async fn machine_crash(&mut self) -> Result<()> {
        let node = self.any();
        self.count("crashed");
        self.nodes[node].kill().await;
        let gone = std::mem::take(&mut *lock(&self.nodes[node].attachments));
        self.nodes[node].start()?;
        if let Some(addressing) = self.nodes[node].addressing() {
            for key in gone.keys() {
                addressing.take_back(key)?;
            }
        }
        Ok(())
    }

    async fn drain_or_undrain(&mut self) -> Result<()> {
        let shown = picture(&self.store.list(self.keys.root()).await?, &self.keys, Uuid::nil());
        // One at a time: with every pool drained nothing happens any more.
        let draining = shown.pools.values().find(|pool| pool.state == PoolState::Draining);
        let nth = self.random.usize(0..shown.pools.len().max(1));
        let (pool, state) = match (draining, shown.pools.values().nth(nth)) {
            (Some(pool), _) => (pool, PoolState::Active),
            (None, Some(pool)) => (pool, PoolState::Draining),
            (None, None) => return Ok(()),
        };
        self.count("pool state");
        let key = self.keys.pool(&pool.name);
        self.store.put(&key, encode(&key, &Pool { state, ..pool.clone() })?, None).await?;
        Ok(())
    }

    /// A machine is switched off for good and removed by force: the others drop its routes, then its blocks are free.
    async fn remove_a_node(&mut self) -> Result<()> {
        let living: Vec<usize> = (0..self.nodes.len()).filter(|index| !self.nodes[*index].removed).collect();
        if living.len() < 3 {
            return Ok(());
        }
        let index = living[self.random.usize(0..living.len())];
        self.count("removed");
        self.nodes[index].kill().await;
        (self.nodes[index].off, self.nodes[index].removed) = (true, true);
        lock(&self.nodes[index].attachments).clear();
        let (removed, now) = (self.nodes[index].uuid, self.clock.load(Ordering::SeqCst));
        remove_node(self.store.as_ref(), &self.keys, removed, "gone", true, now).await?;
        let others: BTreeSet<Uuid> =
            living.iter().filter(|other| **other != index).map(|other| self.nodes[*other].uuid).collect();
        for other in &others {
            confirm_fence(self.store.as_ref(), &self.keys, removed, *other, now).await?;
        }
        let before = self.blocks_of(&others).await?;
        finish_removal(self.store.as_ref(), &self.keys, removed, &others, now).await?;
        let after = self.blocks_of(&others).await?;
        self.inherited.retain(|cidr| after.contains(cidr));
        self.inherited.extend(after.difference(&before));
        Ok(())
    }

    async fn blocks_of(&self, nodes: &BTreeSet<Uuid>) -> Result<BTreeSet<IpNet>> {
        let items = self.store.list(&self.keys.blocks()).await?.items;
        let blocks = decode_all::<BlockRecord>(&items).0.into_iter().map(|(_, block)| block);
        Ok(blocks.filter(|block| nodes.contains(&block.owner)).map(|block| block.cidr).collect())
    }

    /// Somebody switches on a machine that was removed: it has its old journal, and gives nothing from it.
    async fn a_removed_node_comes_back(&mut self) -> Result<()> {
        let Some(index) = self.nodes.iter().position(|node| node.off) else { return Ok(()) };
        self.count("came back");
        self.next += 1;
        let key = AttachmentKey::new("sim", format!("c{}", self.next), "eth0");
        let node = &mut self.nodes[index];
        node.off = false;
        node.cable.cut(false);
        node.start()?;
        let Some(addressing) = node.addressing() else { bail!("node {index} does not start") };
        tokio::time::timeout(TOLD_LIMIT, async {
            loop {
                match addressing.give(&key, &Wish::default()).await {
                    Ok(given) => bail!("removed node {index} gave {:?}", given.ips),
                    Err(GiveError::Removed) => return Ok(()),
                    // It has not read the store yet.
                    Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            }
        })
        .await?
    }

    fn any(&mut self) -> usize {
        self.random.usize(0..self.nodes.len())
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }
}
