// SPDX-License-Identifier: Apache-2.0
//! Programs that are run to their end, with a time limit and their whole output.

use crate::interrupt;
use crate::patience::patient;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::env;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Long enough for any tool of the lab on a busy machine, short enough to notice a hang.
pub const TOOL_LIMIT: Duration = Duration::from_secs(20);
/// How long output may trail after the program ended (a child of it may hold the pipe).
const TRAIL_LIMIT: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(3);

/// What a program left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// The exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Standard output, lossy UTF-8.
    pub stdout: String,
    /// Standard error, lossy UTF-8.
    pub stderr: String,
}

impl Output {
    /// Whether it exited with 0.
    pub fn ok(&self) -> bool {
        self.code == Some(0)
    }

    /// Standard output without the last line break; an error with standard error when it failed.
    pub fn text(self, what: &str) -> Result<String> {
        if self.ok() {
            return Ok(self.stdout.trim_end_matches('\n').to_owned());
        }
        let end = match (self.code, self.signal) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "no exit code".into(),
        };
        let said = if self.stderr.trim().is_empty() { self.stdout.trim() } else { self.stderr.trim() };
        bail!("{what}: {end}: {said}")
    }

    /// Standard output as JSON.
    pub fn json<T: serde::de::DeserializeOwned>(self, what: &str) -> Result<T> {
        let text = self.text(what)?;
        serde_json::from_str(&text).with_context(|| format!("{what}: not the JSON expected: {text}"))
    }
}

/// Runs a program to its end.
///
/// It gets its own process group, so that a Ctrl-C at the terminal reaches only the lab, which then ends it.
/// Errors: it cannot be started, it ran longer than `limit` (killed), a signal came (killed).
pub fn output(command: &mut Command, stdin: &[u8], limit: Duration) -> Result<Output> {
    bounded(command, stdin, limit, true)
}

/// Like [`output`], but goes on after a Ctrl-C: for cleaning up.
pub fn output_always(command: &mut Command, stdin: &[u8], limit: Duration) -> Result<Output> {
    bounded(command, stdin, limit, false)
}

/// Runs a tool that must succeed; its standard output.
pub fn tool(program: &str, args: &[&str]) -> Result<String> {
    tool_with_stdin(program, args, b"")
}

/// Like [`tool`], with something on standard input. Not stopped by Ctrl-C: tools are short.
pub(crate) fn tool_with_stdin(program: &str, args: &[&str], stdin: &[u8]) -> Result<String> {
    output_always(Command::new(program).args(args), stdin, TOOL_LIMIT)?
        .text(&format!("{program} {}", args.join(" ")))
}

/// Finds one of our own programs: in `WEFT_BIN_DIR`, else beside the running program.
///
/// A test binary lives one folder below the programs (`target/<profile>/deps`).
pub fn sibling(program: &str) -> Result<PathBuf> {
    let folder = match env::var_os("WEFT_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => {
            let own = env::current_exe().context("where this program lies")?;
            let folder = own.parent().context("this program lies in no folder")?;
            let above = folder.parent().filter(|_| folder.ends_with("deps"));
            above.unwrap_or(folder).to_owned()
        }
    };
    let path = folder.join(program);
    if !path.is_file() {
        bail!(
            "{} does not exist: build it (cargo build --bin {program}) or set WEFT_BIN_DIR",
            path.display()
        );
    }
    Ok(path)
}

/// Whether a program is on the search path.
pub(crate) fn on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn bounded(command: &mut Command, stdin: &[u8], limit: Duration, interruptible: bool) -> Result<Output> {
    let what = command.get_program().to_string_lossy().into_owned();
    let mut start = || {
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    };
    let mut child = start().with_context(|| format!("cannot start {what}"))?;
    if let Some(mut pipe) = child.stdin.take() {
        // A program that ends without reading is no error of ours.
        let _ = pipe.write_all(stdin);
    }
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let limit = patient(limit);
    let end = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        let interrupted = interruptible && interrupt::pending();
        if interrupted || Instant::now() >= end {
            end_group(&mut child);
            let why = if interrupted { "interrupted".into() } else { format!("no end after {limit:?}") };
            bail!("{what}: {why}: {}", stderr.recv_timeout(patient(TRAIL_LIMIT)).unwrap_or_default().trim());
        }
        thread::sleep(POLL);
    };
    Ok(Output {
        code: status.code(),
        signal: status.signal(),
        stdout: stdout.recv_timeout(patient(TRAIL_LIMIT)).unwrap_or_default(),
        stderr: stderr.recv_timeout(patient(TRAIL_LIMIT)).unwrap_or_default(),
    })
}

/// Ends a child that leads its own process group, with everything in the group, and reaps it.
pub(crate) fn end_group(child: &mut Child) {
    let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
    let _ = child.wait();
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (send, receive) = channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        let _ = send.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receive
}
