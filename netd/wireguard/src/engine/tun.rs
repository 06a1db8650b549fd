// SPDX-License-Identifier: Apache-2.0
//! A TUN device with virtio-net headers: whole TCP and UDP super-packets in and out (linux/if_tun.h).
#![allow(unsafe_code, reason = "the TUN's ioctls have no safe wrapper; each block says why it is sound")]

use std::fs::OpenOptions;
use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use thiserror::Error;

use super::options::EngineOptions;
use crate::segment::VNET_HEADER_LEN;

/// The clone device every TUN is opened through.
const CLONE_DEVICE: &str = "/dev/net/tun";

// linux/if_tun.h; libc has the flags but not every request on every target.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUN_F_CSUM: u32 = 0x01;
const TUN_F_TSO4: u32 = 0x02;
const TUN_F_TSO6: u32 = 0x04;
const TUN_F_USO4: u32 = 0x20;
const TUN_F_USO6: u32 = 0x40;

/// Why there is no TUN; the text says what to do.
#[derive(Debug, Error)]
pub enum TunError {
    /// The clone device is missing or closed to us.
    #[error(
        "cannot open {CLONE_DEVICE}: {0}: the kernel needs the `tun` module and the caller CAP_NET_ADMIN"
    )]
    Open(io::Error),
    /// A device name that the kernel cannot take.
    #[error("{0:?} is no device name: 1 to 15 bytes without '/' and white space")]
    Name(String),
    /// The kernel refused a step.
    #[error("TUN {name}: {step}: {source}")]
    Refused {
        /// The device.
        name: String,
        /// What was asked.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Which super-packets the TUN hands over and takes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct TunOffloads {
    pub tcp: bool,
    pub udp: bool,
}

/// An open TUN queue, non-blocking; every read and write starts with a virtio-net header.
pub(crate) struct Tun {
    fd: OwnedFd,
    name: String,
    pub offloads: TunOffloads,
}

impl Tun {
    /// Makes the device, or attaches to it when it stands already, in the caller's network namespace.
    pub(crate) fn open(name: &str, options: &EngineOptions) -> Result<Self, TunError> {
        if !name_fits(name) {
            return Err(TunError::Name(name.into()));
        }
        let fd: OwnedFd = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(CLONE_DEVICE)
            .map_err(TunError::Open)?
            .into();
        let refused = |step| {
            let name = name.to_owned();
            move |source| TunError::Refused { name, step, source }
        };
        attach(fd.as_raw_fd(), name).map_err(refused("attach (is another process using it?)"))?;
        if options.persist {
            set_value(fd.as_raw_fd(), TUNSETPERSIST, 1).map_err(refused("make it outlive this process"))?;
        }
        Self::adopt(fd, name, options)
    }

    /// Takes a queue that is attached already, from a process before us.
    pub(crate) fn adopt(fd: OwnedFd, name: &str, options: &EngineOptions) -> Result<Self, TunError> {
        let refused = |step| {
            let name = name.to_owned();
            move |source| TunError::Refused { name, step, source }
        };
        let header = VNET_HEADER_LEN as libc::c_int;
        set_pointer(fd.as_raw_fd(), TUNSETVNETHDRSZ, &header)
            .map_err(refused("set the virtio-net header"))?;
        let offloads =
            set_offloads(fd.as_raw_fd(), options).map_err(refused("finish checksums (TUN_F_CSUM)"))?;
        Ok(Self { fd, name: name.into(), offloads })
    }

    /// Something else in a TUN's place: whatever takes and gives whole packets.
    pub(crate) fn over(fd: OwnedFd, name: &str, offloads: TunOffloads) -> Self {
        Self { fd, name: name.into(), offloads }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// One super-packet behind its virtio-net header; `WouldBlock` when there is none.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        nix::unistd::read(&self.fd, buffer).map_err(io::Error::from)
    }

    /// Hands one super-packet to the kernel; `slices` starts with its virtio-net header.
    pub(crate) fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        nix::sys::uio::writev(&self.fd, slices).map_err(io::Error::from)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The most the kernel takes of what is wished: USO is newer (6.2) than TSO.
fn set_offloads(fd: RawFd, options: &EngineOptions) -> io::Result<TunOffloads> {
    let tso = if options.tso { TUN_F_TSO4 | TUN_F_TSO6 } else { 0 };
    let uso = if options.uso { TUN_F_USO4 | TUN_F_USO6 } else { 0 };
    for flags in [tso | uso, tso] {
        if set_value(fd, TUNSETOFFLOAD, libc::c_ulong::from(TUN_F_CSUM | flags)).is_ok() {
            return Ok(TunOffloads { tcp: flags & TUN_F_TSO4 != 0, udp: flags & TUN_F_USO4 != 0 });
        }
    }
    set_value(fd, TUNSETOFFLOAD, libc::c_ulong::from(TUN_F_CSUM))?;
    Ok(TunOffloads::default())
}

fn attach(fd: RawFd, name: &str) -> io::Result<()> {
    // SAFETY: ifreq is plain data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    set_pointer(fd, TUNSETIFF, &request)
}

/// A request whose argument is a value.
fn set_value(fd: RawFd, request: libc::c_ulong, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the requests used here take a plain number and touch none of our memory.
    match unsafe { libc::ioctl(fd, request as _, value) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// A request whose argument is read from memory.
fn set_pointer<T>(fd: RawFd, request: libc::c_ulong, value: &T) -> io::Result<()> {
    // The kernel writes the ifreq back (the name it gave): on a copy, so that `value` stays as it is.
    let mut copy = mem::MaybeUninit::<T>::uninit();
    // SAFETY: `copy` is as large as the request's type and holds a bitwise copy of it; T is plain data in both uses.
    let result = unsafe {
        copy.as_mut_ptr().copy_from_nonoverlapping(value, 1);
        libc::ioctl(fd, request as _, copy.as_mut_ptr())
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn name_fits(name: &str) -> bool {
    !name.is_empty()
        && name.len() < libc::IFNAMSIZ
        && name != "."
        && name != ".."
        && !name.contains('%')
        && !name.bytes().any(|b| b == b'/' || b == b':' || b.is_ascii_whitespace() || b == 0)
}

#[cfg(test)]
mod tests {
    use super::name_fits;

    #[test]
    fn a_name_the_kernel_would_change_or_refuse_is_refused_before() {
        assert!(name_fits("weft.wg0"));
        for bad in ["", "wg%d", "a/b", "a b", "..", "sixteen-letters-", "a:b"] {
            assert!(!name_fits(bad), "{bad:?}");
        }
    }
}
