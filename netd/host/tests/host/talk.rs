// SPDX-License-Identifier: Apache-2.0

//! Servers that answer with the client's address as they see it, and clients that ask.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use netd_host::{Netns, netns};

/// How long a server waits before it looks whether it should end.
const POLL: Duration = Duration::from_millis(20);
/// A client's patience for what should be answered, and for what should not.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
pub(crate) const IMPATIENCE: Duration = Duration::from_millis(400);

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

/// TCP and UDP servers on one address; they end when the value is dropped.
pub(crate) struct Server {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(netns: &Netns, address: &str) -> Self {
        let address: SocketAddr = address.parse().unwrap();
        let bind = || (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap());
        let (tcp, udp) = netns::run_in(netns, bind).unwrap();
        tcp.set_nonblocking(true).unwrap();
        udp.set_read_timeout(Some(POLL)).unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let (over_tcp, over_udp) = (Arc::clone(&is_over), Arc::clone(&is_over));
        let serve_tcp = move || {
            while !over_tcp.load(Ordering::Relaxed) {
                match tcp.accept() {
                    Ok((mut stream, client)) => drop(stream.write_all(client.to_string().as_bytes())),
                    Err(_) => thread::sleep(POLL),
                }
            }
        };
        let serve_udp = move || {
            let mut buffer = [0; 64];
            while !over_udp.load(Ordering::Relaxed) {
                if let Ok((_, client)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(client.to_string().as_bytes(), client);
                }
            }
        };
        Self { is_over, threads: vec![thread::spawn(serve_tcp), thread::spawn(serve_udp)] }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The client's address as the server at `target` saw it; `None` where nobody answers.
pub(crate) fn ask(netns: &Netns, transport: Transport, target: &str, patience: Duration) -> Option<IpAddr> {
    let target: SocketAddr = target.parse().unwrap();
    let client = || match transport {
        Transport::Tcp => {
            let mut stream = TcpStream::connect_timeout(&target, patience).ok()?;
            stream.set_read_timeout(Some(patience)).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            answer.parse::<SocketAddr>().ok()
        }
        Transport::Udp => exchange(&udp_client(target), patience),
    };
    Some(netns::run_in(netns, client).unwrap()?.ip())
}

/// A UDP socket connected to `target`, in the netns of the calling thread.
pub(crate) fn udp_client(target: SocketAddr) -> UdpSocket {
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.connect(target).unwrap();
    socket
}

/// One datagram there and the answer.
pub(crate) fn exchange(socket: &UdpSocket, patience: Duration) -> Option<SocketAddr> {
    socket.set_read_timeout(Some(patience)).unwrap();
    let mut buffer = [0; 64];
    // What a refusal left on the socket.
    let _ = socket.take_error();
    socket.send(b"who am I?").ok()?;
    let length = undisturbed(|| socket.recv(&mut buffer)).ok()?;
    std::str::from_utf8(&buffer[..length]).unwrap().parse().ok()
}

/// Again where a signal came between: calls with a time limit are not restarted, and children of other tests end.
pub(crate) fn undisturbed<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
