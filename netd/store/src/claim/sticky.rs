// SPDX-License-Identifier: Apache-2.0
//! Names whose addresses follow them. At most one attachment of the whole cluster uses a name at a time.

use std::net::IpAddr;

use ipam::AttachmentKey;
use uuid::Uuid;

use super::cas::{Change, ChangeError, change};
use crate::records::{Extra, SCHEMA, StickyRecord};
use crate::{Class, Keys, Store};

/// Who takes a name or gives it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StickyHolder {
    /// The node.
    pub node: Uuid,
    /// The attachment.
    pub attachment: AttachmentKey,
}

/// Why a sticky name was not taken or removed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum StickyError {
    /// The record could not be changed.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// An attachment uses it.
    #[error("sticky name {name} is in use by attachment {attachment} on node {node}: it must end first")]
    HeldBy {
        /// The name.
        name: String,
        /// The node.
        node: Uuid,
        /// The attachment; `unknown` where the record does not say.
        attachment: String,
        /// Since when, in milliseconds since the Unix epoch.
        since_ms: u64,
    },
    /// There is no such name, and no addresses were given for a new one.
    #[error("there is no sticky name {0}")]
    Unknown(String),
}

impl StickyError {
    /// What to do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Change(error) => error.class(),
            Self::HeldBy { .. } => Class::Retry,
            Self::Unknown(_) => Class::Invalid,
        }
    }
}

/// Takes the name for an attachment. A name that exists keeps its addresses: compare those of the result with `ips`. A new
/// one gets `ips`; where those are empty the answer is [`StickyError::Unknown`]. The same holder may take it again.
pub async fn take_sticky(
    store: &dyn Store,
    keys: &Keys,
    name: &str,
    holder: &StickyHolder,
    ips: &[IpAddr],
    now_ms: u64,
) -> Result<StickyRecord, StickyError> {
    change(store, &keys.sticky(name), |found: Option<StickyRecord>| {
        let mut record = match found {
            None if ips.is_empty() => return Err(StickyError::Unknown(name.to_owned())),
            None => StickyRecord {
                schema: SCHEMA,
                name: name.to_owned(),
                ips: ips.to_vec(),
                node: None,
                attachment: None,
                since_ms: now_ms,
                extra: Extra::new(),
            },
            Some(record) if is_held_by(&record, holder) => return Ok((Change::Nothing, record)),
            Some(record) => record,
        };
        refuse_held(&record)?;
        record.node = Some(holder.node);
        record.attachment = Some(holder.attachment.clone());
        record.since_ms = now_ms;
        Ok((Change::Put(record.clone()), record))
    })
    .await
}

/// The attachment ends; the name keeps its addresses. False where somebody else has it or nobody.
pub async fn give_back_sticky(
    store: &dyn Store,
    keys: &Keys,
    name: &str,
    holder: &StickyHolder,
    now_ms: u64,
) -> Result<bool, ChangeError> {
    change(store, &keys.sticky(name), |found: Option<StickyRecord>| {
        Ok(match found.filter(|record| is_held_by(record, holder)) {
            Some(record) => {
                let free = StickyRecord { node: None, attachment: None, since_ms: now_ms, ..record };
                (Change::Put(free), true)
            }
            None => (Change::Nothing, false),
        })
    })
    .await
}

/// The name gives its addresses up: its record goes, and the nodes that keep them aside see that. Returns what it was.
/// Refused while an attachment uses it.
pub async fn remove_sticky(store: &dyn Store, keys: &Keys, name: &str) -> Result<StickyRecord, StickyError> {
    change(store, &keys.sticky(name), |found: Option<StickyRecord>| {
        let record = found.ok_or_else(|| StickyError::Unknown(name.to_owned()))?;
        refuse_held(&record)?;
        Ok((Change::Delete, record))
    })
    .await
}

fn is_held_by(record: &StickyRecord, holder: &StickyHolder) -> bool {
    record.node == Some(holder.node) && record.attachment.as_ref() == Some(&holder.attachment)
}

fn refuse_held(record: &StickyRecord) -> Result<(), StickyError> {
    let Some(node) = record.node else { return Ok(()) };
    let attachment = record.attachment.as_ref();
    Err(StickyError::HeldBy {
        name: record.name.clone(),
        node,
        attachment: attachment.map_or_else(|| "unknown".to_owned(), AttachmentKey::to_string),
        since_ms: record.since_ms,
    })
}
