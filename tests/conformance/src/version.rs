// SPDX-License-Identifier: Apache-2.0
//! Versions of the CNI specification.

use anyhow::{Context, Error, Result, bail};
use std::fmt;
use std::str::FromStr;

/// A version of the specification, ordered by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Version(u16, u16, u16);

impl Version {
    /// What a config without `cniVersion` means.
    pub(crate) const V0_2_0: Self = Self(0, 2, 0);
    pub(crate) const V0_3_0: Self = Self(0, 3, 0);
    pub(crate) const V0_3_1: Self = Self(0, 3, 1);
    /// CHECK came.
    pub(crate) const V0_4_0: Self = Self(0, 4, 0);
    /// `ips[].version` went.
    pub(crate) const V1_0_0: Self = Self(1, 0, 0);
    /// STATUS, GC and more fields of the result came.
    pub(crate) const V1_1_0: Self = Self(1, 1, 0);

    /// Versions that the rows go through, oldest first. Results before 0.3.0 have another shape and no runtime left.
    pub(crate) const JUDGED: [Self; 5] =
        [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
}

impl FromStr for Version {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.trim().split('.');
        let mut part = || -> Result<u16> {
            parts.next().context("a part is missing")?.parse::<u16>().context("a part is no number")
        };
        let version = Self(part()?, part()?, part()?);
        if parts.next().is_some() {
            bail!("too many parts");
        }
        Ok(version)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_parse_and_are_ordered_by_age() {
        for version in Version::JUDGED {
            assert_eq!(version.to_string().parse::<Version>().unwrap(), version);
        }
        assert!(Version::JUDGED.is_sorted());
        for bad in ["", "1", "1.1", "1.1.0.0", "1.x.0", "-1.0.0"] {
            assert!(bad.parse::<Version>().is_err(), "{bad}");
        }
    }
}
