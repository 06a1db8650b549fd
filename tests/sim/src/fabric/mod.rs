// SPDX-License-Identifier: Apache-2.0
//! The overlay of a cluster without its kernels: netd's plans of key generations and paths on each node, records through the
//! store and its watches, and for devices a model: who sends where somebody listens with the right key is heard.

mod node;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use netd_plan::generation::ROTATION_DEADLINE_MS;
use netd_plan::{
    BackendKind, GenerationInput, GenerationPlan, Overlay, Path, PathPeer, PathsInput, PeerGenerations,
    WireguardTunnel,
};
use netd_store::records::{
    ClusterConfig, NodeRecord, OverlayBackend, WireguardKeyRecord, WireguardRecord, decode, encode,
};
use netd_store::{Keys, Memory, Store, Tail};
use uuid::Uuid;

use crate::node::record;
use node::{Device, DevicePeer, Netd, backend, kind, overlay, slot};

pub use node::FabricNode;

/// One step of the simulation, of tokio's time.
const STEP: Duration = Duration::from_secs(1);
/// A node whose netd did not work for so long has no lease any more.
const LEASE_MS: u64 = 60_000;
/// WireGuard renews a session that is in use (REKEY_AFTER_TIME).
const REKEY_MS: u64 = 120_000;
/// Plans follow each other in one round until nothing is left to do; more means they go in circles.
const ROUNDS_MAX: usize = 6;

/// A cluster whose nodes talk over an overlay.
pub struct Fabric {
    /// The store; its faults are the test's.
    pub store: Arc<Memory>,
    /// The nodes.
    pub nodes: Vec<FabricNode>,
    keys: Keys,
    random: fastrand::Rng,
    now_ms: u64,
    /// Pairs that reached each other once: they always do from then on.
    joined: BTreeSet<(usize, usize)>,
}

impl Fabric {
    /// `nodes` nodes that want this overlay; everything random comes from `seed`.
    pub async fn new(seed: u64, nodes: usize, wanted: OverlayBackend) -> Result<Fabric> {
        let (store, keys) = (Arc::new(Memory::new()), Keys::new("sim")?);
        let node = |index: usize| {
            let (tail, mirror) = Tail::new(store.clone() as Arc<dyn Store>, keys.root());
            tokio::spawn(tail.run());
            FabricNode {
                away: false,
                uuid: Uuid::from_u128(index as u128 + 1),
                name: format!("n{index}"),
                netd: Some(Netd::new(0)),
                worked_ms: 0,
                mirror,
                seen: Arc::default(),
                rotate: false,
                own: BTreeMap::new(),
                devices: [None, None],
                up: BTreeSet::new(),
                routes: BTreeMap::new(),
                awaited: BTreeSet::new(),
                offers: BTreeSet::new(),
                sends: None,
                sends_generation: None,
            }
        };
        let nodes = (0..nodes).map(node).collect();
        let (random, joined) = (fastrand::Rng::with_seed(seed), BTreeSet::new());
        let mut fabric = Fabric { store, nodes, keys, random, now_ms: 1_000_000, joined };
        fabric.want(wanted).await?;
        Ok(fabric)
    }

    /// The cluster wants another overlay.
    pub async fn want(&mut self, wanted: OverlayBackend) -> Result<()> {
        let (key, config) =
            (self.keys.config(), ClusterConfig { overlay: wanted, ..ClusterConfig::default() });
        self.store.put(&key, encode(&key, &config)?, None).await?;
        Ok(())
    }

    /// Somebody asks this node for a new key.
    pub fn rotate(&mut self, node: usize) {
        self.nodes[node].rotate = true;
    }

    /// netd is killed: devices, routes and keys stay.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].netd = None;
    }

    /// And starts, with what it knew last.
    pub fn start(&mut self, node: usize) {
        let now_ms = self.now_ms;
        self.nodes[node].netd.get_or_insert_with(|| Netd::new(now_ms));
    }

    /// Time passes: each node's netd works most of the time, with what it has heard by then.
    pub async fn seconds(&mut self, seconds: u64) -> Result<()> {
        for _ in 0..seconds {
            tokio::time::sleep(STEP).await;
            self.now_ms += STEP.as_millis() as u64;
            let first = self.random.usize(0..self.nodes.len());
            for index in 0..self.nodes.len() {
                let node = (first + index) % self.nodes.len();
                if self.random.u32(0..10) < 7 {
                    self.netd(node).await?;
                }
            }
            self.shake_hands();
            self.check()?;
        }
        Ok(())
    }

    /// Everybody reaches everybody by what is wanted, with one generation of keys, and nothing else is left.
    pub fn assert_settled(&self, wanted: OverlayBackend) -> Result<u64> {
        let kinds = overlay(wanted).kinds();
        let newest = self.nodes.iter().filter_map(|node| node.own.keys().last()).max().copied().unwrap_or(0);
        for node in &self.nodes {
            ensure!(node.up == kinds, "{} has {:?} up, wanted is {wanted:?}", node.name, node.up);
            ensure!(node.sends == Some(wanted), "{} says that it sends by {:?}", node.name, node.sends);
            if kinds.contains(&BackendKind::Wireguard) {
                let own: Vec<u64> = node.own.keys().copied().collect();
                ensure!(own == [newest], "{} holds keys of generations {own:?}, newest {newest}", node.name);
            }
        }
        let pairs = self.nodes.len() * (self.nodes.len() - 1) / 2;
        ensure!(self.joined.len() == pairs, "only {:?} ever reached each other", self.joined);
        Ok(newest)
    }

    async fn netd(&mut self, n: usize) -> Result<()> {
        let Some(mut netd) = self.nodes[n].netd.take() else { return Ok(()) };
        if !self.nodes[n].away {
            self.nodes[n].worked_ms = self.now_ms;
            // A busy netd looks later.
            if self.random.u32(0..10) < 8 {
                let seen = self.nodes[n].mirror.borrow_and_update().clone();
                self.nodes[n].seen = seen;
            }
        }
        if self.nodes[n].seen.in_sync {
            for _ in 0..ROUNDS_MAX {
                if !self.round(n, &mut netd).await? {
                    break;
                }
            }
        }
        self.nodes[n].netd = Some(netd);
        Ok(())
    }

    /// What netd does with its plans, in the order that they ask for. True: keys changed, and it goes on.
    async fn round(&mut self, n: usize, netd: &mut Netd) -> Result<bool> {
        let (records, config) = self.read(n)?;
        let node = &self.nodes[n];
        let (now_ms, wanted) = (self.now_ms, overlay(config.overlay));
        let in_touch = !node.away && node.seen.connected;
        netd.note_told(records.get(&node.uuid).filter(|_| in_touch), now_ms);
        let used =
            wanted.kinds().contains(&BackendKind::Wireguard) || node.up.contains(&BackendKind::Wireguard);
        let plan = match used {
            true => netd.generations.step(&self.generations(n, &records, netd, in_touch), now_ms),
            false => GenerationPlan::default(),
        };
        self.nodes[n].rotate = false;
        self.set_up(n, &records, &plan, used);
        self.check()?;
        self.publish(n, &records).await?;

        let input = self.paths(n, &records, &plan, (wanted, used, in_touch));
        let paths = netd.paths.step(&input, now_ms);
        let sends = paths.sends.map(|_| config.overlay);
        let node = &mut self.nodes[n];
        // New devices before routes, and what goes after them.
        node.up.extend(&paths.keep);
        // Taken back before the routes move, said after.
        node.sends = node.sends.filter(|said| Some(*said) == sends);
        node.routes = paths.peers.iter().filter_map(|(peer, choice)| Some((*peer, choice.path?))).collect();
        node.awaited =
            paths.peers.iter().filter(|(_, choice)| choice.keepalive).map(|(peer, _)| *peer).collect();
        self.check()?;
        let node = &mut self.nodes[n];
        (node.up, node.offers, node.sends) = (paths.keep, paths.up, sends);
        node.sends_generation = plan.sends;
        self.check()?;
        self.publish(n, &records).await?;

        if let Some(gone) = plan.drop {
            let node = &mut self.nodes[n];
            node.own.remove(&gone);
            node.devices[slot(gone)] = None;
            self.check()?;
        }
        if let Some(made) = plan.make {
            let key = format!("{:x}", self.random.u128(..));
            self.nodes[n].own.insert(made, (key, now_ms));
        }
        ensure!(self.nodes[n].own.len() <= 2, "{} holds a third key", self.nodes[n].name);
        Ok(plan.drop.is_some() || plan.make.is_some())
    }

    fn read(&self, n: usize) -> Result<(BTreeMap<Uuid, NodeRecord>, ClusterConfig)> {
        let items = &self.nodes[n].seen.items;
        let mut records = BTreeMap::new();
        for node in &self.nodes {
            let key = self.keys.node(node.uuid);
            if let Some(item) = items.get(&key) {
                records.insert(node.uuid, decode(&key, &item.value)?);
            }
        }
        let key = self.keys.config();
        let config = items.get(&key).map(|item| decode(&key, &item.value)).transpose()?.unwrap_or_default();
        Ok((records, config))
    }

    fn is_live(&self, peer: Uuid) -> bool {
        self.nodes.iter().any(|node| node.uuid == peer && self.now_ms - node.worked_ms < LEASE_MS)
    }

    fn generations(
        &self,
        n: usize,
        records: &BTreeMap<Uuid, NodeRecord>,
        netd: &Netd,
        in_touch: bool,
    ) -> GenerationInput {
        let node = &self.nodes[n];
        let peer = |(uuid, record): (&Uuid, &NodeRecord)| {
            let tunnel = record.wireguard.as_ref()?;
            let handshake = |key: &WireguardKeyRecord| {
                Some((key.generation, node.peer(*uuid, key.generation, &key.public_key)?.handshake_ms?))
            };
            Some(PeerGenerations {
                uuid: *uuid,
                live: self.is_live(*uuid),
                published: tunnel.keys.iter().map(|key| key.generation).collect(),
                sends: tunnel.sends,
                handshakes: tunnel.keys.iter().filter_map(handshake).collect(),
            })
        };
        GenerationInput {
            own: node.own.iter().map(|(generation, (_, made_ms))| (*generation, *made_ms)).collect(),
            peers: records.iter().filter(|(uuid, _)| **uuid != node.uuid).filter_map(peer).collect(),
            rotate: node.rotate,
            rotation_ms: None,
            deadline_ms: ROTATION_DEADLINE_MS,
            in_touch,
            told_ms: node.own.keys().last().and_then(|newest| netd.told.get(newest).copied()),
            uptime_ms: self.now_ms,
        }
    }

    fn set_up(&mut self, n: usize, records: &BTreeMap<Uuid, NodeRecord>, plan: &GenerationPlan, used: bool) {
        let node = &mut self.nodes[n];
        for index in 0..2 {
            let own = node.own.iter().find(|(generation, _)| used && slot(**generation) == index);
            let Some((generation, (key, _))) = own.map(|(generation, own)| (*generation, own.clone())) else {
                node.devices[index] = None;
                continue;
            };
            let mut before = node.devices[index].take().filter(|device| device.key == key);
            let mut peers = BTreeMap::new();
            for (uuid, tunnel) in &plan.peers {
                // A key that goes keeps its peers until the routes have left it.
                if plan.drop != Some(generation) && !tunnel.common.contains(&generation) {
                    continue;
                }
                let theirs = records.get(uuid).and_then(|record| record.wireguard.as_ref());
                let theirs =
                    theirs.and_then(|keys| keys.keys.iter().find(|key| key.generation == generation));
                let Some(theirs) = theirs else { continue };
                let known = before.as_mut().and_then(|device| device.peers.remove(uuid));
                let handshake_ms =
                    known.filter(|known| known.key == theirs.public_key).and_then(|k| k.handshake_ms);
                let keepalive = tunnel.keepalive == Some(generation) || node.awaited.contains(uuid);
                let key = theirs.public_key.clone();
                peers.insert(*uuid, DevicePeer { key, keepalive, handshake_ms });
            }
            node.devices[index] = Some(Device { generation, key, peers });
        }
    }

    fn paths(
        &self,
        n: usize,
        records: &BTreeMap<Uuid, NodeRecord>,
        plan: &GenerationPlan,
        (wanted, used, in_touch): (Overlay, bool, bool),
    ) -> PathsInput {
        let node = &self.nodes[n];
        let tunnel = |record: &NodeRecord| {
            let generation = plan.peers.get(&record.uuid)?.path?;
            let keys = &record.wireguard.as_ref()?.keys;
            let key = keys.iter().find(|key| key.generation == generation)?;
            let peer = node.peer(record.uuid, generation, &key.public_key);
            Some(WireguardTunnel { generation, handshake_ms: peer.and_then(|peer| peer.handshake_ms) })
        };
        let peer = |record: &NodeRecord| PathPeer {
            uuid: record.uuid,
            name: record.name.clone(),
            underlay: record.underlay,
            live: self.is_live(record.uuid),
            up: record.backends_up.iter().flatten().filter_map(|up| kind(*up)).collect(),
            sends: record.sends.map(overlay),
            wireguard: tunnel(record),
        };
        let mut up: BTreeSet<BackendKind> = wanted.kinds().union(&node.up).copied().collect();
        up.remove(&BackendKind::Wireguard);
        if used && !node.own.is_empty() {
            up.insert(BackendKind::Wireguard);
        }
        let own = records.get(&node.uuid).and_then(|record| record.backends_up.as_ref());
        let offers: BTreeSet<BackendKind> = own.into_iter().flatten().filter_map(|up| kind(*up)).collect();
        PathsInput {
            wanted,
            up,
            subnets: vec!["192.0.2.0/24".parse().unwrap()],
            peers: records.values().filter(|record| record.uuid != node.uuid).map(peer).collect(),
            told: in_touch && own.is_some() && offers == node.offers,
            uptime_ms: self.now_ms,
        }
    }

    /// Where the store does not take it, the next round tries again.
    async fn publish(&mut self, n: usize, records: &BTreeMap<Uuid, NodeRecord>) -> Result<()> {
        let node = &self.nodes[n];
        let key = self.keys.node(node.uuid);
        let mut wanted: NodeRecord = decode(&key, record(node.uuid, &node.name).as_bytes())?;
        wanted.backends_up = Some(node.offers.iter().map(|kind| backend(*kind)).collect());
        wanted.sends = node.sends;
        let listening = |(generation, (public_key, _)): (&u64, &(String, u64))| WireguardKeyRecord {
            generation: *generation,
            public_key: public_key.clone(),
            port: 51_820,
        };
        let keys: Vec<_> =
            node.own.iter().filter(|(at, _)| node.devices[slot(**at)].is_some()).map(listening).collect();
        wanted.wireguard = (!keys.is_empty()).then(|| WireguardRecord {
            kind: "user".into(),
            keys,
            sends: node.sends_generation,
        });
        if !node.away && records.get(&node.uuid) != Some(&wanted) {
            let _ = self.store.put(&key, encode(&key, &wanted)?, None).await;
        }
        Ok(())
    }

    /// Sessions where there is something to send, each try lost sometimes.
    fn shake_hands(&mut self) {
        for (a, b) in self.pairs() {
            for index in 0..2 {
                let Some(generation) = self.nodes[a].devices[index].as_ref().map(|device| device.generation)
                else {
                    continue;
                };
                if !self.is_tunnel(a, b, generation) {
                    continue;
                }
                let (of_a, of_b) = (self.nodes[a].uuid, self.nodes[b].uuid);
                let wanted = self.nodes[a].speaks(of_b, generation) || self.nodes[b].speaks(of_a, generation);
                if !wanted || self.random.u32(0..10) >= 6 {
                    continue;
                }
                let now_ms = self.now_ms;
                for (n, peer) in [(a, of_b), (b, of_a)] {
                    let device = self.nodes[n].devices[index].as_mut();
                    if let Some(peer) = device.and_then(|device| device.peers.get_mut(&peer)) {
                        let known = peer.handshake_ms.filter(|at| now_ms - at < REKEY_MS);
                        peer.handshake_ms = Some(known.unwrap_or(now_ms));
                    }
                }
            }
        }
    }

    /// Who reached each other still does.
    fn check(&mut self) -> Result<()> {
        for (a, b) in self.pairs() {
            let reach = self.reaches(a, b) && self.reaches(b, a);
            ensure!(
                reach || !self.joined.contains(&(a, b)),
                "{} s: {a} and {b} lost each other:\n{}\n{}",
                self.now_ms / 1_000,
                self.nodes[a].picture(),
                self.nodes[b].picture()
            );
            if reach {
                self.joined.insert((a, b));
            }
        }
        Ok(())
    }

    fn reaches(&self, a: usize, b: usize) -> bool {
        let up = |kind| self.nodes[a].up.contains(&kind) && self.nodes[b].up.contains(&kind);
        match self.nodes[a].routes.get(&self.nodes[b].uuid) {
            Some(Path::Native) => up(BackendKind::Native),
            Some(Path::Vxlan) => up(BackendKind::Vxlan),
            Some(Path::Wireguard { generation }) => self.is_tunnel(a, b, *generation),
            None => false,
        }
    }

    /// Both have the other's key of that generation on the same device.
    fn is_tunnel(&self, a: usize, b: usize, generation: u64) -> bool {
        let end = |n: usize, p: usize| {
            let device = self.nodes[n].devices[slot(generation)].as_ref()?;
            let peer = device.peers.get(&self.nodes[p].uuid)?;
            (device.generation == generation).then_some((device.key.as_str(), peer.key.as_str()))
        };
        end(a, b).is_some_and(|(own, theirs)| end(b, a) == Some((theirs, own)))
    }

    fn pairs(&self) -> Vec<(usize, usize)> {
        let all = 0..self.nodes.len();
        all.clone().flat_map(|a| all.clone().filter(move |b| a < *b).map(move |b| (a, b))).collect()
    }
}
