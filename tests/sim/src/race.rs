// SPDX-License-Identifier: Apache-2.0
//! Nodes that run against one real etcd, each in a task of its own with a connection of its own, all at the same time.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use ipam::{AttachmentKey, Pool};
use netd::addressing::{GiveError, Wish};
use netd_store::records::encode;
use netd_store::{Keys, Store};
use tokio::time::timeout;
use uuid::Uuid;

use crate::cable::Cable;
use crate::etcd::Server;
use crate::node::{Node, add, del, lock, record};
use crate::rest::come_to_rest;
use crate::wish;

/// Attachments of a node: fewer than half a block, so that an outage never finds a node without a free address.
const LIVE_MAX: usize = 10;
/// Addresses that wishes are about.
const ADDRESSES: u16 = 1_024;
/// Between two looks of a node at the store, in real time.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// An ADD takes about so long where it needs the store, in microseconds.
const KILLED_WITHIN_US: u64 = 6_000;
/// ADDs and DELs of one node during an outage that must succeed.
const OWN_ADDS: usize = 5;
/// Given to the cluster to be ready, to come to rest, or to hear that the store is back.
const PATIENCE: Duration = Duration::from_secs(120);

/// The cluster and what is known of it.
pub struct Race {
    /// The store.
    pub server: Server,
    nodes: Vec<Node>,
    keys: Keys,
    clock: Arc<AtomicU64>,
    in_use: Arc<InUse>,
    seed: u64,
    round: u64,
}

/// The model: who has which address, and what happened how often.
#[derive(Default)]
struct InUse {
    addresses: Mutex<BTreeMap<IpAddr, AttachmentKey>>,
    counts: Mutex<BTreeMap<&'static str, u32>>,
}

/// How a round goes.
#[derive(Clone, Copy)]
pub struct Round {
    /// ADDs and DELs of each node.
    pub operations: usize,
    /// Of a hundred ADDs, those in whose midst, or just after which, netd is killed.
    pub kills: u32,
}

impl Race {
    /// `count` nodes that have read the store and hold a block.
    pub async fn new(seed: u64, count: usize, pool: &Pool) -> Result<Race> {
        let server = Server::start_new()?;
        let (keys, clock) = (Keys::new("race")?, Arc::new(AtomicU64::new(1_000_000)));
        let store = server.client().await?;
        let key = keys.pool(&pool.name);
        store.put(&key, encode(&key, pool)?, None).await?;
        let mut nodes = Vec::new();
        for index in 0..count {
            let uuid = Uuid::from_u128(index as u128 + 1);
            store.put(&keys.node(uuid), record(uuid, &format!("n{index}")).into(), None).await?;
            let cable = Arc::new(Cable::new(Arc::new(server.client().await?)));
            let mut node = Node::new(uuid, cable, keys.clone(), clock.clone())?;
            node.look_every = LOOK_EVERY;
            node.start()?;
            nodes.push(node);
        }
        let race = Race { server, nodes, keys, clock, in_use: Arc::default(), seed, round: 0 };
        race.until_all_can_add().await?;
        Ok(race)
    }

    /// All nodes at once. Fails where an address is in use twice.
    pub async fn run(&mut self, round: Round) -> Result<()> {
        self.round += 1;
        let mut tasks = Vec::new();
        for (index, node) in self.nodes.drain(..).enumerate() {
            let seed = self.seed << 32 | self.round << 16 | index as u64;
            let (in_use, clock) = (self.in_use.clone(), self.clock.clone());
            let random = fastrand::Rng::with_seed(seed);
            tasks.push(tokio::spawn(Writer { node, random, in_use, clock, next: seed << 16 }.run(round)));
        }
        for task in tasks {
            self.nodes.push(task.await??);
        }
        Ok(())
    }

    /// While the store is away every node adds and deletes from what it owns. Call after [`Race::rested`].
    pub async fn add_from_own_blocks(&mut self) -> Result<()> {
        let store = &self.nodes[0].cable;
        ensure!(store.get("/ready").await.is_err(), "the store is not away");
        for (index, node) in self.nodes.iter().enumerate() {
            let addressing = node.addressing().context("netd runs")?;
            for number in 0..OWN_ADDS {
                let key =
                    AttachmentKey::new("race", format!("outage-{}-{index}-{number}", self.round), "eth0");
                let begun = Instant::now();
                let ips =
                    add(&addressing, &node.attachments, key.clone(), &Wish::default()).await.with_context(
                        || format!("node {index}, ADD {number} from its own blocks during an outage"),
                    )?;
                self.in_use.begin(&ips, &key)?;
                ensure!(begun.elapsed() < Duration::from_secs(3), "it waited for the store");
            }
            let keys: Vec<AttachmentKey> = lock(&node.attachments).keys().cloned().collect();
            for key in keys.into_iter().take(OWN_ADDS) {
                self.in_use.end(&key);
                del(&addressing, &node.attachments, &key)?;
            }
        }
        ensure!(store.get("/ready").await.is_err(), "the store came back meanwhile");
        Ok(())
    }

    /// Released addresses have rested, and every node has free ones ahead.
    pub async fn rested(&self) -> Result<()> {
        self.clock.fetch_add(3_600_000, Ordering::SeqCst);
        self.until_all_can_add().await
    }

    /// Every attachment is deleted; after a quiet time nobody holds anything, and everybody can add again.
    pub async fn end(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.start()?;
            let addressing = node.addressing().context("netd runs")?;
            let keys: Vec<AttachmentKey> = lock(&node.attachments).keys().cloned().collect();
            for key in keys {
                self.in_use.end(&key);
                del(&addressing, &node.attachments, &key)?;
            }
        }
        let store = self.server.client().await?;
        come_to_rest(&store, &self.keys, &self.nodes, PATIENCE).await?;
        ensure!(lock(&self.in_use.addresses).is_empty(), "the model still has some");
        self.rested().await
    }

    /// What happened how often.
    pub fn counts(&self) -> BTreeMap<&'static str, u32> {
        lock(&self.in_use.counts).clone()
    }

    async fn until_all_can_add(&self) -> Result<()> {
        let begun = Instant::now();
        for (index, node) in self.nodes.iter().enumerate() {
            let addressing = node.addressing().context("netd runs")?;
            let key = AttachmentKey::new("race", format!("probe-{index}"), "eth0");
            while let Err(error) = add(&addressing, &node.attachments, key.clone(), &Wish::default()).await {
                ensure!(begun.elapsed() < PATIENCE, "node {index} cannot add: {error}");
                tokio::time::sleep(LOOK_EVERY).await;
            }
            del(&addressing, &node.attachments, &key)?;
        }
        Ok(())
    }
}

impl InUse {
    fn begin(&self, ips: &[IpAddr], key: &AttachmentKey) -> Result<()> {
        let mut addresses = lock(&self.addresses);
        for ip in ips {
            if let Some(other) = addresses.insert(*ip, key.clone()) {
                bail!("{ip} is in use twice: by {other} and {key}");
            }
        }
        Ok(())
    }

    fn end(&self, key: &AttachmentKey) {
        lock(&self.addresses).retain(|_, holder| holder != key);
    }

    fn count(&self, what: &'static str) {
        *lock(&self.counts).entry(what).or_default() += 1;
    }
}

/// One node in a round.
struct Writer {
    node: Node,
    random: fastrand::Rng,
    in_use: Arc<InUse>,
    clock: Arc<AtomicU64>,
    next: u64,
}

impl Writer {
    async fn run(mut self, round: Round) -> Result<Node> {
        for _ in 0..round.operations {
            self.clock.fetch_add(self.random.u64(0..200), Ordering::SeqCst);
            let live: Vec<AttachmentKey> = lock(&self.node.attachments).keys().cloned().collect();
            if live.len() >= LIVE_MAX || (!live.is_empty() && self.random.u32(0..100) < 45) {
                let nth = self.random.usize(0..live.len());
                self.delete(&live[nth])?;
            } else {
                self.add(round.kills).await?;
            }
        }
        Ok(self.node)
    }

    fn delete(&mut self, key: &AttachmentKey) -> Result<()> {
        self.in_use.count("DEL");
        let addressing = self.node.addressing().context("netd runs")?;
        self.in_use.end(key);
        del(&addressing, &self.node.attachments, key)
    }

    async fn add(&mut self, kills: u32) -> Result<()> {
        self.in_use.count("ADD");
        self.next += 1;
        let key = AttachmentKey::new("race", format!("c{:x}", self.next), "eth0");
        let wish = wish::any(&mut self.random, ADDRESSES);
        let is_killed = self.random.u32(0..100) < kills;
        let until = match is_killed {
            true => Duration::from_micros(self.random.u64(0..KILLED_WITHIN_US)),
            false => PATIENCE,
        };
        let addressing = self.node.addressing().context("netd runs")?;
        let outcome = timeout(until, add(&addressing, &self.node.attachments, key.clone(), &wish)).await;
        drop(addressing);
        match outcome {
            Ok(Ok(ips)) => {
                self.in_use.count("given");
                self.in_use.begin(&ips, &key)?;
            }
            Ok(Err(GiveError::Unconfigured)) => {
                self.in_use.count("refused: just started");
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Ok(Err(error)) => self.in_use.count(match error {
                GiveError::Exhausted(_) => "refused: exhausted",
                GiveError::Later(_) => "refused: later",
                GiveError::Taken(_) => "refused: taken",
                GiveError::StoreAway { .. } | GiveError::Claim(_) => "refused: the store is away",
                other => bail!("{key} with {wish:?}: {other}"),
            }),
            Err(_) if is_killed => self.in_use.count("cut off"),
            Err(_) => bail!("{key}: no answer within {PATIENCE:?}"),
        }
        if is_killed {
            self.in_use.count("killed");
            self.node.kill().await;
            self.node.start()?;
        }
        Ok(())
    }
}
