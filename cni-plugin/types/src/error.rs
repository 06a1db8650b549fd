// SPDX-License-Identifier: Apache-2.0
//! CNI error codes, the error object that goes to stdout, and the one table from error class to code.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A CNI error code (CNI specification 1.1.0, section "Error"): 1 to 99 are the specification's, 100 and up ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Code(pub u32);

impl Code {
    /// 1: the configuration's cniVersion is not one of ours.
    pub const INCOMPATIBLE_VERSION: Self = Self(1);
    /// 2: a field of the configuration that we do not serve; the message carries key and value.
    pub const UNSUPPORTED_FIELD: Self = Self(2);
    /// 3: the container is unknown or gone; the runtime has nothing to clean up.
    pub const UNKNOWN_CONTAINER: Self = Self(3);
    /// 4: a CNI variable is missing or invalid; the message names it.
    pub const INVALID_ENVIRONMENT: Self = Self(4);
    /// 5: netlink, a file or a socket failed.
    pub const IO: Self = Self(5);
    /// 6: stdin is not JSON of the shape that CNI describes.
    pub const DECODE: Self = Self(6);
    /// 7: the configuration decodes and is wrong.
    pub const INVALID_CONFIG: Self = Self(7);
    /// 8: CNI_NETNS is the plugin's own netns (the code of the CNI Go library).
    pub const INVALID_NETNS: Self = Self(8);
    /// 11: not now; the runtime should try again.
    pub const TRY_AGAIN: Self = Self(11);
    /// 50: STATUS only, ADD cannot work now.
    pub const NOT_AVAILABLE: Self = Self(50);
    /// 51: STATUS only, ADD cannot work now and existing containers may have limited connectivity.
    pub const LIMITED_CONNECTIVITY: Self = Self(51);
    /// 100: no free address is left in any pool.
    pub const POOL_EXHAUSTED: Self = Self(100);
    /// 101: the requested address, or the attachment itself, belongs to somebody already.
    pub const TAKEN: Self = Self(101);
    /// 102: a port of the host that a port mapping asks for is another pod's.
    pub const PORT_IN_USE: Self = Self(102);
    /// 103: the kernel lacks something that the datapath needs.
    pub const KERNEL_FEATURE: Self = Self(103);
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the caller can do about an error. Each error that leaves a shell of ours has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorClass {
    /// Somebody else was first; the same request cannot succeed until they let go.
    Conflict,
    /// Neither waiting nor another request helps: an operator has to look.
    Fatal,
    /// The request is wrong; it fails again until it is changed.
    Invalid,
    /// The object that the request names does not exist.
    NotFound,
    /// The same request may succeed a little later.
    Retry,
}

impl ErrorClass {
    /// The table from class to CNI code: the only one. Where a code says more than its class (100, 102, 103), whoever
    /// makes the error names the code itself.
    pub const fn code(self) -> Code {
        match self {
            Self::Conflict => Code::TAKEN,
            Self::Fatal => Code::IO,
            Self::Invalid => Code::INVALID_CONFIG,
            Self::NotFound => Code::UNKNOWN_CONTAINER,
            Self::Retry => Code::TRY_AGAIN,
        }
    }
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Conflict => "conflict",
            Self::Fatal => "fatal",
            Self::Invalid => "invalid",
            Self::NotFound => "not-found",
            Self::Retry => "retry",
        })
    }
}

/// A failed call, as the runtime shall see it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{msg}{}", details.as_deref().map(|d| format!(" ({d})")).unwrap_or_default())]
pub struct CniError {
    /// The CNI error code.
    pub code: Code,
    /// One line for an operator: where, what, what to do.
    pub msg: String,
    /// The longer story, if there is one.
    pub details: Option<String>,
}

impl CniError {
    /// An error without details.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: None }
    }

    /// The same error with details.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = Some(details.into());
        self
    }

    /// The error object for stdout: `{cniVersion, code, msg, details?}`. `cni_version` is the caller's where it is
    /// known, else our newest.
    pub fn to_json(&self, cni_version: &str) -> serde_json::Value {
        let mut object = serde_json::json!({
            "cniVersion": cni_version,
            "code": self.code.0,
            "msg": self.msg,
        });
        if let Some(details) = &self.details {
            object["details"] = serde_json::Value::from(details.as_str());
        }
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_table_is_the_agreed_one() {
        let table = [
            (ErrorClass::Conflict, 101, "conflict"),
            (ErrorClass::Fatal, 5, "fatal"),
            (ErrorClass::Invalid, 7, "invalid"),
            (ErrorClass::NotFound, 3, "not-found"),
            (ErrorClass::Retry, 11, "retry"),
        ];
        for (class, code, word) in table {
            assert_eq!(class.code().0, code);
            assert_eq!(class.to_string(), word);
            assert_eq!(serde_json::to_value(class).unwrap(), word);
        }
    }

    #[test]
    fn the_error_object_has_details_only_when_there_are_any() {
        let error = CniError::new(Code::TRY_AGAIN, "netd is starting");
        assert_eq!(
            error.to_json("1.0.0"),
            serde_json::json!({"cniVersion": "1.0.0", "code": 11, "msg": "netd is starting"})
        );
        assert_eq!(error.with_details("store not in sync").to_json("0.4.0")["details"], "store not in sync");
    }
}
