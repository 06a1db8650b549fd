// SPDX-License-Identifier: Apache-2.0
//! Blocks: the piece of a pool that one node owns.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::address;
use crate::owner::Owner;
use crate::pool::{BLOCK_HOST_BITS_MAX, Pool};

/// Schema version of a [`BlockRecord`].
pub const BLOCK_SCHEMA: u32 = 1;

/// A block as the store holds it. Owner and epoch here are the truth for the whole cluster; the allocations are a
/// mirror of the owner's journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRecord {
    /// [`BLOCK_SCHEMA`].
    pub schema: u32,
    /// The block's prefix.
    pub cidr: IpNet,
    /// Name of its pool.
    pub pool: String,
    /// Node that owns it.
    pub owner: Uuid,
    /// Counts the block's owners: each claim after a release is one higher.
    pub epoch: u64,
    /// Whether it may be allocated from.
    pub state: BlockState,
    /// Owner of each address in use, by its offset from the block's first address.
    #[serde(default)]
    pub allocations: BTreeMap<u32, Owner>,
    /// Fields of later versions, kept as they are.
    #[serde(flatten)]
    pub extra: BTreeMap<String, serde_json::Value>,
}

/// Life of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockState {
    /// Its owner allocates from it.
    #[default]
    Active,
    /// On its way back: nothing new is allocated.
    Releasing,
}

/// How full a block is, in addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Name of the block's pool.
    pub pool: String,
    /// Owner epoch.
    pub epoch: u64,
    /// Whether it may be allocated from.
    pub state: BlockState,
    /// All addresses of the block.
    pub size: u32,
    /// Addresses with an owner, pending ones among them.
    pub used: u32,
    /// Addresses given but not yet committed.
    pub pending: u32,
    /// Addresses that were released and not given again, cooling down or ready.
    pub released: u32,
}

impl Usage {
    /// Addresses without an owner, cooling down or ready.
    pub fn free(&self) -> u32 {
        self.size - self.used
    }
}

impl BlockRecord {
    /// A block freshly claimed by a node: epoch 1, active, empty.
    pub fn claimed(pool: &Pool, cidr: IpNet, owner: Uuid) -> BlockRecord {
        BlockRecord {
            schema: BLOCK_SCHEMA,
            cidr,
            pool: pool.name.clone(),
            owner,
            epoch: 1,
            state: BlockState::Active,
            allocations: BTreeMap::new(),
            extra: BTreeMap::new(),
        }
    }

    /// How many addresses the block has; 0 where it is too large to be one.
    pub fn size(&self) -> u32 {
        size(&self.cidr)
    }

    /// The address at an offset from the block's first one.
    pub fn address(&self, ordinal: u32) -> Option<IpAddr> {
        address::at(&self.cidr, u128::from(ordinal))
    }

    /// The offset of an address from the block's first one.
    pub fn ordinal(&self, ip: &IpAddr) -> Option<u32> {
        address::offset(&self.cidr, ip).and_then(|offset| u32::try_from(offset).ok())
    }
}

/// Addresses of a block, 0 where the prefix is larger than a block may be.
pub(crate) fn size(cidr: &IpNet) -> u32 {
    let host_bits = cidr.max_prefix_len() - cidr.prefix_len();
    if host_bits > BLOCK_HOST_BITS_MAX { 0 } else { 1 << host_bits }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_keeps_what_it_does_not_know() {
        let text = r#"{"schema":1,"cidr":"10.244.0.0/26","pool":"default","owner":"00000000-0000-0000-0000-000000000001",
            "epoch":3,"state":"active","allocations":{"0":"node/00000000-0000-0000-0000-000000000001",
            "5":"attachment/weft/c0ffee/eth0"},"colour":{"of":"tomorrow"}}"#;
        let record: BlockRecord = serde_json::from_str(text).unwrap();
        assert_eq!(record.extra.keys().collect::<Vec<_>>(), ["colour"]);
        assert_eq!(record.address(5), Some("10.244.0.5".parse().unwrap()));
        assert_eq!(record.ordinal(&"10.244.0.64".parse().unwrap()), None);
        let back: serde_json::Value = serde_json::to_value(&record).unwrap();
        assert_eq!(back, serde_json::from_str::<serde_json::Value>(text).unwrap());
    }
}
