// SPDX-License-Identifier: Apache-2.0
//! What an owner asks for: families, and addresses or ranges of its choice.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use crate::error::AllocateError;
use crate::family::Family;

/// One address of each family in `families`, all or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// The families, usually those of the cluster's active pools.
    pub families: BTreeSet<Family>,
    /// Exactly these addresses, at most one of a family. A family without one gets any address.
    pub requested: Vec<IpAddr>,
    /// Range sets as CNI's capability ipRanges gives them: one address from each set. All ranges of a set are of one
    /// family, and a family has at most one set. A requested address must lie in the set of its family.
    pub ranges: Vec<Vec<AddressRange>>,
}

/// Addresses from `first` to `last`, both in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressRange {
    /// The lowest address.
    pub first: IpAddr,
    /// The highest address, of the same family.
    pub last: IpAddr,
}

/// What is asked of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    Any,
    Exactly(IpAddr),
    Within(Vec<AddressRange>),
}

impl Want {
    /// Any address of each family.
    pub fn any(families: impl IntoIterator<Item = Family>) -> Want {
        Want { families: families.into_iter().collect(), ..Want::default() }
    }

    /// Exactly these addresses, and no family but theirs.
    pub fn exactly(ips: impl IntoIterator<Item = IpAddr>) -> Want {
        let requested: Vec<IpAddr> = ips.into_iter().collect();
        Want { families: requested.iter().map(Family::of).collect(), requested, ranges: Vec::new() }
    }

    /// Checks the wish by itself, and sorts it by family.
    pub(crate) fn choices(&self) -> Result<BTreeMap<Family, Choice>, AllocateError> {
        if self.families.is_empty() {
            return Err(AllocateError::NoFamily);
        }
        let mut choices: BTreeMap<Family, Choice> =
            self.families.iter().map(|family| (*family, Choice::Any)).collect();
        for set in self.ranges.iter().filter(|set| !set.is_empty()) {
            for range in set {
                range.check(set)?;
            }
            let family = Family::of(&set[0].first);
            match choices.insert(family, Choice::Within(set.clone())) {
                Some(Choice::Any) => {}
                Some(_) => return Err(AllocateError::TwoOfFamily(family)),
                None => return Err(AllocateError::FamilyNotUsed(family)),
            }
        }
        for ip in &self.requested {
            let family = Family::of(ip);
            match choices.insert(family, Choice::Exactly(*ip)) {
                Some(Choice::Any) => {}
                Some(Choice::Within(set)) if set.iter().any(|range| range.contains(ip)) => {}
                Some(Choice::Within(_)) => return Err(AllocateError::OutsideRanges(*ip)),
                Some(Choice::Exactly(_)) => return Err(AllocateError::TwoOfFamily(family)),
                None => return Err(AllocateError::FamilyNotUsed(family)),
            }
        }
        Ok(choices)
    }
}

impl AddressRange {
    /// A range of one address.
    pub fn only(ip: IpAddr) -> AddressRange {
        AddressRange { first: ip, last: ip }
    }

    /// Whether the address lies in the range. Addresses of the other family never do.
    pub fn contains(&self, ip: &IpAddr) -> bool {
        // IpAddr sorts all of IPv4 before IPv6, so one comparison would not tell the families apart.
        Family::of(ip) == Family::of(&self.first) && self.first <= *ip && *ip <= self.last
    }

    /// Whether the range shares an address with a prefix.
    pub fn meets(&self, net: &ipnet::IpNet) -> bool {
        Family::of_net(net) == Family::of(&self.first)
            && self.first <= net.broadcast()
            && net.network() <= self.last
    }

    fn check(&self, set: &[AddressRange]) -> Result<(), AllocateError> {
        let family = Family::of(&self.first);
        let of_set = set.iter().all(|other| Family::of(&other.first) == family);
        if of_set && Family::of(&self.last) == family && self.first <= self.last {
            return Ok(());
        }
        Err(AllocateError::BadRange(*self))
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return write!(f, "{}", self.first);
        }
        write!(f, "{} to {}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: &str, last: &str) -> AddressRange {
        AddressRange { first: first.parse().unwrap(), last: last.parse().unwrap() }
    }

    #[test]
    fn a_wish_that_cannot_be_met_is_refused_with_its_reason() {
        let both = Want::any([Family::V4, Family::V6]);
        let v4 = Want::any([Family::V4]);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (want, part) in [
            (Want::default(), "no address pool"),
            (Want { requested: vec![ip("10.0.0.1"), ip("10.0.0.2")], ..both.clone() }, "two IPv4"),
            (Want { requested: vec![ip("fd00::1")], ..v4.clone() }, "no pool of IPv6"),
            (Want { ranges: vec![vec![range("fd00::1", "fd00::2")]], ..v4.clone() }, "no pool of IPv6"),
            (
                Want { ranges: vec![vec![range("10.0.0.2", "10.0.0.1")]], ..v4.clone() },
                "10.0.0.2 to 10.0.0.1",
            ),
            (
                Want { ranges: vec![vec![range("10.0.0.2", "fd00::1")]], ..both.clone() },
                "10.0.0.2 to fd00::1",
            ),
            (
                Want {
                    ranges: vec![vec![range("10.0.0.2", "10.0.0.3"), range("fd00::1", "fd00::1")]],
                    ..both.clone()
                },
                "one family",
            ),
            (
                Want {
                    ranges: vec![vec![range("10.0.0.2", "10.0.0.3")], vec![range("10.1.0.2", "10.1.0.3")]],
                    ..both.clone()
                },
                "two IPv4",
            ),
            (
                Want {
                    requested: vec![ip("10.0.0.9")],
                    ranges: vec![vec![range("10.0.0.2", "10.0.0.3")]],
                    ..both
                },
                "10.0.0.9 is in none of the ranges",
            ),
        ] {
            let text = want.choices().unwrap_err().to_string();
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn families_do_not_mix_in_a_range() {
        let range = range("10.0.0.2", "10.0.0.9");
        assert!(range.contains(&"10.0.0.9".parse().unwrap()));
        assert!(!range.contains(&"10.0.0.10".parse().unwrap()));
        assert!(!range.contains(&"fd00::1".parse().unwrap()));
        assert!(range.meets(&"10.0.0.8/29".parse().unwrap()));
        assert!(!range.meets(&"10.0.0.16/28".parse().unwrap()));
        assert!(!range.meets(&"fd00::/64".parse().unwrap()));
    }
}
