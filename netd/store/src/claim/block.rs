// SPDX-License-Identifier: Apache-2.0
//! A node claims a block.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipam::{
    AddressRange, BlockRecord, Family, Pool, PoolError, claim_candidates, claim_candidates_within,
    validate_pools,
};
use ipnet::IpNet;
use uuid::Uuid;

use crate::records::{BadRecord, decode, encode};
use crate::{Class, Key, KeyValue, Keys, Listing, Store, StoreError, Transaction};

/// A creation whose answer was lost is sent again this often; it cannot be applied twice.
const CREATE_ATTEMPTS: usize = 3;

/// Why a node got no block.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ClaimError {
    /// The record cannot be written or read.
    #[error(transparent)]
    BadRecord(#[from] BadRecord),
    /// The pool of the address gives this node nothing.
    #[error("pool {pool} gives no block with {ip}: {why}")]
    Closed {
        /// The address asked for.
        ip: IpAddr,
        /// Its pool.
        pool: String,
        /// It drains, or it is for other nodes.
        why: &'static str,
    },
    /// Every block of the family, in every pool that this node may use, has an owner.
    #[error("{}", exhausted_text(*family, pools, draining))]
    Exhausted {
        /// The family.
        family: Family,
        /// The pools that were tried, as `name (cidr)`.
        pools: Vec<String>,
        /// Pools of the family that drain, and could be taken into use again.
        draining: Vec<String>,
    },
    /// No pool has the address.
    #[error("{0} is in no address pool")]
    NotInPools(IpAddr),
    /// The pools themselves are wrong.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The node has a tombstone.
    #[error("node {0} was removed from the cluster: it gets no block")]
    Removed(Uuid),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The block around the address asked for has an owner, who may be the asking node itself.
    #[error("{ip} is in block {block} of node {owner}")]
    Taken {
        /// The address asked for.
        ip: IpAddr,
        /// Its block.
        block: IpNet,
        /// Who has that.
        owner: Uuid,
    },
}

fn exhausted_text(family: Family, pools: &[String], draining: &[String]) -> String {
    let full = match pools {
        [] => format!("no {family} pool is in use for this node"),
        [one] => format!("all {family} blocks of pool {one} are claimed"),
        many => format!("all {family} blocks of pools {} are claimed", many.join(", ")),
    };
    let undrain: String = draining.iter().map(|name| format!("`weft ipam pool undrain {name}`, ")).collect();
    format!("{full}: `weft ipam pool add` another, {undrain}or delete pods or nodes that nobody needs")
}

impl ClaimError {
    /// What to do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::BadRecord(_) | Self::NotInPools(_) | Self::Pool(_) => Class::Invalid,
            Self::Closed { .. } | Self::Exhausted { .. } => Class::Retry,
            Self::Removed(_) => Class::Fatal,
            Self::Store(error) => error.class(),
            Self::Taken { .. } => Class::Conflict,
        }
    }
}

/// Claims a free block of a family for the node: the record is created, at a key that must be absent, in one transaction
/// that holds only while the node has no tombstone.
///
/// The epoch is the store's revision before the claim, so a node that claims a block again gets a higher one.
/// After an error whose class is retry a claim may have been made all the same: a node owns what the store says, so take
/// over blocks with the node as owner from the mirror before claiming more.
pub async fn claim_block(
    store: &dyn Store,
    keys: &Keys,
    pools: &[Pool],
    node: Uuid,
    node_labels: &BTreeMap<String, String>,
    family: Family,
) -> Result<BlockRecord, ClaimError> {
    validate_pools(pools)?;
    let listing = store.list(&keys.blocks()).await?;
    let taken = taken(keys, &listing);
    for (name, cidr) in claim_candidates(pools, &taken, node, node_labels, family) {
        if let Some(record) = claim_one(store, keys, pools, node, (name, cidr, listing.revision)).await? {
            return Ok(record);
        }
    }
    let mine = |pool: &&Pool| pool.state.is_active() && pool.family() == family && pool.admits(node_labels);
    let tried = pools.iter().filter(mine);
    let tried = tried.map(|pool| format!("{} ({})", pool.name, pool.cidr)).collect();
    let drains =
        |pool: &&Pool| !pool.state.is_active() && pool.family() == family && pool.admits(node_labels);
    let draining = pools.iter().filter(drains).map(|pool| pool.name.clone()).collect();
    Err(ClaimError::Exhausted { family, pools: tried, draining })
}

/// As [`claim_block`], the very block that has the address; [`ClaimError::Taken`] says whose it is where it is taken.
pub async fn claim_block_containing(
    store: &dyn Store,
    keys: &Keys,
    pools: &[Pool],
    node: Uuid,
    node_labels: &BTreeMap<String, String>,
    ip: IpAddr,
) -> Result<BlockRecord, ClaimError> {
    validate_pools(pools)?;
    let pool = pools.iter().find(|pool| pool.cidr.contains(&ip)).ok_or(ClaimError::NotInPools(ip))?;
    let closed = |why| ClaimError::Closed { ip, pool: pool.name.clone(), why };
    for _ in 0..CREATE_ATTEMPTS {
        let listing = store.list(&keys.blocks()).await?;
        if let Some(item) = item_around(keys, &listing, ip) {
            let block: BlockRecord = decode(&item.key, &item.value)?;
            return Err(ClaimError::Taken { ip, block: block.cidr, owner: block.owner });
        }
        if !pool.state.is_active() {
            return Err(closed("it drains"));
        }
        if !pool.admits(node_labels) {
            return Err(closed("its node selector does not match this node's labels"));
        }
        let taken = taken(keys, &listing);
        let block = claim_candidates_within(pools, &taken, node_labels, &[AddressRange::only(ip)]).next();
        let (name, cidr) = block.ok_or_else(|| closed("blocks of another size lie in the way"))?;
        if let Some(record) = claim_one(store, keys, pools, node, (name, cidr, listing.revision)).await? {
            return Ok(record);
        }
    }
    Err(closed("others claim its block and give it back all the time"))
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

/// By key: a block whose value is bad has an owner too.
fn taken(keys: &Keys, listing: &Listing) -> BTreeSet<IpNet> {
    listing.items.iter().filter_map(|item| block_of(keys, item)).collect()
}

/// The block in `listing` that has the address.
pub(super) fn item_around<'a>(keys: &Keys, listing: &'a Listing, ip: IpAddr) -> Option<&'a KeyValue> {
    listing.items.iter().find(|item| block_of(keys, item).is_some_and(|cidr| cidr.contains(&ip)))
}

pub(super) fn block_of(keys: &Keys, item: &KeyValue) -> Option<IpNet> {
    match keys.parse(&item.key) {
        Some(Key::Block(cidr)) => Some(cidr),
        _ => None,
    }
}

/// Creates the block (pool, prefix, epoch). `None` when somebody else has it.
async fn claim_one(
    store: &dyn Store,
    keys: &Keys,
    pools: &[Pool],
    node: Uuid,
    (name, cidr, epoch): (String, IpNet, u64),
) -> Result<Option<BlockRecord>, ClaimError> {
    let Some(pool) = pools.iter().find(|pool| pool.name == name) else { return Ok(None) };
    let record = BlockRecord { epoch, ..BlockRecord::claimed(pool, cidr, node) };
    let created = create(store, keys, record).await?;
    if created.is_none() && store.get(&keys.tombstone(node)).await?.is_some() {
        return Err(ClaimError::Removed(node));
    }
    Ok(created)
}

/// `None` when somebody else has it, or the node has a tombstone.
async fn create(
    store: &dyn Store,
    keys: &Keys,
    record: BlockRecord,
) -> Result<Option<BlockRecord>, ClaimError> {
    let key = keys.block(record.cidr);
    let create = Transaction::new()
        .absent(keys.tombstone(record.owner))
        .absent(&key)
        .put(&key, encode(&key, &record)?);
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
    fn exhaustion_names_the_pools_and_every_way_out() {
        let text = |pools: &[&str], draining: &[&str]| {
            let owned = |names: &[&str]| names.iter().map(|p| (*p).into()).collect();
            ClaimError::Exhausted { family: Family::V4, pools: owned(pools), draining: owned(draining) }
                .to_string()
        };
        assert!(
            text(&["a (10.0.0.0/24)"], &[])
                .starts_with("all IPv4 blocks of pool a (10.0.0.0/24) are claimed: ")
        );
        assert!(text(&["a", "b"], &[]).starts_with("all IPv4 blocks of pools a, b are claimed: "));
        assert!(!text(&["a"], &[]).contains("undrain") && !text(&["a"], &[]).contains("larger"));
        assert!(text(&["a"], &["old"]).contains("`weft ipam pool undrain old`"));
        assert!(text(&[], &["old"]).starts_with("no IPv4 pool is in use for this node: "));
    }
}
