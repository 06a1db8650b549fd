// SPDX-License-Identifier: Apache-2.0
//! Why the allocator refuses.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use uuid::Uuid;

use crate::family::Family;
use crate::owner::Owner;
use crate::want::AddressRange;

/// Why no address was given. Nothing is given then, in no family.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    /// The owner has these already: the same call came before.
    #[error("this owner already has {}", join(.0))]
    AlreadyAllocated(Vec<IpAddr>),
    /// A range that begins after its end, or whose set is not of one family.
    #[error(
        "range {0} is not usable: it must not end before it begins, and all ranges of a set are of one family"
    )]
    BadRange(AddressRange),
    /// The address asked for is in a block that gives nothing new.
    #[error(
        "{ip} is in block {block}, which gives no new address: its pool drains or the block is being released; ask \
         for an address of another pool"
    )]
    BlockCloses {
        /// The address.
        ip: IpAddr,
        /// Its block.
        block: IpNet,
    },
    /// The address asked for was in use a moment ago.
    #[error("{ip} was released a moment ago: try again in {} s", wait.as_secs() + 1)]
    CoolingDown {
        /// The address.
        ip: IpAddr,
        /// For how long it still cools down.
        wait: Duration,
    },
    /// All addresses of a family, in all blocks, are in use or cooling down.
    #[error("{}", exhausted_text(*family, pools, draining, *blocks, *cooling_down))]
    Exhausted {
        /// The family that has none left.
        family: Family,
        /// Pools of the blocks.
        pools: Vec<String>,
        /// Pools of blocks that give nothing new.
        draining: Vec<String>,
        /// How many blocks there are to allocate from.
        blocks: usize,
        /// How many addresses will be free by waiting.
        cooling_down: usize,
    },
    /// An address of a family that no active pool has.
    #[error("there is no pool of {0} addresses: add one, or ask for none")]
    FamilyNotUsed(Family),
    /// The address asked for has an owner.
    #[error("{ip} belongs to {owner}")]
    InUse {
        /// The address.
        ip: IpAddr,
        /// Who has it.
        owner: Owner,
    },
    /// No family at all is asked for: the cluster has no active pool.
    #[error("there is no address pool to allocate from: add one, or end the draining of one")]
    NoFamily,
    /// The address asked for is not in the ranges asked for.
    #[error("{0} is in none of the ranges asked for together with it")]
    OutsideRanges(IpAddr),
    /// No free address of this node's blocks is the one asked for or in the ranges asked for.
    #[error("no free address of this node's blocks is {}", join(wanted))]
    RangesUnmet {
        /// The family.
        family: Family,
        /// What was asked for; a single address is a range of one.
        wanted: Vec<AddressRange>,
    },
    /// An owner has one address of a family, and more are asked for.
    #[error("two {0} addresses are asked for: an attachment has at most one of a family")]
    TwoOfFamily(Family),
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

fn join<T: ToString>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

fn exhausted_text(
    family: Family,
    pools: &[String],
    draining: &[String],
    blocks: usize,
    cooling_down: usize,
) -> String {
    if blocks == 0 && draining.is_empty() {
        return format!(
            "this node owns no {family} block to allocate from yet: it claims one as soon as the store answers"
        );
    }
    let drain = match draining {
        [] => String::new(),
        names => format!(", draining: {}", names.join(", ")),
    };
    let pools = pools.join(", ");
    format!(
        "no free {family} address in this node's blocks (blocks: {blocks}, pools: {pools}{drain}, addresses that \
         cool down: {cooling_down}): delete pods, or add a pool so that the node can claim another block"
    )
}
