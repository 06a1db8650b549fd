// SPDX-License-Identifier: Apache-2.0
//! Many datagrams in one system call each way, on buffers that are made once: a query costs no allocation.
//!
//! An answer goes back to the address structure that the query came with, as the kernel wrote it. On a socket that is
//! bound to no address the control message that says which of our addresses was asked goes back too, so that the
//! answer leaves from that one (ip(7), IP_PKTINFO).
#![allow(
    unsafe_code,
    reason = "recvmmsg and sendmmsg on buffers that are kept have no safe wrapper; each block says why it is sound"
)]

use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

/// Datagrams in one call. More would make the first wait for the last.
pub(crate) const BATCH: usize = 32;
/// Longest query that is looked at: with EDNS options and padding (RFC 7830) a few hundred bytes, and never near this.
pub(crate) const QUERY_BYTES_MAX: usize = 2_048;
/// Room for the control message of one datagram: a packet info takes at most 40 bytes.
const CONTROL_WORDS: usize = 8;

type Control = [u64; CONTROL_WORDS];

/// Buffers of one worker.
pub(crate) struct Batch {
    queries: Box<[[u8; QUERY_BYTES_MAX]; BATCH]>,
    answers: Box<[[u8; ANSWER_BYTES]; BATCH]>,
    names: Box<[libc::sockaddr_storage; BATCH]>,
    controls: Box<[Control; BATCH]>,
    vectors: Box<[libc::iovec; BATCH]>,
    headers: Box<[libc::mmsghdr; BATCH]>,
    out_vectors: Box<[libc::iovec; BATCH]>,
    out: Box<[libc::mmsghdr; BATCH]>,
    queued: usize,
    /// Headers that the last call changed.
    used: usize,
    /// The socket is bound to no address.
    wildcard: bool,
}

/// Room for one answer.
pub(crate) const ANSWER_BYTES: usize = crate::wire::UDP_BYTES_MAX as usize;

/// Which of our addresses was asked; only known, and only needed, where the socket is bound to none.
#[derive(Clone, Copy)]
pub(crate) struct Asked {
    control: Control,
    len: usize,
}

// SAFETY: the raw pointers in the vectors and headers are written before each call and used only during it.
unsafe impl Send for Batch {}

impl Batch {
    pub(crate) fn new(wildcard: bool) -> Self {
        // SAFETY: all are plain C structures or bytes, for which all zeroes is a value.
        unsafe {
            Self {
                queries: zeroed(),
                answers: zeroed(),
                names: zeroed(),
                controls: zeroed(),
                vectors: zeroed(),
                headers: zeroed(),
                out_vectors: zeroed(),
                out: zeroed(),
                queued: 0,
                used: BATCH,
                wildcard,
            }
        }
    }

    /// Waits for a query and takes all that wait with it; gives how many. An error of kind `WouldBlock` or `TimedOut`
    /// is the socket's receive time-out.
    pub(crate) fn receive(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        for i in 0..self.used {
            self.vectors[i] =
                libc::iovec { iov_base: self.queries[i].as_mut_ptr().cast(), iov_len: QUERY_BYTES_MAX };
            let header = &mut self.headers[i].msg_hdr;
            header.msg_name = (&raw mut self.names[i]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = &raw mut self.vectors[i];
            header.msg_iovlen = 1;
            if self.wildcard {
                header.msg_control = self.controls[i].as_mut_ptr().cast();
                header.msg_controllen = size_of::<Control>() as _;
            }
            header.msg_flags = 0;
        }
        let fd = socket.as_fd().as_raw_fd();
        // SAFETY: the headers point at buffers of self that live and are not touched until the call returns.
        let count = unsafe {
            libc::recvmmsg(
                fd,
                self.headers.as_mut_ptr(),
                BATCH as _,
                libc::MSG_WAITFORONE as _,
                ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error());
        self.used = *count.as_ref().unwrap_or(&1);
        count
    }

    /// Query `i` of the last call: where it came from, its bytes, and room for the answer. `None` when it was too long.
    pub(crate) fn query(&mut self, i: usize) -> Option<(SocketAddr, &[u8], &mut [u8; ANSWER_BYTES])> {
        let header = &self.headers[i];
        if header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
            return None;
        }
        let from = read_address(&self.names[i])?;
        let bytes = self.queries[i].get(..header.msg_len as usize)?;
        Some((from, bytes, &mut self.answers[i]))
    }

    /// Which address query `i` was sent to.
    #[allow(clippy::unnecessary_cast, reason = "musl has another type here")]
    pub(crate) fn asked(&self, i: usize) -> Option<Asked> {
        let len = self.headers[i].msg_hdr.msg_controllen as usize;
        (self.wildcard && len > 0).then(|| Asked { control: self.controls[i], len })
    }

    /// The first `len` bytes of the room of query `i` are its answer.
    pub(crate) fn answer(&mut self, i: usize, len: usize) {
        let at = self.queued;
        self.out_vectors[at] =
            libc::iovec { iov_base: self.answers[i].as_mut_ptr().cast(), iov_len: len.min(ANSWER_BYTES) };
        let from = self.headers[i].msg_hdr;
        let header = &mut self.out[at].msg_hdr;
        header.msg_name = (&raw mut self.names[i]).cast();
        header.msg_namelen = from.msg_namelen;
        header.msg_iov = &raw mut self.out_vectors[at];
        header.msg_iovlen = 1;
        if self.wildcard && from.msg_controllen > 0 {
            answer_from(&mut self.controls[i]);
            header.msg_control = self.controls[i].as_mut_ptr().cast();
            header.msg_controllen = from.msg_controllen;
        } else {
            header.msg_control = ptr::null_mut();
            header.msg_controllen = 0;
        }
        self.queued += 1;
    }

    /// Sends the answers; gives how many the kernel did not take. It never waits: a client that is not reached is
    /// nobody to wait for.
    pub(crate) fn send(&mut self, socket: &impl AsFd) -> usize {
        let fd = socket.as_fd().as_raw_fd();
        let (all, mut at, mut lost) = (mem::take(&mut self.queued), 0, 0);
        while at < all {
            let rest = &mut self.out[at..all];
            // SAFETY: these headers point at buffers of self that live and are not touched until the call returns.
            let sent = unsafe {
                libc::sendmmsg(
                    fd,
                    rest.as_mut_ptr(),
                    rest.len() as _,
                    (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
                )
            };
            match usize::try_from(sent) {
                Ok(sent) if sent > 0 => at += sent,
                // The first of the rest cannot be sent (its client is unreachable); the others may.
                _ => {
                    at += 1;
                    lost += 1;
                }
            }
        }
        lost
    }
}

/// Sends one answer, without waiting.
pub(crate) fn send_one(
    socket: &impl AsFd,
    bytes: &[u8],
    to: SocketAddr,
    asked: Option<&Asked>,
) -> io::Result<()> {
    // SAFETY: both are plain C structures, for which all zeroes is a value.
    let (mut name, mut header): (libc::sockaddr_storage, libc::msghdr) = unsafe { mem::zeroed() };
    let mut control;
    let mut vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    header.msg_namelen = write_address(&to, &mut name);
    header.msg_name = (&raw mut name).cast();
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    if let Some(asked) = asked {
        control = asked.control;
        answer_from(&mut control);
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = asked.len as _;
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: everything the header points at lives until the call returns, and sendmsg writes to none of it.
    let sent = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const header, flags) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether more than a quarter of the socket's room for questions is taken: far more than clients that wait for their answers
/// leave there.
pub(crate) fn is_backlogged(socket: &impl AsFd) -> bool {
    // SK_MEMINFO_RMEM_ALLOC and SK_MEMINFO_RCVBUF of linux/sock_diag.h are the first two of SK_MEMINFO_VARS words.
    let mut words = [0u32; 9];
    let mut len = size_of_val(&words) as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `len` bytes to `words`.
    let got = unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_MEMINFO, words.as_mut_ptr().cast(), &raw mut len)
    };
    got == 0 && words[0] > words[1] / 4
}

/// Makes of "it came to this address by that link" an "answer from this address": the way back is for the routes.
fn answer_from(control: &mut Control) {
    // SAFETY: the kernel wrote exactly one packet info here (no other option is on); the buffer has room for either
    // family's and is aligned as a cmsghdr is.
    unsafe {
        let header = control.as_mut_ptr().cast::<libc::cmsghdr>();
        let data = libc::CMSG_DATA(header);
        match ((*header).cmsg_level, (*header).cmsg_type) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                let mut info = data.cast::<libc::in_pktinfo>().read_unaligned();
                info.ipi_ifindex = 0;
                data.cast::<libc::in_pktinfo>().write_unaligned(info);
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                let mut info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                if !Ipv6Addr::from(info.ipi6_addr.s6_addr).is_unicast_link_local() {
                    info.ipi6_ifindex = 0;
                }
                data.cast::<libc::in6_pktinfo>().write_unaligned(info);
            }
            _ => {}
        }
    }
}

fn read_address(from: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(from.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that a sockaddr_in is there; the storage is larger and aligned for it.
            let raw = unsafe { &*ptr::from_ref(from).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(raw.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, u16::from_be(raw.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the same for sockaddr_in6.
            let raw = unsafe { &*ptr::from_ref(from).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, u16::from_be(raw.sin6_port), 0, raw.sin6_scope_id).into())
        }
        _ => None,
    }
}

fn write_address(address: &SocketAddr, to: &mut libc::sockaddr_storage) -> libc::socklen_t {
    let address = socket2::SockAddr::from(*address);
    let len = address.len();
    // SAFETY: socket2's address holds `len` initialized bytes, never more than a sockaddr_storage.
    unsafe {
        ptr::copy_nonoverlapping(address.as_ptr().cast::<u8>(), ptr::from_mut(to).cast::<u8>(), len as usize);
    }
    len
}

/// Large buffers made where they stay: they would not fit a stack.
///
/// # Safety
/// All zeroes is a value of `T`.
unsafe fn zeroed<T>() -> Box<T> {
    // SAFETY: the caller's promise.
    unsafe { Box::<T>::new_zeroed().assume_init() }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn a_batch_goes_there_and_back_and_the_wildcard_answers_from_the_address_asked() {
        for (bound, asked) in [("127.0.0.1:0", "127.0.0.1"), ("0.0.0.0:0", "127.0.0.9"), ("[::]:0", "::1")] {
            let bound: SocketAddr = bound.parse().unwrap();
            let server = crate::sockets::open_udp(bound).unwrap();
            let asked = SocketAddr::new(asked.parse().unwrap(), server.local_addr().unwrap().port());
            let client = UdpSocket::bind(SocketAddr::new(asked.ip(), 0)).unwrap();
            client.connect(asked).unwrap();
            client.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
            for n in 0..3u8 {
                client.send(&[n; 20]).unwrap();
            }
            let mut batch = Batch::new(bound.ip().is_unspecified());
            let mut seen = 0;
            while seen < 3 {
                let count = batch.receive(&server).unwrap();
                for i in 0..count {
                    let (from, bytes, answer) = batch.query(i).unwrap();
                    assert_eq!((from, bytes.len()), (client.local_addr().unwrap(), 20));
                    answer[0] = bytes[0];
                    batch.answer(i, 1);
                }
                assert_eq!(batch.send(&server), 0);
                seen += count;
            }
            let mut buffer = [0; 32];
            for n in 0..3u8 {
                assert_eq!(client.recv(&mut buffer).unwrap(), 1, "connected: only {asked} is heard");
                assert_eq!(buffer[0], n);
            }
        }
    }
}
