// SPDX-License-Identifier: Apache-2.0
//! The one place that prints.

use std::fmt::Display;
use std::io::Write;

/// One line on standard output. A reader that went away is no reason to fail.
pub(crate) fn say(line: impl Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

/// One line on standard error.
pub(crate) fn complain(line: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
