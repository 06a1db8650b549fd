// SPDX-License-Identifier: Apache-2.0
//! Blocks of drained pools (and of pools that are no more) go back when nobody uses them.

use ipam::{BlockRecord, Family, Owner, PoolState};
use ipnet::IpNet;
use netd_store::claim::release_block;

use super::claim::ensure_node_addresses;
use super::{Addressing, Picture};
use crate::node::lock;

/// What becomes of the node's own address in a block that leaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum OwnAddress {
    /// It goes: the family has no pool any more, and no pod of the cluster.
    Goes,
    /// It moves to another block of its family.
    Moves,
    /// It stays: other nodes' pods of its family are spoken to from it.
    Stays,
}

impl Addressing {
    /// The node's own overlay address leaves a block first. Nothing new comes from such a block, so what is empty stays
    /// empty.
    pub(super) async fn leave_drained(&self, picture: &Picture) {
        for (block, own_address) in self.leaving(picture) {
            let own = Owner::Node(self.node);
            let only_ours =
                !block.allocations.is_empty() && block.allocations.values().all(|owner| *owner == own);
            let family = Family::of_net(&block.cidr);
            match own_address {
                OwnAddress::Moves if only_ours => {
                    tracing::info!(block = %block.cidr, "the node's overlay address leaves a drained pool");
                    self.leave_overlay_address(family, picture);
                }
                OwnAddress::Goes if only_ours => {
                    tracing::info!(block = %block.cidr, "no pool of {family} is left, and no pod: the node's overlay address goes");
                    self.leave_overlay_address(family, picture);
                }
                OwnAddress::Goes | OwnAddress::Moves | OwnAddress::Stays if block.allocations.is_empty() => {
                    self.give_up(&block).await;
                }
                OwnAddress::Goes | OwnAddress::Moves | OwnAddress::Stays => {}
            }
        }
        // Those whose record did not go at the first attempt.
        for record in picture.blocks.values().filter(|record| self.was_given_back(record)) {
            self.give_back(record.cidr).await;
        }
    }

    /// Own blocks of pools that drain or are no more.
    fn leaving(&self, picture: &Picture) -> Vec<(BlockRecord, OwnAddress)> {
        let leaves =
            |pool: &str| picture.pools.get(pool).is_none_or(|pool| pool.state == PoolState::Draining);
        let mirrors = lock(&self.addresses).mirrors();
        let families = picture.families();
        let of_family = |block: &&BlockRecord, family| Family::of_net(&block.cidr) == family;
        let own_address = |family: Family| {
            let mut staying = mirrors.iter().filter(|block| of_family(block, family) && !leaves(&block.pool));
            let others = picture.blocks.values().filter(|block| block.owner != self.node);
            let mut blocks = others.chain(&mirrors).filter(|block| of_family(block, family));
            let in_use =
                blocks.any(|block| block.allocations.values().any(|owner| !matches!(owner, Owner::Node(_))));
            // Where nothing at all is left to give, the nodes wait for the next pool with what they have.
            let is_over = !families.is_empty() && !families.contains(&family);
            match (staying.next(), is_over && !in_use) {
                (Some(_), _) => OwnAddress::Moves,
                (None, true) => OwnAddress::Goes,
                (None, false) => OwnAddress::Stays,
            }
        };
        let leaving = mirrors.iter().filter(|block| leaves(&block.pool));
        leaving.map(|block| (block.clone(), own_address(Family::of_net(&block.cidr)))).collect()
    }

    /// Whether the record tells of a block that this node gave back: the picture is older than that, or the record did not
    /// go. A block that is claimed again has a later epoch.
    pub(super) fn was_given_back(&self, record: &BlockRecord) -> bool {
        record.owner == self.node
            && lock(&self.given_back).get(&record.cidr).is_some_and(|epoch| record.epoch <= *epoch)
    }

    /// The address of another family stays as it is.
    fn leave_overlay_address(&self, family: Family, picture: &Picture) {
        let families = picture.families();
        tokio::task::block_in_place(|| {
            let mut addresses = lock(&self.addresses);
            let now = self.now();
            addresses.release_family(&Owner::Node(self.node), family, now)?;
            ensure_node_addresses(&mut addresses, &families, self).map_err(anyhow::Error::from)
        })
        .unwrap_or_else(|error| tracing::warn!("the overlay address did not move: {error:#}"));
    }

    async fn give_up(&self, block: &BlockRecord) {
        let gone = tokio::task::block_in_place(|| {
            let mut addresses = lock(&self.addresses);
            // Marked before anybody can see it gone here and there in an older picture.
            lock(&self.given_back).insert(block.cidr, block.epoch);
            addresses.give_up_block(&block.cidr)
        });
        match gone {
            Ok(true) => self.give_back(block.cidr).await,
            Ok(false) => drop(lock(&self.given_back).remove(&block.cidr)),
            Err(error) => {
                lock(&self.given_back).remove(&block.cidr);
                tracing::warn!(block = %block.cidr, "not given back: {error:#}");
            }
        }
    }

    /// Deletes the record of a block that this node no longer gives from, nor claimed again.
    async fn give_back(&self, cidr: IpNet) {
        let _turn = self.claiming.lock().await;
        if lock(&self.addresses).blocks().contains(&cidr) {
            return;
        }
        match release_block(self.store.as_ref(), &self.keys, cidr, self.node).await {
            Ok(true) => tracing::info!(block = %cidr, "block of a drained pool given back"),
            Ok(false) => {}
            Err(error) => tracing::warn!(block = %cidr, %error, "not given back yet"),
        }
    }
}
