// SPDX-License-Identifier: Apache-2.0
//! A client in a hurry: many short connections from several threads, counted by who answered.

use super::probe::kind;
use super::{monotonic_us, resolve, sockets};
use crate::say::say;
use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};
use socket2::SockRef;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Longer than any line a backend sends.
const ANSWER_MAX: usize = 512;

/// How to rush.
#[derive(Debug, Clone)]
pub(crate) struct RushOptions {
    /// `host:port`.
    pub(crate) to: String,
    /// UDP, a new socket for each question, instead of TCP.
    pub(crate) udp: bool,
    /// How many connections together, at most.
    pub(crate) count: u64,
    /// For how long at most.
    pub(crate) duration: Duration,
    /// How many of them in a second; 0: as fast as they go.
    pub(crate) rate: u64,
    /// Side by side.
    pub(crate) threads: u64,
    /// How long one may take.
    pub(crate) limit: Duration,
    /// A line for each before the sum: `START END NAME`, microseconds of CLOCK_MONOTONIC; an error as `!KIND`.
    pub(crate) each: bool,
}

/// The sum, as JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RushReport {
    /// Connections tried.
    pub attempts: u64,
    /// Answers by backend name.
    pub servers: BTreeMap<String, u64>,
    /// Failures by kind.
    pub errors: BTreeMap<String, u64>,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// Connects until the count or the time is over, then prints the sum.
pub(crate) fn rush(options: &RushOptions) -> Result<()> {
    let to = resolve(&options.to)?;
    let started = Instant::now();
    let next = AtomicU64::new(0);
    let mut sum = RushReport::default();
    thread::scope(|scope| {
        let work = || one_after_the_other(options, to, started, &next);
        let threads: Vec<_> = (0..options.threads.max(1)).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            let Ok((part, lines)) = thread.join() else { return Err(anyhow!("a thread panicked")) };
            if options.each {
                say(lines.trim_end());
            }
            sum.attempts += part.attempts;
            part.servers.into_iter().for_each(|(name, count)| *sum.servers.entry(name).or_default() += count);
            part.errors.into_iter().for_each(|(name, count)| *sum.errors.entry(name).or_default() += count);
        }
        Ok(())
    })?;
    sum.took_ms = started.elapsed().as_millis() as u64;
    say(serde_json::to_string(&sum)?);
    Ok(())
}

fn one_after_the_other(
    options: &RushOptions,
    to: SocketAddr,
    started: Instant,
    next: &AtomicU64,
) -> (RushReport, String) {
    let (mut part, mut lines) = (RushReport::default(), String::new());
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= options.count {
            return (part, lines);
        }
        if let Some(due_us) = (number * 1_000_000).checked_div(options.rate) {
            let due = started + Duration::from_micros(due_us);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        if started.elapsed() >= options.duration {
            return (part, lines);
        }
        let began = monotonic_us();
        let answer = if options.udp { datagram(to, options.limit) } else { connection(to, options.limit) };
        part.attempts += 1;
        let who = match answer {
            Ok(name) => name,
            Err(error) => format!("!{}", kind(&error).replace(' ', "_")),
        };
        if options.each {
            // Writing to a String cannot fail.
            let _ = writeln!(lines, "{began} {} {who}", monotonic_us());
        }
        match who.strip_prefix('!') {
            Some(error) => *part.errors.entry(error.to_owned()).or_default() += 1,
            None => *part.servers.entry(who).or_default() += 1,
        }
    }
}

fn connection(to: SocketAddr, limit: Duration) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, limit)?;
    stream.set_read_timeout(Some(limit))?;
    let mut buffer = [0; ANSWER_MAX];
    let length = stream.read(&mut buffer)?;
    // Without TIME_WAIT: there are fewer ports than connections.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    name(&buffer[..length])
}

fn datagram(to: SocketAddr, limit: Duration) -> Result<String> {
    let socket: UdpSocket = sockets::towards(to)?;
    socket.set_read_timeout(Some(limit))?;
    socket.send_to(b"who\n", to)?;
    let mut buffer = [0; ANSWER_MAX];
    let length = socket.recv(&mut buffer)?;
    name(&buffer[..length])
}

fn name(answer: &[u8]) -> Result<String> {
    let text = String::from_utf8_lossy(answer);
    let name = text.split(' ').next().filter(|name| !name.is_empty());
    name.map(str::to_owned).ok_or_else(|| anyhow!("closed"))
}
