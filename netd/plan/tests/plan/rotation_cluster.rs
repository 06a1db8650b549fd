// SPDX-License-Identifier: Apache-2.0
//! A cluster that rotates its keys, for the stories in `rotation.rs`: nodes with keys, devices and routes, and the store.

use std::collections::{BTreeMap, BTreeSet};

use netd_plan::generation::ROTATION_DEADLINE_MS;
use netd_plan::{GenerationInput, GenerationPlan, Generations, PeerGenerations};

use super::generation::uuid;

/// One second of the simulation.
pub(crate) const STEP_MS: u64 = 1_000;
/// After so long without its netd or the store a node may have missed a change: about half of [`ROTATION_DEADLINE_MS`], for
/// handshakes and records take their time too.
const MISSED_MS: u64 = 140_000;
/// A node that works for less between two outages is in one outage.
const HEALTHY_MS: u64 = 30_000;
/// Nobody who has the store is later than this with a record.
const LATE_MS: u64 = 5_000;
/// A lease lives so long after its last renewal.
const LEASE_MS: u64 = 30_000;
/// WireGuard renews a session that is in use (REKEY_AFTER_TIME).
const REKEY_MS: u64 = 120_000;

pub(crate) type Key = u64;

#[derive(Clone, Debug, Default)]
struct Record {
    keys: BTreeMap<u64, Key>,
    sends: Option<u64>,
}

/// One WireGuard device: the generation that lives there with its key, and peers by number with the keys they must have.
#[derive(Clone, Debug)]
struct Device {
    generation: u64,
    key: Key,
    peers: BTreeMap<usize, DevicePeer>,
}

#[derive(Clone, Debug)]
struct DevicePeer {
    key: Key,
    keepalive: bool,
    handshake_ms: Option<u64>,
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    is_on: bool,
    /// netd, while it runs.
    netd: Option<Generations>,
    rotate: bool,
    /// Since when this netd has seen its own record with a generation.
    told: BTreeMap<u64, u64>,
    /// On disk: generation, key and when it was made.
    pub(crate) keys: BTreeMap<u64, (Key, u64)>,
    devices: [Option<Device>; 2],
    routes: BTreeMap<usize, u64>,
    has_store: bool,
    /// Which version of each node's record it has read.
    read: BTreeMap<usize, usize>,
    read_ms: BTreeMap<usize, u64>,
    sees_alive: BTreeSet<usize>,
    renewed_ms: u64,
    /// When it could last not act, and since when that is.
    outage: Option<(u64, u64)>,
}

pub(crate) struct Cluster {
    pub(crate) now_ms: u64,
    random: u64,
    pub(crate) last_key: Key,
    pub(crate) nodes: Vec<Node>,
    /// All versions of each node's record.
    records: Vec<Vec<Record>>,
    cut: BTreeSet<(usize, usize)>,
    healed_ms: u64,
    /// Pairs that reached each other since which nothing happened that excuses them.
    pub(crate) joined: BTreeSet<(usize, usize)>,
    /// Who may have missed what of whom: something happened to the first since they reached each other, or before they ever did.
    excused: BTreeSet<(usize, usize)>,
}

#[derive(Clone, Debug)]
pub(crate) enum Event {
    CutNet(usize, usize),
    CutStore(usize),
    HealNet,
    HealStore(usize),
    KillNetd(usize),
    /// Power off: devices and routes are gone, keys are not.
    Off(usize),
    On(usize),
    /// weft-wireguard starts anew: devices know no handshake any more; netd sets them up again.
    RestartDevices(usize),
    Rotate(usize),
    StartNetd(usize),
    /// A new machine with the same identity.
    Wipe(usize),
}

impl Cluster {
    pub(crate) fn new(nodes: usize, seed: u64) -> Self {
        let node = Node {
            is_on: true,
            netd: Some(Generations::default()),
            rotate: false,
            told: BTreeMap::new(),
            keys: BTreeMap::new(),
            devices: [None, None],
            routes: BTreeMap::new(),
            has_store: true,
            read: BTreeMap::new(),
            read_ms: BTreeMap::new(),
            sees_alive: BTreeSet::new(),
            renewed_ms: 0,
            outage: None,
        };
        Cluster {
            now_ms: 1_000_000,
            random: seed,
            last_key: 0,
            nodes: vec![node; nodes],
            records: vec![vec![Record::default()]; nodes],
            cut: BTreeSet::new(),
            healed_ms: 0,
            joined: BTreeSet::new(),
            excused: BTreeSet::new(),
        }
    }

    /// True in `of_ten` cases of ten (xorshift).
    fn chance(&mut self, of_ten: u64) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % 10 < of_ten
    }

    /// One second passes: leases, records that arrive, netds that work, handshakes, each of them only sometimes.
    fn pass(&mut self) {
        self.now_ms += STEP_MS;
        for n in 0..self.nodes.len() {
            let works = self.nodes[n].is_on && self.nodes[n].netd.is_some() && self.nodes[n].has_store;
            self.note_outage(n, works);
            if works {
                self.nodes[n].renewed_ms = self.now_ms;
                self.hear(n);
            }
        }
        let start = usize::from(self.chance(5));
        for n in 0..self.nodes.len() {
            let n = (n + start) % self.nodes.len();
            if self.chance(7) {
                self.netd(n);
            }
        }
        self.shake_hands();
        self.check();
    }

    fn note_outage(&mut self, n: usize, works: bool) {
        let now_ms = self.now_ms;
        let outage = &mut self.nodes[n].outage;
        match outage {
            Some((last, _)) if works && now_ms - *last >= HEALTHY_MS => *outage = None,
            Some((last, _)) if !works => *last = now_ms,
            None if !works => *outage = Some((now_ms, now_ms)),
            _ => {}
        }
        if self.nodes[n].outage.is_some_and(|(_, since)| now_ms - since >= MISSED_MS) {
            self.excuse(n);
        }
    }

    fn excuse(&mut self, n: usize) {
        self.joined.retain(|(a, b)| *a != n && *b != n);
        self.excused.extend((0..self.nodes.len()).filter(|p| *p != n).map(|p| (n, p)));
    }

    /// Records and leases arrive late and in leaps, but never backwards.
    fn hear(&mut self, n: usize) {
        for p in (0..self.nodes.len()).filter(|p| *p != n).collect::<Vec<_>>() {
            let (newest, half) = (self.records[p].len() - 1, self.chance(5));
            let is_late = self.now_ms - self.nodes[n].read_ms.get(&p).copied().unwrap_or(0) >= LATE_MS;
            if is_late || self.chance(5) {
                let read = self.nodes[n].read.entry(p).or_default();
                *read = if half && !is_late { *read + (newest - *read).div_ceil(2) } else { newest };
                if *read == newest {
                    self.nodes[n].read_ms.insert(p, self.now_ms);
                }
                let is_alive = self.now_ms - self.nodes[p].renewed_ms < LEASE_MS;
                let sees = &mut self.nodes[n].sees_alive;
                _ = if is_alive { sees.insert(p) } else { sees.remove(&p) };
            }
        }
    }

    /// The newest of everything, as after a listing.
    fn list(&mut self, n: usize) {
        for p in (0..self.nodes.len()).filter(|p| *p != n) {
            self.nodes[n].read.insert(p, self.records[p].len() - 1);
            if self.now_ms - self.nodes[p].renewed_ms < LEASE_MS {
                self.nodes[n].sees_alive.insert(p);
            }
        }
    }

    fn record(&self, n: usize, p: usize) -> &Record {
        &self.records[p][self.nodes[n].read.get(&p).copied().unwrap_or(0)]
    }

    fn input(&self, n: usize) -> GenerationInput {
        let node = &self.nodes[n];
        let peer = |p: usize| {
            let record = self.record(n, p);
            let handshake = |device: &Device| {
                let peer = device.peers.get(&p)?;
                let is_present = record.keys.get(&device.generation) == Some(&peer.key);
                Some((device.generation, peer.handshake_ms.filter(|_| is_present)?))
            };
            PeerGenerations {
                uuid: uuid(p),
                live: node.sees_alive.contains(&p),
                published: record.keys.keys().copied().collect(),
                sends: record.sends,
                handshakes: node.devices.iter().flatten().filter_map(handshake).collect(),
            }
        };
        let heard = (0..self.nodes.len()).filter(|p| *p != n && !self.record(n, *p).keys.is_empty());
        GenerationInput {
            own: node.keys.iter().map(|(generation, (_, made))| (*generation, *made)).collect(),
            peers: heard.map(peer).collect(),
            rotate: node.rotate,
            rotation_ms: None,
            deadline_ms: ROTATION_DEADLINE_MS,
            in_touch: node.has_store,
            told_ms: node.keys.keys().last().and_then(|newest| node.told.get(newest).copied()),
            // The machines' clocks began at different times.
            uptime_ms: self.now_ms - 10_000 * u64::try_from(n).unwrap(),
        }
    }

    /// What netd does with a plan, in the order that the plan asks for; nobody may be cut off at any point of it.
    fn netd(&mut self, n: usize) {
        let Some(mut state) = self.nodes[n].netd.take().filter(|_| self.nodes[n].is_on) else { return };
        loop {
            self.note_told(n);
            let plan = state.step(&self.input(n), self.now_ms);
            self.nodes[n].rotate = false;
            self.set_up(n, &plan);
            self.check();
            self.publish(n, None);
            let paths =
                plan.peers.iter().map(|(peer, tunnel)| (peer.as_u128().try_into().unwrap(), tunnel.path));
            self.nodes[n].routes = paths.filter_map(|(peer, path)| Some((peer, path?))).collect();
            self.check();
            self.publish(n, plan.sends);
            if let Some(gone) = plan.drop {
                self.nodes[n].keys.remove(&gone);
                self.nodes[n].devices[usize::try_from(gone % 2).unwrap()] = None;
                self.check();
            }
            if let Some(made) = plan.make {
                self.last_key += 1;
                self.nodes[n].keys.insert(made, (self.last_key, self.now_ms));
            }
            assert!(self.nodes[n].keys.len() <= 2, "node {n} holds {:?}", self.nodes[n].keys);
            if plan.make.is_none() && plan.drop.is_none() {
                break;
            }
        }
        self.nodes[n].netd = Some(state);
    }

    fn note_told(&mut self, n: usize) {
        let uptime_ms = self.input(n).uptime_ms;
        let Some(record) = self.records[n].last().filter(|_| self.nodes[n].has_store) else { return };
        let told = &mut self.nodes[n].told;
        told.retain(|generation, _| record.keys.contains_key(generation));
        for generation in record.keys.keys() {
            told.entry(*generation).or_insert(uptime_ms);
        }
    }

    fn set_up(&mut self, n: usize, plan: &GenerationPlan) {
        for slot in (0..2_u64).filter(|slot| plan.drop.is_none_or(|gone| gone % 2 != *slot)) {
            let mut keys = self.nodes[n].keys.iter().filter(|(generation, _)| *generation % 2 == slot);
            let wanted = keys.next().map(|(generation, (key, _))| (*generation, *key));
            assert!(keys.next().is_none(), "two keys for one device");
            let index = usize::try_from(slot).unwrap();
            let Some((generation, key)) = wanted else {
                self.nodes[n].devices[index] = None;
                continue;
            };
            let mut device = self.nodes[n].devices[index]
                .take()
                .filter(|device| (device.generation, device.key) == (generation, key))
                .unwrap_or(Device { generation, key, peers: BTreeMap::new() });
            let mut peers = BTreeMap::new();
            for (uuid, tunnel) in plan.peers.iter().filter(|(_, tunnel)| tunnel.common.contains(&generation))
            {
                let p = usize::try_from(uuid.as_u128()).unwrap();
                let key = self.record(n, p).keys[&generation];
                let known = device.peers.remove(&p).filter(|known| known.key == key);
                let handshake_ms = known.and_then(|known| known.handshake_ms);
                peers.insert(
                    p,
                    DevicePeer { key, keepalive: tunnel.keepalive == Some(generation), handshake_ms },
                );
            }
            device.peers = peers;
            self.nodes[n].devices[index] = Some(device);
        }
    }

    /// Without `sends` the former word stands.
    fn publish(&mut self, n: usize, sends: Option<u64>) {
        if !self.nodes[n].has_store {
            return;
        }
        let last = self.records[n].last().unwrap();
        let keys = self.nodes[n].keys.iter().map(|(generation, (key, _))| (*generation, *key)).collect();
        let record = Record { keys, sends: sends.or(last.sends) };
        if record.keys != last.keys || record.sends != last.sends {
            self.records[n].push(record);
        }
    }

    /// Both have the other's key of that generation on the same device.
    fn is_tunnel(&self, a: usize, b: usize, generation: u64) -> bool {
        let end = |n: usize, p: usize| {
            let device = self.nodes[n].devices[usize::try_from(generation % 2).unwrap()].as_ref()?;
            let peer = device.peers.get(&p)?;
            (self.nodes[n].is_on && device.generation == generation).then_some((device.key, peer.key))
        };
        end(a, b).is_some_and(|(own, theirs)| end(b, a) == Some((theirs, own)))
    }

    pub(crate) fn reaches(&self, a: usize, b: usize) -> bool {
        let route = self.nodes[a].routes.get(&b);
        route.is_some_and(|generation| self.is_tunnel(a, b, *generation))
    }

    /// Sessions where there is something to send, each try lost sometimes.
    fn shake_hands(&mut self) {
        for (a, b) in self.all_pairs() {
            for index in 0..2_usize {
                let Some(device) = &self.nodes[a].devices[index] else { continue };
                let generation = device.generation;
                let sends = |n: usize, p: usize| {
                    let device = self.nodes[n].devices[index].as_ref();
                    let is_kept = device.and_then(|device| device.peers.get(&p)).is_some_and(|p| p.keepalive);
                    is_kept || self.nodes[n].routes.get(&p) == Some(&generation)
                };
                let is_wanted = sends(a, b) || sends(b, a);
                if !is_wanted || self.cut.contains(&(a, b)) || !self.is_tunnel(a, b, generation) {
                    continue;
                }
                if self.chance(6) {
                    let now_ms = self.now_ms;
                    for (n, p) in [(a, b), (b, a)] {
                        let device = self.nodes[n].devices[index].as_mut().unwrap();
                        let at = &mut device.peers.get_mut(&p).unwrap().handshake_ms;
                        *at = Some(at.filter(|at| now_ms - at < REKEY_MS).unwrap_or(now_ms));
                    }
                }
            }
        }
    }

    pub(crate) fn all_pairs(&self) -> Vec<(usize, usize)> {
        let all = 0..self.nodes.len();
        all.clone().flat_map(|a| all.clone().filter(move |b| a < *b).map(move |b| (a, b))).collect()
    }

    /// Who reached each other still does.
    fn check(&mut self) {
        for (a, b) in self.all_pairs() {
            let reach = (self.reaches(a, b), self.reaches(b, a));
            if self.joined.contains(&(a, b)) {
                assert_eq!(
                    reach,
                    (true, true),
                    "{} s: {a} and {b} lost each other\n{}",
                    self.now_ms / 1_000,
                    self.picture()
                );
            } else if reach == (true, true) && !self.cut.contains(&(a, b)) {
                let late = |n: usize| {
                    self.nodes[n].outage.is_some_and(|(_, since)| self.now_ms - since >= MISSED_MS)
                };
                let just_healed = self.now_ms - self.healed_ms < HEALTHY_MS;
                // Who missed changes has caught up when they speak with the newest key, and may be cut off once more before.
                // Others have no such excuse, be the keys changed as often as may be.
                let newest = self.nodes.iter().filter_map(|node| node.keys.keys().last()).max();
                let has_moved = |n: usize, p: usize| self.nodes[n].routes.get(&p) == newest;
                let pair = [(a, b), (b, a)];
                let is_excused = pair.iter().any(|pair| self.excused.contains(pair));
                let has_caught_up = has_moved(a, b) && has_moved(b, a) && !just_healed;
                if !late(a) && !late(b) && (has_caught_up || !is_excused) {
                    self.joined.insert((a, b));
                    pair.iter().for_each(|pair| _ = self.excused.remove(pair));
                }
            }
        }
    }

    pub(crate) fn picture(&self) -> String {
        let node = |n: usize| {
            let Node { keys, routes, devices, .. } = &self.nodes[n];
            format!(
                "{n}: keys {keys:?} routes {routes:?} record {:?} devices {devices:?}\n",
                self.records[n].last()
            )
        };
        (0..self.nodes.len()).map(node).collect()
    }

    pub(crate) fn happen(&mut self, event: &Event) {
        let count = self.nodes.len();
        match *event {
            Event::CutNet(a, b) if a % count != b % count => {
                let pair = ((a % count).min(b % count), (a % count).max(b % count));
                self.cut.insert(pair);
                self.joined.remove(&pair);
                self.excused.extend([pair, (pair.1, pair.0)]);
            }
            Event::CutNet(..) => {}
            Event::CutStore(n) => self.nodes[n % count].has_store = false,
            Event::HealNet => {
                self.cut.clear();
                self.healed_ms = self.now_ms;
            }
            Event::HealStore(n) => {
                self.nodes[n % count].has_store = true;
                self.list(n % count);
            }
            Event::KillNetd(n) => self.nodes[n % count].netd = None,
            Event::Off(n) => self.off(n % count),
            Event::On(n) => {
                self.nodes[n % count].is_on = true;
                self.start(n % count);
            }
            Event::RestartDevices(n) => {
                // A handshake is lost with the process; until the next one packets wait for it.
                for device in self.nodes[n % count].devices.iter_mut().flatten() {
                    device.peers.values_mut().for_each(|peer| peer.handshake_ms = None);
                }
            }
            Event::Rotate(n) => self.nodes[n % count].rotate = true,
            Event::StartNetd(n) => self.start(n % count),
            Event::Wipe(n) => {
                self.off(n % count);
                self.nodes[n % count].keys.clear();
                self.nodes[n % count].is_on = true;
                self.start(n % count);
                // New, and it has just read all that there is: nothing was missed.
                if self.nodes[n % count].has_store {
                    self.excused.retain(|(missed, _)| *missed != n % count);
                }
            }
        }
    }

    fn off(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        (node.is_on, node.netd, node.devices) = (false, None, [None, None]);
        node.routes.clear();
        self.excuse(n);
    }

    /// netd starts with the store's content, or with what it knew last.
    fn start(&mut self, n: usize) {
        if self.nodes[n].netd.is_none() && self.nodes[n].is_on {
            self.nodes[n].netd = Some(Generations::default());
            self.nodes[n].told.clear();
            if self.nodes[n].has_store {
                self.list(n);
            }
        }
    }

    pub(crate) fn heal(&mut self) {
        self.happen(&Event::HealNet);
        for n in 0..self.nodes.len() {
            for event in [Event::HealStore(n), Event::On(n), Event::StartNetd(n)] {
                self.happen(&event);
            }
        }
    }

    pub(crate) fn seconds(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.pass();
        }
    }

    /// All pairs over one generation, which is the only one that anybody holds.
    pub(crate) fn assert_settled(&self) -> u64 {
        let newest = self.nodes.iter().filter_map(|node| node.keys.keys().last()).max().copied().unwrap();
        for (n, node) in self.nodes.iter().enumerate() {
            assert!(node.keys.keys().eq([&newest]), "node {n}, newest {newest}\n{}", self.picture());
        }
        for (a, b) in self.all_pairs() {
            assert!(self.reaches(a, b) && self.reaches(b, a), "{a} and {b}\n{}", self.picture());
        }
        newest
    }
}
