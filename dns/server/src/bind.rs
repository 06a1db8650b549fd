// SPDX-License-Identifier: Apache-2.0
//! Why the server cannot listen.

use std::io;
use std::net::SocketAddr;

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
    /// A worker's thread could not be started.
    #[error("cannot start a DNS worker: {0}")]
    Thread(io::Error),
}

impl BindError {
    pub(crate) fn classify(address: SocketAddr, transport: &'static str, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { address, transport },
            io::ErrorKind::PermissionDenied => BindError::Permission { address, transport },
            _ => BindError::Other { address, transport, source },
        }
    }
}
