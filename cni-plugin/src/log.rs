// SPDX-License-Identifier: Apache-2.0
//! Logs: to stderr only, at the level of `WEFT_CNI_LOG`.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;

/// The variable: a level (`debug`) or directives as of tracing-subscriber's `EnvFilter`.
const LEVEL_VARIABLE: &str = "WEFT_CNI_LOG";

/// Runtimes keep stderr of failed calls only or not at all; warnings are what explains a failure.
const LEVEL_DEFAULT: &str = "warn";

/// Starts logging. A level that does not parse is the default.
pub(crate) fn start() {
    let wanted = std::env::var(LEVEL_VARIABLE).unwrap_or_default();
    let filter = Some(wanted)
        .filter(|text| !text.trim().is_empty())
        .and_then(|text| EnvFilter::try_new(text).ok())
        .unwrap_or_else(|| EnvFilter::new(LEVEL_DEFAULT));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    // The only way to fail is a second start.
    let _ = subscriber.try_init();
}
