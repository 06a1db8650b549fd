// SPDX-License-Identifier: Apache-2.0
//! Pools: the prefixes that pods get their addresses from.

use std::collections::BTreeMap;
use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::address;
use crate::family::Family;
use crate::want::AddressRange;

/// Prefix length of an IPv4 block where the pool names none: 64 addresses.
pub const BLOCK_PREFIX_V4: u8 = 26;

/// Prefix length of an IPv6 block where the pool names none: 64 addresses.
pub const BLOCK_PREFIX_V6: u8 = 122;

/// Fewest host bits of a block: below 4 addresses a node would spend its time claiming.
pub const BLOCK_HOST_BITS_MIN: u8 = 2;

/// Most host bits of a block: 1,024 addresses are more than a node runs pods, and the block's record in the store
/// stays small.
pub const BLOCK_HOST_BITS_MAX: u8 = 10;

/// Longest pool name in bytes: it is part of a store key.
pub const POOL_NAME_BYTES_MAX: usize = 63;

/// Most labels in a pool's node selector: they are compared at each claim, and nobody needs more.
pub const SELECTOR_LABELS_MAX: usize = 16;

/// A prefix cut into blocks of one size. The default is no valid pool; fill it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Pool {
    /// Name of the pool: lower-case letters, digits and inner dashes.
    pub name: String,
    /// The prefix, without host bits.
    pub cidr: IpNet,
    /// Prefix length of a block, for instance 26 for 64 IPv4 addresses.
    pub block_prefix: u8,
    /// Labels that a node must have, with these values, to claim blocks from the pool; empty for every node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Whether addresses are given from it.
    #[serde(default, skip_serializing_if = "PoolState::is_active")]
    pub state: PoolState,
}

/// Life of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolState {
    /// Nodes claim its blocks and allocate from them.
    #[default]
    Active,
    /// Nothing new comes from it; what is in use stays until it is given back.
    Draining,
}

impl PoolState {
    /// Whether addresses are given from the pool.
    pub fn is_active(&self) -> bool {
        *self == PoolState::Active
    }
}

impl fmt::Display for PoolState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PoolState::Active => "active",
            PoolState::Draining => "draining",
        })
    }
}

/// What is wrong with a pool.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// The block length does not fit the pool.
    #[error(
        "pool {name}: blocks of /{block_prefix} do not fit {cidr}: use a length from {shortest} to {longest}"
    )]
    BlockPrefix {
        /// Name of the pool.
        name: String,
        /// Its prefix.
        cidr: IpNet,
        /// Length asked for.
        block_prefix: u8,
        /// Shortest length that works.
        shortest: u8,
        /// Longest length that works.
        longest: u8,
    },
    /// The pool's prefix is smaller than the smallest block.
    #[error("pool {name}: {cidr} is smaller than the smallest block of 4 addresses: use a larger prefix")]
    TooSmall {
        /// Name of the pool.
        name: String,
        /// Its prefix.
        cidr: IpNet,
    },
    /// The prefix has host bits.
    #[error("pool {name}: {cidr} has host bits: write {network}")]
    HostBits {
        /// Name of the pool.
        name: String,
        /// The prefix as given.
        cidr: IpNet,
        /// The prefix without host bits.
        network: IpNet,
    },
    /// The name cannot be part of a store key.
    #[error("pool name `{0}`: use 1 to 63 lower-case letters, digits and inner dashes")]
    Name(String),
    /// Two pools have one name.
    #[error("pool {0} is given twice: give each pool its own name")]
    NameTwice(String),
    /// Two pools share addresses.
    #[error("pools {first} and {second} overlap: {first_cidr} and {second_cidr} share addresses")]
    Overlap {
        /// Name of the one.
        first: String,
        /// Prefix of the one.
        first_cidr: IpNet,
        /// Name of the other.
        second: String,
        /// Prefix of the other.
        second_cidr: IpNet,
    },
    /// A node selector with an empty label name, or with too many labels.
    #[error(
        "pool {name}: the node selector has an empty label name or more than {SELECTOR_LABELS_MAX} labels"
    )]
    Selector {
        /// Name of the pool.
        name: String,
    },
}

impl Pool {
    /// An active pool for every node. Without `block_prefix` blocks have 64 addresses.
    pub fn new(name: impl Into<String>, cidr: IpNet, block_prefix: Option<u8>) -> Pool {
        Pool {
            name: name.into(),
            cidr,
            block_prefix: block_prefix.unwrap_or(default_block_prefix(&cidr)),
            node_selector: BTreeMap::new(),
            state: PoolState::Active,
        }
    }

    /// The family of its addresses.
    pub fn family(&self) -> Family {
        Family::of_net(&self.cidr)
    }

    /// Whether a node with these labels may claim blocks from the pool.
    pub fn admits(&self, labels: &BTreeMap<String, String>) -> bool {
        self.node_selector.iter().all(|(name, value)| labels.get(name) == Some(value))
    }

    /// Checks name, prefix and block length.
    pub fn validate(&self) -> Result<(), PoolError> {
        if !name_is_good(&self.name) {
            return Err(PoolError::Name(self.name.clone()));
        }
        if self.cidr != self.cidr.trunc() {
            return Err(PoolError::HostBits {
                name: self.name.clone(),
                cidr: self.cidr,
                network: self.cidr.trunc(),
            });
        }
        if self.node_selector.len() > SELECTOR_LABELS_MAX || self.node_selector.contains_key("") {
            return Err(PoolError::Selector { name: self.name.clone() });
        }
        let bits = self.cidr.max_prefix_len();
        let longest = bits - BLOCK_HOST_BITS_MIN;
        let shortest = self.cidr.prefix_len().max(bits - BLOCK_HOST_BITS_MAX);
        if shortest > longest {
            return Err(PoolError::TooSmall { name: self.name.clone(), cidr: self.cidr });
        }
        if !(shortest..=longest).contains(&self.block_prefix) {
            return Err(PoolError::BlockPrefix {
                name: self.name.clone(),
                cidr: self.cidr,
                block_prefix: self.block_prefix,
                shortest,
                longest,
            });
        }
        Ok(())
    }

    /// How many blocks the pool has; 0 where the pool is not valid.
    pub fn block_count(&self) -> u128 {
        if self.validate().is_err() {
            return 0;
        }
        1_u128.checked_shl(u32::from(self.block_prefix - self.cidr.prefix_len())).unwrap_or(0)
    }

    /// Indices of the blocks that share an address with a range.
    pub(crate) fn indices(&self, range: &AddressRange) -> std::ops::Range<u128> {
        if self.block_count() == 0 || !range.meets(&self.cidr) {
            return 0..0;
        }
        let host_bits = u32::from(self.cidr.max_prefix_len() - self.block_prefix);
        // An end that lies outside is beyond the pool's own.
        let first = address::offset(&self.cidr, &range.first).unwrap_or(0);
        let last = address::offset(&self.cidr, &range.last).unwrap_or(address::size(&self.cidr) - 1);
        (first >> host_bits)..(last >> host_bits) + 1
    }

    /// The block at an index below [`Pool::block_count`].
    pub fn block(&self, index: u128) -> Option<IpNet> {
        if index >= self.block_count() {
            return None;
        }
        let host_bits = u32::from(self.cidr.max_prefix_len() - self.block_prefix);
        let first = address::at(&self.cidr, index.checked_shl(host_bits)?)?;
        IpNet::new(first, self.block_prefix).ok()
    }
}

/// Prefix length of a block where the pool names none: 64 addresses.
pub fn default_block_prefix(cidr: &IpNet) -> u8 {
    match Family::of_net(cidr) {
        Family::V4 => BLOCK_PREFIX_V4,
        Family::V6 => BLOCK_PREFIX_V6,
    }
}

/// Checks each pool, and that no two share a name or an address.
pub fn validate_pools(pools: &[Pool]) -> Result<(), PoolError> {
    for (index, second) in pools.iter().enumerate() {
        second.validate()?;
        for first in &pools[..index] {
            if first.name == second.name {
                return Err(PoolError::NameTwice(second.name.clone()));
            }
            if first.cidr.contains(&second.cidr) || second.cidr.contains(&first.cidr) {
                return Err(PoolError::Overlap {
                    first: first.name.clone(),
                    first_cidr: first.cidr,
                    second: second.name.clone(),
                    second_cidr: second.cidr,
                });
            }
        }
    }
    Ok(())
}

fn name_is_good(name: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    (1..=POOL_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(name: &str, cidr: &str, block_prefix: u8) -> Pool {
        Pool::new(name, cidr.parse().unwrap(), Some(block_prefix))
    }

    #[test]
    fn record_of_an_active_pool_for_all_nodes_is_as_it_was_before_there_were_others() {
        let text = r#"{"name":"default","cidr":"10.244.0.0/16","block_prefix":26}"#;
        let pool: Pool = serde_json::from_str(text).unwrap();
        assert_eq!(pool, Pool::new("default", "10.244.0.0/16".parse().unwrap(), None));
        assert_eq!(serde_json::to_string(&pool).unwrap(), text);
        let drains = Pool {
            node_selector: [("zone".to_owned(), "a".to_owned())].into(),
            state: PoolState::Draining,
            ..pool
        };
        let text = serde_json::to_string(&drains).unwrap();
        assert!(text.contains(r#""node_selector":{"zone":"a"},"state":"draining""#), "{text}");
        assert_eq!(serde_json::from_str::<Pool>(&text).unwrap(), drains);
    }

    #[test]
    fn selector_admits_nodes_that_have_all_its_labels() {
        let labels = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect::<BTreeMap<_, _>>()
        };
        let mut pool = pool("a", "10.0.0.0/16", 26);
        assert!(pool.admits(&labels(&[])));
        pool.node_selector = labels(&[("zone", "a"), ("disk", "")]);
        assert!(pool.admits(&labels(&[("zone", "a"), ("disk", ""), ("more", "x")])));
        assert!(!pool.admits(&labels(&[("zone", "b"), ("disk", "")])));
        assert!(!pool.admits(&labels(&[("zone", "a")])));
        pool.node_selector.insert(String::new(), String::new());
        assert!(matches!(pool.validate(), Err(PoolError::Selector { .. })));
    }

    #[test]
    fn default_pool_has_1024_blocks() {
        let pool = pool("default", "10.244.0.0/16", 26);
        assert_eq!(pool.block_count(), 1024);
        assert_eq!(pool.block(0).unwrap().to_string(), "10.244.0.0/26");
        assert_eq!(pool.block(1023).unwrap().to_string(), "10.244.255.192/26");
        assert_eq!(pool.block(1024), None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (pool, part) in [
            (pool("", "10.0.0.0/16", 26), "pool name"),
            (pool("a/b", "10.0.0.0/16", 26), "pool name"),
            (pool("a", "10.0.0.1/16", 26), "write 10.0.0.0/16"),
            (pool("a", "10.0.0.0/16", 15), "from 22 to 30"),
            (pool("a", "10.0.0.0/27", 26), "from 27 to 30"),
            (pool("a", "10.0.0.0/16", 31), "from 22 to 30"),
            (pool("a", "10.0.0.0/31", 32), "larger prefix"),
            (pool("a", "fd00::/56", 64), "from 118 to 126"),
        ] {
            let text = pool.validate().unwrap_err().to_string();
            assert!(text.contains(part), "{text}");
            assert_eq!(pool.block_count(), 0);
        }
    }

    #[test]
    fn pools_may_not_share() {
        let a = pool("a", "10.0.0.0/16", 26);
        assert_eq!(validate_pools(&[a.clone(), pool("b", "10.1.0.0/16", 26)]), Ok(()));
        assert!(matches!(
            validate_pools(&[a.clone(), pool("b", "10.0.128.0/17", 26)]),
            Err(PoolError::Overlap { .. })
        ));
        assert!(matches!(validate_pools(&[a, pool("a", "10.1.0.0/16", 26)]), Err(PoolError::NameTwice(_))));
    }
}
