// SPDX-License-Identifier: Apache-2.0
//! This node's addresses: the pure allocator and its journal, moved together.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use ipam::{AllocateError, Allocation, Allocator, BlockRecord, BlockState, JournalEntry, Owner, Timestamp};
use ipnet::IpNet;
use thiserror::Error;
use uuid::Uuid;

use crate::journal::Journal;
use crate::node::now_ms;

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

    /// An address for `owner`, pending, durable on return. An owner that has one gets the same again.
    pub(crate) fn allocate(
        &mut self,
        owner: &Owner,
        requested: Option<IpAddr>,
    ) -> Result<IpAddr, AddressError> {
        self.catch_up().map_err(AddressError::Journal)?;
        let now = Timestamp(now_ms());
        let outcome = match requested {
            Some(ip) => self.allocator.allocate_requested(owner, ip, now),
            None => self.allocator.allocate(owner, now),
        };
        let (ip, entry) = outcome?;
        self.record(owner, entry)?;
        Ok(ip)
    }

    /// This node's overlay address, given once.
    pub(crate) fn ensure_node_address(&mut self) -> Result<IpAddr, AddressError> {
        self.catch_up().map_err(AddressError::Journal)?;
        let now = Timestamp(now_ms());
        let owner = Owner::Node(self.allocator.node());
        match self.allocator.allocate_node_address(now) {
            Ok((ip, entry)) => {
                self.record(&owner, entry)?;
                self.commit(&owner).map_err(AddressError::Journal)?;
                Ok(ip)
            }
            Err(AllocateError::AlreadyAllocated(ip)) => Ok(ip),
            Err(error) => Err(error.into()),
        }
    }

    /// The journal has the entry, or the allocation is undone.
    fn record(&mut self, owner: &Owner, entry: JournalEntry) -> Result<(), AddressError> {
        if let Err(error) = self.write(&[entry]) {
            self.allocator.release(owner, Timestamp(now_ms()));
            return Err(AddressError::Journal(error));
        }
        Ok(())
    }

    /// The pending address of `owner` is in use now; fine if it was already.
    pub(crate) fn commit(&mut self, owner: &Owner) -> Result<()> {
        self.catch_up()?;
        match self.allocator.commit(owner, Timestamp(now_ms())) {
            Some(entry) => self.write(&[entry]),
            None => Ok(()),
        }
    }

    /// Takes the address of `owner` back; `None` where it has none.
    pub(crate) fn release(&mut self, owner: &Owner) -> Result<Option<IpAddr>> {
        self.catch_up()?;
        let Some((ip, entry)) = self.allocator.release(owner, Timestamp(now_ms())) else {
            return Ok(None);
        };
        self.write(&[entry])?;
        if let Err(error) = self.journal.compact_if_long(&self.allocator) {
            // What happened is on disk; only the file is longer than it need be.
            self.behind = true;
            tracing::warn!("the address journal was not compacted: {error:#}");
        }
        Ok(Some(ip))
    }

    pub(crate) fn node_address(&self) -> Option<IpAddr> {
        self.allocator.address_of(&Owner::Node(self.allocator.node()))
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

    pub(crate) fn needs_spare(&self) -> bool {
        self.allocator.needs_spare(Timestamp(now_ms()))
    }

    pub(crate) fn free(&self) -> usize {
        self.allocator.free_count(Timestamp(now_ms()))
    }

    pub(crate) fn cooling(&self) -> usize {
        self.allocator.cooling_count(Timestamp(now_ms()))
    }

    /// The address of `owner`, pending or committed.
    pub(crate) fn address_of(&self, owner: &Owner) -> Option<IpAddr> {
        self.allocator.address_of(owner)
    }

    pub(crate) fn allocator(&self) -> &Allocator {
        &self.allocator
    }
}
