// SPDX-License-Identifier: Apache-2.0

//! Checksums: who computes them, the device or the kernel.

#![allow(
    unsafe_code,
    reason = "this ioctl and this socket option have no safe wrapper; each block says why it is sound"
)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::HostError;

/// Whether the device is given packets without a finished checksum (linux/ethtool.h, ETHTOOL_GTXCSUM).
const READ_TX_CHECKSUM: u32 = 0x16;
/// Changes it (ETHTOOL_STXCSUM); segmentation offload, which needs it, goes with it.
const SET_TX_CHECKSUM: u32 = 0x17;

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Whether the device is given packets whose checksum it is to finish, as `ethtool -k` says by tx-checksumming. Of the calling
/// thread's netns.
///
/// # Errors
/// [`HostError::Setup`] with the kernel's answer, such as that there is no such device.
pub fn tx_checksum(device: &str) -> Result<bool, HostError> {
    exchange(device, READ_TX_CHECKSUM, 0)
        .map(|data| data != 0)
        .map_err(|source| HostError::Setup { what: "read the checksum offload of a device", source })
}

/// Has the kernel finish checksums (`false`), or the device. Idempotent.
///
/// # Errors
/// [`HostError::Setup`] with the kernel's answer.
pub fn set_tx_checksum(device: &str, on: bool) -> Result<(), HostError> {
    exchange(device, SET_TX_CHECKSUM, u32::from(on))
        .map(drop)
        .map_err(|source| HostError::Setup { what: "change the checksum offload of a device", source })
}

/// Sends UDP over IPv4 from this socket without any checksum (RFC 768: a checksum of zero), which no device can spoil.
///
/// # Errors
/// The kernel's answer.
pub fn send_without_checksum(udp: &impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option takes an integer, which lives until the call returns, and its size.
    let outcome = unsafe {
        libc::setsockopt(
            udp.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NO_CHECK,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn exchange(device: &str, command: u32, data: u32) -> io::Result<u32> {
    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut value = Value { command, data };
    // SAFETY: an ifreq is integers, bytes and pointers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    if device.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: SIOCETHTOOL takes an ifreq with a name that ends with a zero and a pointer to the structure that its command
    // wants; both live until the call returns.
    let outcome = unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(value.data) }
}
