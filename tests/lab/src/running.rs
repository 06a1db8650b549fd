// SPDX-License-Identifier: Apache-2.0
//! Programs that run beside a test and end with it.

use crate::interrupt::{self, wait_until};
use crate::patience::patient;
use crate::run::{end_group, tool};
use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const CAPTURE_START_LIMIT: Duration = Duration::from_secs(5);
const CAPTURE_STOP_LIMIT: Duration = Duration::from_secs(20);
/// As often tcpdump says the same in a row when it has read everything.
const CAPTURE_SAME: u32 = 10;
/// Room for what comes while tcpdump waits for a busy processor.
const BUFFER_KIB: &str = "16384";
/// Enough of each packet for every header we look at.
const SNAPLEN: &str = "192";

/// A program that runs; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    errors: Receiver<String>,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Result<Running> {
        let mut child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start a program")?;
        let lines = read_lines(child.stdout.take());
        let errors = read_lines(child.stderr.take());
        Ok(Running { child, lines, errors })
    }

    /// The next line of standard output.
    pub fn wait_line(&self, limit: Duration) -> Result<String> {
        let limit = patient(limit);
        let end = Instant::now() + limit;
        loop {
            match self.lines.recv_timeout(Duration::from_millis(20)) {
                Ok(line) => return Ok(line),
                Err(RecvTimeoutError::Disconnected) => bail!("it ended: {}", self.errors().join(" ")),
                Err(RecvTimeoutError::Timeout) if Instant::now() >= end => {
                    bail!("it printed nothing in {limit:?}: {}", self.errors().join(" "))
                }
                Err(RecvTimeoutError::Timeout) => interrupt::check()?,
            }
        }
    }

    /// The lines of standard output that nobody took yet; does not wait.
    pub fn lines(&self) -> Vec<String> {
        self.lines.try_iter().collect()
    }

    /// The lines of standard error that nobody took yet; does not wait.
    pub fn errors(&self) -> Vec<String> {
        self.errors.try_iter().collect()
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end; true when it exited with 0.
    pub fn wait(&mut self, limit: Duration) -> Result<bool> {
        let mut status = None;
        wait_until(limit, || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })?;
        Ok(status.ok_or_else(|| anyhow!("it runs longer than {limit:?}"))?.success())
    }

    fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), signal);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        end_group(&mut self.child);
    }
}

/// tcpdump at work.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Running,
    folder: TempDir,
}

impl Capture {
    pub(crate) fn start(
        spawn: impl FnOnce(&[&str]) -> Result<Running>,
        device: &str,
        filter: &str,
    ) -> Result<Capture> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("packets");
        let file = file.to_str().context("the temporary directory's name is not UTF-8")?;
        let tcpdump = spawn(&[
            "tcpdump",
            "--immediate-mode",
            "-n",
            "-U",
            "-Z",
            "root",
            "-B",
            BUFFER_KIB,
            "-s",
            SNAPLEN,
            "-i",
            device,
            "-w",
            file,
            filter,
        ])?;
        let mut said = Vec::new();
        let started = wait_until(CAPTURE_START_LIMIT, || {
            said.extend(tcpdump.errors());
            Ok(said.iter().any(|line| line.contains("listening on")))
        })?;
        if !started {
            bail!("tcpdump did not start on {device}: {}", said.join(" "));
        }
        Ok(Capture { tcpdump, folder })
    }

    /// Ends the capture; the packets stay to be counted. What tcpdump has not read when it ends is lost, so it is first let
    /// read all that the kernel had for it by now.
    pub fn stop(mut self) -> Result<Packets> {
        let (mut had, mut last, mut same) = (None, 0, 0);
        let read = wait_until(CAPTURE_STOP_LIMIT, || {
            let now = self.counts()?;
            ensure!(now.dropped == 0, "tcpdump is too slow: {} packets were dropped", now.dropped);
            same = if now.captured == last { same + 1 } else { 0 };
            last = now.captured;
            // The kernel also counts what came before the filter was in place, which is never read.
            Ok(now.captured >= *had.get_or_insert(now.received) || same >= CAPTURE_SAME)
        })?;
        ensure!(read, "tcpdump does not get to read its packets");
        self.tcpdump.signal(Signal::SIGINT);
        self.tcpdump.wait(CAPTURE_STOP_LIMIT).context("tcpdump")?;
        Ok(Packets { folder: self.folder })
    }

    /// `tcpdump: 3 packets captured, 4 packets received by filter, 0 packets dropped by kernel`
    fn counts(&self) -> Result<Counts> {
        self.tcpdump.signal(Signal::SIGUSR1);
        let mut counts = None;
        wait_until(CAPTURE_STOP_LIMIT, || {
            let lines = self.tcpdump.errors();
            counts = lines.iter().rev().find_map(|line| Counts::parse(line));
            Ok(counts.is_some())
        })?;
        counts.context("tcpdump does not say what it has seen")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counts {
    captured: u64,
    received: u64,
    dropped: u64,
}

impl Counts {
    fn parse(line: &str) -> Option<Counts> {
        let number = |what: &str| {
            let part = line.split([':', ',']).find(|part| part.ends_with(what))?;
            part.trim().split(' ').next()?.parse().ok()
        };
        let (captured, received) = (number(" captured")?, number(" received by filter")?);
        Some(Counts { captured, received, dropped: number(" dropped by kernel")? })
    }
}

/// Captured packets.
#[derive(Debug)]
pub struct Packets {
    folder: TempDir,
}

impl Packets {
    /// How many packets match a pcap filter.
    pub fn count(&self, filter: &str) -> Result<usize> {
        Ok(self.print(filter)?.lines().count())
    }

    /// How many packets hold these bytes somewhere in the first 192 of theirs.
    pub fn holding(&self, bytes: &[u8]) -> Result<usize> {
        let path = self.folder.path().join("packets");
        let file = fs::read(&path).with_context(|| path.display().to_string())?;
        Ok(records(&file)
            .filter(|packet| packet.windows(bytes.len().max(1)).any(|some| some == bytes))
            .count())
    }

    /// The packets that match a pcap filter as tcpdump prints them.
    pub fn print(&self, filter: &str) -> Result<String> {
        let file = self.folder.path().join("packets").display().to_string();
        tool("tcpdump", &["-n", "-r", &file, filter])
    }
}

/// The packets of a pcap file of this machine's byte order: a file header of 24 bytes, then records, each with a header of
/// 16 bytes whose third word is the length (draft-ietf-opsawg-pcap). A record that was not written to its end is none.
fn records(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = file.get(24..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = rest.get(8..12)?.try_into().map(u32::from_ne_bytes).ok()?;
        let packet = rest.get(16..16 + length as usize)?;
        rest = &rest[16 + packet.len()..];
        Some(packet)
    })
}

fn read_lines(pipe: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (send, receive) = channel();
    thread::spawn(move || {
        let Some(pipe) = pipe else { return };
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                // Nobody listens: keep reading so that the program never blocks on a full pipe.
                continue;
            }
        }
    });
    receive
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capture_that_was_cut_short_has_the_packets_before_the_cut() {
        let mut file = vec![0; 24];
        for packet in [&b"one"[..], b"", b"three"] {
            let length = (packet.len() as u32).to_ne_bytes();
            file.extend([&[0; 8][..], &length, &length, packet].concat());
        }
        let read = |file: &[u8]| records(file).map(<[u8]>::to_vec).collect::<Vec<_>>();
        assert_eq!(read(&file), [b"one".to_vec(), b"".to_vec(), b"three".to_vec()]);
        file.pop();
        assert_eq!(read(&file).len(), 2);
        assert_eq!(read(b"short").len(), 0);
    }

    #[test]
    fn tcpdump_says_what_it_has_seen() {
        let line = "tcpdump: 1 packet captured, 12 packets received by filter, 0 packets dropped by kernel";
        assert_eq!(Counts::parse(line), Some(Counts { captured: 1, received: 12, dropped: 0 }));
        assert_eq!(Counts::parse("tcpdump: listening on eth0, link-type EN10MB (Ethernet)"), None);
    }
}
