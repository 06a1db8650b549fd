// SPDX-License-Identifier: Apache-2.0
//! Programs that are run to their end, with a time limit and their whole output.

use crate::interrupt;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long output may trail after the program ended (a child of it may hold the pipe).
const TRAIL_LIMIT: Duration = Duration::from_secs(1);
/// How long a tool may take.
const TOOL_LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(2);

/// Whether Ctrl-C ends a program early; one that cleans up runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnInterrupt {
    End,
    GoOn,
}

/// What a program left behind.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    /// The exit code; none when a signal ended it or it was out of time.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// It did not end in time and was killed.
    pub(crate) timed_out: bool,
}

/// Runs a program to its end, in a process group of its own: a Ctrl-C at the terminal reaches only the runner.
///
/// Errors: it cannot be started, or a signal came.
pub(crate) fn run(
    command: &mut Command,
    stdin: &[u8],
    limit: Duration,
    on_interrupt: OnInterrupt,
) -> Result<Output> {
    let what = command.get_program().to_string_lossy().into_owned();
    let mut start = || {
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    };
    let mut child = start().with_context(|| format!("cannot start {what}"))?;
    if let Some(mut pipe) = child.stdin.take() {
        // A program that ends without reading is no error of ours.
        let _ = pipe.write_all(stdin);
    }
    let (stdout, stderr) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let end = Instant::now() + limit;
    let (code, timed_out) = loop {
        if let Some(status) = child.try_wait()? {
            break (status.code(), false);
        }
        if on_interrupt == OnInterrupt::End && interrupt::pending() {
            end_group(&mut child);
            bail!("interrupted");
        }
        if Instant::now() >= end {
            end_group(&mut child);
            break (None, true);
        }
        thread::sleep(POLL);
    };
    Ok(Output {
        code,
        stdout: stdout.recv_timeout(TRAIL_LIMIT).unwrap_or_default(),
        stderr: stderr.recv_timeout(TRAIL_LIMIT).unwrap_or_default(),
        timed_out,
    })
}

/// Runs a tool that must succeed; its standard output. Not stopped by Ctrl-C: tools are short and clean up, too.
pub(crate) fn tool(argv: &[&str]) -> Result<String> {
    let (program, args) = argv.split_first().context("no program named")?;
    let out = run(Command::new(program).args(args), b"", TOOL_LIMIT, OnInterrupt::GoOn)?;
    if out.code != Some(0) {
        bail!("{}: exit code {:?}: {}", argv.join(" "), out.code, out.stderr.trim());
    }
    Ok(out.stdout)
}

fn end_group(child: &mut Child) {
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
