// SPDX-License-Identifier: Apache-2.0
//! A node claims a block.

use std::collections::BTreeSet;

use ipam::{BlockRecord, Pool, PoolError, claim_candidates, validate_pools};
use ipnet::IpNet;
use uuid::Uuid;

use crate::records::{BadRecord, decode, encode};
use crate::{Class, Key, Keys, Store, StoreError, Transaction};

/// A creation whose answer was lost is sent again this often; it cannot be applied twice.
const CREATE_ATTEMPTS: usize = 3;

/// Why a node got no block.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ClaimError {
    /// The record cannot be written or read.
    #[error(transparent)]
    BadRecord(#[from] BadRecord),
    /// Every block of every pool has an owner.
    #[error(
        "no free block in {}: add a pool, make one larger, or remove nodes that are gone",
        name_pools(pools)
    )]
    Exhausted {
        /// The pools, as `name (cidr)`.
        pools: Vec<String>,
    },
    /// The pools themselves are wrong.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn name_pools(pools: &[String]) -> String {
    match pools {
        [] => "any pool (there is none)".into(),
        [one] => format!("pool {one}"),
        many => format!("pools {}", many.join(", ")),
    }
}

impl ClaimError {
    /// What to do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::BadRecord(_) | Self::Pool(_) => Class::Invalid,
            Self::Exhausted { .. } => Class::Retry,
            Self::Store(error) => error.class(),
        }
    }
}

/// Claims a free block for the node: the record is created, at a key that must be absent, in one transaction.
///
/// The epoch is the store's revision before the claim, so a node that claims a block again gets a higher one.
/// After an error whose class is retry a claim may have been made all the same: a node owns what the store says, so take
/// over blocks with the node as owner from the mirror before claiming more.
pub async fn claim_block(
    store: &dyn Store,
    keys: &Keys,
    pools: &[Pool],
    node: Uuid,
) -> Result<BlockRecord, ClaimError> {
    validate_pools(pools)?;
    let listing = store.list(&keys.blocks()).await?;
    // By key: a block whose value is bad has an owner too.
    let taken: BTreeSet<IpNet> = listing
        .items
        .iter()
        .filter_map(|item| match keys.parse(&item.key) {
            Some(Key::Block(cidr)) => Some(cidr),
            _ => None,
        })
        .collect();
    for (name, cidr) in claim_candidates(pools, &taken, node) {
        let Some(pool) = pools.iter().find(|pool| pool.name == name) else { continue };
        let record = BlockRecord { epoch: listing.revision, ..BlockRecord::claimed(pool, cidr, node) };
        if let Some(record) = create(store, keys, record).await? {
            return Ok(record);
        }
    }
    Err(ClaimError::Exhausted {
        pools: pools.iter().map(|pool| format!("{} ({})", pool.name, pool.cidr)).collect(),
    })
}

/// Deletes the record of a block if `node` still owns it. False when it has another owner or is gone.
pub async fn release_block(
    store: &dyn Store,
    keys: &Keys,
    cidr: IpNet,
    node: Uuid,
) -> Result<bool, ClaimError> {
    let key = keys.block(cidr);
    let Some(item) = store.get(&key).await? else { return Ok(false) };
    let record: BlockRecord = decode(&key, &item.value)?;
    if record.owner != node {
        return Ok(false);
    }
    Ok(store.transact(Transaction::new().unchanged(&key, item.mod_revision).delete(&key)).await?.succeeded)
}

/// `None` when somebody else has it.
async fn create(
    store: &dyn Store,
    keys: &Keys,
    record: BlockRecord,
) -> Result<Option<BlockRecord>, ClaimError> {
    let key = keys.block(record.cidr);
    let create = Transaction::new().absent(&key).put(&key, encode(&key, &record)?);
    let mut unsure = None;
    for _ in 0..CREATE_ATTEMPTS {
        match store.transact(create.clone()).await {
            Ok(done) if done.succeeded => return Ok(Some(record)),
            Ok(_) if unsure.is_none() => return Ok(None),
            // An earlier attempt may be the one that is there.
            Ok(_) => match store.get(&key).await {
                Ok(item) => {
                    let found = item.map(|item| decode::<BlockRecord>(&key, &item.value)).transpose()?;
                    return Ok(found.filter(|found| *found == record));
                }
                Err(error) => unsure = Some(error),
            },
            Err(error) if error.is_ambiguous() => unsure = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    let gave_up = || StoreError::Disconnected { reason: "no attempt was made".into() };
    Err(unsure.unwrap_or_else(gave_up).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exhaustion_names_the_pools() {
        let text = |pools: &[&str]| {
            ClaimError::Exhausted { pools: pools.iter().map(|p| (*p).into()).collect() }.to_string()
        };
        assert!(text(&["a (10.0.0.0/24)"]).starts_with("no free block in pool a (10.0.0.0/24): "));
        assert!(text(&["a", "b"]).starts_with("no free block in pools a, b: "));
    }
}
