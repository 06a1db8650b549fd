// SPDX-License-Identifier: Apache-2.0
//! Blocks of this node: those that the store says are ours, and new ones.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipam::{BlockRecord, Family, Pool};
use ipnet::IpNet;
use netd_store::claim::{ClaimError, claim_block, claim_block_containing};

use super::addresses::Addresses;
use super::give::GiveError;
use super::{Addressing, Picture};
use crate::node::lock;

/// What [`Addressing::observe`] found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Observed {
    /// What does not agree, for an operator; nothing new comes from such a block.
    pub errors: Vec<String>,
    /// Families that are running short: see [`Addressing::keep_ahead`].
    pub short: Vec<Family>,
}

impl Addressing {
    /// Takes the store's word: blocks that are ours become usable, the first of each family brings the node's overlay
    /// address; a block that the store gives to another, or to a later epoch of ours, is given up. Blocking (journal).
    pub fn observe(&self, picture: Picture) -> Observed {
        let mut seen = Observed::default();
        let mut addresses = lock(&self.addresses);
        let known: BTreeMap<IpNet, u64> =
            addresses.allocator().blocks().map(|(cidr, usage)| (cidr, usage.epoch)).collect();
        for record in picture.blocks.values() {
            let own = record.owner == self.node;
            let outcome = match known.get(&record.cidr) {
                None if !own || picture.removed || self.was_given_back(record) => continue,
                Some(epoch) if !own || *epoch != record.epoch => addresses
                    .give_up_block(&record.cidr)
                    .map(|gone| if gone { None } else { Some(foreign(record)) }),
                None | Some(_) => addresses.add_block(record.clone()).map(|added| {
                    if added {
                        tracing::info!(block = %record.cidr, "block adopted");
                    }
                    None
                }),
            };
            match outcome {
                Ok(None) => {}
                Ok(Some(error)) => seen.errors.push(error),
                Err(error) => seen.errors.push(format!("block {}: {error:#}", record.cidr)),
            }
        }
        for pool in picture.pools.values() {
            addresses.set_pool_state(&pool.name, pool.state);
        }
        let families = picture.families();
        if !addresses.blocks().is_empty()
            && !picture.removed
            && let Err(error) = ensure_node_addresses(&mut addresses, &families, self)
        {
            seen.errors.push(format!("node overlay address: {error}"));
        }
        if !picture.removed {
            seen.short = addresses.allocator().needs_spare(&families, self.now());
        }
        drop(addresses);
        self.picture.store(Arc::new(picture));
        seen
    }

    /// Claims a block for every family that runs short, ahead of need.
    ///
    /// # Errors
    /// The store is away, or every pool of a family is full.
    pub async fn keep_ahead(&self) -> Result<(), GiveError> {
        let families = self.picture.load().families();
        let short = lock(&self.addresses).allocator().needs_spare(&families, self.now());
        for family in short {
            let only = [family].into();
            self.claim(family, |addresses| addresses.allocator().needs_spare(&only, self.now()).is_empty())
                .await?;
        }
        Ok(())
    }

    /// Claims one more block, by transaction, unless `enough` says after the wait for other claims that there is no need any
    /// more: a burst of ADDs on a full node claims one block, not one each.
    pub(super) async fn claim(
        &self,
        family: Family,
        mut enough: impl FnMut(&mut Addresses) -> bool,
    ) -> Result<(), GiveError> {
        let _turn = self.claiming.lock().await;
        if tokio::task::block_in_place(|| enough(&mut lock(&self.addresses))) {
            return Ok(());
        }
        let picture = self.claimable()?;
        let pools: Vec<Pool> = picture.pools.values().cloned().collect();
        let claimed =
            claim_block(self.store.as_ref(), &self.keys, &pools, self.node, &picture.labels, family).await;
        self.take_over(claimed.map_err(|error| self.claim_error(error))?)
    }

    /// Claims the very block that an address lies in, if nobody has it.
    pub(super) async fn claim_containing(&self, ip: IpAddr) -> Result<(), GiveError> {
        let _turn = self.claiming.lock().await;
        if lock(&self.addresses).blocks().iter().any(|block| block.contains(&ip)) {
            return Ok(());
        }
        let picture = self.claimable()?;
        let pools: Vec<Pool> = picture.pools.values().cloned().collect();
        let claimed =
            claim_block_containing(self.store.as_ref(), &self.keys, &pools, self.node, &picture.labels, ip)
                .await;
        self.take_over(claimed.map_err(|error| self.claim_error(error))?)
    }

    fn claimable(&self) -> Result<Arc<Picture>, GiveError> {
        let picture = self.picture.load_full();
        if !picture.configured {
            return Err(GiveError::Unconfigured);
        }
        if let Some(why) = &picture.away {
            // Also while a listing is held: the store then does not know which blocks are taken.
            return Err(GiveError::StoreAway { what: "no block can be claimed", why: why.clone() });
        }
        Ok(picture)
    }

    fn take_over(&self, record: BlockRecord) -> Result<(), GiveError> {
        tracing::info!(block = %record.cidr, pool = %record.pool, "block claimed");
        tokio::task::block_in_place(|| lock(&self.addresses).add_block(record))
            .map(drop)
            .map_err(GiveError::Journal)
    }

    fn claim_error(&self, error: ClaimError) -> GiveError {
        match error {
            ClaimError::Exhausted { .. } => GiveError::Exhausted(error.to_string()),
            other => GiveError::Claim(other),
        }
    }
}

/// The node's overlay address of each of these families that has a block here.
pub(super) fn ensure_node_addresses(
    addresses: &mut Addresses,
    families: &std::collections::BTreeSet<Family>,
    of: &Addressing,
) -> Result<(), super::addresses::AddressError> {
    // Only of families that have a block: the others follow with theirs.
    let present: std::collections::BTreeSet<Family> =
        addresses.blocks().iter().map(Family::of_net).filter(|family| families.contains(family)).collect();
    addresses.ensure_node_addresses(&present, of.now())
}

fn foreign(record: &BlockRecord) -> String {
    format!(
        "block {} holds addresses of pods here, but the store gives it to node {} (epoch {}): nothing new comes from it; \
         delete its pods on this node (`weft ipam show` lists them)",
        record.cidr, record.owner, record.epoch
    )
}
