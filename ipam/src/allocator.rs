// SPDX-License-Identifier: Apache-2.0
//! All blocks of this node, and who has which address.
//!
//! Invariants: an address has at most one owner, and an owner at most one address of each family; all addresses of an
//! owner come, change and go in one journal line; a released address is not given again before its cool-down is over;
//! nothing new comes from a block that is `releasing` or whose pool drains; every change of state is a
//! [`JournalEntry`], and replaying them gives an equal allocator. (Which pools drain is told by the store, not by the
//! journal.)

mod choose;
mod lookup;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::Value;
use uuid::Uuid;

use crate::address;
use crate::block::{BLOCK_SCHEMA, BlockRecord, BlockState, Usage};
use crate::error::{AddBlockError, AllocateError};
use crate::family::Family;
use crate::journal::JournalEntry;
use crate::owner::{Owner, duplicate_of};
use crate::pool::PoolState;
use crate::time::Timestamp;
use crate::want::{AddressRange, Want};

/// With fewer free addresses of a family than this a node claims another block ahead: a burst of pods on one node then finds
/// addresses even while the store is away.
pub const SPARE_MIN: usize = 16;

/// No node lives to count changes this far: a journal with a higher number was forged, and the count stays here.
pub(crate) const SEQUENCE_MAX: u64 = 1 << 62;

/// Addresses of this node's blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocator {
    pub(crate) node: Uuid,
    pub(crate) cool_down: Duration,
    pub(crate) next_sequence: u64,
    pub(crate) blocks: BTreeMap<IpNet, Block>,
    pub(crate) owners: BTreeMap<Owner, Places>,
    pub(crate) draining: BTreeSet<String>,
}

/// Where an owner's addresses are: block and offset, by family. Never empty.
pub(crate) type Places = BTreeMap<Family, (IpNet, u32)>;

/// What the allocator knows of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) pool: String,
    pub(crate) epoch: u64,
    pub(crate) state: BlockState,
    pub(crate) extra: BTreeMap<String, Value>,
    pub(crate) size: u32,
    pub(crate) used: BTreeMap<u32, Used>,
    pub(crate) released: BTreeMap<u32, Released>,
}

/// An address with an owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) owner: Owner,
    pub(crate) phase: Phase,
    pub(crate) sequence: u64,
    pub(crate) since: Timestamp,
}

/// An address that was given back and not given again since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Released {
    pub(crate) owner: Owner,
    pub(crate) sequence: u64,
    pub(crate) at: Timestamp,
}

/// How far an allocation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// In use.
    Committed,
    /// Given out; the attachment is not made yet.
    Pending,
}

/// An address and who has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The address.
    pub ip: IpAddr,
    /// Who has it.
    pub owner: Owner,
    /// How far it has come.
    pub phase: Phase,
    /// Since when it is in that phase; zero for allocations taken over with a block.
    pub since: Timestamp,
}

impl Allocator {
    /// An allocator without blocks. `cool_down` is how long a released address rests before it is given again.
    pub fn new(node: Uuid, cool_down: Duration) -> Allocator {
        Allocator {
            node,
            cool_down,
            next_sequence: 1,
            blocks: BTreeMap::new(),
            owners: BTreeMap::new(),
            draining: BTreeSet::new(),
        }
    }

    /// Tells what the store says of a pool: from blocks of a draining one nothing new is given. Not in the journal; tell it
    /// again after [`Allocator::rebuild`].
    pub fn set_pool_state(&mut self, name: &str, state: PoolState) {
        match state {
            PoolState::Active => drop(self.draining.remove(name)),
            PoolState::Draining => drop(self.draining.insert(name.to_owned())),
        }
    }

    /// Takes a block that this node owns in the store. A block that is known keeps its allocations (the journal wins
    /// over the mirror) and takes state and unknown fields of the record. `None` where nothing changed.
    ///
    /// An allocation of the record whose owner already has another address is kept out of use as reserved.
    pub fn add_block(&mut self, record: BlockRecord) -> Result<Option<JournalEntry>, AddBlockError> {
        self.check_block(&record)?;
        let Some(known) = self.blocks.get_mut(&record.cidr) else {
            let entry = JournalEntry::Block { record: record.clone() };
            self.insert_block(record);
            return Ok(Some(entry));
        };
        if known.state == record.state && known.extra == record.extra && known.pool == record.pool {
            return Ok(None);
        }
        known.state = record.state;
        known.extra = record.extra;
        known.pool = record.pool;
        Ok(self.mirror(&record.cidr).map(|record| JournalEntry::Block { record }))
    }

    /// Drops a block with everything in it. `None` where there is none. An owner keeps its address of another family.
    pub fn remove_block(&mut self, cidr: &IpNet) -> Option<JournalEntry> {
        self.blocks.remove(cidr)?;
        for places in self.owners.values_mut() {
            places.retain(|_, (block, _)| block != cidr);
        }
        self.owners.retain(|_, places| !places.is_empty());
        Some(JournalEntry::BlockRemoved { cidr: *cidr })
    }

    /// Gives an owner that has nothing one address of each family it wants, all or nothing, IPv4 first; pending until
    /// [`Allocator::commit`]. Addresses never used come first, in order; then the one that was released longest ago.
    ///
    /// Write the entries durably before the addresses are told to anyone. If that fails, give them back with
    /// [`Allocator::release`].
    pub fn allocate(
        &mut self,
        owner: &Owner,
        want: &Want,
        now: Timestamp,
    ) -> Result<(Vec<IpAddr>, Vec<JournalEntry>), AllocateError> {
        let known = self.addresses_of(owner);
        if !known.is_empty() {
            return Err(AllocateError::AlreadyAllocated(known));
        }
        let choices = want.choices()?;
        let chosen = choices.iter().map(|(family, choice)| self.choose(*family, choice, now));
        let chosen: Vec<(IpNet, u32)> = chosen.collect::<Result<_, _>>()?;
        Ok(self.take(&chosen, owner, now))
    }

    /// Gives this node its overlay addresses: of each family the first address of its first block, or any where that one
    /// is in use. What it has it keeps, whatever blocks come later: the result holds only what was missing.
    pub fn allocate_node_addresses(
        &mut self,
        families: &BTreeSet<Family>,
        now: Timestamp,
    ) -> Result<(Vec<IpAddr>, Vec<JournalEntry>), AllocateError> {
        let owner = Owner::Node(self.node);
        let mut chosen = Vec::new();
        for family in families {
            if self.place_of(&owner, *family).is_none() {
                chosen.push(self.choose_for_node(*family, now)?);
            }
        }
        Ok(self.take(&chosen, &owner, now))
    }

    /// The owner's pending addresses are in use now. Nothing where it has none or where that was known.
    pub fn commit(&mut self, owner: &Owner, now: Timestamp) -> Vec<JournalEntry> {
        let sequence = self.next_sequence;
        let mut committed = Vec::new();
        for (cidr, ordinal) in self.owners.get(owner).into_iter().flat_map(BTreeMap::values) {
            let block = self.blocks.get_mut(cidr);
            let Some(used) = block.and_then(|block| block.used.get_mut(ordinal)) else { continue };
            if used.phase == Phase::Pending {
                used.phase = Phase::Committed;
                used.sequence = sequence;
                used.since = now;
                committed.extend(address::at(cidr, u128::from(*ordinal)));
            }
        }
        let Some((ip, also)) = split_first(committed) else { return Vec::new() };
        self.next_sequence = after(sequence);
        vec![JournalEntry::Commit { sequence, at: now, ip, also, owner: owner.clone() }]
    }

    /// Takes all addresses of the owner back; their cool-down begins. `None` where it has none.
    pub fn release(&mut self, owner: &Owner, now: Timestamp) -> Option<(Vec<IpAddr>, Vec<JournalEntry>)> {
        let places = self.owners.remove(owner)?;
        let sequence = self.next_sequence;
        let mut ips = Vec::new();
        for (cidr, ordinal) in places.values() {
            let Some(block) = self.blocks.get_mut(cidr) else { continue };
            block.used.remove(ordinal);
            block.released.insert(*ordinal, Released { owner: owner.clone(), sequence, at: now });
            ips.extend(address::at(cidr, u128::from(*ordinal)));
        }
        let (ip, also) = split_first(ips.clone())?;
        self.next_sequence = after(sequence);
        Some((ips, vec![JournalEntry::Release { sequence, at: now, ip, also, owner: owner.clone() }]))
    }

    /// Takes back the owner's address of one family alone; the other it keeps. `None` where it has none of that family.
    pub fn release_family(
        &mut self,
        owner: &Owner,
        family: Family,
        now: Timestamp,
    ) -> Option<(IpAddr, JournalEntry)> {
        let places = self.owners.get_mut(owner)?;
        let (cidr, ordinal) = places.remove(&family)?;
        if places.is_empty() {
            self.owners.remove(owner);
        }
        let sequence = self.next_sequence;
        if let Some(block) = self.blocks.get_mut(&cidr) {
            block.used.remove(&ordinal);
            block.released.insert(ordinal, Released { owner: owner.clone(), sequence, at: now });
        }
        let ip = address::at(&cidr, u128::from(ordinal))?;
        self.next_sequence = after(sequence);
        Some((ip, JournalEntry::Release { sequence, at: now, ip, also: Vec::new(), owner: owner.clone() }))
    }

    /// Puts an address back on record as in use by an owner: a repair, whatever the cool-down or the pool's state. Nothing
    /// where that is known.
    pub fn restore(
        &mut self,
        owner: &Owner,
        ip: IpAddr,
        now: Timestamp,
    ) -> Result<Vec<JournalEntry>, AllocateError> {
        let family = Family::of(&ip);
        let unmet = || AllocateError::RangesUnmet { family, wanted: vec![AddressRange::only(ip)] };
        let place = self.locate(&ip).ok_or_else(unmet)?;
        let known = self.place_of(owner, family);
        if known.is_some_and(|known| known != place) {
            return Err(AllocateError::AlreadyAllocated(self.addresses_of(owner)));
        }
        if let Some(other) = self.lookup_address(&ip).filter(|found| found.owner != *owner) {
            return Err(AllocateError::InUse { ip, owner: other.owner });
        }
        let mut entries = if known.is_some() { Vec::new() } else { self.take(&[place], owner, now).1 };
        entries.extend(self.commit(owner, now));
        Ok(entries)
    }

    /// All addresses of `from` are `to`'s from now on, pending or committed as they are: an attachment's become a sticky
    /// name's. Nothing where `from` has none, or where `to` has one of the same family already.
    pub fn rename_owner(&mut self, from: &Owner, to: &Owner) -> Vec<JournalEntry> {
        if !self.move_addresses(from, to) {
            return Vec::new();
        }
        let sequence = self.next_sequence;
        self.next_sequence = after(sequence);
        vec![JournalEntry::Rename { sequence, from: from.clone(), to: to.clone() }]
    }

    /// False, and nothing is changed, where [`Allocator::rename_owner`] does nothing.
    pub(crate) fn move_addresses(&mut self, from: &Owner, to: &Owner) -> bool {
        let Some(places) = self.owners.get(from).cloned() else { return false };
        let clash = places.keys().any(|family| self.place_of(to, *family).is_some());
        if from == to || clash {
            return false;
        }
        self.owners.remove(from);
        for (cidr, ordinal) in places.values() {
            if let Some(used) = self.blocks.get_mut(cidr).and_then(|block| block.used.get_mut(ordinal)) {
                used.owner = to.clone();
            }
        }
        self.owners.entry(to.clone()).or_default().extend(places);
        true
    }

    pub(crate) fn check_block(&self, record: &BlockRecord) -> Result<(), AddBlockError> {
        let cidr = record.cidr;
        let invalid = |reason: String| AddBlockError::Invalid { cidr, reason };
        if record.schema != BLOCK_SCHEMA {
            return Err(invalid(format!("schema {} is not {BLOCK_SCHEMA}", record.schema)));
        }
        if record.owner != self.node {
            return Err(AddBlockError::ForeignOwner { cidr, owner: record.owner });
        }
        if cidr != cidr.trunc() || record.size() == 0 {
            return Err(invalid("the prefix has host bits or is too large".to_owned()));
        }
        if let Some((ordinal, _)) = record.allocations.last_key_value()
            && *ordinal >= record.size()
        {
            return Err(invalid(format!("allocation {ordinal} lies outside")));
        }
        if let Some(known) = self.blocks.get(&cidr) {
            let (ours, theirs) = (known.epoch, record.epoch);
            return if ours == theirs { Ok(()) } else { Err(AddBlockError::Epoch { cidr, ours, theirs }) };
        }
        match self.blocks.keys().find(|other| other.contains(&cidr) || cidr.contains(*other)) {
            Some(other) => Err(AddBlockError::Overlap { cidr, other: *other }),
            None => Ok(()),
        }
    }

    /// Takes over a block that was checked and is not known.
    pub(crate) fn insert_block(&mut self, record: BlockRecord) {
        let mut block = Block {
            size: record.size(),
            pool: record.pool,
            epoch: record.epoch,
            state: record.state,
            extra: record.extra,
            used: BTreeMap::new(),
            released: BTreeMap::new(),
        };
        for (ordinal, owner) in record.allocations {
            let family = Family::of_net(&record.cidr);
            let first =
                self.place_of(&owner, family).and_then(|(cidr, at)| address::at(&cidr, u128::from(at)));
            let owner = match first {
                Some(first) => duplicate_of(&owner, first, address::at(&record.cidr, u128::from(ordinal))),
                None => owner,
            };
            let places = self.owners.entry(owner.clone()).or_default();
            places.entry(family).or_insert((record.cidr, ordinal));
            let used = Used { owner, phase: Phase::Committed, sequence: 0, since: Timestamp(0) };
            block.used.insert(ordinal, used);
        }
        self.blocks.insert(record.cidr, block);
    }

    /// Gives chosen places, at most one of a family, to an owner that has none of these families.
    fn take(
        &mut self,
        chosen: &[(IpNet, u32)],
        owner: &Owner,
        now: Timestamp,
    ) -> (Vec<IpAddr>, Vec<JournalEntry>) {
        let sequence = self.next_sequence;
        let mut ips = Vec::new();
        for (cidr, ordinal) in chosen {
            let Some(block) = self.blocks.get_mut(cidr) else { continue };
            block.released.remove(ordinal);
            let used = Used { owner: owner.clone(), phase: Phase::Pending, sequence, since: now };
            block.used.insert(*ordinal, used);
            self.owners.entry(owner.clone()).or_default().insert(Family::of_net(cidr), (*cidr, *ordinal));
            ips.extend(address::at(cidr, u128::from(*ordinal)));
        }
        let Some((ip, also)) = split_first(ips.clone()) else { return (ips, Vec::new()) };
        self.next_sequence = after(sequence);
        (ips, vec![JournalEntry::Allocate { sequence, at: now, ip, also, owner: owner.clone() }])
    }
}

impl Block {
    fn usage(&self) -> Usage {
        let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        Usage {
            pool: self.pool.clone(),
            epoch: self.epoch,
            state: self.state,
            size: self.size,
            used: count(self.used.len()),
            pending: count(self.used.values().filter(|used| used.phase == Phase::Pending).count()),
            released: count(self.released.len()),
        }
    }

    /// Whether the address was never given out.
    fn is_fresh(&self, ordinal: u32) -> bool {
        !self.used.contains_key(&ordinal) && !self.released.contains_key(&ordinal)
    }
}

/// The number of the change that follows.
pub(crate) fn after(sequence: u64) -> u64 {
    sequence.saturating_add(1).min(SEQUENCE_MAX)
}

/// The first address of a journal line, and the others.
fn split_first(mut ips: Vec<IpAddr>) -> Option<(IpAddr, Vec<IpAddr>)> {
    if ips.is_empty() {
        return None;
    }
    let first = ips.remove(0);
    Some((first, ips))
}
