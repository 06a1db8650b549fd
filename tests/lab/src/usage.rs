// SPDX-License-Identifier: Apache-2.0
//! The difference between "it failed" (exit code 1) and "that was asked wrongly" (exit code 2).

use std::fmt;

/// Wrong usage: the program that meets it in an error chain exits with 2.
#[derive(Debug)]
pub struct Usage(String);

/// Makes the error for wrong usage.
pub(crate) fn usage(message: impl Into<String>) -> Usage {
    Usage(message.into())
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// The exit code of weft-lab for an error: 2 for wrong usage, 1 for everything else.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.downcast_ref::<Usage>().is_some() { 2 } else { 1 }
}
