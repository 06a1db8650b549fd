// SPDX-License-Identifier: Apache-2.0
//! This node's addresses: the pure allocator and its journal, moved together.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use ipam::{AllocateError, Allocation, Allocator, BlockRecord, JournalEntry, Owner, Timestamp};
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
        Ok(Self { allocator, journal })
    }

    /// Takes over a block that the store says is ours. False where nothing changed.
    pub(crate) fn add_block(&mut self, record: BlockRecord) -> Result<bool> {
        match self.allocator.add_block(record)? {
            Some(entry) => self.journal.append(&[entry]).map(|()| true),
            None => Ok(false),
        }
    }

    /// An address for `owner`, pending, durable on return. An owner that has one gets the same again.
    pub(crate) fn allocate(
        &mut self,
        owner: &Owner,
        requested: Option<IpAddr>,
    ) -> Result<IpAddr, AddressError> {
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
        if let Err(error) = self.journal.append(&[entry]) {
            self.allocator.release(owner, Timestamp(now_ms()));
            return Err(AddressError::Journal(error));
        }
        Ok(())
    }

    /// The pending address of `owner` is in use now; fine if it was already.
    pub(crate) fn commit(&mut self, owner: &Owner) -> Result<()> {
        match self.allocator.commit(owner, Timestamp(now_ms())) {
            Some(entry) => self.journal.append(&[entry]),
            None => Ok(()),
        }
    }

    /// Takes the address of `owner` back; `None` where it has none.
    pub(crate) fn release(&mut self, owner: &Owner) -> Result<Option<IpAddr>> {
        let Some((ip, entry)) = self.allocator.release(owner, Timestamp(now_ms())) else {
            return Ok(None);
        };
        self.journal.append(&[entry])?;
        self.journal.compact_if_long(&self.allocator)?;
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

    pub(crate) fn allocator(&self) -> &Allocator {
        &self.allocator
    }
}
