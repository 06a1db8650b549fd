// SPDX-License-Identifier: Apache-2.0
//! A backend: tells every client its name and the address it sees, then echoes.

use super::sockets;
use crate::say::say;
use anyhow::Result;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::thread;

/// The line printed once every socket is bound.
pub(crate) const READY: &str = "ready";
/// The largest datagram (RFC 768).
const DATAGRAM_MAX: usize = 65_535;

/// Serves until it is ended.
///
/// TCP: one line `NAME peer-address`, then everything back. UDP: the same line for each datagram, but one that begins with
/// `echo` comes back as it is. In `name`, `{port}` stands for the port that was asked.
pub(crate) fn serve(name: &str, tcp: &[u16], udp: &[u16]) -> Result<()> {
    let mut threads = Vec::new();
    for &port in tcp {
        for listener in sockets::listeners(port)? {
            let name = name.replace("{port}", &port.to_string());
            threads.push(thread::spawn(move || accept(&name, &listener)));
        }
    }
    for &port in udp {
        for socket in sockets::datagrams(port)? {
            let name = name.replace("{port}", &port.to_string());
            threads.push(thread::spawn(move || answer(&name, &socket)));
        }
    }
    say(READY);
    for thread in threads {
        // A thread that ended was told why on its own socket; the others go on.
        let _ = thread.join();
    }
    Ok(())
}

fn accept(name: &str, listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        let name = name.to_owned();
        thread::spawn(move || greet(&name, stream));
    }
}

fn greet(name: &str, mut stream: TcpStream) -> io::Result<()> {
    let line = format!("{name} {}\n", stream.peer_addr()?);
    stream.write_all(line.as_bytes())?;
    let mut back = stream.try_clone()?;
    io::copy(&mut stream, &mut back)?;
    Ok(())
}

fn answer(name: &str, socket: &UdpSocket) {
    let mut buffer = vec![0; DATAGRAM_MAX];
    // An ICMP error of an earlier answer shows up here and means nothing to the next datagram.
    loop {
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
        if buffer[..length].starts_with(b"echo") {
            let _ = socket.send_to(&buffer[..length], peer);
        } else {
            let _ = socket.send_to(format!("{name} {peer}\n").as_bytes(), peer);
        }
    }
}
