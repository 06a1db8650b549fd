// SPDX-License-Identifier: Apache-2.0
//! The two ends of a measurement, each a process of its own inside a namespace: servers that answer, clients that count.
//! A client prints one JSON line. Blocking sockets, one thread for each stream: what is measured is the path, not a runtime.

mod datagrams;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Subcommand;
use serde::{Deserialize, Serialize};

use crate::lab::Lab;

/// One write of the stream: the size iperf3 uses.
const STREAM_CHUNK: usize = 128 * 1024;
/// A client that gets nothing for this long reports an error instead of a figure.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Threads that answer on the port for several clients.
const ACCEPTORS: usize = 4;
/// The first part of every latency sample is not counted: caches and neighbours warm up.
const WARM_UP: usize = 200;

#[derive(Debug, Subcommand)]
pub(crate) enum Worker {
    /// Answers a byte with a byte on --port, and swallows streams on --port + 1. Datagrams come back on --port; those to
    /// --port + 1 are counted, and a connection to --port + 2 gets the count. --port + 3 answers as --port does, to several
    /// clients at once.
    Serve {
        #[arg(long)]
        bind: IpAddr,
        #[arg(long)]
        port: u16,
    },
    /// Connect, one byte there, one back, reset; COUNT times.
    Connects { target: SocketAddr, count: usize },
    /// The same by THREADS clients at once, COUNT connections in all.
    Rate { target: SocketAddr, count: usize, threads: usize },
    /// One byte there and back on one connection; COUNT times.
    Requests { target: SocketAddr, count: usize },
    /// As many bytes as go through in SECS, on one connection or several.
    Stream {
        target: SocketAddr,
        secs: u64,
        #[arg(default_value_t = 1)]
        streams: u64,
    },
    /// A datagram there and back; COUNT times.
    Pings { target: SocketAddr, count: usize },
    /// Datagrams of SIZE bytes of payload for SECS, as many as go in or RATE of them each second.
    Flood {
        target: SocketAddr,
        secs: u64,
        size: usize,
        #[arg(default_value_t = 0)]
        rate: u64,
    },
}

/// What a client counted.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct Figures {
    /// Median of one round trip (or connection), microseconds; 0 for a stream.
    pub p50_us: f64,
    pub p99_us: f64,
    /// Bits per second; 0 for latencies.
    pub bits_per_sec: f64,
    /// TCP segments sent again in the client's namespace.
    pub retransmits: u64,
    /// Payload of the whole run, its beginning included: what the processor time of a tunnel is divided by.
    pub bytes: u64,
    /// Datagrams that arrived, and that were sent.
    pub received: u64,
    pub sent: u64,
    /// Datagrams that arrived in a second.
    pub packets_per_sec: f64,
    /// Connections in a second, of all clients.
    pub connects_per_sec: f64,
}

pub(crate) fn run(worker: &Worker) -> Result<()> {
    match *worker {
        Worker::Serve { bind, port } => serve(bind, port),
        Worker::Connects { target, count } => print(&latency(count, || connect_once(target))?),
        Worker::Rate { target, count, threads } => print(&rate(target, count, threads.max(1))?),
        Worker::Requests { target, count } => {
            let mut stream = open(target)?;
            print(&latency(count, || ping(&mut stream))?)
        }
        Worker::Stream { target, secs, streams } => {
            print(&several_streams(target, Duration::from_secs(secs), streams)?)
        }
        Worker::Pings { target, count } => print(&datagrams::pings(target, count)?),
        Worker::Flood { target, secs, size, rate } => {
            print(&datagrams::flood(target, Duration::from_secs(secs), size, rate)?)
        }
    }
}

fn serve(bind: IpAddr, port: u16) -> Result<()> {
    let sink = TcpListener::bind((bind, port + 1)).context("cannot listen")?;
    std::thread::spawn(move || {
        for stream in sink.incoming().flatten() {
            std::thread::spawn(move || swallow(stream));
        }
    });
    datagrams::serve(bind, port)?;
    let several = TcpListener::bind((bind, port + 3)).context("cannot listen")?;
    for _ in 0..ACCEPTORS {
        let listener = several.try_clone()?;
        std::thread::spawn(move || answer(&listener));
    }
    answer(&TcpListener::bind((bind, port)).context("cannot listen")?)
}

/// One connection at a time: the clients of one listener never overlap, or there are several that answer.
fn answer(listener: &TcpListener) -> Result<()> {
    for mut stream in listener.incoming().flatten() {
        // One that the client has reset already is nobody's any more.
        if stream.set_nodelay(true).is_err() {
            continue;
        }
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

/// Connections of several clients, after a warm-up of each.
fn rate(target: SocketAddr, count: usize, threads: usize) -> Result<Figures> {
    let each = count.div_ceil(threads);
    for _ in 0..WARM_UP {
        connect_once(target)?;
    }
    let start = Instant::now();
    std::thread::scope(|scope| {
        let clients = (0..threads)
            .map(|_| scope.spawn(|| (0..each).try_for_each(|_| connect_once(target))))
            .collect::<Vec<_>>();
        clients.into_iter().try_for_each(|client| client.join().map_err(|_| anyhow!("a client panicked"))?)
    })?;
    let connects_per_sec = (each * threads) as f64 / start.elapsed().as_secs_f64();
    Ok(Figures { connects_per_sec, ..Figures::default() })
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
    Ok(Figures { p50_us: at(0.50), p99_us: at(0.99), ..Figures::default() })
}

/// All at once; the figures are those of all together.
fn several_streams(target: SocketAddr, length: Duration, streams: u64) -> Result<Figures> {
    let before = retransmits()?;
    let mut sum = Figures::default();
    std::thread::scope(|scope| {
        let each: Vec<_> = (0..streams).map(|_| scope.spawn(|| stream(target, length))).collect();
        for one in each {
            let one = one.join().map_err(|_| anyhow!("a stream panicked"))??;
            sum.bits_per_sec += one.bits_per_sec;
            sum.bytes += one.bytes;
        }
        anyhow::Ok(())
    })?;
    sum.retransmits = retransmits()?.saturating_sub(before);
    Ok(sum)
}

/// Segments that this namespace sent again since it exists.
fn retransmits() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/net/snmp")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let at = names.split(' ').position(|name| name == "RetransSegs").context("no count of retransmits")?;
    values.split(' ').nth(at).and_then(|value| value.parse().ok()).context("no count of retransmits")
}

fn stream(target: SocketAddr, length: Duration) -> Result<Figures> {
    let mut stream = open(target)?;
    stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
    let chunk = vec![0x5a_u8; STREAM_CHUNK];
    // Slow start is not part of the figure.
    let mut early = 0_u64;
    let warm = Instant::now();
    while warm.elapsed() < length / 4 {
        stream.write_all(&chunk)?;
        early += STREAM_CHUNK as u64;
    }
    let (start, mut bytes) = (Instant::now(), 0_u64);
    while start.elapsed() < length {
        stream.write_all(&chunk)?;
        bytes += STREAM_CHUNK as u64;
    }
    let bits_per_sec = bytes as f64 * 8.0 / start.elapsed().as_secs_f64();
    Ok(Figures { bits_per_sec, bytes: early + bytes, ..Figures::default() })
}

#[allow(clippy::print_stdout, reason = "the figures are the worker's output")]
fn print(figures: &Figures) -> Result<()> {
    println!("{}", serde_json::to_string(figures)?);
    Ok(())
}

/// Where a worker runs.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// A network namespace that the bench made.
    Bare(String),
    /// A pod of a lab.
    Pod(Lab, &'static str),
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
            Self::Pod(lab, pod) => lab.exec(pod)?,
        };
        command.arg(exe).arg("worker");
        Ok(command)
    }

    /// Runs a client to its end.
    pub(crate) fn client(&self, verb: &str, target: SocketAddr, amount: u64) -> Result<Figures> {
        self.client_with(verb, target, &[amount])
    }

    /// The same, with all numbers that the verb takes.
    pub(crate) fn client_with(&self, verb: &str, target: SocketAddr, amounts: &[u64]) -> Result<Figures> {
        let out = self
            .command()?
            .args([verb, &target.to_string()])
            .args(amounts.iter().map(u64::to_string))
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
        adopt(child);
        Ok(())
    }
}

/// A process that [`end_all`] ends; its id.
pub(crate) fn adopt(child: Child) -> u32 {
    let id = child.id();
    servers().push(child);
    id
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
