// SPDX-License-Identifier: Apache-2.0
//! The WireGuard cross-platform userspace configuration protocol (<https://www.wireguard.com/xplatform/>): text, no I/O.
//!
//! A request is `get=1` or `set=1` on a line, then lines of `key=value`, then an empty line; the answer is
//! lines of `key=value`, the last of them `errno=…`, then an empty line. Several requests may follow each
//! other on a connection. Keys are in hex.
//!
//! `protocol_version=1` is the only version; there is no other framing than the empty line.

mod answer;
mod print;
mod request;
#[cfg(test)]
mod tests;

use thiserror::Error;

pub use answer::{parse_errno, parse_get};
pub use print::{print_errno, print_get, print_set};
pub use request::{Request, parse_request};

use crate::{DeviceState, PrivateKey};

/// Longest line of a request or an answer, in bytes without the newline; the longest meaningful one has some 90.
pub const LINE_BYTES_MAX: usize = 256;
/// The one version of the protocol.
const PROTOCOL_VERSION: &str = "1";

/// A device as `get` tells it: its state and its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Goes to whoever may connect to the socket: root.
    pub private_key: Option<PrivateKey>,
    /// All the rest. Its public key is that of `private_key`.
    pub state: DeviceState,
}

/// Why a text is no request or no answer.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum UapiError {
    /// The first line is neither `get=1` nor `set=1`.
    #[error("not a request: it starts with {0:?} instead of get=1 or set=1")]
    Operation(String),
    /// A line that says nothing, or nothing there. Values of secret keys are left out.
    #[error("line {line}: {text:?}: {why}")]
    Line {
        /// Counted from 1, the operation's line included.
        line: usize,
        /// The line, cut at [`LINE_BYTES_MAX`].
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The answer ends without `errno=`.
    #[error(
        "the answer has no errno line: it was cut off, or this is not the WireGuard configuration protocol"
    )]
    CutOff,
    /// The device said no. A positive number of errno.h.
    #[error("the device answers error {0}")]
    Errno(i32),
}

impl UapiError {
    fn line(line: usize, text: &str, why: &'static str) -> Self {
        let key = text.split_once('=').map(|(key, _)| key).filter(|key| is_secret(key));
        let shown: String = match key {
            Some(key) => format!("{key}=(hidden)"),
            None => text.chars().take(LINE_BYTES_MAX).collect(),
        };
        Self::Line { line, text: shown, why }
    }
}

fn is_secret(key: &str) -> bool {
    matches!(key.trim(), "private_key" | "preshared_key")
}

/// Digits only: no sign, no space.
fn decimal<T: std::str::FromStr>(value: &str) -> Option<T> {
    value.bytes().all(|byte| byte.is_ascii_digit()).then(|| value.parse().ok()).flatten()
}

/// All zeros stand for no key.
fn is_zero(hex: &str) -> bool {
    hex.bytes().all(|byte| byte == b'0')
}
