// SPDX-License-Identifier: Apache-2.0
//! The server's sockets: for each address some for UDP, one for each worker, and one for TCP.
//!
//! IP_FREEBIND (ip(7)) lets us bind before the address is on the node, so netd need not order the DNS server after the
//! address. The workers' sockets share their port (SO_REUSEPORT), and the kernel spreads clients over them. The same
//! option would let another server of this user take a share of our questions without an error: so each address is first
//! bound without it, to see that nobody has it.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::bind::BindError;

/// Connections waiting for accept(2). DNS over TCP is the exception (truncated answers), but all of a node's pods ask here.
const TCP_BACKLOG: i32 = 512;

/// How often a pair of ports is tried where the caller asked for port 0: the port that UDP got may be taken on TCP.
const PORT_PAIR_ATTEMPTS: u32 = 16;

/// Questions wait here while netd is away (its sockets are held), and in the moments when a worker has no CPU: about
/// 5,000 questions. A worker answers these in some 50 ms.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;

/// How long a worker waits for a question before it looks whether it is to end.
pub(crate) const RECEIVE_TIMEOUT: Duration = Duration::from_millis(200);

/// The sockets of one address; all have the same port.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) address: SocketAddr,
    /// One for each worker.
    pub(crate) udp: Vec<UdpSocket>,
    pub(crate) tcp: TcpListener,
}

/// Binds UDP and TCP on `address`. Port 0 picks a port that is free on both. `given` are sockets of this address that were
/// held while we were away: they are used first, for questions wait in them.
pub(crate) fn bind(address: SocketAddr, workers: usize, given: Given) -> Result<Sockets, BindError> {
    let mut attempt = 1;
    let mut given = Some(given);
    loop {
        match bind_once(address, workers, given.take().unwrap_or_default()) {
            Err(BindError::InUse { .. }) if address.port() == 0 && attempt < PORT_PAIR_ATTEMPTS => {
                attempt += 1
            }
            result => return result,
        }
    }
}

/// Sockets of one address that somebody held for us.
#[derive(Debug, Default)]
pub(crate) struct Given {
    pub(crate) udp: Vec<UdpSocket>,
    pub(crate) tcp: Option<TcpListener>,
}

fn bind_once(address: SocketAddr, workers: usize, given: Given) -> Result<Sockets, BindError> {
    let Given { mut udp, tcp } = given;
    let failed = |e| BindError::classify(address, "udp", e);
    if udp.is_empty() {
        let first = open_udp_alone(address).map_err(failed)?;
        udp.push(first);
    }
    let bound = udp[0].local_addr().map_err(failed)?;
    while udp.len() < workers.max(1) {
        udp.push(open_udp(bound).map_err(failed)?);
    }
    for socket in &udp {
        prepare_udp(socket, bound).map_err(failed)?;
    }
    let tcp = bind_tcp(bound, tcp)?;
    Ok(Sockets { address: bound, udp, tcp })
}

/// A listener, or the one that was held.
pub(crate) fn bind_tcp(address: SocketAddr, given: Option<TcpListener>) -> Result<TcpListener, BindError> {
    let listener = given.map_or_else(|| open_tcp(address), Ok);
    let ready = listener.and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    ready.map_err(|e| BindError::classify(address, "tcp", e))
}

/// The first of its address: nobody else may have it.
fn open_udp_alone(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = open(address, Type::DGRAM, Protocol::UDP)?;
    socket.bind(&SockAddr::from(address))?;
    let bound: SocketAddr = UdpSocket::from(socket).local_addr()?;
    open_udp(bound)
}

/// One that shares its address with the other workers'.
pub(crate) fn open_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = open(address, Type::DGRAM, Protocol::UDP)?;
    socket.set_reuse_port(true)?;
    socket.bind(&SockAddr::from(address))?;
    let socket = UdpSocket::from(socket);
    prepare_udp(&socket, address)?;
    Ok(socket)
}

/// Options that a held socket may have from an older version of us, or not.
fn prepare_udp(socket: &UdpSocket, address: SocketAddr) -> io::Result<()> {
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(RECEIVE_TIMEOUT))?;
    // Past net.core.rmem_max only with CAP_NET_ADMIN; what is allowed will do otherwise.
    if setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES).is_err() {
        setsockopt(socket, sockopt::RcvBuf, &RECEIVE_BUFFER_BYTES)?;
    }
    if address.ip().is_unspecified() {
        match address {
            SocketAddr::V4(_) => setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?,
            SocketAddr::V6(_) => setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?,
        }
    }
    Ok(())
}

fn open_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = open(address, Type::STREAM, Protocol::TCP)?;
    // For connections in TIME_WAIT; two listeners it does not allow.
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(TCP_BACKLOG)?;
    Ok(socket.into())
}

fn open(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_freebind_v6(true)?;
        }
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind_new(address: SocketAddr) -> Result<Sockets, BindError> {
        bind(address, 2, Given::default())
    }

    #[test]
    fn both_transports_and_all_workers_share_the_port() {
        let sockets = bind_new("127.0.0.1:0".parse().unwrap()).unwrap();
        assert_ne!(sockets.address.port(), 0);
        assert_eq!(sockets.udp.len(), 2);
        assert!(sockets.udp.iter().all(|udp| udp.local_addr().unwrap() == sockets.address));
        assert_eq!(sockets.tcp.local_addr().unwrap(), sockets.address);
    }

    #[test]
    fn a_taken_address_is_named_even_if_it_would_be_shared() {
        let first = bind_new("127.0.0.1:0".parse().unwrap()).unwrap();
        let error = bind_new(first.address).unwrap_err();
        assert!(matches!(error, BindError::InUse { .. }), "{error}");
        assert!(error.to_string().contains(&first.address.to_string()), "{error}");
    }

    #[test]
    fn an_address_that_is_not_there_yet_can_be_bound() {
        let sockets = bind_new("192.0.2.53:0".parse().unwrap()).unwrap();
        assert_eq!(sockets.address.ip().to_string(), "192.0.2.53");
    }

    #[test]
    fn held_sockets_are_used_again() {
        let first = bind_new("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = first.address;
        let again = bind(address, 2, Given { udp: first.udp, tcp: Some(first.tcp) }).unwrap();
        assert_eq!((again.address, again.udp.len()), (address, 2));
    }
}
