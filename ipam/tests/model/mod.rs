// SPDX-License-Identifier: Apache-2.0
//! Random steps of the allocator beside a naive set model, with a journal that is compacted, crashes and tears.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipam::{AllocateError, Allocator, BlockRecord, BlockState, JournalEntry, Owner, Timestamp, journal};
use ipnet::IpNet;
use proptest::prelude::*;

use super::{COOL_DOWN, NODE, block, pod};

const BLOCKS: [&str; 3] = ["10.244.1.0/30", "10.244.0.8/29", "10.244.7.0/30"];
const OWNERS: u32 = 16;

#[derive(Clone, Debug)]
enum Do {
    AddBlock(usize),
    Advance(u64),
    Allocate(u32),
    AllocateNode,
    Commit(u32),
    Compact,
    Crash { torn: usize },
    DropBlock(usize),
    Release(u32),
    Request(u32, usize, u32),
    Retire(usize),
}

fn steps() -> impl Strategy<Value = Vec<Do>> {
    let step = prop_oneof![
        3 => (0..BLOCKS.len()).prop_map(Do::AddBlock),
        4 => (0_u64..20_000).prop_map(Do::Advance),
        12 => (0..OWNERS).prop_map(Do::Allocate),
        1 => Just(Do::AllocateNode),
        6 => (0..OWNERS).prop_map(Do::Commit),
        1 => Just(Do::Compact),
        2 => (0_usize..60).prop_map(|torn| Do::Crash { torn }),
        1 => (0..BLOCKS.len()).prop_map(Do::DropBlock),
        8 => (0..OWNERS).prop_map(Do::Release),
        3 => (0..OWNERS, 0..BLOCKS.len(), 0_u32..8).prop_map(|(o, b, n)| Do::Request(o, b, n)),
        1 => (0..BLOCKS.len()).prop_map(Do::Retire),
    ];
    prop::collection::vec(step, 1..120)
}

/// What the allocator promises, said with plain sets.
#[derive(Default)]
struct Model {
    now: Timestamp,
    blocks: BTreeMap<IpNet, BlockState>,
    used: BTreeMap<IpAddr, Owner>,
    released: BTreeMap<IpAddr, (u64, Timestamp)>,
    releases: u64,
}

impl Model {
    fn address_of(&self, owner: &Owner) -> Option<IpAddr> {
        self.used.iter().find(|(_, known)| *known == owner).map(|(ip, _)| *ip)
    }

    fn cooling(&self, ip: &IpAddr) -> bool {
        self.released.get(ip).is_some_and(|(_, at)| self.now < at.plus(COOL_DOWN))
    }

    fn may_be_given(&self) -> BTreeSet<IpAddr> {
        let active = self.blocks.iter().filter(|(_, state)| **state == BlockState::Active);
        let all = active.flat_map(|(cidr, _)| addresses(cidr));
        all.filter(|ip| !self.used.contains_key(ip) && !self.cooling(ip)).collect()
    }

    /// The one to come next: never used ones by address, then by the time of release.
    fn next(&self) -> Option<IpAddr> {
        let order = |ip: &IpAddr| (self.released.get(ip).map_or(0, |(order, _)| *order), *ip);
        self.may_be_given().into_iter().min_by_key(order)
    }

    fn give(&mut self, ip: IpAddr, owner: &Owner) {
        assert_eq!(self.used.insert(ip, owner.clone()), None, "{ip} is given twice");
        self.released.remove(&ip);
    }
}

fn addresses(cidr: &IpNet) -> Vec<IpAddr> {
    let record = block(&cidr.to_string());
    (0..record.size()).filter_map(|ordinal| record.address(ordinal)).collect()
}

struct Run {
    allocator: Allocator,
    model: Model,
    journal: Vec<u8>,
}

impl Run {
    fn log(&mut self, entry: Option<JournalEntry>) {
        self.journal.extend(entry.iter().flat_map(|entry| entry.encode().into_bytes()));
    }

    fn given(
        &mut self,
        outcome: Result<(IpAddr, JournalEntry), AllocateError>,
        owner: &Owner,
    ) -> Option<IpAddr> {
        match outcome {
            Ok((ip, entry)) => {
                assert!(self.model.may_be_given().contains(&ip), "{ip} must not be given");
                self.model.give(ip, owner);
                self.log(Some(entry));
                Some(ip)
            }
            Err(AllocateError::AlreadyAllocated(ip)) => {
                assert_eq!(self.model.address_of(owner), Some(ip));
                None
            }
            Err(AllocateError::CoolingDown { ip, .. }) => {
                assert!(self.model.cooling(&ip));
                None
            }
            Err(AllocateError::InUse { ip, owner }) => {
                assert_eq!(self.model.used.get(&ip), Some(&owner));
                None
            }
            Err(AllocateError::Exhausted { .. }) => {
                assert_eq!(self.model.next(), None);
                None
            }
            Err(AllocateError::NotInBlocks(ip)) => {
                assert!(!self.model.may_be_given().contains(&ip));
                None
            }
        }
    }

    fn step(&mut self, step: Do) {
        let now = self.model.now;
        match step {
            Do::AddBlock(index) | Do::Retire(index) => {
                let state =
                    if matches!(step, Do::Retire(_)) { BlockState::Releasing } else { BlockState::Active };
                let record = BlockRecord { state, ..block(BLOCKS[index]) };
                self.model.blocks.insert(record.cidr, state);
                let entry = self.allocator.add_block(record).unwrap();
                self.log(entry);
            }
            Do::Advance(ms) => self.model.now = Timestamp(now.0 + ms),
            Do::Allocate(number) => {
                let owner = pod(number);
                let expected = self.model.next();
                let outcome = self.allocator.allocate(&owner, now);
                if let Some(ip) = self.given(outcome, &owner) {
                    assert_eq!(Some(ip), expected, "the order of reuse");
                }
            }
            Do::AllocateNode => {
                let outcome = self.allocator.allocate_node_address(now);
                self.given(outcome, &Owner::Node(NODE));
            }
            Do::Commit(number) => {
                let entry = self.allocator.commit(&pod(number), now);
                self.log(entry);
            }
            Do::Compact => {
                self.journal =
                    self.allocator.snapshot().iter().flat_map(|e| e.encode().into_bytes()).collect();
            }
            Do::Crash { torn } => self.crash(torn),
            Do::DropBlock(index) => {
                let cidr: IpNet = BLOCKS[index].parse().unwrap();
                self.model.blocks.remove(&cidr);
                self.model.used.retain(|ip, _| !cidr.contains(ip));
                self.model.released.retain(|ip, _| !cidr.contains(ip));
                let entry = self.allocator.remove_block(&cidr);
                self.log(entry);
            }
            Do::Release(number) => {
                let expected = self.model.address_of(&pod(number));
                let released = self.allocator.release(&pod(number), now);
                assert_eq!(released.as_ref().map(|(ip, _)| *ip), expected);
                if let Some((ip, entry)) = released {
                    self.model.used.remove(&ip);
                    self.model.releases += 1;
                    self.model.released.insert(ip, (self.model.releases, now));
                    self.log(Some(entry));
                }
            }
            Do::Request(number, index, ordinal) => {
                let Some(ip) = block(BLOCKS[index]).address(ordinal) else { return };
                let outcome = self.allocator.allocate_requested(&pod(number), ip, now);
                if let Some(given) = self.given(outcome, &pod(number)) {
                    assert_eq!(given, ip);
                }
            }
        }
    }

    /// The daemon dies while it writes an entry that nobody was answered for, and starts again.
    fn crash(&mut self, torn: usize) {
        let unanswered = self.allocator.clone().allocate(&pod(OWNERS), self.model.now);
        let mut disk = self.journal.clone();
        let mut is_torn = false;
        if let Ok((_, entry)) = unanswered {
            let line = entry.encode();
            is_torn = torn > 0;
            disk.extend(&line.as_bytes()[..torn.min(line.len() - 2)]);
        }
        let read = journal::read(&disk).unwrap();
        assert_eq!(read.dropped.is_some(), is_torn);
        assert_eq!(read.valid_bytes, self.journal.len());
        let rebuilt = Allocator::rebuild(NODE, COOL_DOWN, read.entries).unwrap();
        assert_eq!(rebuilt, self.allocator, "replay gives another allocator");
        self.allocator = rebuilt;
    }

    fn check(&self) {
        let used: BTreeMap<IpAddr, Owner> =
            self.allocator.allocations().map(|allocation| (allocation.ip, allocation.owner)).collect();
        assert_eq!(used, self.model.used);
        assert_eq!(self.allocator.free_count(self.model.now), self.model.may_be_given().len());
        for (ip, owner) in &used {
            assert_eq!(self.allocator.address_of(owner), Some(*ip));
        }
        let mirrored: usize = self
            .allocator
            .blocks()
            .filter_map(|(cidr, _)| self.allocator.mirror(&cidr))
            .map(|record| record.allocations.len())
            .sum();
        assert_eq!(mirrored, used.len());
    }
}

proptest! {
    #[test]
    fn random_steps_equal_the_set_model(steps in steps()) {
        let allocator = Allocator::new(NODE, COOL_DOWN);
        let model = Model { now: super::NOW, ..Model::default() };
        let mut run = Run { allocator, model, journal: Vec::new() };
        for step in steps {
            run.step(step);
            run.check();
        }
        run.crash(0);
        let again = Allocator::rebuild(NODE, COOL_DOWN, run.allocator.snapshot());
        prop_assert_eq!(again.as_ref(), Ok(&run.allocator), "a snapshot gives another allocator");
        let snapshot = run.allocator.snapshot();
        prop_assert_eq!(again.unwrap().snapshot(), snapshot);
    }
}
