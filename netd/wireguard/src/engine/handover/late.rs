// SPDX-License-Identifier: Apache-2.0
//! Packets of the old sessions that come after a handover: peers use those until the new handshake is done,
//! and only the process before us can open them. The new one passes them back, the old one opens them and
//! writes them to the TUN, which both have.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, sendmsg, setsockopt, socketpair, sockopt,
};

use super::super::tunnel::Tunnel;
use super::super::udp::{Datagrams, Endpoint, SLOT_BYTES};
use super::super::worker::Worker;

/// The old process stays no longer, whatever the new one does.
const STAY_MAX: Duration = Duration::from_secs(5);
/// Between two looks at the clock.
const LOOK: u16 = 100;
/// Room for what comes while the old process is not scheduled.
const BUFFER_BYTES: usize = 4 << 20;
/// Datagram size before the datagrams.
const HEADER_BYTES: usize = 4;

/// The two ends: messages keep their bounds, and a full one refuses instead of blocking.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (old, new) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    let _ = setsockopt(&new, sockopt::SndBufForce, &BUFFER_BYTES);
    Ok((old, new))
}

/// Passes datagrams of `segment` bytes each to the process before us. False: they are lost.
pub(crate) fn pass(to: &OwnedFd, datagrams: &[u8], segment: usize) -> bool {
    let header = (segment as u32).to_ne_bytes();
    let slices = [IoSlice::new(&header), IoSlice::new(datagrams)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(to.as_raw_fd(), &slices, &[], flags, None).is_ok()
}

/// The old process' side: opens what comes until the new one closes its end.
pub(super) fn open_all(tunnel: Arc<Tunnel>, from: &OwnedFd) {
    let end = Instant::now() + STAY_MAX;
    let mut worker = Worker::new(tunnel);
    let mut message = vec![0; HEADER_BYTES + SLOT_BYTES].into_boxed_slice();
    // Whoever sent it: the peers stay where we know them.
    let nobody = Endpoint::new(([0, 0, 0, 0], 0).into());
    while Instant::now() < end {
        worker.refresh();
        match recv(from.as_raw_fd(), &mut message, MsgFlags::empty()) {
            Ok(0) => break,
            Ok(len) if len > HEADER_BYTES => {
                let (header, bytes) = message[..len].split_at(HEADER_BYTES);
                let segment = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
                worker.open(&Datagrams { bytes, segment: segment.max(1), from: nobody });
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                worker.flush_tun();
                let mut polled = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut polled, PollTimeout::from(LOOK));
            }
            Err(_) => break,
        }
    }
    worker.flush_tun();
}
