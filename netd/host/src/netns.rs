// SPDX-License-Identifier: Apache-2.0

//! Network namespaces by path.
//!
//! A thread's netns is never changed and left so: work in another netns runs on a throw-away thread that is not part
//! of any runtime and never forks. Sockets that such a thread opens stay in that netns, and are used from anywhere.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    thread,
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    sys::statfs::{NSFS_MAGIC, fstatfs},
};

use crate::HostError;

/// The netns of the calling thread; `/proc/self` would be the main thread's.
const OWN_NETNS: &str = "/proc/thread-self/ns/net";

/// An open network namespace. It lives at least as long as this value.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
}

/// Opens the netns at `path` (`/run/netns/NAME`, `/proc/PID/ns/net`).
///
/// # Errors
/// [`HostError::NetnsGone`] where there is no file, or one that is not a namespace (after `ip netns del` a plain file
/// may be left); [`HostError::Io`] for the rest.
pub fn open(path: impl AsRef<Path>) -> Result<Netns, HostError> {
    Netns::open(path.as_ref())
}

/// Runs `work` in `netns` on a thread of its own and waits for it. Blocks: keep `work` short.
///
/// # Errors
/// [`HostError::Setup`] when no thread could be started or it could not enter the netns.
pub fn run_in<T: Send>(netns: &Netns, work: impl FnOnce() -> T + Send) -> Result<T, HostError> {
    let enter = |source| HostError::Setup { what: "enter the netns", source };
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("weft-netns".to_owned())
            .spawn_scoped(scope, || {
                setns(netns, CloneFlags::CLONE_NEWNET)?;
                Ok::<T, Errno>(work())
            })
            .map_err(|source| HostError::Setup { what: "start a thread for the netns", source })?;
        match thread.join() {
            Ok(result) => result.map_err(|errno| enter(errno.into())),
            Err(_) => Err(enter(io::Error::other("the thread panicked"))),
        }
    })
}

impl Netns {
    /// See [`open`].
    pub fn open(path: &Path) -> Result<Self, HostError> {
        let gone = |reason: &str| HostError::NetnsGone {
            path: path.display().to_string(),
            reason: reason.to_owned(),
        };
        let file = File::open(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                gone("does not exist; is the sandbox gone?")
            }
            _ => HostError::Io { path: path.to_owned(), source },
        })?;
        let kind =
            fstatfs(&file).map_err(|errno| HostError::Io { path: path.to_owned(), source: errno.into() })?;
        if kind.filesystem_type() != NSFS_MAGIC {
            return Err(gone("is not a namespace; was the netns deleted?"));
        }
        Ok(Self { file, path: path.to_owned() })
    }

    /// The netns of the calling thread.
    pub fn current() -> Result<Self, HostError> {
        Self::open(Path::new(OWN_NETNS))
    }

    /// Where it was opened, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this is the netns of the calling thread.
    pub fn same_as_current(&self) -> Result<bool, HostError> {
        let io_error = |path: &Path, source| HostError::Io { path: path.to_owned(), source };
        let own = fs::metadata(OWN_NETNS).map_err(|source| io_error(Path::new(OWN_NETNS), source))?;
        let this = self.file.metadata().map_err(|source| io_error(&self.path, source))?;
        Ok((own.dev(), own.ino()) == (this.dev(), this.ino()))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
