// SPDX-License-Identifier: Apache-2.0
//! IPv6 packets byte by byte, as no honest kernel would send them.

use std::{
    net::{Ipv6Addr, SocketAddrV6},
    os::fd::AsRawFd as _,
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, socket,
};

pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const UDP: u8 = 17;
pub(crate) const ROUTING: u8 = 43;
pub(crate) const FRAGMENT: u8 = 44;
pub(crate) const ICMPV6: u8 = 58;
pub(crate) const DESTINATION_OPTIONS: u8 = 60;

const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;

/// All nodes of the link.
pub(crate) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// The host, seen from a pod.
pub(crate) const HOST: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// An IPv6 packet: addresses, hop limit, and what follows the header.
#[derive(Clone, Debug)]
pub(crate) struct Raw {
    pub(crate) src: Ipv6Addr,
    pub(crate) dst: Ipv6Addr,
    pub(crate) next: u8,
    pub(crate) payload: Vec<u8>,
    /// What the header says, where that differs from the truth.
    pub(crate) payload_bytes: Option<u16>,
}

impl Raw {
    /// An ICMPv6 message; `body` is what follows the checksum.
    pub(crate) fn icmp(src: Ipv6Addr, dst: Ipv6Addr, kind: u8, body: &[u8]) -> Self {
        let mut payload = [&[kind, 0, 0, 0], body].concat();
        let sum = checksum(src, dst, &payload).to_be_bytes();
        payload[2..4].copy_from_slice(&sum);
        Self { src, dst, next: ICMPV6, payload, payload_bytes: None }
    }

    /// A neighbour solicitation (135) or advertisement (136) with these options.
    pub(crate) fn neighbour(src: Ipv6Addr, kind: u8, target: Ipv6Addr, options: &[u8]) -> Self {
        Self::icmp(src, ALL_NODES, kind, &[&[0; 4], &target.octets()[..], options].concat())
    }

    /// A datagram that nobody will accept, to the host.
    pub(crate) fn udp(src: Ipv6Addr) -> Self {
        let payload = vec![0, 9, 0, 9, 0, 8, 0, 0];
        Self { src, dst: HOST, next: UDP, payload, payload_bytes: None }
    }

    /// With an extension header before what is there: its type, and what follows its first byte.
    pub(crate) fn behind(mut self, kind: u8, rest: [u8; 7]) -> Self {
        self.payload = [&[self.next], &rest[..], &self.payload].concat();
        self.next = kind;
        self
    }

    /// Sends it from the calling thread's netns.
    pub(crate) fn send(&self) {
        let length = self.payload_bytes.unwrap_or(self.payload.len() as u16);
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(length.to_be_bytes());
        packet.extend([self.next, 255]);
        packet.extend(self.src.octets());
        packet.extend(self.dst.octets());
        packet.extend(&self.payload);
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Inet6, SockType::Raw, flags, SockProtocol::Raw).unwrap();
        let scope = nix::net::if_::if_nametoindex("eth0").unwrap();
        let to = SockaddrIn6::from(SocketAddrV6::new(self.dst, 0, 0, scope));
        sendto(socket.as_raw_fd(), &packet, &to, MsgFlags::empty()).unwrap();
    }
}

/// Options without a meaning that fill an extension header of 8 bytes (PadN).
pub(crate) const PADDING: [u8; 7] = [0, 1, 4, 0, 0, 0, 0];
/// The option that makes routers look (RFC 2711), and padding.
pub(crate) const ROUTER_ALERT: [u8; 7] = [0, 5, 2, 0, 0, 1, 0];

/// The rest of a fragment header: where the fragment begins, in units of 8 bytes, and whether more follow.
pub(crate) fn fragment(offset: u16, more: bool) -> [u8; 7] {
    let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
    [0, high, low, 0, 0, 0, 7]
}

pub(crate) fn source_link_layer(mac: [u8; 6]) -> Vec<u8> {
    [&[SOURCE_LINK_LAYER, 1], &mac[..]].concat()
}

pub(crate) fn target_link_layer(mac: [u8; 6]) -> Vec<u8> {
    [&[TARGET_LINK_LAYER, 1], &mac[..]].concat()
}

/// RFC 8200, section 8.1.
fn checksum(src: Ipv6Addr, dst: Ipv6Addr, payload: &[u8]) -> u16 {
    let length = (payload.len() as u32).to_be_bytes();
    let all = [&src.octets()[..], &dst.octets(), &length, &[0, 0, 0, ICMPV6], payload].concat();
    let sum: u32 = all
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}
