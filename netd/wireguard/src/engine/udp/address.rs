// SPDX-License-Identifier: Apache-2.0
//! Addresses as the kernel writes them, in both directions.
#![allow(
    unsafe_code,
    reason = "socket addresses and control messages are C structures; each block says why it is sound"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ptr;

/// Room for the control messages of one datagram: a segment size (24 bytes) and a packet info (at most 40).
pub(super) const CONTROL_WORDS: usize = 10;
/// One buffer of control messages, aligned as they want it.
pub(super) type Control = [u64; CONTROL_WORDS];

/// Our own address that a peer speaks to: answers leave from it, so that a node with several addresses keeps one per peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Local {
    V4(Ipv4Addr),
    /// With the link it came in by when the address is link-local (0 otherwise).
    V6(Ipv6Addr, u32),
}

/// Where a peer is, and from which of our addresses it wants to be answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Endpoint {
    pub remote: SocketAddr,
    /// `None`: the kernel chooses by its routes.
    pub local: Option<Local>,
}

impl Endpoint {
    pub(crate) fn new(remote: SocketAddr) -> Self {
        Self { remote, local: None }
    }
}

/// Writes `address` and gives its length.
pub(super) fn write_address(address: &SocketAddr, to: &mut libc::sockaddr_storage) -> libc::socklen_t {
    match address {
        SocketAddr::V4(v4) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_storage is larger than any address and aligned for it.
            unsafe { ptr::from_mut(to).cast::<libc::sockaddr_in>().write(raw) };
            size_of::<libc::sockaddr_in>() as libc::socklen_t
        }
        SocketAddr::V6(v6) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above.
            unsafe { ptr::from_mut(to).cast::<libc::sockaddr_in6>().write(raw) };
            size_of::<libc::sockaddr_in6>() as libc::socklen_t
        }
    }
}

/// The address the kernel wrote; `None` for a family that we never open.
pub(super) fn read_address(from: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(from.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that a sockaddr_in is there; the storage is larger and aligned for it.
            let raw = unsafe { ptr::from_ref(from).cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(raw.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, u16::from_be(raw.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the same for sockaddr_in6.
            let raw = unsafe { ptr::from_ref(from).cast::<libc::sockaddr_in6>().read() };
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, u16::from_be(raw.sin6_port), 0, raw.sin6_scope_id).into())
        }
        _ => None,
    }
}

/// Writes the control messages of one send and gives their length: segment size (0: none) and the address to send from.
pub(super) fn write_control(control: &mut Control, segment: u16, local: Option<Local>) -> usize {
    let mut at = 0;
    if segment != 0 {
        at += write_message(control, at, libc::SOL_UDP, libc::UDP_SEGMENT, &segment);
    }
    match local {
        Some(Local::V4(ip)) => {
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            at += write_message(control, at, libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
        }
        Some(Local::V6(ip, link)) => {
            let info =
                libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: ip.octets() }, ipi6_ifindex: link };
            at += write_message(control, at, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
        }
        None => {}
    }
    at
}

/// One control message at `at` (a multiple of 8); gives the space it takes.
fn write_message<T: Copy>(control: &mut Control, at: usize, level: i32, kind: i32, value: &T) -> usize {
    let size = size_of::<T>() as libc::c_uint;
    // SAFETY: CMSG_SPACE and CMSG_LEN only compute.
    let (space, len) = unsafe { (libc::CMSG_SPACE(size) as usize, libc::CMSG_LEN(size) as usize) };
    debug_assert!(at.is_multiple_of(8) && at + space <= size_of::<Control>());
    // SAFETY: a header and the value fit at `at` (CONTROL_WORDS has room for the two largest), and `at` is
    // aligned as a word is.
    unsafe {
        let header = ptr::from_mut(control).cast::<u8>().add(at).cast::<libc::cmsghdr>();
        (*header).cmsg_len = len as _;
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        libc::CMSG_DATA(header).cast::<T>().write_unaligned(*value);
    }
    space
}

/// What the control messages of a received datagram say: segment size of a merged one (0: not merged), our
/// address it came to.
pub(super) fn read_control(header: &libc::msghdr) -> (usize, Option<Local>) {
    let (mut segment, mut local) = (0, None);
    // SAFETY: the kernel filled `header`; the macros walk its control buffer within the length it wrote there.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !next.is_null() {
        // SAFETY: not null, so a whole header lies in the buffer; the data behind it has the size its type says.
        unsafe {
            let data = libc::CMSG_DATA(next);
            match ((*next).cmsg_level, (*next).cmsg_type) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    segment = usize::try_from(data.cast::<libc::c_int>().read_unaligned()).unwrap_or(0);
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                    local = Some(Local::V4(Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes())));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    let ip = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                    let link = if ip.is_unicast_link_local() { info.ipi6_ifindex as u32 } else { 0 };
                    local = Some(Local::V6(ip, link));
                }
                _ => {}
            }
            next = libc::CMSG_NXTHDR(header, next);
        }
    }
    (segment, local.filter(|local| !local.is_multicast()))
}

impl Local {
    /// Nobody can answer from such an address.
    fn is_multicast(&self) -> bool {
        match self {
            Self::V4(ip) => IpAddr::V4(*ip).is_multicast() || ip.is_broadcast(),
            Self::V6(ip, _) => ip.is_multicast(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::mem;

    use super::*;

    #[test]
    fn an_address_survives_the_way_through_the_kernels_form() {
        for text in ["192.0.2.7:51820", "[2001:db8::7]:51821", "[fe80::1%3]:9"] {
            let address: SocketAddr = text.parse().unwrap();
            // SAFETY: plain data, for which all zeroes is a value.
            let mut raw: libc::sockaddr_storage = unsafe { mem::zeroed() };
            write_address(&address, &mut raw);
            assert_eq!(read_address(&raw), Some(address));
        }
    }

    #[test]
    fn control_messages_survive_the_way_through_the_kernels_form() {
        for local in
            [None, Some(Local::V4(Ipv4Addr::LOCALHOST)), Some(Local::V6("fe80::9".parse().unwrap(), 4))]
        {
            let mut control: Control = [0; CONTROL_WORDS];
            let len = write_control(&mut control, 1_452, local);
            // SAFETY: plain data, for which all zeroes is a value.
            let mut header: libc::msghdr = unsafe { mem::zeroed() };
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = len as _;
            assert_eq!(read_control(&header).1, local);
        }
    }
}
