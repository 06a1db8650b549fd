// SPDX-License-Identifier: Apache-2.0
//! Compare-and-swap: the only way to write.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::{LeaseId, StoreError};

/// Compares, or puts and deletes together; etcd's default `--max-txn-ops`.
pub const MAX_TRANSACTION_OPERATIONS: usize = 128;

/// Keys and values of one transaction together; etcd's default request limit is 1.5 MiB, framing included.
pub const MAX_TRANSACTION_BYTES: usize = 1024 * 1024;

/// A key's length; ours are far below, so a longer one is a mistake.
pub const MAX_KEY_BYTES: usize = 4096;

/// Puts and deletes that are applied together when every compare holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// All must hold.
    pub compares: Vec<Compare>,
    /// Keys to write; no key twice, deletes included.
    pub puts: Vec<Put>,
    /// Keys to delete; absent is fine.
    pub deletes: Vec<String>,
}

/// A key is as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: String,
    /// Its last write; 0 when it must be absent.
    pub mod_revision: u64,
}

/// A key to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Bytes,
    /// The lease whose end deletes the key. Without one the key lets go of the lease it had.
    pub lease: Option<LeaseId>,
}

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transacted {
    /// False when a compare did not hold; nothing was written then.
    pub succeeded: bool,
    /// The store's revision after it.
    pub revision: u64,
}

impl Transaction {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// The key must not exist.
    #[must_use]
    pub fn absent(self, key: impl Into<String>) -> Self {
        self.unchanged(key, 0)
    }

    /// The key's last write must be this one (0: absent).
    #[must_use]
    pub fn unchanged(mut self, key: impl Into<String>, mod_revision: u64) -> Self {
        self.compares.push(Compare { key: key.into(), mod_revision });
        self
    }

    /// Write the key.
    #[must_use]
    pub fn put(self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.put_leased(key, value, None)
    }

    /// Write the key, to be deleted when the lease ends.
    #[must_use]
    pub fn put_leased(
        mut self,
        key: impl Into<String>,
        value: impl Into<Bytes>,
        lease: Option<LeaseId>,
    ) -> Self {
        self.puts.push(Put { key: key.into(), value: value.into(), lease });
        self
    }

    /// Delete the key.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.deletes.push(key.into());
        self
    }

    /// Refuses what a store would refuse, so that every implementation refuses the same.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        let operations = self.puts.len() + self.deletes.len();
        if operations > MAX_TRANSACTION_OPERATIONS || self.compares.len() > MAX_TRANSACTION_OPERATIONS {
            return Err(StoreError::InvalidRequest {
                reason: format!(
                    "a transaction of {} compares and {operations} writes; the limit is {MAX_TRANSACTION_OPERATIONS}",
                    self.compares.len()
                ),
            });
        }
        let mut seen = BTreeSet::new();
        let mut bytes = 0;
        for key in self.puts.iter().map(|put| &put.key).chain(&self.deletes) {
            check_key(key)?;
            bytes += key.len();
            if !seen.insert(key) {
                return Err(StoreError::InvalidRequest {
                    reason: format!("key {key} twice in a transaction"),
                });
            }
        }
        for compare in &self.compares {
            check_key(&compare.key)?;
            bytes += compare.key.len();
        }
        bytes += self.puts.iter().map(|put| put.value.len()).sum::<usize>();
        if bytes > MAX_TRANSACTION_BYTES {
            let first = seen.first().map_or("", |key| key.as_str());
            return Err(StoreError::InvalidRequest {
                reason: format!(
                    "{bytes} bytes in a transaction that writes {first}; the limit is {MAX_TRANSACTION_BYTES}"
                ),
            });
        }
        Ok(())
    }
}

/// A key that no store refuses.
pub(crate) fn check_key(key: &str) -> Result<(), StoreError> {
    if key.is_empty() {
        return Err(StoreError::InvalidRequest { reason: "an empty key".into() });
    }
    if key.len() > MAX_KEY_BYTES {
        return Err(StoreError::InvalidRequest {
            reason: format!("a key of {} bytes; the limit is {MAX_KEY_BYTES}", key.len()),
        });
    }
    Ok(())
}
