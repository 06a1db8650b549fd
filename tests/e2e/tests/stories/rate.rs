// SPDX-License-Identifier: Apache-2.0
//! How fast it goes: TCP one way, as fast as the path lets it.

use anyhow::{Context, Result, bail};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use weft_lab::{Lab, in_netns};

/// What a full bucket lets through, and what the sockets hold, is over by then.
const WARM_UP: Duration = Duration::from_millis(300);
const WINDOW: Duration = Duration::from_millis(800);
const LIMIT: Duration = Duration::from_secs(5);
/// On a machine that is busy with something else a transfer stands still, and then flows out of a bucket that filled
/// meanwhile: each try takes twice as long as the one before.
const TRIES: u32 = 4;

/// Fails unless what `from` can send to `to`, a pod with this address, is `limit` bits per second, give or take `tolerance`.
pub(crate) fn assert_rate(
    lab: &Lab,
    from: &str,
    (to, ip): (&str, IpAddr),
    limit: f64,
    tolerance: f64,
) -> Result<()> {
    let mut seen = Vec::new();
    for round in 0..TRIES {
        let rate = rate(lab, from, (to, ip), WINDOW * 2_u32.pow(round))?;
        if (rate - limit).abs() <= limit * tolerance {
            return Ok(());
        }
        seen.push(format!("{:.2}", rate / 1e6));
    }
    bail!("{from} to {to} ({ip}): {} Mbit/s instead of {:.2}", seen.join(", "), limit / 1e6)
}

/// Bits of payload per second.
fn rate(lab: &Lab, from: &str, (to, ip): (&str, IpAddr), window: Duration) -> Result<f64> {
    let (here, there) = (netns(lab, from)?, netns(lab, to)?);
    let listener = in_netns(&there, || Ok(TcpListener::bind((ip, 0))?)).context("a listener")?;
    let address = listener.local_addr()?;
    let client = in_netns(&here, || Ok(TcpStream::connect_timeout(&address, LIMIT)?));
    let client = client.with_context(|| format!("{from} to {address}"))?;
    client.set_write_timeout(Some(LIMIT))?;
    let (server, _): (TcpStream, SocketAddr) = listener.accept()?;
    server.set_read_timeout(Some(LIMIT))?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| flood(client, &done));
        let count = arriving(server, WARM_UP).and_then(|(server, _)| arriving(server, window));
        done.store(true, Ordering::Relaxed);
        let (_, rate) = count?;
        Ok(rate)
    })
}

/// The network namespace of a node or pod.
fn netns(lab: &Lab, member: &str) -> Result<String> {
    let state = lab.state()?;
    if let Some(pod) = state.pods.get(member) {
        return Ok(pod.netns.clone());
    }
    Ok(state.node(member)?.netns.clone())
}

fn flood(mut client: TcpStream, done: &AtomicBool) {
    let block = [0; 16 * 1024];
    // It ends with the receiver.
    while !done.load(Ordering::Relaxed) && client.write_all(&block).is_ok() {}
}

fn arriving(mut server: TcpStream, window: Duration) -> Result<(TcpStream, f64)> {
    let mut buffer = vec![0; 256 * 1024];
    let (started, mut bytes) = (Instant::now(), 0_usize);
    while started.elapsed() < window {
        match server.read(&mut buffer) {
            Ok(0) => bail!("the sender ended"),
            Ok(count) => bytes += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("receiving"),
        }
    }
    Ok((server, bytes as f64 * 8.0 / started.elapsed().as_secs_f64()))
}
