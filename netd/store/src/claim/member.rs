// SPDX-License-Identifier: Apache-2.0
//! Members: machines outside the cluster, each with a name of its own.

use super::cas::{Change, ChangeError, change};
use crate::records::MemberRecord;
use crate::{Class, Keys, Store};

/// Why a member was not added or removed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MemberError {
    /// The record could not be changed.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The name is taken.
    #[error("there is a member {0} already")]
    Exists(String),
    /// There is no such member.
    #[error("there is no member {0}")]
    Unknown(String),
}

impl MemberError {
    /// What to do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Change(error) => error.class(),
            Self::Exists(_) | Self::Unknown(_) => Class::Invalid,
        }
    }
}

/// Puts a member on record, whose addresses were reserved before. The same record again is a success.
pub async fn add_member(store: &dyn Store, keys: &Keys, record: &MemberRecord) -> Result<(), MemberError> {
    change(store, &keys.member(&record.name), |found: Option<MemberRecord>| match found {
        None => Ok((Change::Put(record.clone()), ())),
        Some(known) if known == *record => Ok((Change::Nothing, ())),
        Some(_) => Err(MemberError::Exists(record.name.clone())),
    })
    .await
}

/// The member goes; who keeps its addresses aside sees that. Returns what it was.
pub async fn remove_member(store: &dyn Store, keys: &Keys, name: &str) -> Result<MemberRecord, MemberError> {
    change(store, &keys.member(name), |found: Option<MemberRecord>| {
        let record = found.ok_or_else(|| MemberError::Unknown(name.to_owned()))?;
        Ok((Change::Delete, record))
    })
    .await
}
