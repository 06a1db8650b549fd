// SPDX-License-Identifier: Apache-2.0
//! The configuration socket of a device in user space, for `wg`, netd and whoever else speaks the protocol of
//! [`crate::uapi`].
//!
//! One thread accepts, and one more serves each connection, at most [`CONNECTIONS_MAX`]; further clients wait
//! in the socket's backlog. A client that is slow, silent or dead costs its own connection only: each wait
//! has a deadline, each request a size. A request is carried out when its last line was read, never half.

mod connection;
mod listener;
mod server;

use std::{io, path::PathBuf};

use thiserror::Error;

pub use connection::{REQUEST_BYTES_MAX, REQUEST_TIMEOUT};
pub use listener::ControlListener;
pub(crate) use listener::socket_path;
pub use server::{CONNECTIONS_MAX, ControlServer};

use crate::{DeviceChange, uapi::Snapshot};

/// What a control socket controls.
pub trait Configurable: Send + Sync {
    /// The device as it is now.
    fn read(&self) -> Snapshot;

    /// Carries out a change, all of it if it can.
    ///
    /// # Errors
    /// Why not; a client is told `raw_os_error`, or EIO where there is none.
    fn set(&self, change: DeviceChange) -> io::Result<()>;
}

/// Why a control socket is not there.
#[derive(Debug, Error)]
pub enum ControlError {
    /// Not a name of a network interface.
    #[error("{ifname:?} is no name for a WireGuard device: 1 to 15 bytes, no slash, no white space")]
    Name {
        /// As given.
        ifname: String,
    },
    /// Somebody answers at its path.
    #[error("another process serves {path}: stop it, or give this one another --socket-dir")]
    InUse {
        /// The socket's.
        path: PathBuf,
    },
    /// Something else lies at its path.
    #[error("{path} is there and is not a socket: move it away")]
    NotASocket {
        /// Of what is there.
        path: PathBuf,
    },
    /// The descriptor that was inherited is not a listening Unix socket.
    #[error("the inherited descriptor for {path} is not a listening socket")]
    NotListening {
        /// The socket's.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// Completes "cannot …".
        what: &'static str,
        /// The socket's, or its folder's.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// No thread, or no descriptors.
    #[error("cannot serve {path}: {source}")]
    Start {
        /// The socket's.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}
