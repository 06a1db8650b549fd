// SPDX-License-Identifier: Apache-2.0
//! One interface to both kinds of devices, for netd.

use std::{io, path::PathBuf};

use async_trait::async_trait;
use thiserror::Error;

use crate::{DeviceChange, DeviceKind, DeviceState, uapi::UapiError};
pub use crate::{
    kernel::{KernelDevice, kernel_has_wireguard},
    user::{ANSWER_TIMEOUT, UserDevice},
};

/// A WireGuard device of this node. Nothing is kept between calls. Cancel safe in that the next call works;
/// the device may have carried out the change, or with the kernel a part of it.
#[async_trait]
pub trait Device: Send + Sync {
    /// Who runs it.
    fn kind(&self) -> DeviceKind;

    /// The network interface's name.
    fn ifname(&self) -> &str;

    /// The device as it is.
    ///
    /// # Errors
    /// [`DeviceError`]
    async fn read(&self) -> Result<DeviceState, DeviceError>;

    /// Carries out a change. After an error read again: some of it may have been done.
    ///
    /// # Errors
    /// [`DeviceError`]
    async fn apply(&self, change: &DeviceChange) -> Result<(), DeviceError>;
}

/// Why a device was not read or changed.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// Nobody listens on the control socket, or there is none.
    #[error("weft-wireguard does not answer on {path}: is the service weft-wireguard running?")]
    NotRunning {
        /// Of the control socket.
        path: PathBuf,
    },
    /// It listens and says nothing, or the kernel does not.
    #[error("{who} did not answer within {seconds} s")]
    TimedOut {
        /// Of whom.
        who: String,
        /// The limit.
        seconds: u64,
    },
    /// It answered with an error.
    #[error("{who} refuses to {what}: {source}")]
    Refused {
        /// Of whom.
        who: String,
        /// Completes "refuses to …".
        what: String,
        /// The error it named.
        source: io::Error,
    },
    /// It answered what is not the protocol.
    #[error("cannot understand the answer of {who}: {why}")]
    Answer {
        /// Of whom.
        who: String,
        /// What is wrong with it.
        why: String,
    },
    /// The socket failed.
    #[error("cannot {what} {who}: {source}")]
    Io {
        /// Completes "cannot …".
        what: &'static str,
        /// With whom.
        who: String,
        /// The cause.
        source: io::Error,
    },
    /// The name is none.
    #[error("{ifname:?} is no name for a WireGuard device: 1 to 15 bytes, no slash, no white space")]
    Name {
        /// As given.
        ifname: String,
    },
    /// There is no such link, or it is of another kind.
    #[error("there is no WireGuard link {ifname} in the kernel")]
    NoLink {
        /// Its name.
        ifname: String,
    },
    /// This kernel cannot do WireGuard.
    #[error(
        "this kernel has no WireGuard and no module for it (generic netlink does not know \"wireguard\"): use weft-wireguard \
         (netd's wireguard-device = \"auto\" or \"user\")"
    )]
    NoModule,
}

impl DeviceError {
    /// The device is not there, or whoever runs it: to be tried again when that has changed.
    #[must_use]
    pub const fn is_absent(&self) -> bool {
        matches!(self, Self::NotRunning { .. } | Self::NoLink { .. } | Self::NoModule)
    }

    pub(crate) fn answer(who: &str, error: UapiError, what: &str) -> Self {
        let (who, what) = (who.to_owned(), what.to_owned());
        match error {
            UapiError::Errno(errno) => {
                Self::Refused { who, what, source: io::Error::from_raw_os_error(errno) }
            }
            error => Self::Answer { who, why: error.to_string() },
        }
    }
}
