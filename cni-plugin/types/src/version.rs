// SPDX-License-Identifier: Apache-2.0
//! The CNI versions that we speak, and the answer to VERSION.

use std::fmt;
use std::str::FromStr;

use crate::error::{CniError, Code};

/// A supported version of the CNI specification. Ordered: `>= Version::V1_1_0` asks for a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 0.3.0
    V0_3_0,
    /// 0.3.1
    V0_3_1,
    /// 0.4.0: adds CHECK.
    V0_4_0,
    /// 1.0.0: `ips[].version` is gone.
    V1_0_0,
    /// 1.1.0: adds GC, STATUS, and more fields of interfaces and routes.
    V1_1_0,
}

impl Version {
    /// All of them, oldest first.
    pub const SUPPORTED: [Self; 5] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// The newest one.
    pub const NEWEST: Self = Self::V1_1_0;

    /// What a config without `cniVersion` means (CNI specification, section "Network configuration format").
    pub const WHEN_MISSING: &str = "0.2.0";

    /// As it is written in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Version {
    type Err = CniError;

    /// Exact match; anything else is error 1 with the supported versions named.
    fn from_str(text: &str) -> Result<Self, CniError> {
        Self::SUPPORTED.into_iter().find(|version| version.as_str() == text).ok_or_else(|| {
            CniError::new(
                Code::INCOMPATIBLE_VERSION,
                format!(
                    "cniVersion {text:?} is not supported; use one of {}",
                    Self::SUPPORTED.map(Self::as_str).join(", ")
                ),
            )
        })
    }
}

/// The answer to VERSION: `{cniVersion, supportedVersions}`. `cni_version` is the one that came on stdin.
pub fn version_reply(cni_version: &str) -> serde_json::Value {
    serde_json::json!({
        "cniVersion": cni_version,
        "supportedVersions": Version::SUPPORTED.map(Version::as_str),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_supported_version_parses_and_is_ordered() {
        for version in Version::SUPPORTED {
            assert_eq!(version.as_str().parse::<Version>().unwrap(), version);
        }
        assert!(Version::SUPPORTED.is_sorted());
    }

    #[test]
    fn any_other_version_is_error_1() {
        for text in ["", "0.1.0", "0.2.0", "1.0", "1.0.1", "1.2.0", "v1.0.0", " 1.0.0"] {
            let error = text.parse::<Version>().unwrap_err();
            assert_eq!(error.code, Code::INCOMPATIBLE_VERSION);
            assert!(error.msg.contains("0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"), "{}", error.msg);
        }
    }
}
