// SPDX-License-Identifier: Apache-2.0
//! Why the allocator refuses.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use uuid::Uuid;

use crate::owner::Owner;

/// Why no address was given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    /// The owner has one already: the same call came before.
    #[error("this owner already has {0}")]
    AlreadyAllocated(IpAddr),
    /// The address asked for was in use a moment ago.
    #[error("{ip} was released a moment ago: try again in {} s", wait.as_secs() + 1)]
    CoolingDown {
        /// The address.
        ip: IpAddr,
        /// For how long it still cools down.
        wait: Duration,
    },
    /// All addresses of all blocks are in use or cooling down.
    #[error("{}", exhausted_text(pools, *blocks, *cooling_down))]
    Exhausted {
        /// Pools of the blocks.
        pools: Vec<String>,
        /// How many blocks there are to allocate from.
        blocks: usize,
        /// How many addresses will be free by waiting.
        cooling_down: usize,
    },
    /// The address asked for has an owner.
    #[error("{ip} belongs to {owner}")]
    InUse {
        /// The address.
        ip: IpAddr,
        /// Who has it.
        owner: Owner,
    },
    /// The address asked for is in no block of this node that is allocated from.
    #[error("{0} is not in a block of this node")]
    NotInBlocks(IpAddr),
}

/// Why a block was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddBlockError {
    /// The block was released and claimed again since: what this node knows of it is void.
    #[error(
        "block {cidr} is at epoch {theirs} in the store but at {ours} here: it changed hands; stop its pods, then \
         remove the block here and add it anew"
    )]
    Epoch {
        /// The block.
        cidr: IpNet,
        /// Epoch that the allocator knows.
        ours: u64,
        /// Epoch of the record.
        theirs: u64,
    },
    /// The block belongs to another node.
    #[error("block {cidr} belongs to node {owner}")]
    ForeignOwner {
        /// The block.
        cidr: IpNet,
        /// Its owner.
        owner: Uuid,
    },
    /// The prefix has host bits or is larger than a block may be, or the record's schema is unknown, or an
    /// allocation lies outside.
    #[error("block record {cidr} is not usable: {reason}")]
    Invalid {
        /// The block.
        cidr: IpNet,
        /// What is wrong.
        reason: String,
    },
    /// The block shares addresses with another one of this node.
    #[error("block {cidr} overlaps block {other} of this node")]
    Overlap {
        /// The block.
        cidr: IpNet,
        /// The other one.
        other: IpNet,
    },
}

fn exhausted_text(pools: &[String], blocks: usize, cooling_down: usize) -> String {
    if blocks == 0 {
        return "this node owns no block to allocate from yet: it claims one as soon as the store answers"
            .to_owned();
    }
    let pools = pools.join(", ");
    format!(
        "no free address in this node's blocks (blocks: {blocks}, pools: {pools}, addresses that cool down: \
         {cooling_down}): delete pods, or add a pool so that the node can claim another block"
    )
}
