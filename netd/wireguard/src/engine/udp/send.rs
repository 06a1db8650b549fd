// SPDX-License-Identifier: Apache-2.0
//! Datagrams on their way out: sealed right into one buffer, grouped by peer and size, sent in few system calls.
#![allow(
    unsafe_code,
    reason = "sendmmsg on buffers that are kept has no safe wrapper; each block says why it is sound"
)]

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::address::{CONTROL_WORDS, Control, Endpoint, write_address, write_control};
use super::socket::{Socket, Sockets};
use super::{GROUP_BYTES_MAX, GROUP_SEGMENTS_MAX};
use crate::engine::counters::Counters;

/// Two full groups: one super-packet without a fitting segment limit makes two.
const BUFFER_BYTES: usize = 2 * 65_536;
/// Groups in one call.
const GROUPS_MAX: usize = 64;
/// A socket that takes nothing for so long in the middle of a super-packet costs that packet's rest.
const STUCK_MS: u16 = 20;

/// Datagrams of one size to one peer, next to each other in the buffer; only the last may be shorter.
#[derive(Clone, Copy)]
struct Group {
    to: Endpoint,
    start: usize,
    len: usize,
    segment: usize,
    count: usize,
    /// Takes no more: the last one was shorter.
    closed: bool,
}

/// How a flush ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Flushed {
    /// All is sent or counted as lost.
    Done,
    /// The socket is full; the rest is kept.
    Blocked,
}

/// The buffer and its groups, made once.
pub(crate) struct Sender {
    bytes: Box<[u8]>,
    used: usize,
    groups: Vec<Group>,
    names: Box<[libc::sockaddr_storage; GROUPS_MAX]>,
    controls: Box<[Control; GROUPS_MAX]>,
    vectors: Box<[libc::iovec; GROUPS_MAX]>,
    headers: Box<[libc::mmsghdr; GROUPS_MAX]>,
}

// SAFETY: the raw pointers in `vectors` and `headers` are written before each call and used only during it.
unsafe impl Send for Sender {}

impl Sender {
    pub(crate) fn new() -> Self {
        // SAFETY: all four are plain C structures, for which all zeroes is a value.
        unsafe {
            Self {
                bytes: vec![0; BUFFER_BYTES].into_boxed_slice(),
                used: 0,
                groups: Vec::with_capacity(GROUPS_MAX),
                names: Box::new(mem::zeroed()),
                controls: Box::new([[0; CONTROL_WORDS]; GROUPS_MAX]),
                vectors: Box::new(mem::zeroed()),
                headers: Box::new(mem::zeroed()),
            }
        }
    }

    /// Room for one datagram of at most `len` bytes; sends what is in the way. `None` when the socket stays
    /// full: the packet is lost.
    pub(crate) fn slot(&mut self, len: usize, sockets: &Sockets, counters: &Counters) -> Option<&mut [u8]> {
        if self.bytes.len() - self.used < len || self.groups.len() == GROUPS_MAX {
            if self.flush(sockets, counters) == Flushed::Blocked {
                self.wait(sockets);
                self.flush(sockets, counters);
            }
            if self.bytes.len() - self.used < len || self.groups.len() == GROUPS_MAX {
                Counters::add(&counters.send_blocked, 1);
                return None;
            }
        }
        self.bytes.get_mut(self.used..self.used + len)
    }

    /// The first `len` bytes of the last slot are a datagram for `to`. Joins it to the last group where it
    /// fits, and sends that when full.
    pub(crate) fn commit(&mut self, len: usize, to: &Endpoint, sockets: &Sockets, counters: &Counters) {
        let start = self.used;
        self.used += len;
        let gso = sockets.towards(&to.remote).is_some_and(Socket::gso);
        if let Some(group) = self.groups.last_mut().filter(|group| gso && group.takes(len, to)) {
            group.closed = len < group.segment;
            group.len += len;
            group.count += 1;
            // Full: on its way at once, so that the other end opens it while we seal the next.
            if group.count == GROUP_SEGMENTS_MAX || group.len + group.segment > GROUP_BYTES_MAX {
                group.closed = true;
                self.flush(sockets, counters);
            }
            return;
        }
        self.groups.push(Group { to: *to, start, len, segment: len, count: 1, closed: false });
    }

    /// A datagram made elsewhere.
    pub(crate) fn push(&mut self, datagram: &[u8], to: &Endpoint, sockets: &Sockets, counters: &Counters) {
        if let Some(slot) = self.slot(datagram.len(), sockets, counters) {
            slot.copy_from_slice(datagram);
            self.commit(datagram.len(), to, sockets, counters);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Sends everything, in order.
    pub(crate) fn flush(&mut self, sockets: &Sockets, counters: &Counters) -> Flushed {
        let mut done = 0;
        while let Some(first) = self.groups.get(done) {
            let v4 = first.to.remote.is_ipv4();
            let run = self.groups[done..].iter().take_while(|g| g.to.remote.is_ipv4() == v4).count();
            let Some(socket) = sockets.towards(&first.to.remote) else {
                Counters::add(&counters.send_errors, run as u64);
                done += run;
                continue;
            };
            match self.send(done, run, socket) {
                Ok(sent) => done += sent.max(1),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.groups.drain(..done);
                    return Flushed::Blocked;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.refused(done, &error, socket, counters);
                    done += 1;
                }
            }
        }
        self.groups.clear();
        self.used = 0;
        Flushed::Done
    }

    /// One system call for `run` groups from `first` on; gives how many went.
    fn send(&mut self, first: usize, run: usize, socket: &Socket) -> io::Result<usize> {
        for (i, group) in self.groups[first..first + run].iter().enumerate() {
            let bytes = &mut self.bytes[group.start..group.start + group.len];
            let segment = if group.count > 1 { group.segment as u16 } else { 0 };
            self.vectors[i] = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
            let header = &mut self.headers[i].msg_hdr;
            header.msg_name = (&raw mut self.names[i]).cast();
            header.msg_namelen = write_address(&group.to.remote, &mut self.names[i]);
            header.msg_iov = &raw mut self.vectors[i];
            header.msg_iovlen = 1;
            header.msg_controllen = write_control(&mut self.controls[i], segment, group.to.local) as _;
            header.msg_control = match header.msg_controllen {
                0 => std::ptr::null_mut(),
                _ => self.controls[i].as_mut_ptr().cast(),
            };
        }
        let fd = socket.as_fd().as_raw_fd();
        // SAFETY: the first `run` headers point at buffers of self that live and are not touched until the call returns.
        let sent = unsafe { libc::sendmmsg(fd, self.headers.as_mut_ptr(), run as libc::c_uint, 0) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// The kernel refused group `at` as a whole: its datagrams are tried one by one, in the way that every
    /// kernel and path takes.
    fn refused(&mut self, at: usize, error: &io::Error, socket: &Socket, counters: &Counters) {
        let group = self.groups[at];
        let (mut sent, mut last) = (0, error.raw_os_error());
        let no_gso = last.map(Errno::from_raw).is_some_and(|e| matches!(e, Errno::EINVAL | Errno::EIO));
        // A node that moved (ENETUNREACH) has its address no more.
        if no_gso || last == Some(libc::EMSGSIZE) || group.to.local.is_some() {
            for bytes in self.bytes[group.start..group.start + group.len].chunks(group.segment) {
                // Without our address too: it may be gone, and the kernel then knows a better one.
                match send_one(socket, bytes, &group.to.remote) {
                    Ok(()) => sent += 1,
                    Err(error) => last = error.raw_os_error(),
                }
            }
        }
        if no_gso && sent == group.count && sent > 1 && group.to.local.is_none() && socket.give_up_gso() {
            tracing::warn!(%error, "the kernel refuses UDP_SEGMENT: datagrams go one by one from now on");
        }
        let counter = match last.map(Errno::from_raw) {
            Some(Errno::EMSGSIZE) => &counters.path_mtu_errors,
            _ => &counters.send_errors,
        };
        Counters::add(counter, (group.count - sent) as u64);
    }

    /// Until the socket takes more, or a short time is over.
    pub(crate) fn wait(&self, sockets: &Sockets) {
        if let Some(socket) = self.next_v4().and_then(|v4| sockets.of_family(v4)) {
            let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
            let _ = poll(&mut polled, PollTimeout::from(STUCK_MS));
        }
    }

    /// Whether what goes next is for IPv4: only that socket can be the full one. `None`: nothing waits.
    pub(crate) fn next_v4(&self) -> Option<bool> {
        self.groups.first().map(|group| group.to.remote.is_ipv4())
    }
}

impl Group {
    fn takes(&self, len: usize, to: &Endpoint) -> bool {
        !self.closed && len <= self.segment && self.to == *to && self.len + len <= GROUP_BYTES_MAX
    }
}

fn send_one(socket: &Socket, bytes: &[u8], to: &SocketAddr) -> io::Result<()> {
    let to = nix::sys::socket::SockaddrStorage::from(*to);
    let flags = nix::sys::socket::MsgFlags::empty();
    nix::sys::socket::sendto(socket.as_fd().as_raw_fd(), bytes, &to, flags).map(drop).map_err(io::Error::from)
}
