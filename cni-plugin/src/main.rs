// SPDX-License-Identifier: Apache-2.0
//! weft-cni: one call of a container runtime, from environment and stdin to stdout and an exit code.
//!
//! One process for each call, one thread, no state of its own: netd decides and remembers, weft-cni makes the links.
//! Stdout belongs to the protocol; logs go to stderr.

mod add;
mod call;
mod check;
mod del;
mod gc;
mod log;
mod netd;
mod promise;
mod request;
mod span;
mod status;
mod wiring;

use std::io::{self, Write as _};
use std::process::ExitCode;

use cni_types::Version;
use dlmalloc::GlobalDlmalloc;

/// musl's allocator maps and unmaps pages for every buffer of more than a few kilobytes: a fifth of an ADD's time.
#[global_allocator]
static ALLOCATOR: GlobalDlmalloc = GlobalDlmalloc;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|arg| arg == "--version") {
        let versions = Version::SUPPORTED.map(Version::as_str).join(", ");
        return print(
            &format!("weft-cni {}\nCNI {versions}\n", env!("CARGO_PKG_VERSION")),
            ExitCode::SUCCESS,
        );
    }
    log::start();
    let call::Outcome { cni_version, result, made } = call::run();
    let (text, code) = match result {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(json)) => (json, ExitCode::SUCCESS),
        Err(error) => (error.to_json(&cni_version), ExitCode::FAILURE),
    };
    let answered = print(&format!("{text}\n"), code);
    if let (false, Some(made)) = (answered == code, made) {
        made.undo();
    }
    answered
}

fn print(text: &str, code: ExitCode) -> ExitCode {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => code,
        Err(error) => {
            tracing::error!(%error, "the runtime closed stdout before it had its answer");
            ExitCode::FAILURE
        }
    }
}
