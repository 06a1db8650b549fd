// SPDX-License-Identifier: Apache-2.0
//! Servers that say who asked them, and clients that stay.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    thread,
    time::Duration,
};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};

pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Long enough to see that no answer comes.
pub(crate) const SILENCE: Duration = Duration::from_millis(600);
/// Several socket buffers, so that segmentation offload takes place.
pub(crate) const BULK_BYTES: usize = 4 * 1024 * 1024;

/// Over TCP: says its name and who asks, then each line back. Over UDP: its name, who asks, and how much was sent.
pub(crate) fn serve_line(at: SocketAddr, name: &'static str) {
    let tcp = TcpListener::bind(at).unwrap();
    let udp = UdpSocket::bind(at).unwrap();
    thread::spawn(move || {
        for stream in tcp.incoming() {
            let Ok(stream) = stream else { continue };
            thread::spawn(move || echo(stream, name));
        }
    });
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok((bytes, from)) = udp.recv_from(&mut buffer) {
            // As long as the question: large ones are answered in fragments.
            let mut answer = format!("{name} {from} {bytes} ").into_bytes();
            answer.resize(answer.len().max(bytes), b'.');
            let _ = udp.send_to(&answer, from);
        }
    });
}

fn echo(mut stream: TcpStream, name: &str) -> io::Result<()> {
    let peer = stream.peer_addr()?;
    writeln!(stream, "{name} {peer}")?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        if line == "bulk\n" {
            let bytes = io::copy(&mut reader, &mut io::sink())?;
            writeln!(stream, "{bytes}")?;
            stream.write_all(&vec![b'x'; BULK_BYTES])?;
            return stream.shutdown(Shutdown::Write);
        }
        stream.write_all(line.as_bytes())?;
        line.clear();
    }
    Ok(())
}

/// A connection to such a server.
pub(crate) struct Line {
    reader: BufReader<TcpStream>,
    /// The server's name.
    pub(crate) name: String,
    /// Who asks, as the server sees it.
    pub(crate) seen: SocketAddr,
}

impl Line {
    /// From a port, or any where that is 0.
    pub(crate) fn open(from: u16, to: SocketAddr) -> io::Result<Self> {
        let stream = connect_from(from, to)?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let (name, seen) = line.trim_end().split_once(' ').ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(Self { name: name.to_owned(), seen: seen.parse().unwrap(), reader })
    }

    /// Whether a line comes back.
    pub(crate) fn says(&mut self, line: &str) -> bool {
        let mut back = String::new();
        writeln!(self.reader.get_mut(), "{line}").is_ok()
            && self.reader.read_line(&mut back).is_ok()
            && back.trim_end() == line
    }

    /// How many bytes arrive there of [`BULK_BYTES`], and here of as many.
    pub(crate) fn bulk(mut self) -> (usize, usize) {
        let stream = self.reader.get_mut();
        stream.write_all(b"bulk\n").unwrap();
        stream.write_all(&vec![b'x'; BULK_BYTES]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut there = String::new();
        self.reader.read_line(&mut there).unwrap();
        let mut here = Vec::new();
        self.reader.read_to_end(&mut here).unwrap();
        (there.trim_end().parse().unwrap(), here.len())
    }
}

fn connect_from(from: u16, to: SocketAddr) -> io::Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // One port for connections to several addresses.
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    let timeout = nix::sys::time::TimeVal::new(PATIENCE.as_secs() as i64, 0);
    setsockopt(&fd, sockopt::SendTimeout, &timeout)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &timeout)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(any(to.ip(), from)))?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(TcpStream::from(fd))
}

/// A connected UDP socket.
pub(crate) fn datagrams(from: u16, to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(any(to.ip(), from)).unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// What the server says to a datagram of this length: name, who asks, length of the question and of the answer.
pub(crate) fn ask(socket: &UdpSocket, bytes: usize) -> io::Result<(String, SocketAddr, usize, usize)> {
    socket.send(&vec![b'?'; bytes])?;
    let mut buffer = vec![0; 65_536];
    let length = socket.recv(&mut buffer)?;
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let mut words = text.split(' ');
    let mut word = || words.next().unwrap();
    Ok((word().to_owned(), word().parse().unwrap(), word().parse().unwrap(), length))
}

fn any(like: IpAddr, port: u16) -> SocketAddr {
    match like {
        IpAddr::V4(_) => SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), port),
        IpAddr::V6(_) => SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), port),
    }
}
