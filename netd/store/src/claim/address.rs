// SPDX-License-Identifier: Apache-2.0
//! An address inside another node's block: asked for by a record, granted or denied by the block's owner.
//!
//! Invariants: a record has one owner, and the address is used on its node only, once it is granted. The asker deletes a
//! record that is not granted in time; the block's owner frees what it kept aside when the record goes.

use std::net::IpAddr;

use ipam::{BlockRecord, Owner};
use uuid::Uuid;

use super::block::item_around;
use super::cas::{Change, ChangeError, ROUNDS, change, contended, swap};
use crate::records::{AddressRecord, Extra, SCHEMA, decode, encode};
use crate::{Class, Keys, Store, Transaction};

/// Why an address was not asked for.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AddressClaimError {
    /// The record could not be changed.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// Somebody else has it.
    #[error("{ip} belongs to {owner}{}", on(*node))]
    InUse {
        /// The address.
        ip: IpAddr,
        /// Who has it.
        owner: Owner,
        /// Where it is in use.
        node: Option<Uuid>,
    },
    /// The address is in no block, so there is nobody to ask: claim the block.
    #[error("{0} is in no node's block")]
    NoBlock(IpAddr),
    /// The address is in a block of the asking node.
    #[error("{0} is in a block of this node: allocate it there")]
    OwnBlock(IpAddr),
    /// The asking node has a tombstone, or the block's owner has.
    #[error("node {0} was removed from the cluster: no address is given to it or by it")]
    Removed(Uuid),
}

fn on(node: Option<Uuid>) -> String {
    node.map(|node| format!(" on node {node}")).unwrap_or_default()
}

impl AddressClaimError {
    /// What to do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Change(error) => error.class(),
            Self::InUse { .. } => Class::Conflict,
            Self::NoBlock(_) | Self::OwnBlock(_) | Self::Removed(_) => Class::Invalid,
        }
    }
}

/// Asks the owner of the block for the address. The record that comes back is usable where `granted` is true; else wait for
/// that, and [`release_address`] when it does not come: the record may also go, or name somebody else, which is a no.
/// Asking again while a record of the same owner and node is there changes nothing.
pub async fn request_address(
    store: &dyn Store,
    keys: &Keys,
    ip: IpAddr,
    owner: &Owner,
    node: Uuid,
) -> Result<AddressRecord, AddressClaimError> {
    let key = keys.address(ip);
    for _ in 0..ROUNDS {
        if let Some(item) = store.get(&key).await.map_err(ChangeError::from)? {
            let found: AddressRecord = decode(&key, &item.value).map_err(ChangeError::from)?;
            if is_users(&found, owner, node) {
                return Ok(found);
            }
            return Err(AddressClaimError::InUse { ip, owner: found.owner, node: found.node });
        }
        let listing = store.list(&keys.blocks()).await.map_err(ChangeError::from)?;
        let block = item_around(keys, &listing, ip).ok_or(AddressClaimError::NoBlock(ip))?;
        let around: BlockRecord = decode(&block.key, &block.value).map_err(ChangeError::from)?;
        if around.owner == node {
            return Err(AddressClaimError::OwnBlock(ip));
        }
        let record = AddressRecord {
            schema: SCHEMA,
            ip,
            owner: owner.clone(),
            node: Some(node),
            granted: false,
            block_owner: around.owner,
            extra: Extra::new(),
        };
        let value = encode(&key, &record).map_err(ChangeError::from)?;
        // Nothing is asked of a removed node, nor by one; nor of one that just gave the block up.
        let write = Transaction::new()
            .absent(keys.tombstone(node))
            .absent(keys.tombstone(around.owner))
            .unchanged(&block.key, block.mod_revision)
            .absent(&key)
            .put(&key, value.clone());
        if swap(store, write, &key, 0, Some(&value)).await? {
            return Ok(record);
        }
        for removed in [node, around.owner] {
            if store.get(&keys.tombstone(removed)).await.map_err(ChangeError::from)?.is_some() {
                return Err(AddressClaimError::Removed(removed));
            }
        }
    }
    Err(contended(&key).into())
}

/// The block's owner has reserved the address durably, and grants it. False where the record is gone or names another
/// owner of the block: free what was reserved.
pub async fn grant_address(
    store: &dyn Store,
    keys: &Keys,
    ip: IpAddr,
    block_owner: Uuid,
) -> Result<bool, ChangeError> {
    change(store, &keys.address(ip), |found: Option<AddressRecord>| {
        Ok(match found.filter(|record| record.block_owner == block_owner) {
            Some(record) if record.granted => (Change::Nothing, true),
            Some(record) => (Change::Put(AddressRecord { granted: true, ..record }), true),
            None => (Change::Nothing, false),
        })
    })
    .await
}

/// The block's owner cannot give the address: the record goes. False where it is gone or was granted.
pub async fn deny_address(
    store: &dyn Store,
    keys: &Keys,
    ip: IpAddr,
    block_owner: Uuid,
) -> Result<bool, ChangeError> {
    change(store, &keys.address(ip), |found: Option<AddressRecord>| {
        let open = found.is_some_and(|record| record.block_owner == block_owner && !record.granted);
        Ok((if open { Change::Delete } else { Change::Nothing }, open))
    })
    .await
}

/// Its user gives the address up, granted or not: the record goes. False where it is gone or somebody else's.
pub async fn release_address(
    store: &dyn Store,
    keys: &Keys,
    ip: IpAddr,
    owner: &Owner,
    node: Uuid,
) -> Result<bool, ChangeError> {
    change(store, &keys.address(ip), |found: Option<AddressRecord>| {
        let ours = found.is_some_and(|record| is_users(&record, owner, node));
        Ok((if ours { Change::Delete } else { Change::Nothing }, ours))
    })
    .await
}

fn is_users(record: &AddressRecord, owner: &Owner, node: Uuid) -> bool {
    record.owner == *owner && record.node == Some(node)
}
