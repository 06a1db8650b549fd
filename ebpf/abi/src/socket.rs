// SPDX-License-Identifier: Apache-2.0
//! Sockets that reach a backend through a service, and whose sockets they are.

use core::net::IpAddr;

use crate::address::{self, Address};

/// [`SocketValue::flags`]: the socket is one of its backend's open connections in BACKEND_LOAD.
pub const SOCKET_COUNTED: u8 = 1;

/// [`NetnsValue::flags`]: connected UDP sockets keep the service as their peer; the program on the pod's veth translates
/// their packets.
pub const NETNS_PACKET_UDP: u32 = 1;
/// [`NetnsValue::flags`]: the host's own netns, where loopback addresses answer node ports.
pub const NETNS_HOST: u32 = 2;

/// A connected socket (TCP, or UDP that is translated at connect) that goes to a backend. The key in SOCKETS is its
/// cookie (`u64`); the entry goes when the socket is closed. 40 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct SocketValue {
    /// The address that the program asked for.
    pub addr: Address,
    /// The port that it asked for, network order.
    pub port: [u8; 2],
    /// IP protocol number.
    pub proto: u8,
    /// [`SOCKET_COUNTED`] or 0.
    pub flags: u8,
    /// Identifier of the frontend.
    pub service_id: u32,
    /// Identifier of the backend.
    pub backend_id: u32,
    /// When it was connected: seconds of CLOCK_MONOTONIC.
    pub since_secs: u32,
    /// Cookie of its netns.
    pub netns: u64,
}

/// A backend that an unconnected UDP socket has sent to. 32 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FlowKey {
    /// Socket cookie (`bpf_get_socket_cookie`), unique while the kernel runs.
    pub cookie: u64,
    /// Backend address.
    pub addr: Address,
    /// Backend port, network order.
    pub port: [u8; 2],
    /// IP protocol number.
    pub proto: u8,
    /// Zero.
    pub pad: [u8; 5],
}

/// What that socket had asked for. 32 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FlowValue {
    /// Address of the frontend.
    pub addr: Address,
    /// Port of the frontend, network order.
    pub port: [u8; 2],
    /// Zero.
    pub pad: [u8; 2],
    /// Identifier of the frontend.
    pub service_id: u32,
    /// Identifier of the backend.
    pub backend_id: u32,
    /// Zero.
    pub pad2: u32,
}

/// Whose sockets those of a netns are; the key in NETNS is the netns cookie (`u64`). One entry for each pod, one for the
/// host. 40 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct NetnsValue {
    /// The client's IPv4 address as backends and affinity see it: the pod's, for the host its overlay address; zero
    /// without one.
    pub addr4: Address,
    /// The same for IPv6.
    pub addr6: Address,
    /// `NETNS_*`.
    pub flags: u32,
    /// Interface index of the pod's host end; 0 for the host.
    pub ifindex: u32,
}

impl NetnsValue {
    /// A pod with these addresses; `packet_udp` says whether the program on its veth translates connected UDP.
    pub fn pod(ipv4: Option<IpAddr>, ipv6: Option<IpAddr>, ifindex: u32, packet_udp: bool) -> Self {
        let flags = if packet_udp { NETNS_PACKET_UDP } else { 0 };
        Self { addr4: held(ipv4), addr6: held(ipv6), flags, ifindex }
    }

    /// The host with these overlay addresses.
    pub fn host(ipv4: Option<IpAddr>, ipv6: Option<IpAddr>) -> Self {
        Self { addr4: held(ipv4), addr6: held(ipv6), flags: NETNS_HOST, ifindex: 0 }
    }
}

fn held(ip: Option<IpAddr>) -> Address {
    ip.map_or(address::UNSPECIFIED, address::address)
}

// The layouts are the ABI: a change here must fail to compile before it confuses a running program.
const _: () = {
    assert!(size_of::<SocketValue>() == 40);
    assert!(size_of::<FlowKey>() == 32);
    assert!(size_of::<FlowValue>() == 32);
    assert!(size_of::<NetnsValue>() == 40);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_netns_has_an_address_of_each_family_or_none() {
        let pod = NetnsValue::pod(Some("10.244.0.7".parse().unwrap()), None, 7, true);
        assert_eq!((address::tail(&pod.addr4), pod.addr6), ([10, 244, 0, 7], address::UNSPECIFIED));
        assert_eq!((pod.flags, pod.ifindex), (NETNS_PACKET_UDP, 7));
        assert_eq!(NetnsValue::host(None, None).flags, NETNS_HOST);
    }
}
