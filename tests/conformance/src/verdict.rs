// SPDX-License-Identifier: Apache-2.0
//! How a row ends.

use anyhow::Error;

/// Why a row did not pass.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The plugin did something else than the row's sentence says: what was expected, what came.
    Fail(String),
    /// The sentence does not concern this plugin, version or config.
    NotApplicable(String),
    /// The runner itself could not go on, or was interrupted; the run ends.
    Runner(Error),
}

/// What a check returns.
pub(crate) type Checked<T = ()> = Result<T, Stop>;

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Runner(error)
    }
}

/// A row that fails.
pub(crate) fn fail<T>(what: impl Into<String>) -> Checked<T> {
    Err(Stop::Fail(what.into()))
}

/// A row that does not apply.
pub(crate) fn not_applicable<T>(why: impl Into<String>) -> Checked<T> {
    Err(Stop::NotApplicable(why.into()))
}

/// Fails the row where `holds` is false.
pub(crate) fn expect(holds: bool, otherwise: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(Stop::Fail(otherwise())) }
}
