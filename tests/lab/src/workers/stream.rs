// SPDX-License-Identifier: Apache-2.0
//! One long transfer: blocks go out, come back from the backend's echo, and are compared.

use super::resolve;
use crate::patience::patient;
use crate::say::say;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

const BLOCK: usize = 32 * 1024;
/// A transfer that stands still for this long is dead.
const STALL_LIMIT: Duration = Duration::from_secs(10);
const REPORT_EVERY: Duration = Duration::from_millis(50);
/// Leaves the two cores of a small machine to everybody else.
const PAUSE: Duration = Duration::from_millis(2);

/// One line of progress, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The backend's name.
    pub server: String,
    /// Bytes that came back unharmed.
    pub bytes: u64,
    /// The longest time between two blocks so far, in milliseconds.
    pub longest_pause_ms: u64,
}

/// Sends until the time is over, with a line of progress now and then.
///
/// Errors: the connection fails, stalls, or returns other bytes than were sent.
pub(crate) fn stream(to: &str, duration: Duration) -> Result<()> {
    let connection =
        TcpStream::connect_timeout(&resolve(to)?, patient(STALL_LIMIT)).with_context(|| to.to_owned())?;
    connection.set_read_timeout(Some(patient(STALL_LIMIT)))?;
    connection.set_write_timeout(Some(patient(STALL_LIMIT)))?;
    connection.set_nodelay(true)?;
    let mut sender = connection.try_clone()?;
    let mut receiver = BufReader::new(connection);
    let mut greeting = String::new();
    receiver.read_line(&mut greeting)?;
    let server = greeting.split(' ').next().unwrap_or_default().to_owned();
    let mut progress = Progress { server, bytes: 0, longest_pause_ms: 0 };
    let started = Instant::now();
    let (mut last_block, mut last_report) = (started, started);
    let mut back = vec![0; BLOCK];
    while started.elapsed() < duration {
        let block = vec![(progress.bytes / BLOCK as u64 % 251) as u8; BLOCK];
        sender.write_all(&block).context("sending")?;
        receiver.read_exact(&mut back).context("receiving")?;
        if back != block {
            bail!("other bytes came back after {}", progress.bytes);
        }
        progress.bytes += BLOCK as u64;
        let pause = last_block.elapsed().as_millis() as u64;
        progress.longest_pause_ms = progress.longest_pause_ms.max(pause);
        last_block = Instant::now();
        if last_report.elapsed() >= REPORT_EVERY {
            last_report = Instant::now();
            say(serde_json::to_string(&progress)?);
        }
        thread::sleep(PAUSE);
    }
    say(serde_json::to_string(&progress)?);
    Ok(())
}
