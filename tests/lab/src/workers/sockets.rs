// SPDX-License-Identifier: Apache-2.0
//! Sockets for every address of a pod: one for each family, so that a peer's address is never an IPv4 one in IPv6's
//! clothes and IPv4 traffic takes the path of IPv4 sockets.

use anyhow::{Context, Result};
use nix::libc;
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

/// As many as the standard library asks for.
const BACKLOG: i32 = 128;
/// The wildcard of each family.
const ANY: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];

/// Listeners on a port, one for each family that the kernel has.
pub(super) fn listeners(port: u16) -> Result<Vec<TcpListener>> {
    each_family(port, Type::STREAM, |socket| {
        socket.set_reuse_address(true)?;
        Ok(())
    })
    .and_then(|sockets| {
        sockets.iter().try_for_each(|socket| socket.listen(BACKLOG))?;
        Ok(sockets.into_iter().map(Into::into).collect())
    })
    .with_context(|| format!("TCP {port}"))
}

/// Datagram sockets on a port, one for each family that the kernel has.
pub(super) fn datagrams(port: u16) -> Result<Vec<UdpSocket>> {
    let sockets = each_family(port, Type::DGRAM, |_| Ok(())).with_context(|| format!("UDP {port}"))?;
    Ok(sockets.into_iter().map(Into::into).collect())
}

/// A datagram socket that can send to an address of this family.
pub(super) fn towards(address: SocketAddr) -> io::Result<UdpSocket> {
    let [v4, v6] = ANY;
    UdpSocket::bind((if address.is_ipv4() { v4 } else { v6 }, 0))
}

fn each_family(port: u16, kind: Type, prepare: fn(&Socket) -> io::Result<()>) -> io::Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    for any in ANY {
        let address = SocketAddr::new(any, port);
        let socket = match Socket::new(Domain::for_address(address), kind, None) {
            Err(error) if any.is_ipv6() && error.raw_os_error() == Some(libc::EAFNOSUPPORT) => continue,
            socket => socket?,
        };
        if any.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        prepare(&socket)?;
        socket.bind(&address.into())?;
        sockets.push(socket);
    }
    Ok(sockets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_share_a_port_or_fail_together() {
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = held.local_addr().unwrap().port();
        assert!(listeners(port).is_err(), "IPv4 is taken");
        assert!(towards("127.0.0.1:9".parse().unwrap()).unwrap().local_addr().unwrap().is_ipv4());
        for socket in datagrams(0).unwrap() {
            assert!(socket.local_addr().unwrap().ip().is_unspecified());
        }
    }
}
