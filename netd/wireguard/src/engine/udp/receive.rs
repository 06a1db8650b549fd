// SPDX-License-Identifier: Apache-2.0
//! Taking what waits on a socket: several messages per call, each of up to 64 KiB of datagrams that the kernel merged.
#![allow(
    unsafe_code,
    reason = "recvmmsg on buffers that are kept has no safe wrapper; each block says why it is sound"
)]

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd};

use super::address::{CONTROL_WORDS, Control, Endpoint, read_address, read_control};
use super::socket::Socket;

/// The largest message: 64 KiB of merged datagrams. Not a power of two apart, so that messages do not fight
/// for the same cache lines.
pub(crate) const SLOT_BYTES: usize = 65_536 + 4_160;
/// Messages in one call when they come one datagram each.
const SMALL_MAX: usize = 32;
/// Messages in one call when they are large: more would push each other out of the cache before they are opened.
const LARGE_MAX: usize = 2;
/// From this mean size on messages are large.
const LARGE_BYTES: usize = 8_192;

/// Buffers for one call, made once.
pub(crate) struct Receiver {
    slots: Vec<Box<[u8]>>,
    names: Box<[libc::sockaddr_storage; SMALL_MAX]>,
    controls: Box<[Control; SMALL_MAX]>,
    vectors: Box<[libc::iovec; SMALL_MAX]>,
    headers: Box<[libc::mmsghdr; SMALL_MAX]>,
    /// How many the next call asks for.
    batch: usize,
}

// SAFETY: the raw pointers in `vectors` and `headers` are written before each call and used only during it.
unsafe impl Send for Receiver {}

/// One message: datagrams of `segment` bytes each, the last may be shorter, all from one sender.
pub(crate) struct Datagrams<'a> {
    pub bytes: &'a [u8],
    pub segment: usize,
    pub from: Endpoint,
}

impl Receiver {
    pub(crate) fn new() -> Self {
        // SAFETY: all four are plain C structures, for which all zeroes is a value.
        unsafe {
            Self {
                slots: (0..SMALL_MAX).map(|_| vec![0; SLOT_BYTES].into_boxed_slice()).collect(),
                names: Box::new(mem::zeroed()),
                controls: Box::new([[0; CONTROL_WORDS]; SMALL_MAX]),
                vectors: Box::new(mem::zeroed()),
                headers: Box::new(mem::zeroed()),
                batch: LARGE_MAX,
            }
        }
    }

    /// Takes messages that wait and gives how many; fewer than asked for means that the socket is empty now.
    /// `WouldBlock` when it is.
    pub(crate) fn receive(&mut self, socket: &Socket) -> io::Result<Received> {
        let asked = self.batch;
        for (i, slot) in self.slots.iter_mut().take(asked).enumerate() {
            self.vectors[i] = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() };
            let header = &mut self.headers[i].msg_hdr;
            header.msg_name = (&raw mut self.names[i]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = &raw mut self.vectors[i];
            header.msg_iovlen = 1;
            header.msg_control = self.controls[i].as_mut_ptr().cast();
            header.msg_controllen = size_of::<Control>() as _;
            header.msg_flags = 0;
        }
        let fd = socket.as_fd().as_raw_fd();
        // SAFETY: the first `asked` headers point at buffers of self that live and are not touched until the call returns.
        let count = unsafe {
            libc::recvmmsg(fd, self.headers.as_mut_ptr(), asked as libc::c_uint, 0, std::ptr::null_mut())
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        let total: usize = self.headers[..count].iter().map(|h| h.msg_len as usize).sum();
        self.batch = if count > 0 && total / count >= LARGE_BYTES { LARGE_MAX } else { SMALL_MAX };
        Ok(Received { count, drained: count < asked })
    }

    /// Message `i` of the last call; `None` when it was cut short or has no address (dropped).
    pub(crate) fn message(&self, i: usize) -> Option<Datagrams<'_>> {
        let header = &self.headers[i];
        let len = header.msg_len as usize;
        if header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 || len == 0 {
            return None;
        }
        let (segment, local) = read_control(&header.msg_hdr);
        let remote = read_address(&self.names[i])?;
        let bytes = self.slots[i].get(..len)?;
        Some(Datagrams {
            bytes,
            segment: if segment == 0 { len } else { segment },
            from: Endpoint { remote, local },
        })
    }

    /// Takes message `i` (that [`Receiver::message`] gave) with its buffer, and keeps `fresh` (of
    /// [`SLOT_BYTES`]) in its place.
    pub(crate) fn take(&mut self, i: usize, fresh: Box<[u8]>) -> Option<Message> {
        let Datagrams { bytes, segment, from } = self.message(i)?;
        let len = bytes.len();
        let bytes = mem::replace(&mut self.slots[i], fresh);
        Some(Message { bytes, len, segment, from })
    }
}

/// The same, with its buffer.
pub(crate) struct Message {
    pub bytes: Box<[u8]>,
    pub len: usize,
    pub segment: usize,
    pub from: Endpoint,
}

/// What one call brought.
#[derive(Clone, Copy)]
pub(crate) struct Received {
    pub count: usize,
    /// Nothing waits any more.
    pub drained: bool,
}
