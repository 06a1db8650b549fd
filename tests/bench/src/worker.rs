// SPDX-License-Identifier: Apache-2.0
//! The two ends of a measurement, each a process of its own inside a namespace: servers that answer, clients that count.
//! A client prints one JSON line. Blocking sockets, one thread: what is measured is the path, not a runtime.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use serde::{Deserialize, Serialize};

/// One write of the stream: the size iperf3 uses.
const STREAM_CHUNK: usize = 128 * 1024;
/// A client that gets nothing for this long reports an error instead of a figure.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// The first part of every latency sample is not counted: caches and neighbours warm up.
const WARM_UP: usize = 200;

#[derive(Debug, Subcommand)]
pub(crate) enum Worker {
    /// Answers a byte with a byte on --port, and swallows streams on --port + 1.
    Serve {
        #[arg(long)]
        bind: IpAddr,
        #[arg(long)]
        port: u16,
    },
    /// Connect, one byte there, one back, reset; COUNT times.
    Connects { target: SocketAddr, count: usize },
    /// One byte there and back on one connection; COUNT times.
    Requests { target: SocketAddr, count: usize },
    /// As many bytes as go through in SECS.
    Stream { target: SocketAddr, secs: u64 },
}

/// What a client counted.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Figures {
    /// Median of one round trip (or connection), microseconds; 0 for a stream.
    pub p50_us: f64,
    pub p99_us: f64,
    /// Bits per second; 0 for latencies.
    pub bits_per_sec: f64,
}

pub(crate) fn run(worker: &Worker) -> Result<()> {
    match *worker {
        Worker::Serve { bind, port } => serve(bind, port),
        Worker::Connects { target, count } => print(&latency(count, || connect_once(target))?),
        Worker::Requests { target, count } => {
            let mut stream = open(target)?;
            print(&latency(count, || ping(&mut stream))?)
        }
        Worker::Stream { target, secs } => print(&stream(target, Duration::from_secs(secs))?),
    }
}

fn serve(bind: IpAddr, port: u16) -> Result<()> {
    let sink = TcpListener::bind((bind, port + 1)).context("cannot listen")?;
    std::thread::spawn(move || {
        for stream in sink.incoming().flatten() {
            std::thread::spawn(move || swallow(stream));
        }
    });
    let listener = TcpListener::bind((bind, port)).context("cannot listen")?;
    for stream in listener.incoming().flatten() {
        // One thread, one connection at a time: the clients here never overlap.
        let mut stream = stream;
        stream.set_nodelay(true)?;
        let mut byte = [0_u8; 1];
        while matches!(stream.read(&mut byte), Ok(1)) {
            if stream.write_all(&byte).is_err() {
                break;
            }
        }
    }
    Ok(())
}

fn swallow(mut stream: TcpStream) {
    let mut buffer = vec![0_u8; STREAM_CHUNK];
    while matches!(stream.read(&mut buffer), Ok(n) if n > 0) {}
}

fn open(target: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, CLIENT_TIMEOUT)
        .with_context(|| format!("cannot connect to {target}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(CLIENT_TIMEOUT))?;
    Ok(stream)
}

fn ping(stream: &mut TcpStream) -> Result<()> {
    let mut byte = [b'w'];
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte)?;
    Ok(())
}

fn connect_once(target: SocketAddr) -> Result<()> {
    let mut stream = open(target)?;
    ping(&mut stream)?;
    // A reset at the end keeps TIME_WAIT from eating the ports.
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok(())
}

fn latency(count: usize, mut once: impl FnMut() -> Result<()>) -> Result<Figures> {
    for _ in 0..WARM_UP {
        once()?;
    }
    let mut samples = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        once()?;
        samples.push(start.elapsed().as_nanos() as f64 / 1_000.0);
    }
    samples.sort_by(f64::total_cmp);
    let at = |share: f64| samples[((samples.len() - 1) as f64 * share) as usize];
    if samples.is_empty() {
        bail!("a sample of nothing");
    }
    Ok(Figures { p50_us: at(0.50), p99_us: at(0.99), bits_per_sec: 0.0 })
}

fn stream(target: SocketAddr, length: Duration) -> Result<Figures> {
    let mut stream = open(target)?;
    let chunk = vec![0x5a_u8; STREAM_CHUNK];
    // Slow start is not part of the figure.
    let warm = Instant::now();
    while warm.elapsed() < length / 4 {
        stream.write_all(&chunk)?;
    }
    let (start, mut bytes) = (Instant::now(), 0_u64);
    while start.elapsed() < length {
        stream.write_all(&chunk)?;
        bytes += STREAM_CHUNK as u64;
    }
    Ok(Figures { p50_us: 0.0, p99_us: 0.0, bits_per_sec: bytes as f64 * 8.0 / start.elapsed().as_secs_f64() })
}

#[allow(clippy::print_stdout, reason = "the figures are the worker's output")]
fn print(figures: &Figures) -> Result<()> {
    println!("{}", serde_json::to_string(figures)?);
    Ok(())
}

/// Where a worker runs.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// A namespace of the bare topology.
    Bare(&'static str),
    /// A pod of the lab.
    Pod(&'static str),
}

impl Place {
    fn command(&self) -> Result<Command> {
        let exe = std::env::current_exe()?;
        let mut command = match self {
            Self::Bare(netns) => {
                let mut c = Command::new("nsenter");
                c.arg(format!("--net=/run/netns/{netns}")).arg("--");
                c
            }
            Self::Pod(pod) => crate::lab::exec(pod)?,
        };
        command.arg(exe).arg("worker");
        Ok(command)
    }

    /// Runs a client to its end.
    pub(crate) fn client(&self, verb: &str, target: SocketAddr, amount: u64) -> Result<Figures> {
        let out = self
            .command()?
            .args([verb, &target.to_string(), &amount.to_string()])
            .stderr(Stdio::piped())
            .output()
            .context("cannot start a client")?;
        if !out.status.success() {
            bail!("{self:?} {verb} {target}: {}", String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(serde_json::from_slice(&out.stdout)?)
    }

    /// Starts a server that [`end_all`] ends.
    pub(crate) fn server(&self, bind: IpAddr, port: u16) -> Result<()> {
        let child = self
            .command()?
            .args(["serve", "--bind", &bind.to_string(), "--port", &port.to_string()])
            .spawn()
            .context("cannot start a server")?;
        servers().push(child);
        Ok(())
    }
}

static SERVERS: Mutex<Vec<Child>> = Mutex::new(Vec::new());

fn servers() -> std::sync::MutexGuard<'static, Vec<Child>> {
    SERVERS.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Ends every server that this process started (by the handle, never by a name).
pub(crate) fn end_all() {
    for mut child in servers().drain(..) {
        let _ = child.kill();
        let _ = child.wait();
    }
}
