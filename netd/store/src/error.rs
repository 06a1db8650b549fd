// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with the store, and what a caller is to do about it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::LeaseId;

/// What a caller does about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Somebody else was first: read again, decide again.
    Conflict,
    /// Repeating does not help until an operator acts (credentials, permissions).
    Fatal,
    /// The request or the configuration is wrong and will be wrong the next time.
    Invalid,
    /// Try again later, with back-off.
    Retry,
}

impl Class {
    /// The word used in logs, metrics and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::Fatal => "fatal",
            Self::Invalid => "invalid",
            Self::Retry => "retry",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error of any [`crate::Store`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The history asked for is gone; list again and watch from the listing's revision.
    #[error("the store has compacted its history up to revision {revision}: list again")]
    Compacted {
        /// The oldest revision that still can be watched.
        revision: u64,
    },
    /// A file of the store does not hold what was written, or a newer version wrote it.
    #[error(
        "the store's {}, line {line}, cannot be used: {reason}; restore the file from a backup, or move it away and \
         apply the services again: the store then starts empty", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The store refuses who we are or what we may do.
    #[error(
        "the store refuses access: {reason}; check the user, its password, its roles and the client certificate"
    )]
    Denied {
        /// The store's own words.
        reason: String,
        /// It knows who we are, and that one may not: no new token helps.
        is_final: bool,
    },
    /// A watch broke; list again and watch from there.
    #[error("the watch was disconnected: {reason}")]
    Disconnected {
        /// What broke it.
        reason: String,
    },
    /// The connection's settings are wrong.
    #[error("store settings: {reason}")]
    InvalidConfig {
        /// Which setting, and what to do.
        reason: String,
    },
    /// The request itself is wrong.
    #[error("the store cannot take this request: {reason}")]
    InvalidRequest {
        /// What is wrong with it.
        reason: String,
    },
    /// The lease has expired or was revoked; its keys are gone.
    #[error("lease {0} has expired or was revoked")]
    LeaseNotFound(LeaseId),
    /// Another process has the store's files.
    #[error(
        "the store in {} is in use by {}: stop that one first, or set another state directory", dir.display(),
        pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
    )]
    Locked {
        /// The store's directory.
        dir: PathBuf,
        /// Who has it, where it has said so.
        pid: Option<u32>,
    },
    /// The store did not answer in time. A transaction may or may not have been applied.
    #[error("the store did not answer {operation} within {after:?} ({endpoint})")]
    Timeout {
        /// The request, for example `list`.
        operation: &'static str,
        /// The limit that was reached.
        after: Duration,
        /// Where it was sent.
        endpoint: String,
    },
    /// The store cannot be reached or cannot serve now. A transaction may or may not have been applied.
    #[error("the store is not available ({endpoint}): {reason}")]
    Unavailable {
        /// Where it was sent.
        endpoint: String,
        /// The store's or the connection's own words.
        reason: String,
    },
    /// A file named in the settings cannot be read.
    #[error("store settings: cannot read {}: {reason}", path.display())]
    UnreadableFile {
        /// The file.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
}

impl StoreError {
    /// What to do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Compacted { .. }
            | Self::Disconnected { .. }
            | Self::Timeout { .. }
            | Self::Unavailable { .. } => Class::Retry,
            Self::Damaged { .. } | Self::Denied { .. } | Self::Locked { .. } => Class::Fatal,
            Self::InvalidConfig { .. } | Self::InvalidRequest { .. } | Self::UnreadableFile { .. } => {
                Class::Invalid
            }
            Self::LeaseNotFound(_) => Class::Conflict,
        }
    }

    /// True when a transaction that returned this error may have been applied all the same.
    pub fn is_ambiguous(&self) -> bool {
        matches!(self, Self::Timeout { .. } | Self::Unavailable { .. })
    }
}
