// SPDX-License-Identifier: Apache-2.0
//! A client that counts: which backend answered, which peer the socket names, which address the backend saw.

use super::{resolve, sockets};
use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Longer than any line a backend sends.
const ANSWER_MAX: usize = 512;

/// What to try.
#[derive(Debug, Clone)]
pub struct ProbeOptions {
    /// `host:port`; a name is looked up anew for each attempt.
    pub to: String,
    /// How often.
    pub count: u32,
    /// UDP instead of TCP.
    pub udp: bool,
    /// UDP on a connected socket.
    pub connected: bool,
    /// How long one attempt may take.
    pub limit: Duration,
    /// Pause between attempts.
    pub interval: Duration,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// What was asked for.
    pub to: String,
    /// Attempts made.
    pub attempts: u32,
    /// Attempts answered.
    pub ok: u32,
    /// Answers by backend name.
    pub servers: BTreeMap<String, u32>,
    /// `getpeername` of the connected socket, or the source of the datagram.
    pub peers: BTreeMap<String, u32>,
    /// The address the backend saw, without port.
    pub seen_as: BTreeMap<String, u32>,
    /// Failures by kind: `refused`, `timeout`, `unreachable`, …
    pub errors: BTreeMap<String, u32>,
    /// Median time from nothing to the answer, in microseconds.
    pub p50_us: u64,
    /// The slowest answer, in microseconds.
    pub max_us: u64,
}

impl ProbeReport {
    /// Every attempt was answered.
    pub fn all_ok(&self) -> bool {
        self.attempts > 0 && self.ok == self.attempts
    }

    /// `b1 41, b2 38, b3 41`.
    pub fn spread(&self) -> String {
        counts(&self.servers)
    }

    /// `3 refused, 1 timeout`, or `none`.
    pub fn failures(&self) -> String {
        if self.errors.is_empty() { "none".into() } else { counts(&self.errors) }
    }
}

/// Tries one after the other.
pub fn probe(options: &ProbeOptions) -> ProbeReport {
    let mut report = ProbeReport { to: options.to.clone(), ..ProbeReport::default() };
    let mut times = Vec::new();
    for round in 0..options.count {
        if round > 0 && !options.interval.is_zero() {
            std::thread::sleep(options.interval);
        }
        report.attempts += 1;
        let started = Instant::now();
        match attempt(options) {
            Ok(answer) => {
                times.push(started.elapsed().as_micros() as u64);
                report.ok += 1;
                *report.servers.entry(answer.server).or_default() += 1;
                *report.peers.entry(answer.peer.to_string()).or_default() += 1;
                *report.seen_as.entry(answer.seen_as).or_default() += 1;
            }
            Err(error) => *report.errors.entry(kind(&error)).or_default() += 1,
        }
    }
    times.sort_unstable();
    report.p50_us = times.get(times.len() / 2).copied().unwrap_or_default();
    report.max_us = times.last().copied().unwrap_or_default();
    report
}

struct Answer {
    server: String,
    peer: SocketAddr,
    seen_as: String,
}

fn attempt(options: &ProbeOptions) -> Result<Answer> {
    let address = resolve(&options.to)?;
    let (line, peer) =
        if options.udp { over_udp(address, options)? } else { over_tcp(address, options.limit)? };
    // A backend says `NAME address:port`; the outside host's echo only the address.
    let (server, seen) = line.trim().split_once(' ').unwrap_or(("outside", line.trim()));
    let seen_as = seen.parse().map_or_else(|_| seen.to_owned(), |seen: SocketAddr| seen.ip().to_string());
    Ok(Answer { server: server.into(), peer, seen_as })
}

fn over_tcp(address: SocketAddr, limit: Duration) -> Result<(String, SocketAddr)> {
    let stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    let peer = stream.peer_addr()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    if line.is_empty() {
        return Err(anyhow!("closed"));
    }
    Ok((line, peer))
}

fn over_udp(address: SocketAddr, options: &ProbeOptions) -> Result<(String, SocketAddr)> {
    let socket = sockets::towards(address)?;
    socket.set_read_timeout(Some(options.limit))?;
    let mut buffer = [0; ANSWER_MAX];
    let (length, peer) = if options.connected {
        socket.connect(address)?;
        socket.send(b"who are you\n")?;
        (socket.recv(&mut buffer)?, socket.peer_addr()?)
    } else {
        socket.send_to(b"who are you\n", address)?;
        socket.recv_from(&mut buffer)?
    };
    Ok((String::from_utf8_lossy(&buffer[..length]).into_owned(), peer))
}

pub(super) fn kind(error: &anyhow::Error) -> String {
    let Some(error) = error.downcast_ref::<std::io::Error>() else {
        return if error.to_string() == "closed" { "closed".into() } else { format!("{error:#}") };
    };
    match error.kind() {
        ErrorKind::ConnectionRefused => "refused".into(),
        ErrorKind::ConnectionReset => "reset".into(),
        ErrorKind::ConnectionAborted => "aborted".into(),
        ErrorKind::TimedOut | ErrorKind::WouldBlock => "timeout".into(),
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => "unreachable".into(),
        ErrorKind::PermissionDenied => "not permitted".into(),
        _ => error.to_string(),
    }
}

fn counts(map: &BTreeMap<String, u32>) -> String {
    map.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}
