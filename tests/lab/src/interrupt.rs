// SPDX-License-Identifier: Apache-2.0
//! Ctrl-C, SIGTERM and SIGHUP become a flag, so that whoever waits can stop and clean up in order.
//!
//! One thread with its own small runtime listens; nothing else runs there.

use crate::patience::patient;
use anyhow::{Result, bail};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// How often a wait looks again: short against human patience, long against a busy loop.
const POLL: Duration = Duration::from_millis(20);

/// From now on signals set the flag instead of ending the process.
pub(crate) fn install() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (ready, installed) = std::sync::mpsc::channel();
    thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async move {
            let streams = (
                signal(SignalKind::interrupt()),
                signal(SignalKind::terminate()),
                signal(SignalKind::hangup()),
            );
            let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) = streams else {
                return;
            };
            let _ = ready.send(());
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
                INTERRUPTED.store(true, Ordering::SeqCst);
            }
        });
    })?;
    if installed.recv().is_err() {
        bail!("the signal handlers could not be installed");
    }
    Ok(())
}

/// Whether a signal came.
pub(crate) fn pending() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// An error once a signal came.
pub(crate) fn check() -> Result<()> {
    if pending() {
        bail!("interrupted");
    }
    Ok(())
}

/// Looks again and again until `done` says so; false when the time is over (longer on a slow machine: [`patient`]).
///
/// Errors: those of `done`, and "interrupted" once a signal came.
pub fn wait_until(limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<bool> {
    let end = Instant::now() + patient(limit);
    loop {
        if done()? {
            return Ok(true);
        }
        check()?;
        if Instant::now() >= end {
            return Ok(false);
        }
        thread::sleep(POLL);
    }
}
