// SPDX-License-Identifier: Apache-2.0
//! `<socket-dir>/<ifname>.sock`: made so that at no time anybody but root may connect.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt},
};

use super::ControlError;

/// IFNAMSIZ - 1.
const IFNAME_BYTES_MAX: usize = 15;

/// The socket's path.
///
/// # Errors
/// [`ControlError::Name`].
pub(crate) fn socket_path(socket_dir: &Path, ifname: &str) -> Result<PathBuf, ControlError> {
    let is_odd = |byte: u8| byte == b'/' || byte.is_ascii_whitespace() || byte.is_ascii_control();
    if ifname.is_empty()
        || ifname.len() > IFNAME_BYTES_MAX
        || ifname.starts_with('.')
        || ifname.bytes().any(is_odd)
    {
        return Err(ControlError::Name { ifname: ifname.to_owned() });
    }
    Ok(socket_dir.join(format!("{ifname}.sock")))
}

/// A socket that clients may connect to and that nobody need serve yet. Dropping it leaves the file: another
/// process may hold the socket too.
#[derive(Debug)]
pub struct ControlListener {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlListener {
    /// Makes the folder (0700) where it is missing, and the socket (0600). One that nobody serves any more is replaced.
    ///
    /// # Errors
    /// [`ControlError`]
    pub fn bind(socket_dir: &Path, ifname: &str) -> Result<Self, ControlError> {
        let path = socket_path(socket_dir, ifname)?;
        let io = |what, path: &Path| {
            let path = path.to_owned();
            move |source| ControlError::Io { what, path, source }
        };
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(socket_dir).map_err(io("make the folder", socket_dir))?;
        match fs::symlink_metadata(&path) {
            Ok(found) if !found.file_type().is_socket() => return Err(ControlError::NotASocket { path }),
            Ok(_) if is_served(&path).map_err(io("look whether somebody serves", &path))? => {
                return Err(ControlError::InUse { path });
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(io("look at", &path)(source)),
        }
        // Under another name until nobody else may connect; renaming also replaces the old one at a stroke.
        let new = socket_dir.join(format!(".{ifname}"));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io("remove", &new)(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&new).map_err(io("make the socket", &new))?;
        listener.set_nonblocking(true).map_err(io("make the socket", &new))?;
        fs::set_permissions(&new, Permissions::from_mode(0o600)).map_err(io("protect", &new))?;
        fs::rename(&new, &path).map_err(io("make the socket", &path))?;
        Ok(Self { listener, path })
    }

    /// A listening socket of another process, at the same path as there.
    ///
    /// # Errors
    /// [`ControlError::NotListening`], [`ControlError::Name`].
    pub fn inherit(fd: OwnedFd, socket_dir: &Path, ifname: &str) -> Result<Self, ControlError> {
        let path = socket_path(socket_dir, ifname)?;
        let is_unix = nix::sys::socket::getsockname::<UnixAddr>(fd.as_raw_fd()).is_ok();
        if !is_unix || getsockopt(&fd, sockopt::AcceptConn) != Ok(true) {
            return Err(ControlError::NotListening { path });
        }
        let listener = UnixListener::from(fd);
        let start = |source| ControlError::Start { path: path.clone(), source };
        listener.set_nonblocking(true).map_err(start)?;
        Ok(Self { listener, path })
    }

    /// The socket's.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Closes the socket and removes its file: the orderly end of a device.
    pub fn remove(self) {
        // Another process may have put its own there; that one answers, ours does not.
        drop(self.listener);
        if !is_served(&self.path).unwrap_or(true) {
            let _ = fs::remove_file(&self.path);
        }
    }

    /// The same socket under another descriptor.
    pub(super) fn duplicate(&self) -> Result<Self, ControlError> {
        let start = |source| ControlError::Start { path: self.path.clone(), source };
        Ok(Self { listener: self.listener.try_clone().map_err(start)?, path: self.path.clone() })
    }

    /// The next client; `None` where none waits. Its socket blocks.
    pub(super) fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                Ok(Some(stream))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            // The client left before its turn.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for ControlListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// Whether a process listens there. Does not wait for it.
fn is_served(path: &Path) -> io::Result<bool> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let client = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match connect(client.as_raw_fd(), &UnixAddr::new(path)?) {
        // EAGAIN: its backlog is full.
        Ok(()) | Err(Errno::EAGAIN) => Ok(true),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
