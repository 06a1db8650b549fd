// SPDX-License-Identifier: Apache-2.0
//! Background processes of a lab: known by pid and start time, so that a recycled pid is never hit.

use crate::patience::patient;
use crate::place::Place;
use crate::run::sibling;
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(5);

/// A process, for as long as it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The process ID.
    pub pid: i32,
    /// Start time in clock ticks since boot: field 22 of `/proc/<pid>/stat`.
    pub started: u64,
}

impl Process {
    /// The living process with this ID.
    pub fn of(pid: i32) -> Option<Process> {
        let (state, threads, started) = stat(pid)?;
        // A first thread that has ended stands as Z until the others have, and they still hold the files and locks.
        let ended = state == 'X' || (state == 'Z' && threads <= 1);
        (!ended).then_some(Process { pid, started })
    }

    /// The calling process.
    pub fn own() -> Option<Process> {
        Process::of(std::process::id() as i32)
    }

    /// Whether it still runs. One that ended but was not waited for does not.
    pub fn alive(&self) -> bool {
        Process::of(self.pid) == Some(*self)
    }

    /// Sends a signal; false when the process is gone.
    pub fn signal(&self, signal: Signal) -> bool {
        self.alive() && kill(Pid::from_raw(self.pid), signal).is_ok()
    }

    /// Waits for its end; false when it outlives the limit. Reaps it when it is our child.
    pub fn wait_gone(&self, limit: Duration) -> bool {
        let end = Instant::now() + patient(limit);
        while self.alive() {
            if Instant::now() >= end {
                return false;
            }
            thread::sleep(POLL);
        }
        // Not our child, or somebody else reaped it: both fine.
        let _ = waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG));
        true
    }
}

/// Starts a program in a place, detached from the terminal, its output appended to a log.
///
/// The pid is the program's own: the step in between replaces itself.
pub(crate) fn start(place: &Place, argv: &[OsString], log: &Path) -> Result<Process> {
    let open = || File::options().create(true).append(true).open(log);
    let output = open().with_context(|| log.display().to_string())?;
    let mut command = Command::new(sibling("weft-lab")?);
    // What a person has set for their own netd must not leak into the lab's.
    for (name, _) in env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"WEFT_")) {
        command.env_remove(name);
    }
    let child = command
        .arg("enter")
        .arg("--setsid")
        .args(place.args())
        .arg("--")
        .args(argv)
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .context("cannot start weft-lab enter")?;
    let pid = child.id() as i32;
    // A child that has ended already still has its entry, because nobody waited for it.
    let started = stat(pid).map(|(.., started)| started).unwrap_or_default();
    Ok(Process { pid, started })
}

/// The last lines of a log, for messages.
pub(crate) fn log_tail(log: &Path, lines: usize) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// State letter, number of threads and start time: fields 3, 20 and 22.
fn stat(pid: i32) -> Option<(char, u32, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in brackets and may hold anything.
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<_> = rest.split_whitespace().collect();
    let state = fields.first()?.chars().next()?;
    Some((state, fields.get(17)?.parse().ok()?, fields.get(19)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_another_start_time_is_not_ours() {
        let own = Process::own().expect("we run");
        assert!(own.alive());
        let recycled = Process { started: own.started + 1, ..own };
        assert!(!recycled.alive());
        assert!(!recycled.signal(Signal::SIGKILL), "a recycled pid was hit");
    }
}
