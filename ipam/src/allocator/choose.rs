// SPDX-License-Identifier: Apache-2.0
//! Which address comes next.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Allocator, Block, Released};
use crate::address;
use crate::block::BlockState;
use crate::error::AllocateError;
use crate::family::Family;
use crate::time::Timestamp;
use crate::want::{AddressRange, Choice, Want};

impl Allocator {
    /// Whether [`Allocator::allocate`] would give an owner that has nothing what is wanted.
    pub fn can_allocate(&self, want: &Want, now: Timestamp) -> bool {
        let Ok(choices) = want.choices() else { return false };
        choices.iter().all(|(family, choice)| self.choose(*family, choice, now).is_ok())
    }

    /// A free place for what is wanted of a family.
    pub(super) fn choose(
        &self,
        family: Family,
        choice: &Choice,
        now: Timestamp,
    ) -> Result<(IpNet, u32), AllocateError> {
        match choice {
            Choice::Any => self.pick(family, now, |_| true).ok_or_else(|| self.exhausted(family, now)),
            Choice::Exactly(ip) => self.place(*ip, now),
            Choice::Within(ranges) => self
                .pick(family, now, |ip| ranges.iter().any(|range| range.contains(ip)))
                .ok_or_else(|| AllocateError::RangesUnmet { family, wanted: ranges.clone() }),
        }
    }

    /// The first address of the first block, or any where that one is in use.
    pub(super) fn choose_for_node(
        &self,
        family: Family,
        now: Timestamp,
    ) -> Result<(IpNet, u32), AllocateError> {
        let first = self.open_blocks(family).next().map(|(cidr, _)| cidr.network());
        match first.map(|ip| self.place(ip, now)) {
            Some(Ok(place)) => Ok(place),
            _ => self.choose(family, &Choice::Any, now),
        }
    }

    /// The place of an address of the caller's choice, where it is free.
    fn place(&self, ip: IpAddr, now: Timestamp) -> Result<(IpNet, u32), AllocateError> {
        let unmet =
            || AllocateError::RangesUnmet { family: Family::of(&ip), wanted: vec![AddressRange::only(ip)] };
        let (cidr, ordinal) = self.locate(&ip).ok_or_else(unmet)?;
        let block = self.blocks.get(&cidr).ok_or_else(unmet)?;
        if let Some(used) = block.used.get(&ordinal) {
            return Err(AllocateError::InUse { ip, owner: used.owner.clone() });
        }
        if !self.is_open(block) {
            return Err(AllocateError::BlockCloses { ip, block: cidr });
        }
        if let Some(released) = block.released.get(&ordinal)
            && !self.is_cool(released, now)
        {
            let wait = released.at.plus(self.cool_down).since(now);
            return Err(AllocateError::CoolingDown { ip, wait });
        }
        Ok((cidr, ordinal))
    }

    /// The next address to give among those allowed: the lowest that was never used, else the one released longest ago.
    fn pick(
        &self,
        family: Family,
        now: Timestamp,
        allowed: impl Fn(&IpAddr) -> bool,
    ) -> Option<(IpNet, u32)> {
        let may = |cidr: &IpNet, ordinal: u32| {
            address::at(cidr, u128::from(ordinal)).is_some_and(|ip| allowed(&ip))
        };
        let fresh = self.open_blocks(family).find_map(|(cidr, block)| {
            let ordinal = (0..block.size).find(|at| block.is_fresh(*at) && may(cidr, *at));
            ordinal.map(|ordinal| (*cidr, ordinal))
        });
        let rested = || {
            self.open_blocks(family)
                .flat_map(|(cidr, block)| block.released.iter().map(move |(at, it)| (*cidr, *at, it)))
                .filter(|(cidr, at, released)| self.is_cool(released, now) && may(cidr, *at))
                .min_by_key(|(_, _, released)| released.sequence)
                .map(|(cidr, at, _)| (cidr, at))
        };
        fresh.or_else(rested)
    }

    /// Blocks of a family that give addresses.
    pub(super) fn open_blocks(&self, family: Family) -> impl Iterator<Item = (&IpNet, &Block)> {
        self.blocks.iter().filter(move |(cidr, block)| Family::of_net(cidr) == family && self.is_open(block))
    }

    fn is_open(&self, block: &Block) -> bool {
        block.state == BlockState::Active && !self.draining.contains(&block.pool)
    }

    /// Whether the cool-down is over. A release that lies further ahead than the cool-down was written by a clock
    /// that has been set back since; such an address rested for an unknown time and is taken as ready.
    pub(super) fn is_cool(&self, released: &Released, now: Timestamp) -> bool {
        now >= released.at.plus(self.cool_down) || released.at > now.plus(self.cool_down)
    }

    fn exhausted(&self, family: Family, now: Timestamp) -> AllocateError {
        let (open, closed): (Vec<_>, Vec<_>) = self
            .blocks
            .iter()
            .filter(|(cidr, _)| Family::of_net(cidr) == family)
            .partition(|(_, block)| self.is_open(block));
        AllocateError::Exhausted {
            family,
            pools: pool_names(&open),
            draining: pool_names(&closed),
            blocks: open.len(),
            cooling_down: self.cooling_count(family, now),
        }
    }
}

fn pool_names(blocks: &[(&IpNet, &Block)]) -> Vec<String> {
    let mut names: Vec<String> = blocks.iter().map(|(_, block)| block.pool.clone()).collect();
    names.sort();
    names.dedup();
    names
}
