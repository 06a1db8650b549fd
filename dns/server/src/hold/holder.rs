// SPDX-License-Identifier: Apache-2.0
//! A process that does nothing but hold sockets, for hosts without systemd.
//!
//! Over a Unix socket (SOCK_SEQPACKET): `take` is answered by `held` with all descriptors, `hold` with descriptors replaces
//! what is held and is answered by `done`. Only root and the holder's own user are served.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::getuid;
use socket2::{Domain, SockAddr, Socket, Type};

use tracing::warn;

use super::message::{FDS_MAX, receive, send};

const TAKE: &[u8] = b"take";
const HELD: &[u8] = b"held";
const HOLD: &[u8] = b"hold";
const DONE: &[u8] = b"done";

/// One side waits for the other no longer: both answer at once or not at all.
const PATIENCE: Duration = Duration::from_secs(2);
/// netd restarts one at a time.
const BACKLOG: i32 = 8;
/// After accept(2) failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The holding process's side.
#[derive(Debug)]
pub struct Holder {
    listener: Socket,
    held: Vec<OwnedFd>,
}

impl Holder {
    /// Listens at `path`; a socket that nobody listens at any more is replaced.
    ///
    /// # Errors
    /// Another holder lives there (`AddrInUse`), or the path cannot be used.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if HolderClient::new(path).connect().is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        listener.bind(&SockAddr::unix(path)?)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        listener.listen(BACKLOG)?;
        Ok(Holder { listener, held: Vec::new() })
    }

    /// Serves for ever, one caller at a time.
    ///
    /// # Errors
    /// The listening socket failed.
    pub fn run(mut self) -> io::Result<()> {
        loop {
            let caller = match self.listener.accept() {
                Ok((caller, _)) => caller,
                Err(error) if is_for_ever(&error) => return Err(error),
                Err(_) => {
                    // No descriptors or memory left, or a caller that has gone: it passes, and what is held is still needed.
                    std::thread::sleep(ACCEPT_PAUSE);
                    continue;
                }
            };
            // What goes wrong with one caller is no reason to let go of the sockets.
            let _ = self.serve(&caller);
        }
    }

    fn serve(&mut self, caller: &Socket) -> io::Result<()> {
        let peer = getsockopt(caller, sockopt::PeerCredentials)?;
        if peer.uid() != 0 && peer.uid() != getuid().as_raw() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        caller.set_read_timeout(Some(PATIENCE))?;
        caller.set_write_timeout(Some(PATIENCE))?;
        loop {
            let (word, fds) = receive(caller)?;
            match &word[..] {
                TAKE => {
                    let held: Vec<_> = self.held.iter().map(AsFd::as_fd).collect();
                    send(caller, HELD, &held)?;
                }
                HOLD => {
                    self.held = fds;
                    send(caller, DONE, &[])?;
                }
                _ => return Ok(()),
            }
        }
    }
}

/// The socket is none that one can listen at.
fn is_for_ever(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP))
}

/// The server's side.
#[derive(Clone, Debug)]
pub struct HolderClient {
    path: PathBuf,
}

impl HolderClient {
    /// Of the holder at `path`.
    pub fn new(path: &Path) -> Self {
        HolderClient { path: path.to_owned() }
    }

    /// Copies of what is held; the holder keeps its own.
    ///
    /// # Errors
    /// There is no holder, or it does not answer.
    pub fn take(&self) -> io::Result<Vec<OwnedFd>> {
        let (word, fds) = self.ask(TAKE, &[])?;
        if word == HELD { Ok(fds) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    /// Has these held, and nothing else. Past 250 the rest is not, which is logged: then questions to those are lost during a
    /// restart.
    ///
    /// # Errors
    /// There is no holder, or it does not answer.
    pub fn hold(&self, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        if sockets.len() > FDS_MAX {
            warn!(
                sockets = sockets.len(),
                held = FDS_MAX,
                "too many DNS sockets to be held over a restart; name fewer DNS addresses or workers"
            );
        }
        let (word, _) = self.ask(HOLD, sockets)?;
        if word == DONE { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    fn ask(&self, word: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let socket = self.connect()?;
        send(&socket, word, fds)?;
        receive(&socket)
    }

    fn connect(&self) -> io::Result<Socket> {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.connect(&SockAddr::unix(&self.path)?)?;
        Ok(socket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_socket_that_is_none_ends_the_holder() {
        let is_for_ever = |number| is_for_ever(&io::Error::from_raw_os_error(number));
        assert!(
            [libc::EINTR, libc::ECONNABORTED, libc::EMFILE, libc::ENFILE, libc::ENOMEM]
                .into_iter()
                .all(|number| !is_for_ever(number))
        );
        assert!(is_for_ever(libc::EBADF) && is_for_ever(libc::ENOTSOCK));
    }
}
