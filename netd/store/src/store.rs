// SPDX-License-Identifier: Apache-2.0
//! The seam between the agent and what keeps its data.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{StoreError, Transacted, Transaction, Watch};

/// A store of keys with revisions, watches, transactions and leases (etcd's model).
///
/// Every request is bounded by a time-out of the implementation. All methods are cancel-safe in the sense that dropping
/// the future leaves no task behind; a dropped `transact` may still be applied.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The value of one key, or `None`.
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError>;

    /// All keys that start with `prefix`, sorted, as they were together at one revision.
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError>;

    /// Changes of keys that start with `prefix`, from `from_revision` (inclusive) on; 0 means from the next change on.
    ///
    /// A revision that is compacted may show here or at the first [`Watch::next`], as [`StoreError::Compacted`].
    async fn watch(&self, prefix: &str, from_revision: u64) -> Result<Watch, StoreError>;

    /// Applies all puts and deletes at one revision when every compare holds, else nothing.
    ///
    /// An error that [`StoreError::is_ambiguous`] says nothing about whether it was applied: read back.
    async fn transact(&self, transaction: Transaction) -> Result<Transacted, StoreError>;

    /// A new lease; the store may make the time longer than asked (see the answer). Resolution: one second.
    async fn lease_grant(&self, ttl: Duration) -> Result<Lease, StoreError>;

    /// Starts the lease's time afresh. [`StoreError::LeaseNotFound`] when it is gone.
    async fn lease_keep_alive(&self, id: LeaseId) -> Result<(), StoreError>;

    /// Ends the lease and deletes its keys. [`StoreError::LeaseNotFound`] when it is gone.
    async fn lease_revoke(&self, id: LeaseId) -> Result<(), StoreError>;

    /// Writes one key whatever it held; returns the revision. Only for keys that have one writer by construction.
    async fn put(&self, key: &str, value: Bytes, lease: Option<LeaseId>) -> Result<u64, StoreError> {
        Ok(self.transact(Transaction::new().put_leased(key, value, lease)).await?.revision)
    }

    /// Deletes one key; absent is fine; returns the revision.
    async fn delete(&self, key: &str) -> Result<u64, StoreError> {
        Ok(self.transact(Transaction::new().delete(key)).await?.revision)
    }
}

/// A key, its value and where they stand in history.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The full key. Bytes that are not UTF-8 are replaced, so such a key never parses.
    pub key: String,
    /// The value, usually JSON.
    pub value: Bytes,
    /// The revision at which the key came to be.
    pub create_revision: u64,
    /// The revision of the last write.
    pub mod_revision: u64,
}

impl fmt::Debug for KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}={}", self.key, self.mod_revision, String::from_utf8_lossy(&self.value))
    }
}

/// All keys of a prefix at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The store's revision; watch from the one after it.
    pub revision: u64,
    /// Sorted by key.
    pub items: Vec<KeyValue>,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The key was deleted, or its lease ended.
    Delete {
        /// The key.
        key: String,
        /// When.
        revision: u64,
    },
    /// The key was created or changed.
    Put(KeyValue),
}

impl Event {
    /// The key concerned.
    pub fn key(&self) -> &str {
        match self {
            Self::Delete { key, .. } => key,
            Self::Put(item) => &item.key,
        }
    }

    /// The revision of the change.
    pub fn revision(&self) -> u64 {
        match self {
            Self::Delete { revision, .. } => *revision,
            Self::Put(item) => item.mod_revision,
        }
    }
}

/// Changes in order; never part of a revision only. Without events it is a progress notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchBatch {
    /// Every change up to this revision has been delivered.
    pub revision: u64,
    /// In order of revision.
    pub events: Vec<Event>,
}

/// A lease's number in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A granted lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Its number.
    pub id: LeaseId,
    /// How long it lives after the grant or the last keep-alive.
    pub ttl: Duration,
}
