// SPDX-License-Identifier: Apache-2.0
//! The operator's command: asks the netd of this node over its Unix socket.
//!
//! Every verb builds a [`output::Shown`] (a text for people, a value for `--json`); only `output` prints.
//! Exit codes: 0 done, 1 failed, 2 wrong usage.

mod args;
mod manifest;
mod new_file;
mod output;
mod table;
mod verbs;

use std::process::ExitCode;

use clap::Parser;

use args::Args;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return output::usage(&error),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output::failed(&anyhow::Error::new(error).context("cannot start")),
    };
    match runtime.block_on(verbs::run(&args)) {
        Ok(shown) => output::show(&shown, args.json),
        Err(error) => output::failed(&error),
    }
}
