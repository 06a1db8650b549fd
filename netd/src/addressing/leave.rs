// SPDX-License-Identifier: Apache-2.0
//! Blocks of drained pools (and of pools that are no more) go back when nobody uses them.

use ipam::{BlockRecord, Family, Owner, PoolState};
use ipnet::IpNet;
use netd_store::claim::release_block;

use super::{Addressing, Picture};
use crate::node::lock;

impl Addressing {
    /// The node's own overlay address moves to another block first. Nothing new comes from such a block, so what is empty
    /// stays empty.
    pub(super) async fn leave_drained(&self, picture: &Picture) {
        let leaving =
            |pool: &str| picture.pools.get(pool).is_none_or(|pool| pool.state == PoolState::Draining);
        let blocks: Vec<(BlockRecord, bool)> = {
            let addresses = lock(&self.addresses);
            let mirrors = addresses.mirrors();
            let stays = |family: Family| {
                mirrors.iter().any(|block| !leaving(&block.pool) && Family::of_net(&block.cidr) == family)
            };
            let leaves = mirrors.iter().filter(|block| leaving(&block.pool));
            leaves.map(|block| (block.clone(), stays(Family::of_net(&block.cidr)))).collect()
        };
        for (block, can_move) in blocks {
            let own = Owner::Node(self.node);
            let only_ours =
                !block.allocations.is_empty() && block.allocations.values().all(|owner| *owner == own);
            if only_ours && can_move {
                tracing::info!(block = %block.cidr, "the node's overlay address leaves a drained pool");
                self.move_overlay_address(picture);
            } else if block.allocations.is_empty() {
                self.give_up(&block).await;
            }
        }
        // Those whose record did not go at the first attempt.
        for record in picture.blocks.values().filter(|record| self.was_given_back(record)) {
            self.give_back(record.cidr).await;
        }
    }

    /// Whether the record tells of a block that this node gave back: the picture is older than that, or the record did not
    /// go. A block that is claimed again has a later epoch.
    pub(super) fn was_given_back(&self, record: &BlockRecord) -> bool {
        record.owner == self.node
            && lock(&self.given_back).get(&record.cidr).is_some_and(|epoch| record.epoch <= *epoch)
    }

    fn move_overlay_address(&self, picture: &Picture) {
        let families = picture.families();
        tokio::task::block_in_place(|| {
            let mut addresses = lock(&self.addresses);
            let now = self.now();
            addresses.release(&Owner::Node(self.node), now)?;
            addresses.ensure_node_addresses(&families, now).map_err(anyhow::Error::from)
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
