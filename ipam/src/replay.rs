// SPDX-License-Identifier: Apache-2.0
//! From journal entries back to an allocator, and from an allocator to the shortest journal.

use std::net::IpAddr;
use std::time::Duration;

use uuid::Uuid;

use crate::address;
use crate::allocator::{Allocator, Phase, Released, Used};
use crate::block::BlockRecord;
use crate::error::AddBlockError;
use crate::journal::JournalEntry;
use crate::owner::Owner;

/// An entry contradicts those before it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// A block that cannot be taken.
    #[error(transparent)]
    Block(#[from] AddBlockError),
    /// An address without a block.
    #[error("{0} is in no block that the journal knows")]
    NoBlock(IpAddr),
    /// The journal of another node.
    #[error("the journal belongs to node {theirs}, this is node {ours}: the state directory was copied")]
    ForeignNode {
        /// This node.
        ours: Uuid,
        /// Node of the journal.
        theirs: Uuid,
    },
    /// The address belongs to someone else, or the owner has another address.
    #[error("{ip} cannot go to {owner}: the address or the owner is taken")]
    Taken {
        /// The address.
        ip: IpAddr,
        /// The owner.
        owner: Owner,
    },
    /// A commit or release of what the owner does not have.
    #[error("{owner} does not have {ip}")]
    NotOwned {
        /// The address.
        ip: IpAddr,
        /// The owner.
        owner: Owner,
    },
}

impl Allocator {
    /// Replays all entries of a journal. The error carries the index of the entry that does not fit.
    pub fn rebuild(
        node: Uuid,
        cool_down: Duration,
        entries: impl IntoIterator<Item = JournalEntry>,
    ) -> Result<Allocator, (usize, ReplayError)> {
        let mut allocator = Allocator::new(node, cool_down);
        for (index, entry) in entries.into_iter().enumerate() {
            allocator.replay(entry).map_err(|error| (index, error))?;
        }
        Ok(allocator)
    }

    /// Does again what the entry tells. On an error nothing is changed.
    pub fn replay(&mut self, entry: JournalEntry) -> Result<(), ReplayError> {
        let sequence = entry.sequence();
        match entry {
            JournalEntry::Allocate { sequence, at, ip, owner } => {
                self.replay_used(ip, Used { owner, phase: Phase::Pending, sequence, since: at })?;
            }
            JournalEntry::Block { record } => self.replay_block(record)?,
            JournalEntry::BlockRemoved { cidr } => drop(self.remove_block(&cidr)),
            JournalEntry::Commit { sequence, at, ip, owner } => {
                if self.address_of(&owner) != Some(ip) {
                    return Err(ReplayError::NotOwned { ip, owner });
                }
                self.replay_used(ip, Used { owner, phase: Phase::Committed, sequence, since: at })?;
            }
            JournalEntry::Release { sequence, at, ip, owner } => {
                self.replay_release(ip, Released { owner, sequence, at })?;
            }
            JournalEntry::Snapshot { node, next_sequence } => {
                if node != self.node {
                    return Err(ReplayError::ForeignNode { ours: self.node, theirs: node });
                }
                self.next_sequence = self.next_sequence.max(next_sequence);
            }
        }
        if let Some(sequence) = sequence {
            self.next_sequence = self.next_sequence.max(sequence.saturating_add(1));
        }
        Ok(())
    }

    /// The shortest journal that gives this allocator: write it to a new file and rename that over the old one.
    pub fn snapshot(&self) -> Vec<JournalEntry> {
        let next_sequence = self.next_sequence;
        let mut entries = vec![JournalEntry::Snapshot { node: self.node, next_sequence }];
        for (cidr, block) in &self.blocks {
            let Some(mut record) = self.mirror(cidr) else { continue };
            // Sequence 0 marks what came with the block; the rest is told by entries of its own.
            record.allocations.retain(|ordinal, _| block.used.get(ordinal).is_some_and(|u| u.sequence == 0));
            entries.push(JournalEntry::Block { record });
            for (ordinal, used) in block.used.iter().filter(|(_, used)| used.sequence != 0) {
                let Some(ip) = address::at(cidr, u128::from(*ordinal)) else { continue };
                let (sequence, at, owner) = (used.sequence, used.since, used.owner.clone());
                entries.push(JournalEntry::Allocate { sequence, at, ip, owner: owner.clone() });
                if used.phase == Phase::Committed {
                    entries.push(JournalEntry::Commit { sequence, at, ip, owner });
                }
            }
            for (ordinal, released) in &block.released {
                let Some(ip) = address::at(cidr, u128::from(*ordinal)) else { continue };
                let Released { owner, sequence, at } = released.clone();
                entries.push(JournalEntry::Release { sequence, at, ip, owner });
            }
        }
        entries
    }

    fn replay_used(&mut self, ip: IpAddr, used: Used) -> Result<(), ReplayError> {
        let (cidr, ordinal) = self.locate(&ip).ok_or(ReplayError::NoBlock(ip))?;
        let block = self.blocks.get_mut(&cidr).ok_or(ReplayError::NoBlock(ip))?;
        let foreign = block.used.get(&ordinal).is_some_and(|known| known.owner != used.owner);
        let elsewhere = self.owners.get(&used.owner).is_some_and(|known| *known != (cidr, ordinal));
        if foreign || elsewhere {
            return Err(ReplayError::Taken { ip, owner: used.owner });
        }
        block.released.remove(&ordinal);
        self.owners.insert(used.owner.clone(), (cidr, ordinal));
        block.used.insert(ordinal, used);
        Ok(())
    }

    /// A release without an allocation before it is what a snapshot writes for an address at rest.
    fn replay_release(&mut self, ip: IpAddr, released: Released) -> Result<(), ReplayError> {
        let (cidr, ordinal) = self.locate(&ip).ok_or(ReplayError::NoBlock(ip))?;
        let block = self.blocks.get_mut(&cidr).ok_or(ReplayError::NoBlock(ip))?;
        if block.used.get(&ordinal).is_some_and(|used| used.owner != released.owner) {
            return Err(ReplayError::NotOwned { ip, owner: released.owner });
        }
        if self.owners.get(&released.owner) == Some(&(cidr, ordinal)) {
            self.owners.remove(&released.owner);
        }
        block.used.remove(&ordinal);
        block.released.insert(ordinal, released);
        Ok(())
    }

    fn replay_block(&mut self, record: BlockRecord) -> Result<(), ReplayError> {
        self.check_block(&record)?;
        match self.blocks.get_mut(&record.cidr) {
            Some(known) => {
                known.state = record.state;
                known.extra = record.extra;
                known.pool = record.pool;
            }
            None => self.insert_block(record),
        }
        Ok(())
    }
}
