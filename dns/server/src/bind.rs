// SPDX-License-Identifier: Apache-2.0
//! The server's sockets: one UDP and one TCP per address.
//!
//! IP_FREEBIND (ip(7)) lets us bind before the address is on the node, so netd need not order the DNS server after
//! the address. SO_REUSEADDR is set on TCP only, for connections in TIME_WAIT: on UDP it would let a second server
//! take our packets without an error.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};

/// Connections waiting for accept(2); DNS over TCP is the exception (truncated answers), so a short queue does.
const TCP_BACKLOG: i32 = 128;

/// How often a pair of ports is tried where the caller asked for port 0: the port that UDP got may be taken on TCP.
const PORT_PAIR_ATTEMPTS: u32 = 16;

/// The DNS server could not take an address.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process has the port.
    #[error(
        "cannot bind {address} ({transport}): another DNS server has this address; find it with `ss -lnp sport = :{}`",
        address.port()
    )]
    InUse {
        /// The address asked for.
        address: SocketAddr,
        /// `udp` or `tcp`.
        transport: &'static str,
    },
    /// The process may not bind this port.
    #[error(
        "cannot bind {address} ({transport}): permission denied; ports below 1024 need CAP_NET_BIND_SERVICE"
    )]
    Permission {
        /// The address asked for.
        address: SocketAddr,
        /// `udp` or `tcp`.
        transport: &'static str,
    },
    /// Anything else the kernel said.
    #[error("cannot bind {address} ({transport}): {source}")]
    Other {
        /// The address asked for.
        address: SocketAddr,
        /// `udp` or `tcp`.
        transport: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// The list of addresses was empty.
    #[error("the DNS server was given no address to listen on")]
    NoAddress,
}

/// The two sockets of one address; both have the same port.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) address: SocketAddr,
    pub(crate) udp: UdpSocket,
    pub(crate) tcp: TcpListener,
}

/// Binds UDP and TCP on `address`. Port 0 picks a port that is free on both.
pub(crate) fn bind(address: SocketAddr) -> Result<Listener, BindError> {
    let mut attempt = 1;
    loop {
        match bind_pair(address) {
            Err(BindError::InUse { .. }) if address.port() == 0 && attempt < PORT_PAIR_ATTEMPTS => {
                attempt += 1
            }
            result => return result,
        }
    }
}

fn bind_pair(address: SocketAddr) -> Result<Listener, BindError> {
    let (udp, bound) = bind_udp(address).map_err(|e| classify(address, "udp", e))?;
    let tcp = bind_tcp(bound).map_err(|e| classify(bound, "tcp", e))?;
    Ok(Listener { address: bound, udp, tcp })
}

fn bind_udp(address: SocketAddr) -> io::Result<(UdpSocket, SocketAddr)> {
    let socket = open(address, Type::DGRAM, Protocol::UDP)?;
    socket.bind(&SockAddr::from(address))?;
    let udp = UdpSocket::from_std(socket.into())?;
    let bound = udp.local_addr()?;
    Ok((udp, bound))
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = open(address, Type::STREAM, Protocol::TCP)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(TCP_BACKLOG)?;
    TcpListener::from_std(socket.into())
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
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn classify(address: SocketAddr, transport: &'static str, source: io::Error) -> BindError {
    match source.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse { address, transport },
        io::ErrorKind::PermissionDenied => BindError::Permission { address, transport },
        _ => BindError::Other { address, transport, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_transports_share_the_port() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        assert_ne!(listener.address.port(), 0);
        assert_eq!(listener.udp.local_addr().unwrap(), listener.tcp.local_addr().unwrap());
    }

    #[tokio::test]
    async fn a_taken_address_is_named() {
        let first = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let error = bind(first.address).unwrap_err();
        assert!(matches!(error, BindError::InUse { .. }), "{error}");
        assert!(error.to_string().contains(&first.address.to_string()), "{error}");
    }

    #[tokio::test]
    async fn an_address_that_is_not_there_yet_can_be_bound() {
        let listener = bind("192.0.2.53:0".parse().unwrap()).unwrap();
        assert_eq!(listener.address.ip().to_string(), "192.0.2.53");
    }
}
