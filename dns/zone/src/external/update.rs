// SPDX-License-Identifier: Apache-2.0
//! One message to the zone's server (RFC 2136).

use super::HostName;
use crate::{Name, Record, RecordData, RecordType};

/// What is to be changed about one name: all of it or nothing, and only while all conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The name.
    pub host: HostName,
    /// What it comes to.
    pub change: Change,
    /// Prerequisites.
    pub conditions: Vec<Condition>,
    /// In this order.
    pub actions: Vec<Action>,
}

/// What an update comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// A name that was nobody's becomes ours.
    Claim,
    /// A name of ours gets other records, another mark, or its place in the index.
    Correct,
    /// A name that is not ours leaves the index.
    Forget,
    /// A name of ours goes.
    Release,
}

/// What must be so in the zone (RFC 2136, 2.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// No records of this type (2.4.3).
    Absent(Name, RecordType),
    /// Exactly this one record of its type, whatever its TTL (2.4.2).
    Exactly(Name, RecordData),
    /// No records at all (2.4.5).
    Free(Name),
}

/// A step (RFC 2136, 2.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// One more record; nothing where it is there (2.5.1).
    Add(Record),
    /// One record goes; nothing where there is none (2.5.4).
    Remove(Name, RecordData),
    /// All of a type go (2.5.2).
    RemoveAll(Name, RecordType),
}

impl Change {
    /// For metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Correct => "correct",
            Self::Forget => "forget",
            Self::Release => "release",
        }
    }
}
