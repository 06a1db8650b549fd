// SPDX-License-Identifier: Apache-2.0
//! Read, decide, compare-and-swap, again where somebody else was first.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::records::{BadRecord, decode, encode};
use crate::{Class, Store, StoreError, Transaction};

/// Each round that fails means that somebody else wrote the key between our read and our write.
pub(super) const ROUNDS: usize = 16;

/// What is to become of a key.
#[derive(Debug)]
pub(super) enum Change<T> {
    /// It goes.
    Delete,
    /// It stays as it is.
    Nothing,
    /// This is its value.
    Put(T),
}

/// Why a record was not changed; operations with more to say have their own error around it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ChangeError {
    /// The record cannot be read, and is not written over; or it cannot be written.
    #[error(transparent)]
    BadRecord(#[from] BadRecord),
    /// Others kept changing it.
    #[error("{key} was changed by others {ROUNDS} times in a row: try again")]
    Contended {
        /// The key.
        key: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ChangeError {
    /// What to do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::BadRecord(_) => Class::Invalid,
            Self::Contended { .. } => Class::Retry,
            Self::Store(error) => error.class(),
        }
    }
}

/// Changes one key. `decide` sees what is there (`None` where nothing is) and may be asked several times; its second result
/// is returned with the change that was made.
pub(super) async fn change<T, R, E>(
    store: &dyn Store,
    key: &str,
    mut decide: impl FnMut(Option<T>) -> Result<(Change<T>, R), E>,
) -> Result<R, E>
where
    T: DeserializeOwned + Serialize,
    E: From<ChangeError>,
{
    for _ in 0..ROUNDS {
        let found = store.get(key).await.map_err(ChangeError::from)?;
        let seen = found.as_ref().map_or(0, |item| item.mod_revision);
        let record =
            found.map(|item| decode::<T>(key, &item.value)).transpose().map_err(ChangeError::from)?;
        let (change, result) = decide(record)?;
        let (write, value) = match change {
            Change::Nothing => return Ok(result),
            Change::Delete => (Transaction::new().delete(key), None),
            Change::Put(record) => {
                let value = encode(key, &record).map_err(ChangeError::from)?;
                (Transaction::new().put(key, value.clone()), Some(value))
            }
        };
        if swap(store, write.unchanged(key, seen), key, seen, value.as_ref()).await? {
            return Ok(result);
        }
    }
    Err(contended(key).into())
}

/// Runs a transaction that makes `key`, last written at `seen`, hold `value` (`None`: be gone). False where a compare did
/// not hold. Where the answer was lost, what is there tells.
pub(super) async fn swap(
    store: &dyn Store,
    write: Transaction,
    key: &str,
    seen: u64,
    value: Option<&Bytes>,
) -> Result<bool, ChangeError> {
    match store.transact(write).await {
        Ok(done) => Ok(done.succeeded),
        Err(error) if error.is_ambiguous() => match (store.get(key).await?, value) {
            (Some(item), Some(value)) if item.value == value && item.mod_revision > seen => Ok(true),
            (None, None) => Ok(true),
            _ => Err(error.into()),
        },
        Err(error) => Err(error.into()),
    }
}

pub(super) fn contended(key: &str) -> ChangeError {
    ChangeError::Contended { key: key.to_owned() }
}
