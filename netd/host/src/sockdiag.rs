// SPDX-License-Identifier: Apache-2.0

//! Sockets of a netns, listed and destroyed (sock_diag, include/uapi/linux/sock_diag.h and inet_diag.h).
//!
//! A connection to a backend that was removed does not end by itself: the client may wait for minutes. [`SockDiag`]
//! destroys such sockets: who waits on one gets ECONNABORTED, as does the next call on one of TCP, whose peer gets a reset;
//! one of UDP is no longer connected (a send without an address fails with EDESTADDRREQ). Which sockets came
//! through a service is known by their cookies (the map SOCKETS); a socket is destroyed only when cookie and destination
//! are both as expected, so that a direct connection to the same backend lives, and one that has connected elsewhere
//! meanwhile, too.
//!
//! A [`SockDiag`] is of one netns, that of its opening; use it from anywhere. Cancel safe: what was not destroyed yet
//! stays.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::{AsyncSocket, TokioSocket};
use nix::errno::Errno;

use crate::{
    HostError, Netns,
    exchange::{HEADER_LEN, exchange},
    netns,
    socket::{current_runtime, setup_error},
};

/// NETLINK_SOCK_DIAG of include/uapi/linux/netlink.h.
const NETLINK_SOCK_DIAG: isize = 4;
/// SOCK_DIAG_BY_FAMILY and SOCK_DESTROY.
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
/// Length of `struct inet_diag_sockid` and `struct inet_diag_req_v2`.
const ID_LEN: usize = 48;
const REQUEST_LEN: usize = 8 + ID_LEN;
/// TCP_ESTABLISHED (also a connected UDP socket), SYN_SENT, FIN_WAIT1, FIN_WAIT2 and CLOSE_WAIT of
/// include/net/tcp_states.h, as bits: the states in which a program may still wait for the peer.
const CONNECTED: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8;
/// With more destination ports than this, one list of all sockets is cheaper than one for each port.
const PORTS_ASKED_MAX: usize = 16;

/// Transport protocol of a socket.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP; only connected sockets have a destination.
    Udp,
}

/// A connected socket.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConnectedSocket {
    /// What BPF programs call it (`bpf_get_socket_cookie`); unique while the kernel runs.
    pub cookie: u64,
    /// Its transport.
    pub transport: Transport,
    /// Its own address; IPv4 also where an IPv6 socket uses it.
    pub local: SocketAddr,
    /// The address on the wire: of a socket that went through a service, the backend's.
    pub peer: SocketAddr,
    /// AF_INET or AF_INET6 (which includes IPv4 through an IPv6 socket).
    family: u8,
    /// `struct inet_diag_sockid` as the kernel told it: names the socket in a request.
    id: [u8; ID_LEN],
}

/// A socket to be destroyed, if its destination is still this one.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Destination {
    /// Transport of the socket.
    pub transport: Transport,
    /// Where it goes, on the wire.
    pub peer: SocketAddr,
}

/// The sockets of one netns.
pub struct SockDiag(TokioSocket);

impl SockDiag {
    /// For the netns of the calling thread. Needs a runtime with I/O and time enabled.
    ///
    /// # Errors
    /// [`HostError::Setup`].
    pub fn open() -> Result<Self, HostError> {
        let setup = setup_error("open a socket for sock_diag");
        current_runtime()?;
        let mut socket = TokioSocket::new(NETLINK_SOCK_DIAG).map_err(&setup)?;
        socket.socket_mut().bind_auto().map_err(&setup)?;
        Ok(Self(socket))
    }

    /// For `netns`; only its opening happens on a thread there.
    ///
    /// # Errors
    /// [`HostError::Setup`], also when the netns cannot be entered.
    pub fn open_in(netns: &Netns) -> Result<Self, HostError> {
        let runtime = current_runtime()?;
        netns::run_in(netns, || {
            let _guard = runtime.enter();
            Self::open()
        })?
    }

    /// Every connected socket of this transport, of both families; with `port` only those to that port. A TCP socket that
    /// is about to connect counts, one that nobody waits for any more does not.
    ///
    /// # Errors
    /// [`HostError::NotSupported`] where the kernel cannot list sockets of this transport; [`HostError::Netlink`],
    /// [`HostError::TimedOut`].
    pub async fn list(
        &self,
        transport: Transport,
        port: Option<u16>,
    ) -> Result<Vec<ConnectedSocket>, HostError> {
        let mut sockets = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut id = [0; ID_LEN];
            if let (Some(port), Some(field)) = (port, id.get_mut(2..4)) {
                field.copy_from_slice(&port.to_be_bytes());
            }
            let request = request(BY_FAMILY, NLM_F_DUMP, family as u8, transport, &id);
            let what = format!("list {transport} sockets");
            let listed = exchange(&self.0, &what, &request, BY_FAMILY).await.map_err(|error| match error.errno() {
                // No handler of the family, or none of the transport.
                Some(Errno::ENOENT | Errno::EINVAL | Errno::EPROTONOSUPPORT) => HostError::NotSupported {
                    what,
                    needs: "inet_diag with tcp_diag and udp_diag (kernel options CONFIG_INET_DIAG, CONFIG_INET_UDP_DIAG)",
                },
                _ => error,
            })?;
            let parsed = listed.iter().filter_map(|message| ConnectedSocket::parse(message, transport));
            sockets.extend(parsed.filter(|socket| port.is_none_or(|port| socket.peer.port() == port)));
        }
        Ok(sockets)
    }

    /// Destroys one socket. `false` when it was gone already.
    ///
    /// # Errors
    /// [`HostError::NotSupported`] where the kernel cannot destroy sockets; [`HostError::Netlink`] (EPERM without
    /// CAP_NET_ADMIN in the netns), [`HostError::TimedOut`].
    pub async fn destroy(&self, socket: &ConnectedSocket) -> Result<bool, HostError> {
        let request = request(DESTROY, NLM_F_ACK, socket.family, socket.transport, &socket.id);
        let what = format!("destroy the {} socket to {}", socket.transport, socket.peer);
        match exchange(&self.0, &what, &request, BY_FAMILY).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_absent() => Ok(false),
            Err(error) if error.errno() == Some(Errno::EOPNOTSUPP) => Err(HostError::NotSupported {
                what,
                needs: "SOCK_DESTROY (kernel option CONFIG_INET_DIAG_DESTROY)",
            }),
            Err(error) => Err(error),
        }
    }

    /// Destroys the sockets of this netns whose cookie is in `doomed` and whose destination is the one given with it.
    /// Returns how many there were; the others are gone, have connected elsewhere, or live in another netns.
    ///
    /// # Errors
    /// Those of [`Self::list`] and [`Self::destroy`]. Where a socket cannot be destroyed the others still are; the first
    /// error is returned.
    pub async fn destroy_all(&self, doomed: &BTreeMap<u64, Destination>) -> Result<usize, HostError> {
        let mut destroyed = 0;
        let mut failed = None;
        for transport in [Transport::Tcp, Transport::Udp] {
            let of_transport = doomed.values().filter(|doomed| doomed.transport == transport);
            let ports: BTreeSet<u16> = of_transport.map(|doomed| doomed.peer.port()).collect();
            let asked: Vec<Option<u16>> = match ports.len() {
                0 => continue,
                1..=PORTS_ASKED_MAX => ports.into_iter().map(Some).collect(),
                _ => vec![None],
            };
            for port in asked {
                for socket in self.list(transport, port).await? {
                    let is_doomed = doomed.get(&socket.cookie).is_some_and(|doomed| {
                        doomed.transport == transport && canonical(doomed.peer) == socket.peer
                    });
                    if !is_doomed {
                        continue;
                    }
                    match self.destroy(&socket).await {
                        Ok(was_there) => destroyed += usize::from(was_there),
                        Err(error @ HostError::NotSupported { .. }) => return Err(error),
                        Err(error) => drop(failed.get_or_insert(error)),
                    }
                }
            }
        }
        failed.map_or(Ok(destroyed), Err)
    }
}

impl ConnectedSocket {
    /// From `struct inet_diag_msg`: family, state, timer, retransmissions, then the identity. `None` for what is cut off,
    /// of another family, or has no destination.
    fn parse(payload: &[u8], transport: Transport) -> Option<Self> {
        let family = *payload.first()?;
        let id: [u8; ID_LEN] = *payload.get(4..)?.first_chunk()?;
        // sport, dport (network order), src, dst (16 bytes each), interface, cookie (two words, the low one first).
        let port = |at: usize| id.get(at..)?.first_chunk().map(|port| u16::from_be_bytes(*port));
        let address = |at: usize| address(family, id.get(at..)?.first_chunk()?);
        let word = |at: usize| id.get(at..)?.first_chunk().map(|word| u32::from_ne_bytes(*word));
        let local = SocketAddr::new(address(4)?, port(0)?);
        let peer = SocketAddr::new(address(20)?, port(2)?);
        let cookie = u64::from(word(40)?) | u64::from(word(44)?) << 32;
        (peer.port() != 0).then_some(Self { cookie, transport, local, peer, family, id })
    }
}

impl fmt::Debug for SockDiag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SockDiag").finish_non_exhaustive()
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

fn address(family: u8, bytes: &[u8; 16]) -> Option<IpAddr> {
    let [a, b, c, d, ..] = *bytes;
    match i32::from(family) {
        libc::AF_INET => Some(Ipv4Addr::new(a, b, c, d).into()),
        libc::AF_INET6 => Some(IpAddr::from(Ipv6Addr::from(*bytes)).to_canonical()),
        _ => None,
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`. A destruction ignores the states.
fn request(kind: u16, flags: u16, family: u8, transport: Transport, id: &[u8; ID_LEN]) -> Vec<u8> {
    let mut bytes = ((HEADER_LEN + REQUEST_LEN) as u32).to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    // Sequence number and port: one question at a time on a socket of its own.
    bytes.extend_from_slice(&[0; 8]);
    let protocol = match transport {
        Transport::Tcp => libc::IPPROTO_TCP,
        Transport::Udp => libc::IPPROTO_UDP,
    };
    // Family, protocol, no extensions, padding.
    bytes.extend_from_slice(&[family, protocol as u8, 0, 0]);
    bytes.extend_from_slice(&CONNECTED.to_ne_bytes());
    bytes.extend_from_slice(id);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(family: i32, dst: &[u8], port: u16) -> Vec<u8> {
        let mut bytes = vec![family as u8, 1, 0, 0];
        bytes.extend_from_slice(&40_000_u16.to_be_bytes());
        bytes.extend_from_slice(&port.to_be_bytes());
        bytes.extend_from_slice(&[0; 16]);
        bytes.extend_from_slice(dst);
        bytes.resize(4 + 36, 0);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&7_u32.to_ne_bytes());
        bytes.extend_from_slice(&1_u32.to_ne_bytes());
        bytes.extend_from_slice(&[0; 20]);
        bytes
    }

    #[test]
    fn a_socket_is_read_from_the_kernels_words() {
        let socket =
            ConnectedSocket::parse(&message(libc::AF_INET, &[10, 0, 0, 2], 80), Transport::Tcp).unwrap();
        assert_eq!((socket.peer.to_string().as_str(), socket.local.port()), ("10.0.0.2:80", 40_000));
        assert_eq!(socket.cookie, 1 << 32 | 7);
    }

    #[test]
    fn ipv4_through_an_ipv6_socket_is_ipv4() {
        let mapped = Ipv4Addr::new(10, 0, 0, 2).to_ipv6_mapped().octets();
        let socket = ConnectedSocket::parse(&message(libc::AF_INET6, &mapped, 53), Transport::Udp).unwrap();
        assert_eq!(socket.peer.to_string(), "10.0.0.2:53");
        assert_eq!(i32::from(socket.family), libc::AF_INET6, "the kernel must be asked as it answered");
    }

    #[test]
    fn what_is_cut_off_or_goes_nowhere_is_no_socket() {
        let whole = message(libc::AF_INET, &[10, 0, 0, 2], 80);
        assert!(ConnectedSocket::parse(&whole[..51], Transport::Tcp).is_none());
        assert!(ConnectedSocket::parse(&message(libc::AF_INET, &[10, 0, 0, 2], 0), Transport::Udp).is_none());
        assert!(
            ConnectedSocket::parse(&message(libc::AF_UNIX, &[10, 0, 0, 2], 80), Transport::Tcp).is_none()
        );
    }

    #[test]
    fn a_request_is_as_long_as_it_says() {
        let request = request(DESTROY, NLM_F_ACK, libc::AF_INET as u8, Transport::Udp, &[0; ID_LEN]);
        assert_eq!(request.len(), 72);
        assert_eq!(request[..4], 72_u32.to_ne_bytes());
        assert_eq!(request[16..18], [libc::AF_INET as u8, 17]);
    }
}
