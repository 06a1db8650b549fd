// SPDX-License-Identifier: Apache-2.0
//! Random steps of the allocator beside a naive set model, with a journal that is compacted, crashes and tears, a clock that
//! is set back, blocks that come and go, and pools that drain.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipam::{
    AddressRange, AllocateError, Allocator, BlockRecord, BlockState, Family, JournalEntry, Owner, Pool,
    PoolState, Timestamp, Want, journal,
};
use ipnet::IpNet;
use proptest::prelude::*;

use super::{COOL_DOWN, NODE, pod};

/// Blocks with their pools.
const BLOCKS: [(&str, &str); 5] = [
    ("four", "10.244.1.0/30"),
    ("four", "10.244.0.8/29"),
    ("other", "10.244.7.0/30"),
    ("six", "fd00::10/124"),
    ("six", "fd00::40/126"),
];
const POOLS: [&str; 3] = ["four", "other", "six"];
const OWNERS: u32 = 16;
const STICKY: u32 = 4;

#[derive(Clone, Debug)]
enum Do {
    AddBlock(usize),
    Advance(u64),
    Allocate { owner: u32, families: u8, wish: Wish },
    AllocateNode { families: u8 },
    ClockBack(u64),
    Commit(u32),
    Compact,
    Crash { torn: usize },
    Drain(usize, bool),
    DropBlock(usize),
    Release(u32),
    Rename(u32, u32),
    Retire(usize),
}

#[derive(Clone, Debug)]
enum Wish {
    Any,
    Exactly(usize, u32),
    Pair(u32, u32),
    Within(usize, u32, u32),
}

fn steps() -> impl Strategy<Value = Vec<Do>> {
    let blocks = 0..BLOCKS.len();
    let wish = prop_oneof![
        6 => Just(Wish::Any),
        2 => (blocks.clone(), 0_u32..17).prop_map(|(b, n)| Wish::Exactly(b, n)),
        2 => (0_u32..8, 0_u32..16).prop_map(|(n, m)| Wish::Pair(n, m)),
        2 => (blocks.clone(), 0_u32..16, 0_u32..16).prop_map(|(b, n, m)| Wish::Within(b, n, m)),
    ];
    let step = prop_oneof![
        4 => blocks.clone().prop_map(Do::AddBlock),
        4 => (0_u64..20_000).prop_map(Do::Advance),
        14 => (0..OWNERS, 1_u8..4, wish).prop_map(|(owner, families, wish)| Do::Allocate { owner, families, wish }),
        1 => (1_u8..4).prop_map(|families| Do::AllocateNode { families }),
        1 => (0_u64..90_000).prop_map(Do::ClockBack),
        6 => (0..OWNERS + STICKY).prop_map(Do::Commit),
        1 => Just(Do::Compact),
        2 => (0_usize..60).prop_map(|torn| Do::Crash { torn }),
        2 => (0..POOLS.len(), prop::bool::weighted(0.4)).prop_map(|(p, on)| Do::Drain(p, on)),
        1 => blocks.clone().prop_map(Do::DropBlock),
        8 => (0..OWNERS + STICKY).prop_map(Do::Release),
        2 => (0..OWNERS + STICKY, 0..OWNERS + STICKY).prop_map(|(from, to)| Do::Rename(from, to)),
        1 => blocks.prop_map(Do::Retire),
    ];
    prop::collection::vec(step, 1..140)
}

fn owner(number: u32) -> Owner {
    if number < OWNERS { pod(number) } else { Owner::Sticky(format!("name-{number}")) }
}

fn families(mask: u8) -> BTreeSet<Family> {
    [(1, Family::V4), (2, Family::V6)]
        .into_iter()
        .filter(|(bit, _)| mask & bit != 0)
        .map(|(_, f)| f)
        .collect()
}

fn record(index: usize, state: BlockState) -> BlockRecord {
    let (pool, cidr) = BLOCKS[index];
    let cidr: IpNet = cidr.parse().unwrap();
    BlockRecord { state, ..BlockRecord::claimed(&Pool::new(pool, cidr, None), cidr, NODE) }
}

fn address(index: usize, ordinal: u32) -> Option<IpAddr> {
    record(index, BlockState::Active).address(ordinal)
}

/// What the allocator promises, said with plain sets.
#[derive(Clone, Default)]
struct Model {
    now: Timestamp,
    blocks: BTreeMap<IpNet, (BlockState, &'static str)>,
    draining: BTreeSet<&'static str>,
    used: BTreeMap<IpAddr, Owner>,
    released: BTreeMap<IpAddr, (u64, Timestamp)>,
    releases: u64,
}

impl Model {
    fn addresses_of(&self, owner: &Owner) -> Vec<IpAddr> {
        self.used.iter().filter(|(_, known)| *known == owner).map(|(ip, _)| *ip).collect()
    }

    fn cooling(&self, ip: &IpAddr) -> bool {
        self.released
            .get(ip)
            .is_some_and(|(_, at)| self.now < at.plus(COOL_DOWN) && *at <= self.now.plus(COOL_DOWN))
    }

    fn open(&self, cidr: &IpNet) -> bool {
        self.blocks
            .get(cidr)
            .is_some_and(|(state, pool)| *state == BlockState::Active && !self.draining.contains(pool))
    }

    fn may_be_given(&self, family: Family) -> BTreeSet<IpAddr> {
        let open = self.blocks.keys().filter(|cidr| self.open(cidr) && Family::of_net(cidr) == family);
        let all = open.flat_map(addresses);
        all.filter(|ip| !self.used.contains_key(ip) && !self.cooling(ip)).collect()
    }

    /// The one to come next: never used ones by address, then by the time of release.
    fn next(&self, family: Family, allowed: impl Fn(&IpAddr) -> bool) -> Option<IpAddr> {
        let order = |ip: &IpAddr| (self.released.get(ip).map_or(0, |(order, _)| *order), *ip);
        self.may_be_given(family).into_iter().filter(|ip| allowed(ip)).min_by_key(order)
    }

    fn give(&mut self, ip: IpAddr, owner: &Owner) {
        assert_eq!(self.used.insert(ip, owner.clone()), None, "{ip} is given twice");
        self.released.remove(&ip);
    }
}

fn addresses(cidr: &IpNet) -> Vec<IpAddr> {
    let record = BlockRecord::claimed(&Pool::new("x", *cidr, None), *cidr, NODE);
    (0..record.size()).filter_map(|ordinal| record.address(ordinal)).collect()
}

struct Run {
    allocator: Allocator,
    model: Model,
    journal: Vec<JournalEntry>,
    /// Who had what after each line since the last compaction, which is line `from`.
    history: Vec<BTreeMap<IpAddr, Owner>>,
    from: usize,
}

impl Run {
    fn new() -> Run {
        let model = Model { now: super::NOW, ..Model::default() };
        let allocator = Allocator::new(NODE, COOL_DOWN);
        Run { allocator, model, journal: Vec::new(), history: vec![BTreeMap::new()], from: 0 }
    }

    /// Every step writes one line at most: a crash has nothing to cut in half.
    fn log(&mut self, entries: Vec<JournalEntry>) {
        assert!(entries.len() <= 1, "{entries:?}");
        for entry in entries {
            self.journal.push(entry);
            self.history.push(self.model.used.clone());
        }
    }

    fn bytes(&self) -> Vec<u8> {
        self.journal.iter().flat_map(|entry| entry.encode().into_bytes()).collect()
    }

    fn step(&mut self, step: Do) {
        let now = self.model.now;
        match step {
            Do::AddBlock(index) | Do::Retire(index) => {
                let state =
                    if matches!(step, Do::Retire(_)) { BlockState::Releasing } else { BlockState::Active };
                let record = record(index, state);
                self.model.blocks.insert(record.cidr, (state, BLOCKS[index].0));
                let entry = self.allocator.add_block(record).unwrap();
                self.log(entry.into_iter().collect());
            }
            Do::Advance(ms) => self.model.now = Timestamp(now.0 + ms),
            Do::Allocate { owner: number, families: mask, wish } => {
                if let Some(want) = want(&families(mask), &wish) {
                    self.allocate(&owner(number), &want);
                }
            }
            Do::AllocateNode { families: mask } => self.allocate_node(&families(mask)),
            Do::ClockBack(ms) => self.model.now = Timestamp(now.0 - ms.min(now.0)),
            Do::Commit(number) => {
                let entries = self.allocator.commit(&owner(number), now);
                self.log(entries);
            }
            Do::Compact => {
                self.journal = self.allocator.snapshot();
                self.from = self.journal.len();
                self.history = vec![self.model.used.clone()];
            }
            Do::Crash { torn } => self.crash(torn),
            Do::Drain(index, on) => {
                let state = if on { PoolState::Draining } else { PoolState::Active };
                self.allocator.set_pool_state(POOLS[index], state);
                let _ = if on {
                    self.model.draining.insert(POOLS[index])
                } else {
                    self.model.draining.remove(POOLS[index])
                };
            }
            Do::DropBlock(index) => {
                let cidr: IpNet = BLOCKS[index].1.parse().unwrap();
                self.model.blocks.remove(&cidr);
                self.model.used.retain(|ip, _| !cidr.contains(ip));
                self.model.released.retain(|ip, _| !cidr.contains(ip));
                let entry = self.allocator.remove_block(&cidr);
                self.log(entry.into_iter().collect());
            }
            Do::Release(number) => {
                let expected = self.model.addresses_of(&owner(number));
                let released = self.allocator.release(&owner(number), now);
                assert_eq!(released.as_ref().map_or(&[][..], |(ips, _)| ips), expected);
                if let Some((ips, entries)) = released {
                    self.model.releases += 1;
                    for ip in ips {
                        self.model.used.remove(&ip);
                        self.model.released.insert(ip, (self.model.releases, now));
                    }
                    self.log(entries);
                }
            }
            Do::Rename(from, to) => {
                let (from, to) = (owner(from), owner(to));
                let has = |owner: &Owner, family| {
                    self.allocator.addresses_of(owner).iter().any(|ip| Family::of(ip) == family)
                };
                let clash = [Family::V4, Family::V6].iter().any(|f| has(&from, *f) && has(&to, *f));
                let moves = from != to && !clash && !self.model.addresses_of(&from).is_empty();
                let entries = self.allocator.rename_owner(&from, &to);
                assert_eq!(!entries.is_empty(), moves);
                if moves {
                    self.model
                        .used
                        .values_mut()
                        .filter(|owner| **owner == from)
                        .for_each(|owner| *owner = to.clone());
                }
                self.log(entries);
            }
        }
    }

    fn allocate(&mut self, owner: &Owner, want: &Want) {
        let now = self.model.now;
        let expected = |family: Family| {
            self.model.next(family, |ip| {
                let asked = want.requested.iter().find(|asked| Family::of(asked) == family);
                let set = want.ranges.iter().find(|set| Family::of(&set[0].first) == family);
                asked.is_none_or(|asked| asked == ip)
                    && set.is_none_or(|set| set.iter().any(|r| r.contains(ip)))
            })
        };
        let has_none = self.model.addresses_of(owner).is_empty();
        let expected: Vec<Option<IpAddr>> = want.families.iter().map(|family| expected(*family)).collect();
        assert_eq!(self.allocator.can_allocate(want, now), expected.iter().all(Option::is_some));
        match self.allocator.allocate(owner, want, now) {
            Ok((ips, entries)) => {
                assert!(has_none);
                assert_eq!(ips.iter().copied().map(Some).collect::<Vec<_>>(), expected, "the order of reuse");
                for ip in ips {
                    self.model.give(ip, owner);
                }
                self.log(entries);
            }
            Err(AllocateError::AlreadyAllocated(ips)) => assert_eq!(self.model.addresses_of(owner), ips),
            Err(error) => {
                assert!(has_none && expected.contains(&None), "{error}");
                self.refused(&error);
            }
        }
    }

    /// The reason that is given is true.
    fn refused(&self, error: &AllocateError) {
        let model = &self.model;
        match error {
            AllocateError::BlockCloses { ip, block } => assert!(block.contains(ip) && !model.open(block)),
            AllocateError::CoolingDown { ip, .. } => assert!(model.cooling(ip)),
            AllocateError::Exhausted { family, .. } => assert_eq!(model.next(*family, |_| true), None),
            AllocateError::InUse { ip, owner } => assert_eq!(model.used.get(ip), Some(owner)),
            AllocateError::RangesUnmet { family, wanted } => {
                assert_eq!(model.next(*family, |ip| wanted.iter().any(|range| range.contains(ip))), None);
            }
            other => panic!("{other}"),
        }
    }

    fn allocate_node(&mut self, families: &BTreeSet<Family>) {
        let owner = Owner::Node(NODE);
        let had: BTreeSet<Family> = self.model.addresses_of(&owner).iter().map(Family::of).collect();
        let missing: Vec<Family> = families.difference(&had).copied().collect();
        match self.allocator.allocate_node_addresses(families, self.model.now) {
            Ok((ips, entries)) => {
                assert_eq!(ips.iter().map(Family::of).collect::<Vec<_>>(), missing);
                for ip in ips {
                    assert!(self.model.may_be_given(Family::of(&ip)).contains(&ip), "{ip} must not be given");
                    self.model.give(ip, &owner);
                }
                self.log(entries);
            }
            Err(error) => self.refused(&error),
        }
    }

    /// The daemon dies while it writes a line that nobody was answered for, and starts again.
    fn crash(&mut self, torn: usize) {
        let valid = self.bytes();
        let mut disk = valid.clone();
        let mut is_torn = false;
        let want = Want::any(families(3));
        if let Ok((_, entries)) = self.allocator.clone().allocate(&pod(OWNERS), &want, self.model.now) {
            let line = entries[0].encode();
            is_torn = torn > 0;
            disk.extend(&line.as_bytes()[..torn.min(line.len() - 2)]);
        }
        let read = journal::read(&disk).unwrap();
        assert_eq!(read.dropped.is_some(), is_torn);
        assert_eq!(read.valid_bytes, valid.len());
        let mut rebuilt = Allocator::rebuild(NODE, COOL_DOWN, read.entries).unwrap();
        for pool in &self.model.draining {
            rebuilt.set_pool_state(pool, PoolState::Draining);
        }
        assert_eq!(rebuilt, self.allocator, "replay gives another allocator");
        self.allocator = rebuilt;
    }

    fn check(&self) {
        let used: BTreeMap<IpAddr, Owner> =
            self.allocator.allocations().map(|allocation| (allocation.ip, allocation.owner)).collect();
        assert_eq!(used, self.model.used);
        let mut by_owner: BTreeMap<&Owner, Vec<IpAddr>> = BTreeMap::new();
        for (ip, owner) in &used {
            by_owner.entry(owner).or_default().push(*ip);
        }
        for (owner, ips) in by_owner {
            assert_eq!(self.allocator.addresses_of(owner), ips);
            let families: BTreeSet<Family> = ips.iter().map(Family::of).collect();
            assert_eq!(families.len(), ips.len(), "{owner} has two addresses of a family");
        }
        for family in [Family::V4, Family::V6] {
            let free = self.model.may_be_given(family).len();
            assert_eq!(self.allocator.free_count(family, self.model.now), free);
        }
        let mirrors = self.allocator.blocks().filter_map(|(cidr, _)| self.allocator.mirror(&cidr));
        assert_eq!(mirrors.map(|record| record.allocations.len()).sum::<usize>(), used.len());
    }

    /// Whatever line was the last one on disk: it was the state of some moment, whole, with nobody's half in it.
    fn check_every_prefix(&self) {
        for (lines, used) in self.history.iter().enumerate() {
            let prefix = self.journal[..self.from + lines].iter().cloned();
            let rebuilt = Allocator::rebuild(NODE, COOL_DOWN, prefix).unwrap();
            let found: BTreeMap<IpAddr, Owner> = rebuilt.allocations().map(|it| (it.ip, it.owner)).collect();
            assert_eq!(found, *used, "after {lines} lines");
        }
    }
}

/// `None` where the wish makes no sense (an address that does not exist).
fn want(families: &BTreeSet<Family>, wish: &Wish) -> Option<Want> {
    match wish {
        Wish::Any => Some(Want::any(families.iter().copied())),
        Wish::Exactly(index, ordinal) => {
            // An ordinal behind the block's end stands for an address in no block.
            let ip = address(*index, *ordinal).unwrap_or("10.250.0.1".parse().unwrap());
            let families = families.iter().copied().chain([Family::of(&ip)]);
            Some(Want { requested: vec![ip], ..Want::any(families) })
        }
        Wish::Pair(v4, v6) => Some(Want::exactly([address(1, *v4)?, address(3, *v6)?])),
        Wish::Within(index, first, last) => {
            let range = AddressRange {
                first: address(*index, *first.min(last))?,
                last: address(*index, *first.max(last))?,
            };
            let families = families.iter().copied().chain([Family::of(&range.first)]);
            Some(Want { ranges: vec![vec![range]], ..Want::any(families) })
        }
    }
}

proptest! {
    #[test]
    fn random_steps_equal_the_set_model(steps in steps()) {
        let mut run = Run::new();
        for step in steps {
            run.step(step);
            run.check();
        }
        run.check_every_prefix();
        run.crash(0);
        let again = Allocator::rebuild(NODE, COOL_DOWN, run.allocator.snapshot());
        let mut again = again.unwrap();
        for pool in &run.model.draining {
            again.set_pool_state(pool, PoolState::Draining);
        }
        prop_assert_eq!(&again, &run.allocator, "a snapshot gives another allocator");
        prop_assert_eq!(again.snapshot(), run.allocator.snapshot());
    }
}
