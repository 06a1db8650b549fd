// SPDX-License-Identifier: Apache-2.0
//! A client that keeps one socket and asks on it again and again: a resolver's, a pooled connection.

use super::probe::kind;
use super::{monotonic_us, resolve, sockets};
use crate::say::say;
use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

/// Longer than any line a backend sends.
const ANSWER_MAX: usize = 512;

/// How to talk.
#[derive(Debug, Clone)]
pub(crate) struct TalkOptions {
    /// `host:port`.
    pub(crate) to: String,
    /// UDP instead of TCP.
    pub(crate) udp: bool,
    /// UDP on a connected socket.
    pub(crate) connected: bool,
    /// How long an answer may take.
    pub(crate) limit: Duration,
    /// From one question to the next.
    pub(crate) interval: Duration,
    /// For how long.
    pub(crate) duration: Duration,
}

/// One question and its answer, a line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// When the question went out, in microseconds of CLOCK_MONOTONIC.
    pub at_us: u64,
    /// Who answered.
    #[serde(default)]
    pub server: Option<String>,
    /// Where the answer came from.
    #[serde(default)]
    pub peer: Option<String>,
    /// Why there was none: `refused`, `timeout`, `reset`, …
    #[serde(default)]
    pub error: Option<String>,
}

/// Asks until the time is over, with a line for each question. A TCP connection ends with its first error, a datagram socket
/// is asked again.
pub(crate) fn talk(options: &TalkOptions) -> Result<()> {
    let to = resolve(&options.to)?;
    let end = Instant::now() + options.duration;
    if options.udp {
        let socket = sockets::towards(to)?;
        socket.set_read_timeout(Some(options.limit))?;
        if options.connected {
            socket.connect(to)?;
        }
        while Instant::now() < end {
            report(|| ask(&socket, to, options.connected))?;
            thread::sleep(options.interval);
        }
        return Ok(());
    }
    let mut connection = None;
    while Instant::now() < end && report(|| over(&mut connection, to, options.limit))? {
        thread::sleep(options.interval);
    }
    Ok(())
}

fn report(ask: impl FnOnce() -> Result<(String, SocketAddr)>) -> Result<bool> {
    let at_us = monotonic_us();
    let answer = ask();
    let error = answer.as_ref().err().map(kind);
    let (server, peer) = answer.ok().unzip();
    let answered = error.is_none();
    say(serde_json::to_string(&Said { at_us, server, peer: peer.map(|peer| peer.to_string()), error })?);
    Ok(answered)
}

fn ask(socket: &UdpSocket, to: SocketAddr, connected: bool) -> Result<(String, SocketAddr)> {
    // An answer that came too late is not the answer to the next question.
    socket.set_nonblocking(true)?;
    let mut buffer = [0; ANSWER_MAX];
    while socket.recv(&mut buffer).is_ok() {}
    socket.set_nonblocking(false)?;
    if connected { socket.send(b"who are you\n") } else { socket.send_to(b"who are you\n", to) }?;
    let (length, peer) = socket.recv_from(&mut buffer)?;
    Ok((name(&String::from_utf8_lossy(&buffer[..length])), peer))
}

struct Connection {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
    server: String,
}

fn over(
    connection: &mut Option<Connection>,
    to: SocketAddr,
    limit: Duration,
) -> Result<(String, SocketAddr)> {
    let mut line = String::new();
    if connection.is_none() {
        let stream = TcpStream::connect_timeout(&to, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        reader.read_line(&mut line)?;
        *connection = Some(Connection { stream, reader, server: name(&line) });
        line.clear();
    }
    let Connection { stream, reader, server } = connection.as_mut().context("a connection was just made")?;
    stream.write_all(b"still there\n")?;
    if reader.read_line(&mut line)? == 0 {
        return Err(anyhow!("closed"));
    }
    let peer = stream.peer_addr().or_else(|error| match error.kind() {
        // The connection went right after its answer: the next question will tell.
        ErrorKind::NotConnected => Ok(to),
        _ => Err(error),
    })?;
    Ok((server.clone(), peer))
}

fn name(line: &str) -> String {
    line.split(' ').next().unwrap_or_default().trim().to_owned()
}
