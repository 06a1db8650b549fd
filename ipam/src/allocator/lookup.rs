// SPDX-License-Identifier: Apache-2.0
//! What the allocator knows, for those who only read.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use uuid::Uuid;

use super::{Allocation, Allocator, Block, Phase, SPARE_MIN, Used};
use crate::address;
use crate::block::{BLOCK_SCHEMA, BlockRecord, Usage};
use crate::family::Family;
use crate::owner::Owner;
use crate::time::Timestamp;

impl Allocator {
    /// Whose allocator this is.
    pub fn node(&self) -> Uuid {
        self.node
    }

    /// The addresses of an owner, pending or committed, IPv4 first. Empty where it has none.
    pub fn addresses_of(&self, owner: &Owner) -> Vec<IpAddr> {
        let places = self.owners.get(owner).into_iter().flat_map(BTreeMap::values);
        places.filter_map(|(cidr, ordinal)| address::at(cidr, u128::from(*ordinal))).collect()
    }

    /// The allocations of an owner, IPv4 first.
    pub fn lookup(&self, owner: &Owner) -> Vec<Allocation> {
        let places = self.owners.get(owner).into_iter().flat_map(BTreeMap::values);
        places.filter_map(|(cidr, at)| allocation(cidr, *at, self.blocks.get(cidr)?.used.get(at)?)).collect()
    }

    /// The allocation of an address.
    pub fn lookup_address(&self, ip: &IpAddr) -> Option<Allocation> {
        let (cidr, ordinal) = self.locate(ip)?;
        allocation(&cidr, ordinal, self.blocks.get(&cidr)?.used.get(&ordinal)?)
    }

    /// The block of this node that an address lies in.
    pub fn block_of(&self, ip: &IpAddr) -> Option<IpNet> {
        self.locate(ip).map(|(cidr, _)| cidr)
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

    /// Addresses that were released and still rest at `now`, in their order.
    pub fn cooling(&self, now: Timestamp) -> impl Iterator<Item = IpAddr> {
        self.blocks.iter().flat_map(move |(cidr, block)| {
            let resting = block.released.iter().filter(move |(_, released)| !self.is_cool(released, now));
            resting.filter_map(|(ordinal, _)| address::at(cidr, u128::from(*ordinal)))
        })
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

    /// How many addresses of a family can be given at `now`.
    pub fn free_count(&self, family: Family, now: Timestamp) -> usize {
        self.open_blocks(family).map(|(_, block)| self.free_in(block, now)).sum()
    }

    /// How many addresses of a family will be free once their cool-down is over.
    pub fn cooling_count(&self, family: Family, now: Timestamp) -> usize {
        let released = self.open_blocks(family).flat_map(|(_, block)| block.released.values());
        released.filter(|released| !self.is_cool(released, now)).count()
    }

    /// The families, of those given, of which to claim another block ahead: fewer than [`SPARE_MIN`] addresses can be
    /// given at `now`.
    pub fn needs_spare(&self, families: &BTreeSet<Family>, now: Timestamp) -> Vec<Family> {
        families.iter().copied().filter(|family| self.free_count(*family, now) < SPARE_MIN).collect()
    }

    /// The block and offset of an address.
    pub(crate) fn locate(&self, ip: &IpAddr) -> Option<(IpNet, u32)> {
        // Blocks do not overlap, so the last one that begins at or before the address is the only candidate.
        let host = IpNet::from(*ip);
        let (cidr, _) = self.blocks.range(..=host).next_back()?;
        Some((*cidr, u32::try_from(address::offset(cidr, ip)?).ok()?))
    }

    /// Where an owner's address of a family is.
    pub(crate) fn place_of(&self, owner: &Owner, family: Family) -> Option<(IpNet, u32)> {
        self.owners.get(owner)?.get(&family).copied()
    }

    fn free_in(&self, block: &Block, now: Timestamp) -> usize {
        let cooling = block.released.values().filter(|released| !self.is_cool(released, now)).count();
        block.usage().free() as usize - cooling
    }
}

fn allocation(cidr: &IpNet, ordinal: u32, used: &Used) -> Option<Allocation> {
    let ip = address::at(cidr, u128::from(ordinal))?;
    Some(Allocation { ip, owner: used.owner.clone(), phase: used.phase, since: used.since })
}
