// SPDX-License-Identifier: Apache-2.0
//! This node's addresses: the pure allocator and its journal, moved together. Everything is durable on return.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use ipam::{
    AllocateError, Allocation, Allocator, BlockRecord, BlockState, Family, JournalEntry, Owner, PoolState,
    Timestamp, Want,
};
use ipnet::IpNet;
use thiserror::Error;
use uuid::Uuid;

use super::journal::Journal;

/// Allocator and journal.
#[derive(Debug)]
pub(crate) struct Addresses {
    allocator: Allocator,
    journal: Journal,
    /// The disk missed a change: it gets the whole state before anything else is answered.
    behind: bool,
}

/// Why no address could be given.
#[derive(Debug, Error)]
pub(crate) enum AddressError {
    #[error(transparent)]
    Allocate(#[from] AllocateError),
    #[error("the address journal cannot be written: {0:#}")]
    Journal(anyhow::Error),
}

impl Addresses {
    pub(crate) fn open(state_dir: &Path, node: Uuid, cool_down: Duration) -> Result<Self> {
        let (journal, allocator) = Journal::open(state_dir, node, cool_down)?;
        Ok(Self { allocator, journal, behind: false })
    }

    /// Takes over a block that the store says is ours. False where nothing changed.
    pub(crate) fn add_block(&mut self, record: BlockRecord) -> Result<bool> {
        self.catch_up()?;
        match self.allocator.add_block(record)? {
            Some(entry) => self.write(&[entry]).map(|()| true),
            None => Ok(false),
        }
    }

    /// The store gives this block to another node, or to a later epoch: nothing new comes from it, and it goes when it is
    /// empty. True when it has gone.
    pub(crate) fn give_up_block(&mut self, cidr: &IpNet) -> Result<bool> {
        self.catch_up()?;
        let Some(mut record) = self.allocator.mirror(cidr) else { return Ok(true) };
        if record.allocations.is_empty() {
            let entry = self.allocator.remove_block(cidr);
            self.write(entry.as_slice())?;
            return Ok(true);
        }
        record.state = BlockState::Releasing;
        if let Some(entry) = self.allocator.add_block(record)? {
            self.write(&[entry])?;
        }
        Ok(false)
    }

    /// What the store says of a pool; not durable, it is said again at each start.
    pub(crate) fn set_pool_state(&mut self, pool: &str, state: PoolState) {
        self.allocator.set_pool_state(pool, state);
    }

    /// Addresses for `owner`, pending, durable on return; all of what is wanted, or nothing.
    pub(crate) fn allocate(
        &mut self,
        owner: &Owner,
        want: &Want,
        now: Timestamp,
    ) -> Result<Vec<IpAddr>, AddressError> {
        self.catch_up().map_err(AddressError::Journal)?;
        let (ips, entries) = self.allocator.allocate(owner, want, now)?;
        self.record(owner, &entries, now)?;
        Ok(ips)
    }

    /// This node's overlay addresses, one of each family, given once.
    pub(crate) fn ensure_node_addresses(
        &mut self,
        families: &BTreeSet<Family>,
        now: Timestamp,
    ) -> Result<(), AddressError> {
        self.catch_up().map_err(AddressError::Journal)?;
        let owner = Owner::Node(self.allocator.node());
        let (_, mut entries) = self.allocator.allocate_node_addresses(families, now)?;
        if entries.is_empty() {
            return Ok(());
        }
        // In use from the start: nobody else commits it.
        entries.extend(self.allocator.commit(&owner, now));
        self.write(&entries).map_err(AddressError::Journal)
    }

    /// The journal has the entries, or the allocation is undone.
    fn record(
        &mut self,
        owner: &Owner,
        entries: &[JournalEntry],
        now: Timestamp,
    ) -> Result<(), AddressError> {
        if let Err(error) = self.write(entries) {
            self.allocator.release(owner, now);
            return Err(AddressError::Journal(error));
        }
        Ok(())
    }

    /// The pending addresses of `owner` are in use now; fine if they were already.
    pub(crate) fn commit(&mut self, owner: &Owner, now: Timestamp) -> Result<()> {
        self.catch_up()?;
        let entries = self.allocator.commit(owner, now);
        if entries.is_empty() { Ok(()) } else { self.write(&entries) }
    }

    /// The addresses of one owner become another's.
    pub(crate) fn rename(&mut self, from: &Owner, to: &Owner) -> Result<()> {
        self.catch_up()?;
        let entries = self.allocator.rename_owner(from, to);
        if entries.is_empty() { Ok(()) } else { self.write(&entries) }
    }

    /// Takes the addresses of `owner` back; none where it has none.
    pub(crate) fn release(&mut self, owner: &Owner, now: Timestamp) -> Result<Vec<IpAddr>> {
        self.catch_up()?;
        let Some((ips, entries)) = self.allocator.release(owner, now) else {
            return Ok(Vec::new());
        };
        self.write(&entries)?;
        if let Err(error) = self.journal.compact_if_long(&self.allocator) {
            // What happened is on disk; only the file is longer than it need be.
            self.behind = true;
            tracing::warn!("the address journal was not compacted: {error:#}");
        }
        Ok(ips)
    }

    /// Takes back the owner's address of one family alone.
    pub(crate) fn release_family(
        &mut self,
        owner: &Owner,
        family: Family,
        now: Timestamp,
    ) -> Result<Option<IpAddr>> {
        self.catch_up()?;
        let Some((ip, entry)) = self.allocator.release_family(owner, family, now) else { return Ok(None) };
        self.write(&[entry]).map(|()| Some(ip))
    }

    /// Puts an address on record that is in use without one. False where somebody has it.
    pub(crate) fn restore(&mut self, ip: IpAddr, owner: &Owner, now: Timestamp) -> Result<bool> {
        self.catch_up()?;
        let Ok(entries) = self.allocator.restore(owner, ip, now) else { return Ok(false) };
        self.write(&entries).map(|()| true)
    }

    pub(crate) fn blocks(&self) -> Vec<IpNet> {
        self.allocator.blocks().map(|(cidr, _)| cidr).collect()
    }

    /// What the store should hold of each block.
    pub(crate) fn mirrors(&self) -> Vec<BlockRecord> {
        self.allocator.blocks().filter_map(|(cidr, _)| self.allocator.mirror(&cidr)).collect()
    }

    pub(crate) fn allocations(&self) -> impl Iterator<Item = Allocation> {
        self.allocator.allocations()
    }

    /// This node's overlay addresses.
    pub(crate) fn node_addresses(&self) -> Vec<IpAddr> {
        self.allocator.addresses_of(&Owner::Node(self.allocator.node()))
    }

    /// The addresses of `owner`, pending or committed.
    pub(crate) fn addresses_of(&self, owner: &Owner) -> Vec<IpAddr> {
        self.allocator.addresses_of(owner)
    }

    pub(crate) fn allocator(&self) -> &Allocator {
        &self.allocator
    }

    /// Appends, durable on return. A change that the disk missed is never forgotten: the next operation writes the whole
    /// state first.
    fn write(&mut self, entries: &[JournalEntry]) -> Result<()> {
        let outcome = self.journal.append(entries);
        self.behind |= outcome.is_err();
        outcome
    }

    fn catch_up(&mut self) -> Result<()> {
        if self.behind {
            self.journal.compact(&self.allocator)?;
            self.behind = false;
        }
        Ok(())
    }
}
