// SPDX-License-Identifier: Apache-2.0
//! Datagrams: echoed one by one for round trips, counted for rates.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{CLIENT_TIMEOUT, Figures, WARM_UP, open};

/// Payload of a round trip.
const PING_SIZE: usize = 64;
/// A round trip that takes longer is lost; as many in a row end the sample.
const PING_TIMEOUT: Duration = Duration::from_millis(500);
const LOST_MAX: usize = 10;
/// What the way still holds when the sender stops arrives within this.
const DRAIN: Duration = Duration::from_millis(300);
/// Of the counting socket, so that losses are the path's and not the reader's.
const RECEIVE_BUFFER: usize = 4 << 20;
/// A paced sender sends this much at once: far below any queue on the way.
const BURST: u64 = 8;

/// Echo on PORT, a counter on PORT + 1, the count on PORT + 2.
pub(super) fn serve(bind: IpAddr, port: u16) -> Result<()> {
    let echo = UdpSocket::bind((bind, port)).context("cannot bind")?;
    std::thread::spawn(move || {
        let mut buffer = [0_u8; 2048];
        loop {
            if let Ok((n, from)) = echo.recv_from(&mut buffer) {
                let _ = echo.send_to(&buffer[..n], from);
            }
        }
    });
    let sink = UdpSocket::bind((bind, port + 1)).context("cannot bind")?;
    // Without the right to more than the system's limit, the limit it is.
    let _ = socket2::SockRef::from(&sink).set_recv_buffer_size(RECEIVE_BUFFER);
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    std::thread::spawn(move || {
        let mut buffer = [0_u8; 2048];
        while sink.recv(&mut buffer).is_ok() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    let asked = TcpListener::bind((bind, port + 2)).context("cannot listen")?;
    std::thread::spawn(move || {
        for mut stream in asked.incoming().flatten() {
            let _ = stream.write_all(&count.load(Ordering::Relaxed).to_be_bytes());
        }
    });
    Ok(())
}

/// Asked again where the way is still full of datagrams.
fn arrived(target: SocketAddr) -> Result<u64> {
    let ask = || {
        let mut bytes = [0_u8; 8];
        open(SocketAddr::new(target.ip(), target.port() + 1))?.read_exact(&mut bytes)?;
        anyhow::Ok(u64::from_be_bytes(bytes))
    };
    ask().or_else(|_| ask()).or_else(|_| ask())
}

/// To the echo; a lost one is left out.
pub(super) fn pings(target: SocketAddr, count: usize) -> Result<Figures> {
    let socket = connected(target)?;
    socket.set_read_timeout(Some(PING_TIMEOUT))?;
    let (mut samples, mut lost) = (Vec::with_capacity(count), 0);
    let mut buffer = [0_u8; PING_SIZE];
    for i in 0..(count + WARM_UP) as u64 {
        buffer[..8].copy_from_slice(&i.to_be_bytes());
        let start = Instant::now();
        socket.send(&buffer)?;
        // An answer that comes after its time is not the next one's.
        while socket.recv(&mut buffer).is_ok() {
            if buffer[..8] == i.to_be_bytes() {
                samples.push(start.elapsed().as_nanos() as f64 / 1_000.0);
                lost = 0;
                break;
            }
        }
        if start.elapsed() >= PING_TIMEOUT {
            lost += 1;
            ensure!(lost < LOST_MAX, "{target} does not answer");
        }
    }
    samples.drain(..WARM_UP.min(samples.len()));
    let at = |share| crate::pairs::at_share(&samples, share);
    Ok(Figures { p50_us: at(0.50), p99_us: at(0.99), received: samples.len() as u64, ..Figures::default() })
}

/// To the counter; `rate` 0: as many as go.
pub(super) fn flood(target: SocketAddr, length: Duration, size: usize, rate: u64) -> Result<Figures> {
    let socket = connected(target)?;
    let payload = vec![0x5a_u8; size];
    let before = arrived(target)?;
    let (start, mut sent) = (Instant::now(), 0_u64);
    while start.elapsed() < length {
        if rate > 0 && sent as f64 >= start.elapsed().as_secs_f64() * rate as f64 {
            std::thread::sleep(Duration::from_micros(50));
            continue;
        }
        for _ in 0..BURST {
            // A full queue on the way is the sender's loss, and no datagram.
            sent += u64::from(socket.send(&payload).is_ok());
        }
    }
    let took = start.elapsed();
    std::thread::sleep(DRAIN);
    let received = arrived(target)?.saturating_sub(before);
    Ok(Figures {
        received,
        sent,
        packets_per_sec: received as f64 / took.as_secs_f64(),
        bytes: received * size as u64,
        ..Figures::default()
    })
}

fn connected(target: SocketAddr) -> Result<UdpSocket> {
    let any: SocketAddr = if target.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
    let socket = UdpSocket::bind(any)?;
    socket.connect(target).with_context(|| format!("cannot connect to {target}"))?;
    socket.set_write_timeout(Some(CLIENT_TIMEOUT))?;
    Ok(socket)
}
