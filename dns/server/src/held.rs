// SPDX-License-Identifier: Apache-2.0
//! Which held socket is which: the kernel knows their kind and address, so nobody need write it down.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

use socket2::{Socket, Type};

use crate::sockets::Given;

/// Held sockets by address.
#[derive(Debug, Default)]
pub(crate) struct Held {
    by_address: Vec<(SocketAddr, Given)>,
}

/// Sorts them; what is no socket of ours is closed.
pub(crate) fn sort(held: Vec<OwnedFd>) -> Held {
    let mut sorted = Held::default();
    for fd in held {
        let socket = Socket::from(fd);
        let (Ok(kind), Ok(address)) = (socket.r#type(), socket.local_addr()) else { continue };
        let Some(address) = address.as_socket() else { continue };
        let given = sorted.place(address);
        match kind {
            Type::DGRAM => given.udp.push(UdpSocket::from(socket)),
            Type::STREAM if given.tcp.is_none() => given.tcp = Some(TcpListener::from(socket)),
            _ => {}
        }
    }
    sorted
}

impl Held {
    /// Those of this address.
    pub(crate) fn take(&mut self, address: SocketAddr) -> Given {
        let at = self.by_address.iter().position(|(known, _)| *known == address);
        at.map(|at| self.by_address.swap_remove(at).1).unwrap_or_default()
    }

    fn place(&mut self, address: SocketAddr) -> &mut Given {
        let known = self.by_address.iter().position(|(known, _)| *known == address);
        let at = known.unwrap_or_else(|| {
            self.by_address.push((address, Given::default()));
            self.by_address.len() - 1
        });
        &mut self.by_address[at].1
    }
}
