// SPDX-License-Identifier: Apache-2.0
//! systemd's file descriptor store (sd_notify(3), sd_listen_fds(3)): `FileDescriptorStoreMax=` in the unit and
//! `NotifyAccess=main` let the service leave its sockets with the manager and find them again when it is started anew.
#![allow(
    unsafe_code,
    reason = "descriptors that were inherited by number have no safe wrapper; the block says why it is sound"
)]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::message::send;

/// The first descriptor that is passed (SD_LISTEN_FDS_START).
const FIRST: RawFd = 3;
/// What ours are called in the store.
const NAME: &str = "weft-dns";

static TAKEN: AtomicBool = AtomicBool::new(false);

/// The sockets that the manager kept for us; empty where there are none, and when called again.
pub fn inherited() -> Vec<OwnedFd> {
    let variable = |name: &str| std::env::var(name).ok();
    let ours = variable("LISTEN_PID").and_then(|pid| pid.parse::<u32>().ok()) == Some(std::process::id());
    let count = variable("LISTEN_FDS").and_then(|count| count.parse::<RawFd>().ok()).unwrap_or(0);
    if !ours || TAKEN.swap(true, Relaxed) {
        return Vec::new();
    }
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut found = Vec::new();
    for fd in FIRST..FIRST.saturating_add(count.clamp(0, 1_024)) {
        // SAFETY: LISTEN_PID says that the manager passed this many descriptors to this very process, and nobody takes them
        // twice, for TAKEN stands.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let _ = fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
        if names.next() == Some(NAME) {
            found.push(fd);
        }
    }
    found
}

/// Leaves these with the manager, instead of those of before. `false`: no manager listens.
///
/// # Errors
/// The manager cannot be told.
pub fn store(sockets: &[BorrowedFd<'_>]) -> io::Result<bool> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(false) };
    let path = path.into_encoded_bytes();
    let address = match path.split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(std::ffi::OsString::from(String::from_utf8_lossy(&path).as_ref()))?,
    };
    let notify = UnixDatagram::unbound()?;
    notify.connect_addr(&address)?;
    send(&notify, format!("FDSTOREREMOVE=1\nFDNAME={NAME}").as_bytes(), &[])?;
    for some in sockets.chunks(super::message::FDS_MAX) {
        send(&notify, format!("FDSTORE=1\nFDNAME={NAME}").as_bytes(), some)?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_manager_nothing_is_inherited_nor_stored() {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            assert!(!store(&[]).unwrap());
        }
        assert!(inherited().is_empty());
    }
}
