// SPDX-License-Identifier: Apache-2.0
//! From journal entries back to an allocator, and from an allocator to the shortest journal.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use uuid::Uuid;

use crate::address;
use crate::allocator::{Allocator, Phase, Released, SEQUENCE_MAX, Used, after};
use crate::block::BlockRecord;
use crate::error::AddBlockError;
use crate::family::Family;
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
    /// Addresses that change hands are not there, or their new owner has one of the same family.
    #[error("the addresses of {0} cannot go to another owner: there are none, or that one has some")]
    NotMovable(Owner),
    /// A number that no node ever counts to.
    #[error(
        "change number {0} is beyond {SEQUENCE_MAX}: nobody wrote so many, the journal was tampered with or damaged"
    )]
    Sequence(u64),
    /// The address belongs to someone else, or the owner has another address of the family.
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
        let number = match &entry {
            JournalEntry::Snapshot { next_sequence, .. } => Some(*next_sequence),
            _ => sequence,
        };
        if let Some(number) = number.filter(|number| *number > SEQUENCE_MAX) {
            return Err(ReplayError::Sequence(number));
        }
        match entry {
            JournalEntry::Allocate { sequence, at, ip, also, owner } => {
                self.replay_used(
                    &together(ip, also),
                    &Used { owner, phase: Phase::Pending, sequence, since: at },
                )?;
            }
            JournalEntry::Block { record } => self.replay_block(record)?,
            JournalEntry::BlockRemoved { cidr } => drop(self.remove_block(&cidr)),
            JournalEntry::Commit { sequence, at, ip, also, owner } => {
                let ips = together(ip, also);
                let known = self.addresses_of(&owner);
                if let Some(ip) = ips.iter().find(|ip| !known.contains(ip)) {
                    return Err(ReplayError::NotOwned { ip: *ip, owner });
                }
                self.replay_used(&ips, &Used { owner, phase: Phase::Committed, sequence, since: at })?;
            }
            JournalEntry::Release { sequence, at, ip, also, owner } => {
                self.replay_release(&together(ip, also), &Released { owner, sequence, at })?;
            }
            JournalEntry::Rename { from, to, .. } => {
                if !self.move_addresses(&from, &to) {
                    return Err(ReplayError::NotMovable(from));
                }
            }
            JournalEntry::Snapshot { node, next_sequence } => {
                if node != self.node {
                    return Err(ReplayError::ForeignNode { ours: self.node, theirs: node });
                }
                self.next_sequence = self.next_sequence.max(next_sequence);
            }
        }
        if let Some(sequence) = sequence {
            self.next_sequence = self.next_sequence.max(after(sequence));
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
                // The file replaces the old one as a whole, so addresses of one owner need not share a line.
                let also = Vec::new();
                entries.push(JournalEntry::Allocate { sequence, at, ip, also, owner: owner.clone() });
                if used.phase == Phase::Committed {
                    entries.push(JournalEntry::Commit { sequence, at, ip, also: Vec::new(), owner });
                }
            }
            for (ordinal, released) in &block.released {
                let Some(ip) = address::at(cidr, u128::from(*ordinal)) else { continue };
                let Released { owner, sequence, at } = released.clone();
                entries.push(JournalEntry::Release { sequence, at, ip, also: Vec::new(), owner });
            }
        }
        entries
    }

    fn replay_used(&mut self, ips: &[IpAddr], used: &Used) -> Result<(), ReplayError> {
        let mut families = BTreeSet::new();
        for ip in ips {
            let (cidr, ordinal) = self.locate(ip).ok_or(ReplayError::NoBlock(*ip))?;
            let known = self.blocks.get(&cidr).and_then(|block| block.used.get(&ordinal));
            let foreign = known.is_some_and(|known| known.owner != used.owner);
            let family = Family::of(ip);
            let elsewhere = self.place_of(&used.owner, family).is_some_and(|place| place != (cidr, ordinal));
            if foreign || elsewhere || !families.insert(family) {
                return Err(ReplayError::Taken { ip: *ip, owner: used.owner.clone() });
            }
        }
        for ip in ips {
            let Some((cidr, ordinal)) = self.locate(ip) else { continue };
            let Some(block) = self.blocks.get_mut(&cidr) else { continue };
            block.released.remove(&ordinal);
            block.used.insert(ordinal, used.clone());
            let places = self.owners.entry(used.owner.clone()).or_default();
            places.insert(Family::of(ip), (cidr, ordinal));
        }
        Ok(())
    }

    /// A release without an allocation before it is what a snapshot writes for an address at rest.
    fn replay_release(&mut self, ips: &[IpAddr], released: &Released) -> Result<(), ReplayError> {
        for ip in ips {
            let (cidr, ordinal) = self.locate(ip).ok_or(ReplayError::NoBlock(*ip))?;
            let known = self.blocks.get(&cidr).and_then(|block| block.used.get(&ordinal));
            if known.is_some_and(|used| used.owner != released.owner) {
                return Err(ReplayError::NotOwned { ip: *ip, owner: released.owner.clone() });
            }
        }
        for ip in ips {
            let Some((cidr, ordinal)) = self.locate(ip) else { continue };
            let Some(block) = self.blocks.get_mut(&cidr) else { continue };
            block.used.remove(&ordinal);
            block.released.insert(ordinal, released.clone());
            if let Some(places) = self.owners.get_mut(&released.owner) {
                places.retain(|_, place| *place != (cidr, ordinal));
            }
        }
        if self.owners.get(&released.owner).is_some_and(|places| places.is_empty()) {
            self.owners.remove(&released.owner);
        }
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

fn together(ip: IpAddr, also: Vec<IpAddr>) -> Vec<IpAddr> {
    std::iter::once(ip).chain(also).collect()
}
