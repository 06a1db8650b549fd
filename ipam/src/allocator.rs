// SPDX-License-Identifier: Apache-2.0
//! All blocks of this node, and who has which address.
//!
//! Invariants: an address has at most one owner, and an owner at most one address; a released address is not given
//! again before its cool-down is over; nothing new comes from a block that is `releasing`; every change of state is
//! a [`JournalEntry`], and replaying them gives an equal allocator.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::Value;
use uuid::Uuid;

use crate::address;
use crate::block::{BLOCK_SCHEMA, BlockRecord, BlockState, Usage};
use crate::error::{AddBlockError, AllocateError};
use crate::journal::JournalEntry;
use crate::owner::{Owner, duplicate_of};
use crate::time::Timestamp;

/// With fewer free addresses than this a node claims another block ahead: a burst of pods on one node then finds
/// addresses even while the store is away.
pub const SPARE_MIN: usize = 16;

/// Addresses of this node's blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocator {
    pub(crate) node: Uuid,
    pub(crate) cool_down: Duration,
    pub(crate) next_sequence: u64,
    pub(crate) blocks: BTreeMap<IpNet, Block>,
    pub(crate) owners: BTreeMap<Owner, (IpNet, u32)>,
}

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
        Allocator { node, cool_down, next_sequence: 1, blocks: BTreeMap::new(), owners: BTreeMap::new() }
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

    /// Drops a block with everything in it. `None` where there is none.
    pub fn remove_block(&mut self, cidr: &IpNet) -> Option<JournalEntry> {
        self.blocks.remove(cidr)?;
        self.owners.retain(|_, (block, _)| block != cidr);
        Some(JournalEntry::BlockRemoved { cidr: *cidr })
    }

    /// Gives an address to an owner that has none, pending until [`Allocator::commit`]. Addresses never used come
    /// first, in order; then the one that was released longest ago.
    ///
    /// Write the entry durably before the address is told to anyone. If that fails, give it back with
    /// [`Allocator::release`].
    pub fn allocate(
        &mut self,
        owner: &Owner,
        now: Timestamp,
    ) -> Result<(IpAddr, JournalEntry), AllocateError> {
        if let Some(ip) = self.address_of(owner) {
            return Err(AllocateError::AlreadyAllocated(ip));
        }
        let (cidr, ordinal) = self.pick(now).ok_or_else(|| self.exhausted(now))?;
        self.take(cidr, ordinal, owner, now).ok_or_else(|| self.exhausted(now))
    }

    /// As [`Allocator::allocate`], with an address of the caller's choice.
    pub fn allocate_requested(
        &mut self,
        owner: &Owner,
        ip: IpAddr,
        now: Timestamp,
    ) -> Result<(IpAddr, JournalEntry), AllocateError> {
        if let Some(ip) = self.address_of(owner) {
            return Err(AllocateError::AlreadyAllocated(ip));
        }
        let (cidr, ordinal) = self.locate(&ip).ok_or(AllocateError::NotInBlocks(ip))?;
        let block = &self.blocks[&cidr];
        if let Some(used) = block.used.get(&ordinal) {
            return Err(AllocateError::InUse { ip, owner: used.owner.clone() });
        }
        if block.state != BlockState::Active {
            return Err(AllocateError::NotInBlocks(ip));
        }
        if let Some(released) = block.released.get(&ordinal)
            && !self.is_cool(released, now)
        {
            let wait = released.at.plus(self.cool_down).since(now);
            return Err(AllocateError::CoolingDown { ip, wait });
        }
        self.take(cidr, ordinal, owner, now).ok_or(AllocateError::NotInBlocks(ip))
    }

    /// Gives this node its overlay address: the first address of its first block, or any where that one is in use.
    /// A node that has one keeps it ([`AllocateError::AlreadyAllocated`] says which), whatever blocks come later.
    pub fn allocate_node_address(&mut self, now: Timestamp) -> Result<(IpAddr, JournalEntry), AllocateError> {
        let owner = Owner::Node(self.node);
        let first = self.blocks.iter().find(|(_, block)| block.state == BlockState::Active);
        if let Some(first) = first.map(|(cidr, _)| cidr.network()) {
            match self.allocate_requested(&owner, first, now) {
                Err(AllocateError::InUse { .. } | AllocateError::CoolingDown { .. }) => {}
                outcome => return outcome,
            }
        }
        self.allocate(&owner, now)
    }

    /// The owner's pending address is in use now. `None` where it has none or where that was known.
    pub fn commit(&mut self, owner: &Owner, now: Timestamp) -> Option<JournalEntry> {
        let (cidr, ordinal) = *self.owners.get(owner)?;
        let sequence = self.next_sequence;
        let used = self.blocks.get_mut(&cidr)?.used.get_mut(&ordinal)?;
        if used.phase == Phase::Committed {
            return None;
        }
        used.phase = Phase::Committed;
        used.sequence = sequence;
        used.since = now;
        self.next_sequence += 1;
        let ip = address::at(&cidr, u128::from(ordinal))?;
        Some(JournalEntry::Commit { sequence, at: now, ip, owner: owner.clone() })
    }

    /// Takes the owner's address back; its cool-down begins. `None` where it has none.
    pub fn release(&mut self, owner: &Owner, now: Timestamp) -> Option<(IpAddr, JournalEntry)> {
        let (cidr, ordinal) = self.owners.remove(owner)?;
        let sequence = self.next_sequence;
        let block = self.blocks.get_mut(&cidr)?;
        block.used.remove(&ordinal);
        block.released.insert(ordinal, Released { owner: owner.clone(), sequence, at: now });
        self.next_sequence += 1;
        let ip = address::at(&cidr, u128::from(ordinal))?;
        Some((ip, JournalEntry::Release { sequence, at: now, ip, owner: owner.clone() }))
    }

    /// Whose allocator this is.
    pub fn node(&self) -> Uuid {
        self.node
    }

    /// The address of an owner, pending or committed.
    pub fn address_of(&self, owner: &Owner) -> Option<IpAddr> {
        let (cidr, ordinal) = self.owners.get(owner)?;
        address::at(cidr, u128::from(*ordinal))
    }

    /// The allocation of an owner.
    pub fn lookup(&self, owner: &Owner) -> Option<Allocation> {
        let (cidr, ordinal) = self.owners.get(owner)?;
        let used = self.blocks.get(cidr)?.used.get(ordinal)?;
        allocation(cidr, *ordinal, used)
    }

    /// The allocation of an address.
    pub fn lookup_address(&self, ip: &IpAddr) -> Option<Allocation> {
        let (cidr, ordinal) = self.locate(ip)?;
        allocation(&cidr, ordinal, self.blocks.get(&cidr)?.used.get(&ordinal)?)
    }

    /// All allocations, in the order of their addresses.
    pub fn allocations(&self) -> impl Iterator<Item = Allocation> {
        self.blocks.iter().flat_map(|(cidr, block)| {
            block.used.iter().filter_map(|(ordinal, used)| allocation(cidr, *ordinal, used))
        })
    }

    /// Allocations that are not committed yet.
    pub fn pending(&self) -> impl Iterator<Item = Allocation> {
        self.allocations().filter(|allocation| allocation.phase == Phase::Pending)
    }

    /// The blocks and how full they are.
    pub fn blocks(&self) -> impl Iterator<Item = (IpNet, Usage)> {
        self.blocks.iter().map(|(cidr, block)| (*cidr, block.usage()))
    }

    /// What the store should hold of a block. Equal allocators give equal records.
    pub fn mirror(&self, cidr: &IpNet) -> Option<BlockRecord> {
        let block = self.blocks.get(cidr)?;
        Some(BlockRecord {
            schema: BLOCK_SCHEMA,
            cidr: *cidr,
            pool: block.pool.clone(),
            owner: self.node,
            epoch: block.epoch,
            state: block.state,
            allocations: block.used.iter().map(|(ordinal, used)| (*ordinal, used.owner.clone())).collect(),
            extra: block.extra.clone(),
        })
    }

    /// How many addresses can be given at `now`.
    pub fn free_count(&self, now: Timestamp) -> usize {
        self.active_blocks().map(|(_, block)| self.free_in(block, now)).sum()
    }

    /// How many addresses will be free once their cool-down is over.
    pub fn cooling_count(&self, now: Timestamp) -> usize {
        let released = self.active_blocks().flat_map(|(_, block)| block.released.values());
        released.filter(|released| !self.is_cool(released, now)).count()
    }

    /// Whether to claim another block ahead: fewer than [`SPARE_MIN`] addresses can be given at `now`.
    pub fn needs_spare(&self, now: Timestamp) -> bool {
        self.free_count(now) < SPARE_MIN
    }

    /// The block and offset of an address.
    pub(crate) fn locate(&self, ip: &IpAddr) -> Option<(IpNet, u32)> {
        // Blocks do not overlap, so the last one that begins at or before the address is the only candidate.
        let host = IpNet::from(*ip);
        let (cidr, _) = self.blocks.range(..=host).next_back()?;
        Some((*cidr, u32::try_from(address::offset(cidr, ip)?).ok()?))
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
            let owner = match self.address_of(&owner) {
                Some(ip) => duplicate_of(&owner, ip, address::at(&record.cidr, u128::from(ordinal))),
                None => owner,
            };
            self.owners.entry(owner.clone()).or_insert((record.cidr, ordinal));
            let used = Used { owner, phase: Phase::Committed, sequence: 0, since: Timestamp(0) };
            block.used.insert(ordinal, used);
        }
        self.blocks.insert(record.cidr, block);
    }

    /// The next address to give: never used ones in order, then the one released longest ago.
    fn pick(&self, now: Timestamp) -> Option<(IpNet, u32)> {
        let fresh = self.active_blocks().find_map(|(cidr, block)| {
            (0..block.size).find(|ordinal| block.is_fresh(*ordinal)).map(|ordinal| (*cidr, ordinal))
        });
        let rested = || {
            self.active_blocks()
                .flat_map(|(cidr, block)| block.released.iter().map(move |released| (cidr, released)))
                .filter(|(_, (_, released))| self.is_cool(released, now))
                .min_by_key(|(_, (_, released))| released.sequence)
                .map(|(cidr, (ordinal, _))| (*cidr, *ordinal))
        };
        fresh.or_else(rested)
    }

    fn take(
        &mut self,
        cidr: IpNet,
        ordinal: u32,
        owner: &Owner,
        now: Timestamp,
    ) -> Option<(IpAddr, JournalEntry)> {
        let ip = address::at(&cidr, u128::from(ordinal))?;
        let sequence = self.next_sequence;
        let entry = JournalEntry::Allocate { sequence, at: now, ip, owner: owner.clone() };
        let block = self.blocks.get_mut(&cidr)?;
        block.released.remove(&ordinal);
        let used = Used { owner: owner.clone(), phase: Phase::Pending, sequence, since: now };
        block.used.insert(ordinal, used);
        self.owners.insert(owner.clone(), (cidr, ordinal));
        self.next_sequence += 1;
        Some((ip, entry))
    }

    fn active_blocks(&self) -> impl Iterator<Item = (&IpNet, &Block)> {
        self.blocks.iter().filter(|(_, block)| block.state == BlockState::Active)
    }

    fn free_in(&self, block: &Block, now: Timestamp) -> usize {
        let cooling = block.released.values().filter(|released| !self.is_cool(released, now)).count();
        block.usage().free() as usize - cooling
    }

    /// Whether the cool-down is over. A release that lies further ahead than the cool-down was written by a clock
    /// that has been set back since; such an address rested for an unknown time and is taken as ready.
    fn is_cool(&self, released: &Released, now: Timestamp) -> bool {
        now >= released.at.plus(self.cool_down) || released.at > now.plus(self.cool_down)
    }

    fn exhausted(&self, now: Timestamp) -> AllocateError {
        let mut pools: Vec<String> = self.active_blocks().map(|(_, block)| block.pool.clone()).collect();
        pools.sort();
        pools.dedup();
        let blocks = self.active_blocks().count();
        AllocateError::Exhausted { pools, blocks, cooling_down: self.cooling_count(now) }
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

fn allocation(cidr: &IpNet, ordinal: u32, used: &Used) -> Option<Allocation> {
    let ip = address::at(cidr, u128::from(ordinal))?;
    Some(Allocation { ip, owner: used.owner.clone(), phase: used.phase, since: used.since })
}
