// SPDX-License-Identifier: Apache-2.0
//! The sockets of a device: one per address family, on one port.
#![allow(unsafe_code, reason = "two socket options have no safe wrapper; each block says why it is sound")]

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, getsockname, setsockopt, socket, sockopt,
};

use super::super::options::EngineOptions;

/// Asked for; the kernel gives what the host allows when we may not exceed that. A flood of small messages
/// needs room beside the data.
const RECEIVE_BYTES: usize = 8 << 20;
/// Some 50 super-packets on their way: more would only be a longer queue in front of a slow link.
const SEND_BYTES: usize = 2 << 20;
/// A random port may be taken in the other family: then another is tried.
const PORT_TRIES_MAX: usize = 16;

/// One bound UDP socket, non-blocking.
pub(crate) struct Socket {
    fd: OwnedFd,
    /// Cleared for good when the kernel refuses it.
    gso: AtomicBool,
}

/// Those of a device. Without IPv6 in the kernel there is only the first.
pub(crate) struct Sockets {
    pub v4: Socket,
    pub v6: Option<Socket>,
    pub port: u16,
}

impl Sockets {
    /// Binds both families to `port`; 0: any port that is free in both.
    pub(crate) fn bind(port: u16, fwmark: u32, options: &EngineOptions) -> io::Result<Self> {
        let mut tries = 0;
        loop {
            tries += 1;
            let v4 = Socket::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), fwmark, options)?;
            let chosen = v4.port()?;
            match Socket::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, chosen)), fwmark, options) {
                Ok(v6) => return Ok(Self { v4, v6: Some(v6), port: chosen }),
                Err(error) if no_such_family(&error) => return Ok(Self { v4, v6: None, port: chosen }),
                Err(error) if port == 0 && in_use(&error) && tries < PORT_TRIES_MAX => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes the sockets of the process before us, as they are.
    pub(crate) fn adopt(v4: OwnedFd, v6: Option<OwnedFd>, options: &EngineOptions) -> io::Result<Self> {
        let v4 = Socket::adopt(v4, options);
        let port = v4.port()?;
        Ok(Self { v4, v6: v6.map(|fd| Socket::adopt(fd, options)), port })
    }

    pub(crate) fn set_fwmark(&self, mark: u32) -> io::Result<()> {
        self.v4.set_fwmark(mark)?;
        self.v6.as_ref().map_or(Ok(()), |v6| v6.set_fwmark(mark))
    }

    /// The socket that reaches `to`.
    pub(crate) fn towards(&self, to: &SocketAddr) -> Option<&Socket> {
        self.of_family(to.is_ipv4())
    }

    pub(crate) fn of_family(&self, v4: bool) -> Option<&Socket> {
        if v4 { Some(&self.v4) } else { self.v6.as_ref() }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Socket> {
        std::iter::once(&self.v4).chain(&self.v6)
    }
}

impl Socket {
    fn bind(address: SocketAddr, fwmark: u32, options: &EngineOptions) -> io::Result<Self> {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(family, SockType::Datagram, flags, None)?;
        // DF on the outer packets: they are never cut, a path that is too narrow is an error that we count.
        if address.is_ipv4() {
            set_option(&fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)?;
            setsockopt(&fd, sockopt::Ipv4PacketInfo, &true)?;
        } else {
            setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
            set_option(&fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)?;
            setsockopt(&fd, sockopt::Ipv6RecvPacketInfo, &true)?;
        }
        // With CAP_NET_ADMIN beyond the host's limit, else up to it; a small buffer is slower, never wrong.
        let _ = setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BYTES)
            .or_else(|_| setsockopt(&fd, sockopt::RcvBuf, &RECEIVE_BYTES));
        let _ = setsockopt(&fd, sockopt::SndBufForce, &SEND_BYTES)
            .or_else(|_| setsockopt(&fd, sockopt::SndBuf, &SEND_BYTES));
        bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
        let socket = Self::adopt(fd, options);
        if fwmark != 0 {
            socket.set_fwmark(fwmark)?;
        }
        Ok(socket)
    }

    fn adopt(fd: OwnedFd, options: &EngineOptions) -> Self {
        // Kernels before 5.0 have no UDP_GRO: datagrams then come one by one, which the receiver takes as well.
        let _ = setsockopt(&fd, sockopt::UdpGroSegment, &options.udp_gro);
        // Reading the option tells whether the kernel (4.18 and later) knows it.
        let gso = options.udp_gso && nix::sys::socket::getsockopt(&fd, sockopt::UdpGsoSegment).is_ok();
        Self { fd, gso: AtomicBool::new(gso) }
    }

    /// Whether many datagrams may go in one send.
    pub(crate) fn gso(&self) -> bool {
        self.gso.load(Ordering::Relaxed)
    }

    /// The kernel refused: never again on this socket. True the first time.
    pub(super) fn give_up_gso(&self) -> bool {
        self.gso.swap(false, Ordering::Relaxed)
    }

    /// Whether merged datagrams come in.
    pub(crate) fn gro(&self) -> bool {
        nix::sys::socket::getsockopt(&self.fd, sockopt::UdpGroSegment).unwrap_or(false)
    }

    fn set_fwmark(&self, mark: u32) -> io::Result<()> {
        Ok(setsockopt(&self.fd, sockopt::Mark, &mark)?)
    }

    fn port(&self) -> io::Result<u16> {
        let address: SockaddrStorage = getsockname(self.fd.as_raw_fd())?;
        let v4 = address.as_sockaddr_in().map(nix::sys::socket::SockaddrIn::port);
        let v6 = address.as_sockaddr_in6().map(nix::sys::socket::SockaddrIn6::port);
        v4.or(v6).ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn set_option(fd: &OwnedFd, level: i32, name: i32, value: libc::c_int) -> io::Result<()> {
    let size = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the kernel reads `size` bytes from `value`, which outlives the call.
    match unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), size) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The kernel has no IPv6, or it is switched off.
fn no_such_family(error: &io::Error) -> bool {
    let codes = [Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL, Errno::EPROTONOSUPPORT];
    error.raw_os_error().is_some_and(|code| codes.contains(&Errno::from_raw(code)))
}

fn in_use(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}
