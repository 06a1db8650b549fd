// SPDX-License-Identifier: Apache-2.0
//! One UDP socket on each overlay address of this node, and beside that of IPv4 one that sends without checksums. What it
//! sends is never fragmented, and the kernel's own opinion of the path (a route's MTU, what routers said) does not count:
//! only the device's MTU does.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::task::Poll;

use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto};
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;

/// Bytes of a datagram that are read: the rest of a question is zeroes.
const READ_MAX: usize = 64;

#[derive(Default)]
pub(super) struct Sockets {
    bound: Vec<(IpAddr, UdpSocket)>,
    plain: Option<(IpAddr, UdpSocket)>,
}

impl Sockets {
    /// Sockets on exactly these addresses. One that cannot be bound is tried again at the next call; the first such error is
    /// given back.
    pub(super) fn bind(&mut self, addresses: &[IpAddr], port: u16) -> io::Result<()> {
        self.bound.retain(|(address, _)| addresses.contains(address));
        self.plain = self.plain.take().filter(|(address, _)| addresses.contains(address));
        let mut outcome = Ok(());
        for address in addresses {
            if self.bound.iter().any(|(bound, _)| bound == address) {
                continue;
            }
            match open(SocketAddr::new(*address, port)) {
                Ok(socket) => self.bound.push((*address, socket)),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        if let (None, Some(address)) = (&self.plain, addresses.iter().find(|ip| ip.is_ipv4())) {
            match open(SocketAddr::new(*address, 0)) {
                Ok(socket) => {
                    netd_host::offload::send_without_checksum(&socket)?;
                    self.plain = Some((*address, socket));
                }
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome
    }

    /// Sends without a UDP checksum, over IPv4.
    pub(super) fn send_plain(&self, bytes: &[u8], to: SocketAddr) -> io::Result<()> {
        let (_, socket) = self.plain.as_ref().ok_or(io::ErrorKind::AddrNotAvailable)?;
        sendto(socket.as_raw_fd(), bytes, &SockaddrStorage::from(to), MsgFlags::MSG_DONTWAIT)?;
        Ok(())
    }

    /// Sends from the address of the family of `to`. `EMSGSIZE`: larger than the device's MTU.
    pub(super) fn send(&self, bytes: &[u8], to: SocketAddr) -> io::Result<()> {
        let socket = self.bound.iter().find(|(own, _)| own.is_ipv4() == to.is_ipv4());
        let (_, socket) = socket.ok_or(io::ErrorKind::AddrNotAvailable)?;
        // At once or not at all; tokio would first have to learn that the socket takes something.
        sendto(socket.as_raw_fd(), bytes, &SockaddrStorage::from(to), MsgFlags::MSG_DONTWAIT)?;
        Ok(())
    }

    /// The next datagram's first bytes and where it came from; never without sockets.
    pub(super) async fn receive(&self) -> (Vec<u8>, SocketAddr) {
        poll_fn(|context| {
            for (_, socket) in self.bound.iter().chain(&self.plain) {
                let mut bytes = [0; READ_MAX];
                let mut buffer = ReadBuf::new(&mut bytes);
                // An error is one that an earlier packet met on its way: that packet counts as lost.
                while let Poll::Ready(outcome) = socket.poll_recv_from(context, &mut buffer) {
                    if let Ok(from) = outcome {
                        return Poll::Ready((buffer.filled().to_vec(), from));
                    }
                }
            }
            Poll::Pending
        })
        .await
    }
}

fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    match address {
        SocketAddr::V4(_) => sockopt::set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?,
        SocketAddr::V6(_) => sockopt::set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?,
    }
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

#[cfg(test)]
mod tests {
    use super::super::message::Message;
    use super::*;

    #[tokio::test]
    async fn a_question_arrives_and_without_a_socket_none_is_sent() {
        let home: IpAddr = "127.0.0.1".parse().unwrap();
        let mut sockets = Sockets::default();
        sockets.bind(&[home], 0).unwrap();
        let to = sockets.bound[0].1.local_addr().unwrap();
        sockets.send(&Message::Ask(5).bytes(1400), to).unwrap();
        let (bytes, from) = sockets.receive().await;
        assert_eq!((Message::parse(&bytes), from), (Some(Message::Ask(5)), to));
        sockets.bind(&[], 0).unwrap();
        assert_eq!(sockets.send(&[0], to).unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
    }
}
