// SPDX-License-Identifier: Apache-2.0
//! Real traffic between a container and the plugin's side: a server on a thread inside the container, a client as a
//! process of its own where the plugin runs.

use crate::process::{self, OnInterrupt};
use crate::runtime::{Container, Runtime};
use crate::say::say;
use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

/// What a server answers with.
pub(crate) const HELLO: &str = "hello from the container";
/// How long a client waits for anything.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a transfer runs.
const TRANSFER: Duration = Duration::from_secs(3);
const CHUNK: usize = 16 * 1024;
/// A server ends by itself after this long: longer than any row that needs it.
const SERVER_LIFE: Duration = Duration::from_secs(120);

/// Starts a server in a container: TCP on `port` (push, pull or hello, as the client's first byte asks) and UDP on the
/// same port. It listens when this returns, and ends with the process or some minutes later.
pub(crate) fn serve(container: &Container, ip: IpAddr, port: u16) -> Result<()> {
    let path = container.path();
    let (ready, listening) = sync_channel::<Result<()>>(1);
    let spawn = move || -> Result<(TcpListener, UdpSocket)> {
        setns(File::open(&path)?, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {path}"))?;
        let (tcp, udp) = (TcpListener::bind((ip, port))?, UdpSocket::bind((ip, port))?);
        tcp.set_nonblocking(true)?;
        udp.set_nonblocking(true)?;
        Ok((tcp, udp))
    };
    thread::Builder::new().name("server".into()).spawn(move || {
        let (tcp, udp) = match spawn() {
            Ok(sockets) => sockets,
            Err(error) => return drop(ready.send(Err(error))),
        };
        let _ = ready.send(Ok(()));
        let end = Instant::now() + SERVER_LIFE;
        let mut buffer = [0; 64];
        while Instant::now() < end {
            if let Ok((stream, _)) = tcp.accept() {
                thread::spawn(move || answer(stream));
            }
            if let Ok((_, from)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(HELLO.as_bytes(), from);
            }
            thread::sleep(Duration::from_millis(5));
        }
    })?;
    listening.recv().context("the server's thread ended")?
}

fn answer(mut stream: TcpStream) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut how = [0];
    stream.read_exact(&mut how)?;
    match &how {
        b"<" => send(&mut stream).map(drop),
        b">" => {
            let bytes = receive(&mut stream);
            stream.write_all(bytes.to_string().as_bytes()).map_err(Into::into)
        }
        _ => stream.write_all(HELLO.as_bytes()).map_err(Into::into),
    }
}

/// The client: what `talk` does where the plugin runs. Prints the greeting, or the bytes that went through per second.
pub(crate) fn run(how: &str, to: SocketAddr) -> Result<()> {
    if how == "udp" {
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(b"?", to)?;
        let mut buffer = [0; 256];
        let (length, _) = socket.recv_from(&mut buffer).context("no answer")?;
        say(String::from_utf8_lossy(&buffer[..length]));
        return Ok(());
    }
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).context("cannot connect")?;
    stream.set_read_timeout(Some(PATIENCE * 2))?;
    stream.set_write_timeout(Some(PATIENCE * 2))?;
    let mut text = String::new();
    match how {
        "tcp" => {
            stream.write_all(b"?")?;
            stream.read_to_string(&mut text)?;
            say(text);
        }
        "pull" => {
            stream.write_all(b"<")?;
            let start = Instant::now();
            let bytes = receive(&mut stream);
            say(per_second(bytes, start.elapsed()));
        }
        "push" => {
            stream.write_all(b">")?;
            let start = Instant::now();
            send(&mut stream)?;
            stream.shutdown(std::net::Shutdown::Write)?;
            // The receiver's count: what lies in buffers did not get through yet.
            stream.read_to_string(&mut text)?;
            say(per_second(text.trim().parse().context("the server sent no count")?, start.elapsed()));
        }
        other => bail!("talk: {other}?"),
    }
    Ok(())
}

fn per_second(bytes: u64, time: Duration) -> u64 {
    (bytes as f64 / time.as_secs_f64().max(0.001)) as u64
}

fn send(stream: &mut TcpStream) -> Result<()> {
    let (chunk, start) = ([0x2a; CHUNK], Instant::now());
    while start.elapsed() < TRANSFER {
        stream.write_all(&chunk)?;
    }
    Ok(())
}

fn receive(stream: &mut TcpStream) -> u64 {
    let (mut buffer, mut bytes) = ([0; CHUNK], 0);
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        bytes += length as u64;
    }
    bytes
}

/// Runs the client where the plugin runs; what it printed, or why it failed.
pub(crate) fn client(runtime: &Runtime, how: &str, to: SocketAddr) -> Result<Result<String, String>> {
    let own = std::env::current_exe().context("where this program lies")?;
    let mut command = runtime.behind(&own);
    command.args(["talk", how, &to.to_string()]);
    let out = process::run(&mut command, b"", PATIENCE * 10, OnInterrupt::End)?;
    Ok(if out.code == Some(0) { Ok(out.stdout.trim().to_owned()) } else { Err(out.stderr.trim().to_owned()) })
}
