// SPDX-License-Identifier: Apache-2.0

//! What can go wrong with the kernel's network objects, and what a caller should do about it.

use std::{io, path::PathBuf};

use nix::errno::Errno;

/// What the caller should do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Something else holds the name or object; an operator or the caller's undo has to remove it first.
    Conflict,
    /// It will fail the same way until this machine is changed (missing tool, missing kernel feature, rights).
    Fatal,
    /// The request itself is wrong.
    Invalid,
    /// It may work a moment later.
    Retry,
}

/// A failed operation on links, addresses, routes, neighbours or a netns.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The object is there already; nothing was changed.
    #[error("{object} exists already; delete it first (CNI DEL removes what an earlier ADD left)")]
    AlreadyExists {
        /// The object, for example ``link `eth0` in the pod's netns``.
        object: String,
    },
    /// The netlink socket was closed or its task ended; open a new [`crate::Host`].
    #[error("the netlink connection is closed while trying to {what}")]
    Closed {
        /// The operation.
        what: String,
    },
    /// An object of somebody else stands where ours should be; it was left alone.
    #[error(
        "{object} belongs to somebody else ({found}); it was left alone: remove it or change the configuration"
    )]
    Foreign {
        /// The object that we wanted.
        object: String,
        /// What stands there.
        found: String,
    },
    /// Dumps kept being interrupted by changes, [`crate::DUMP_TRIES_MAX`] times in a row.
    #[error("{what}: the kernel's table kept changing while it was read ({tries} tries)")]
    Interrupted {
        /// The operation.
        what: String,
        /// How often it was tried.
        tries: u32,
    },
    /// A value that the kernel would refuse, or that we refuse.
    #[error("{what}: {reason}")]
    Invalid {
        /// The field or object.
        what: String,
        /// Why it is refused.
        reason: String,
    },
    /// A file under /proc could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The kernel answered a netlink request with an error.
    #[error("cannot {what}: {source}{}", detail.as_ref().map(|d| format!(" (the kernel says: {d})")).unwrap_or_default())]
    Netlink {
        /// The operation.
        what: String,
        /// The kernel's error number.
        source: io::Error,
        /// The kernel's extended acknowledgement text, where it gave one.
        detail: Option<String>,
    },
    /// The netns is not there (any more), or its path holds something else.
    #[error("netns {path}: {reason}")]
    NetnsGone {
        /// Its path.
        path: String,
        /// What is there instead.
        reason: String,
    },
    /// A device that the operation needs does not exist.
    #[error("no link `{device}` in this netns")]
    NoDevice {
        /// Its name.
        device: String,
    },
    /// No address for the underlay could be chosen.
    #[error("no underlay address: {reason}; set underlay-address")]
    NoUnderlay {
        /// What was tried.
        reason: String,
    },
    /// The pod's netns is the one we run in.
    #[error("netns {path} is this process's own netns: a pod in it would take over the node's network")]
    SameNetns {
        /// Its path.
        path: String,
    },
    /// A device that another program of ours makes is not there.
    #[error("weft-wireguard has not made {device}: is the service weft-wireguard running?")]
    NotMade {
        /// Its name.
        device: String,
    },
    /// The kernel has no such operation.
    #[error("cannot {what}: this kernel lacks {needs}")]
    NotSupported {
        /// The operation.
        what: String,
        /// What provides it.
        needs: &'static str,
    },
    /// Thread, runtime or socket could not be set up.
    #[error("cannot {what}: {source}")]
    Setup {
        /// The operation.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The kernel did not answer within [`crate::REQUEST_TIMEOUT`].
    #[error("{what}: no answer from the kernel within {seconds} s")]
    TimedOut {
        /// The operation.
        what: String,
        /// The time limit.
        seconds: u64,
    },
}

impl HostError {
    /// What the caller should do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::AlreadyExists { .. } | Self::Foreign { .. } => Class::Conflict,
            Self::Invalid { .. } | Self::NetnsGone { .. } | Self::SameNetns { .. } => Class::Invalid,
            Self::Closed { .. }
            | Self::Interrupted { .. }
            | Self::NoDevice { .. }
            | Self::NotMade { .. }
            | Self::TimedOut { .. } => Class::Retry,
            Self::NoUnderlay { .. } => Class::Retry,
            Self::NotSupported { .. } => Class::Fatal,
            Self::Io { source, .. } | Self::Netlink { source, .. } | Self::Setup { source, .. } => {
                match source.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EPERM | Errno::EACCES | Errno::EOPNOTSUPP | Errno::EROFS) => Class::Fatal,
                    Some(Errno::EINVAL | Errno::ERANGE) => Class::Invalid,
                    _ => Class::Retry,
                }
            }
        }
    }

    /// The kernel's error number, where it answered with one.
    pub(crate) fn errno(&self) -> Option<Errno> {
        match self {
            Self::Netlink { source, .. } => source.raw_os_error().map(Errno::from_raw),
            _ => None,
        }
    }

    /// Removal of what is not there is success.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Self::NoDevice { .. })
            || matches!(
                self.errno(),
                Some(Errno::ESRCH | Errno::ENOENT | Errno::ENODEV | Errno::EADDRNOTAVAIL | Errno::ENXIO)
            )
    }
}

/// Turns "it was not there" into success, for removals.
pub(crate) fn absent_is_fine(result: Result<(), HostError>) -> Result<(), HostError> {
    match result {
        Err(error) if error.is_absent() => Ok(()),
        other => other,
    }
}
