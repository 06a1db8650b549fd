// SPDX-License-Identifier: Apache-2.0
//! Ctrl-C, SIGTERM and SIGHUP become a flag, so that whoever waits can stop and clean up in order.

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// How often a wait looks again.
const POLL: Duration = Duration::from_millis(50);

/// From now on signals set the flag instead of ending the process. To be called before any other thread exists, for they
/// inherit what is blocked; programs that are started do not.
pub(crate) fn install() -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("cannot block signals")?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        while signals.wait().is_ok() {
            INTERRUPTED.store(true, Ordering::SeqCst);
        }
    })?;
    Ok(())
}

/// Whether a signal came.
pub(crate) fn pending() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Looks again and again until `done` says so; false when the time is over. Errors: those of `done`, and "interrupted".
pub(crate) fn wait_until<E: From<anyhow::Error>>(
    limit: Duration,
    mut done: impl FnMut() -> Result<bool, E>,
) -> Result<bool, E> {
    let end = Instant::now() + limit;
    loop {
        if done()? {
            return Ok(true);
        }
        if pending() {
            return Err(anyhow::anyhow!("interrupted").into());
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        thread::sleep(POLL);
    }
}

/// An error once a signal came.
pub(crate) fn check() -> Result<()> {
    if pending() {
        bail!("interrupted");
    }
    Ok(())
}
