// SPDX-License-Identifier: Apache-2.0
//! Where names are published, and which names may be.

use std::cmp::Ordering;
use std::fmt;

use thiserror::Error;

use crate::{Name, NameError};

/// First label of a mark, and of the names below which the index lies. No host's name begins so.
const LABEL: &str = "_weft";
/// Parts of the index. BIND takes 100 records of a name and type (`max-records-per-type`).
pub const INDEX_SHARDS: usize = 64;
/// Names of one cluster: more of them might not fit into a part of the index.
pub const NAMES_MAX: usize = 4_000;
/// Octets of an owner's name: a cluster's, and something that tells it from others of that name. A mark fits into 255 with it.
const OWNER_MAX: usize = 80;

/// A part of a zone that names of services are published in. Displays as its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    zone: Name,
    name: Name,
    owner: String,
    ttl_secs: u32,
    index: Vec<Name>,
}

/// A name of a host in a [`Domain`], in lower case. Displays without the final dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName {
    name: Name,
    mark: Name,
}

/// Why names cannot be published there, or not this one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DomainError {
    /// Not letters, digits and hyphens.
    #[error("{0:?} is no name of a host: labels of a-z, 0-9 and -, the first may be *")]
    NoHost(String),
    /// No domain name.
    #[error(transparent)]
    NoName(#[from] NameError),
    /// Not where it may be.
    #[error("{name} is not at or below {domain}")]
    Outside {
        /// The name.
        name: String,
        /// Where it would have to be.
        domain: String,
    },
    /// The owner's name does not fit into names and marks.
    #[error("owner {0:?}: use 1 to 80 of a-z, 0-9, '-' and '.', beginning and ending with a letter or digit")]
    Owner(String),
}

impl Domain {
    /// `domain` of `zone`, where `owner` (the same on every node of a cluster, and in no other cluster that publishes there)
    /// publishes records of this TTL.
    ///
    /// # Errors
    /// The domain is not in the zone; the owner's name does not fit.
    pub fn new(zone: Name, domain: Name, owner: &str, ttl_secs: u32) -> Result<Self, DomainError> {
        if !domain.is_at_or_below(&zone) {
            return Err(DomainError::Outside { name: show(&domain), domain: show(&zone.to_lower()) });
        }
        if owner.len() > OWNER_MAX || !owner.split('.').all(|label| is_host_label(label.as_bytes())) {
            return Err(DomainError::Owner(owner.to_owned()));
        }
        let below = domain.child(LABEL)?;
        let owned = owner.split('.').rev().try_fold(below, |name, label| name.child(label))?;
        let shard = |number: usize| owned.child(&format!("{number:02x}"));
        let index = (0..INDEX_SHARDS).map(shard).collect::<Result<_, _>>()?;
        Ok(Self { zone: zone.to_lower(), name: domain.to_lower(), owner: owner.to_owned(), ttl_secs, index })
    }

    /// The same for another owner.
    ///
    /// # Errors
    /// The owner's name does not fit.
    pub fn owned_by(&self, owner: &str) -> Result<Self, DomainError> {
        Self::new(self.zone.clone(), self.name.clone(), owner, self.ttl_secs)
    }

    /// The zone's own name.
    #[must_use]
    pub fn zone(&self) -> &Name {
        &self.zone
    }

    /// Whose names these are.
    #[must_use]
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// Of all records.
    #[must_use]
    pub fn ttl_secs(&self) -> u32 {
        self.ttl_secs
    }

    /// The names whose TXT records name all that is published.
    #[must_use]
    pub fn index(&self) -> &[Name] {
        &self.index
    }

    /// A name that may be published here.
    ///
    /// # Errors
    /// It is not a name of a host, or is elsewhere.
    pub fn host(&self, text: &str) -> Result<HostName, DomainError> {
        let name = Name::parse(text)?.to_lower();
        let is_label =
            |(at, label): (usize, &[u8])| is_host_label(label) || (at == 0 && label == b"*".as_slice());
        if name == Name::root() || !name.labels().enumerate().all(is_label) {
            return Err(DomainError::NoHost(text.to_owned()));
        }
        if !name.is_at_or_below(&self.name) {
            return Err(DomainError::Outside { name: show(&name), domain: show(&self.name) });
        }
        Ok(HostName { mark: name.child(LABEL)?, name })
    }

    /// The part of the index that a name belongs to.
    #[must_use]
    pub fn index_of(&self, host: &HostName) -> &Name {
        // FNV-1a: the same in every version, for ever.
        let fold = |hash: u32, octet: &u8| (hash ^ u32::from(*octet)).wrapping_mul(16_777_619);
        let hash = host.name.as_wire().iter().fold(2_166_136_261, fold);
        &self.index[(hash ^ (hash >> 16)) as usize % INDEX_SHARDS]
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show(&self.name))
    }
}

impl HostName {
    /// The name itself.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Where its mark is.
    #[must_use]
    pub fn mark(&self) -> &Name {
        &self.mark
    }
}

impl PartialOrd for HostName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for HostName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.name.cmp(&other.name)
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A name of a host needs no escapes, and the * would get one.
        for (at, label) in self.name.labels().enumerate() {
            if at > 0 {
                f.write_str(".")?;
            }
            f.write_str(&String::from_utf8_lossy(label))?;
        }
        Ok(())
    }
}

fn show(name: &Name) -> String {
    match name.to_string() {
        root if root == "." => root,
        text => text.trim_end_matches('.').to_owned(),
    }
}

/// RFC 1123, 2.1.
fn is_host_label(label: &[u8]) -> bool {
    let is_inner = |octet: &u8| octet.is_ascii_lowercase() || octet.is_ascii_digit() || *octet == b'-';
    let ends = [label.first(), label.last()];
    label.iter().all(is_inner) && ends.iter().all(|end| end.is_some_and(|octet| *octet != b'-'))
}
