// SPDX-License-Identifier: Apache-2.0
//! Traffic whose every byte is checked.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use crate::ground::{Node, wait};

/// For each step of a stream.
const STEP: Duration = Duration::from_secs(10);
/// UDP may be lost: so often an exchange is tried.
const TRIES: usize = 5;
/// How long an answer may take.
const ANSWER: Duration = Duration::from_millis(500);

/// TCP and UDP from `a` to `b` and back, over both families.
pub(crate) fn pass(a: &Node, b: &Node, bytes: u64) {
    for (from, to) in [(a, b), (b, a)] {
        for ip in to.inner() {
            tcp(from, to, ip, bytes);
            udp(from, to, ip);
        }
    }
}

/// `bytes` in one TCP stream; what arrives must be what was sent.
pub(crate) fn tcp(from: &Node, to: &Node, ip: IpAddr, bytes: u64) {
    let listener = to.netns.run(|| TcpListener::bind((ip, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        let reader = scope.spawn(move || receive(&accept(&listener)));
        let mut stream = from.netns.run(|| TcpStream::connect_timeout(&address, STEP).unwrap());
        send(&mut stream, 0, bytes);
        drop(stream);
        assert_eq!(reader.join().unwrap(), bytes, "bytes that arrived at {address}");
    });
}

/// A stream that runs until `stop`; `moved` tells how far it is at the receiver.
pub(crate) fn stream_until(from: &Node, to: &Node, stop: &AtomicBool, moved: &AtomicU64) {
    let ip = to.inner()[0];
    let listener = to.netns.run(|| TcpListener::bind((ip, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let stream = accept(&listener);
            receive_counting(&stream, moved)
        });
        let mut stream = from.netns.run(|| TcpStream::connect_timeout(&address, STEP).unwrap());
        let mut at = 0;
        while !stop.load(Ordering::Relaxed) {
            send(&mut stream, at, 1 << 16);
            at += 1 << 16;
        }
        drop(stream);
        assert_eq!(reader.join().unwrap(), at, "bytes that arrived");
    });
}

/// Datagrams of many sizes, alone and as one send of equal segments: each comes back.
pub(crate) fn udp(from: &Node, to: &Node, ip: IpAddr) {
    let server = to.netns.run(|| UdpSocket::bind((ip, 0)).unwrap());
    let address = server.local_addr().unwrap();
    let client = from.netns.run(|| UdpSocket::bind((from.inner()[usize::from(ip.is_ipv6())], 0)).unwrap());
    client.connect(address).unwrap();
    client.set_read_timeout(Some(ANSWER)).unwrap();
    server.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _end = Raised(&stop);
        scope.spawn(|| echo(&server, &stop));
        for size in [1, 64, 1_000, 1_372, 4_000] {
            exchange(&client, address, &pattern(size as u64, size), &[size]);
        }
        // Eight segments and a shorter one in one send: the kernel hands the TUN one super-packet where it may.
        if setsockopt(&client, sockopt::UdpGsoSegment, &1_000).is_ok() {
            exchange(
                &client,
                address,
                &pattern(7, 8_300),
                &[1_000, 1_000, 1_000, 1_000, 1_000, 1_000, 1_000, 1_000, 300],
            );
        }
    });
}

fn exchange(client: &UdpSocket, address: SocketAddr, bytes: &[u8], sizes: &[usize]) {
    for _ in 0..TRIES {
        client.send(bytes).unwrap();
        let mut buffer = [0; 9_000];
        let (mut got, mut at) = (Vec::new(), 0);
        while let Ok(len) = client.recv(&mut buffer) {
            // Of an earlier try, or out of order: the rest of this try cannot fit.
            if bytes.get(at..at + len) == Some(&buffer[..len]) {
                at += len;
                got.push(len);
            }
            if at == bytes.len() {
                break;
            }
        }
        if got == sizes {
            return;
        }
    }
    panic!("{address}: datagrams of {sizes:?} bytes did not come back in {TRIES} tries");
}

fn echo(server: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = [0; 9_000];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((len, from)) = server.recv_from(&mut buffer) {
            server.send_to(&buffer[..len], from).unwrap();
        }
    }
}

/// Raises its flag when the work before a scope's end is over, also by a panic: the scope waits for its threads.
pub(crate) struct Raised<'a>(pub &'a AtomicBool);

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let mut accepted = None;
    wait("a connection", || {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    let stream = accepted.unwrap().0;
    stream.set_nonblocking(false).unwrap();
    stream
}

fn send(stream: &mut TcpStream, start: u64, bytes: u64) {
    stream.set_write_timeout(Some(STEP)).unwrap();
    let mut at = start;
    while at < start + bytes {
        let len = (start + bytes - at).min(1 << 16) as usize;
        stream.write_all(&pattern(at, len)).unwrap();
        at += len as u64;
    }
}

fn receive(stream: &TcpStream) -> u64 {
    receive_counting(stream, &AtomicU64::new(0))
}

fn receive_counting(mut stream: &TcpStream, moved: &AtomicU64) -> u64 {
    stream.set_read_timeout(Some(STEP)).unwrap();
    let (mut at, mut buffer) = (0, vec![0; 1 << 16]);
    loop {
        let len = stream.read(&mut buffer).unwrap();
        if len == 0 {
            return at;
        }
        assert!(buffer[..len] == pattern(at, len), "bytes {at}.. are not what was sent");
        at += len as u64;
        moved.store(at, Ordering::Relaxed);
    }
}

/// Bytes that tell their place.
fn pattern(at: u64, len: usize) -> Vec<u8> {
    (at..at + len as u64).map(|i| (i ^ (i >> 8) ^ (i >> 17)) as u8).collect()
}
