// SPDX-License-Identifier: Apache-2.0
//! Services as the socket programs see them: frontend, slots, backend, and the flow back.
//!
//! ```text
//! connect(10.96.0.10:53/udp)
//!   SERVICES[10.96.0.10, 53, udp] = { service_id, slot_offset, slot_count }
//!   SLOTS[slot_offset + random % slot_count] = backend_id
//!   BACKENDS[backend_id] = 10.244.1.7:5353/udp          -> the socket goes there
//!   FLOWS[cookie, 10.244.1.7, 5353, udp] = 10.96.0.10:53 -> getpeername, recvmsg
//! ```

use core::fmt;
use core::net::Ipv4Addr;

/// IP protocol number of TCP (RFC 9293).
pub const PROTO_TCP: u8 = 6;
/// IP protocol number of UDP (RFC 768).
pub const PROTO_UDP: u8 = 17;
/// Protocol of a wildcard [`ServiceKey`]: "any port of this ClusterIP that is not listed".
pub const PROTO_WILDCARD: u8 = 0;

/// Transport protocols that the datapath translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Protocol {
    /// TCP, 6.
    Tcp = PROTO_TCP,
    /// UDP, 17.
    Udp = PROTO_UDP,
}

impl Protocol {
    /// The protocol with this IP protocol number, when it is one of ours.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            PROTO_TCP => Some(Self::Tcp),
            PROTO_UDP => Some(Self::Udp),
            _ => None,
        }
    }

    /// The IP protocol number.
    pub const fn number(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(protocol_name(self.number()))
    }
}

/// A frontend: ClusterIP, port and protocol. 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct ServiceKey {
    /// ClusterIP, network order.
    pub addr: [u8; 4],
    /// Port, network order; 0 in a wildcard.
    pub port: [u8; 2],
    /// IP protocol number; [`PROTO_WILDCARD`] in a wildcard.
    pub proto: u8,
    /// Zero.
    pub pad: u8,
}

impl ServiceKey {
    /// The frontend `address`:`port`/`protocol`.
    pub const fn new(address: Ipv4Addr, port: u16, protocol: Protocol) -> Self {
        Self { addr: address.octets(), port: port.to_be_bytes(), proto: protocol.number(), pad: 0 }
    }

    /// The entry that answers for every port of `address` that no other entry names.
    pub const fn wildcard(address: Ipv4Addr) -> Self {
        Self { addr: address.octets(), port: [0; 2], proto: PROTO_WILDCARD, pad: 0 }
    }

    /// The ClusterIP.
    pub const fn address(&self) -> Ipv4Addr {
        address(self.addr)
    }

    /// The port as a number; 0 in a wildcard.
    pub const fn port_number(&self) -> u16 {
        u16::from_be_bytes(self.port)
    }

    /// The protocol; `None` in a wildcard (or for a number this version does not know).
    pub const fn protocol(&self) -> Option<Protocol> {
        Protocol::from_number(self.proto)
    }

    /// Whether this is the entry for all other ports of its address.
    pub const fn is_wildcard(&self) -> bool {
        self.proto == PROTO_WILDCARD && self.port_number() == 0
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_wildcard() {
            return write!(f, "{}:*", self.address());
        }
        write!(f, "{}:{}/{}", self.address(), self.port_number(), protocol_name(self.proto))
    }
}

/// Where a frontend's slots lie. 16 bytes.
///
/// `slot_count` 0 means "refuse": a frontend without backends, or a wildcard entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct ServiceValue {
    /// Stable identifier of the frontend, index of its counters; below [`SERVICES_MAX`](crate::limits::SERVICES_MAX).
    pub service_id: u32,
    /// First slot in SLOTS.
    pub slot_offset: u32,
    /// Number of slots; 0 refuses.
    pub slot_count: u32,
    /// Reserved, zero.
    pub flags: u32,
}

/// One backend. 8 bytes; an entry of zeroes is an unused identifier (BACKENDS is an array).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct BackendValue {
    /// Address, network order.
    pub addr: [u8; 4],
    /// Port, network order.
    pub port: [u8; 2],
    /// IP protocol number; 0 when the entry is unused.
    pub proto: u8,
    /// Reserved, zero.
    pub flags: u8,
}

impl BackendValue {
    /// The backend `address`:`port`/`protocol`.
    pub const fn new(address: Ipv4Addr, port: u16, protocol: Protocol) -> Self {
        Self { addr: address.octets(), port: port.to_be_bytes(), proto: protocol.number(), flags: 0 }
    }

    /// Where connections go.
    pub const fn address(&self) -> Ipv4Addr {
        address(self.addr)
    }

    /// The port as a number.
    pub const fn port_number(&self) -> u16 {
        u16::from_be_bytes(self.port)
    }

    /// The protocol; `None` when the entry is unused.
    pub const fn protocol(&self) -> Option<Protocol> {
        Protocol::from_number(self.proto)
    }

    /// Whether this identifier is unused.
    pub const fn is_unused(&self) -> bool {
        self.proto == 0
    }
}

impl fmt::Display for BackendValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.address(), self.port_number(), protocol_name(self.proto))
    }
}

/// A translated peer of one socket. 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FlowKey {
    /// Socket cookie (`bpf_get_socket_cookie`), unique while the kernel runs.
    pub cookie: u64,
    /// Backend address, network order.
    pub addr: [u8; 4],
    /// Backend port, network order.
    pub port: [u8; 2],
    /// IP protocol number.
    pub proto: u8,
    /// Zero.
    pub pad: u8,
}

/// What the socket asked for, and what it was given. 16 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FlowValue {
    /// ClusterIP, network order.
    pub addr: [u8; 4],
    /// Port of the frontend, network order.
    pub port: [u8; 2],
    /// Zero.
    pub pad: [u8; 2],
    /// Identifier of the frontend.
    pub service_id: u32,
    /// Identifier of the backend.
    pub backend_id: u32,
}

/// What happened at one frontend, per CPU; sums are per node. 16 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct ServiceCounters {
    /// Connections, and datagrams of unconnected sockets, sent to a backend.
    pub connections: u64,
    /// Connections and datagrams refused because there was no backend, or no such port.
    pub refused: u64,
}

const fn address([a, b, c, d]: [u8; 4]) -> Ipv4Addr {
    Ipv4Addr::new(a, b, c, d)
}

const fn protocol_name(number: u8) -> &'static str {
    match number {
        PROTO_TCP => "tcp",
        PROTO_UDP => "udp",
        PROTO_WILDCARD => "any",
        _ => "other",
    }
}

// The layouts are the ABI: a change here must fail to compile before it confuses a running program.
const _: () = {
    assert!(size_of::<ServiceKey>() == 8);
    assert!(size_of::<ServiceValue>() == 16);
    assert!(size_of::<BackendValue>() == 8);
    assert!(size_of::<FlowKey>() == 16);
    assert!(size_of::<FlowValue>() == 16);
    assert!(size_of::<ServiceCounters>() == 16);
};

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn a_key_lies_in_network_order() {
        let key = ServiceKey::new(Ipv4Addr::new(10, 96, 0, 10), 53, Protocol::Udp);
        assert_eq!((key.addr, key.port, key.proto, key.pad), ([10, 96, 0, 10], [0, 53], 17, 0));
        assert_eq!((key.address(), key.port_number()), (Ipv4Addr::new(10, 96, 0, 10), 53));
        assert_eq!(key.protocol(), Some(Protocol::Udp));
        assert_eq!(key.to_string(), "10.96.0.10:53/udp");
    }

    #[test]
    fn a_wildcard_has_neither_port_nor_protocol() {
        let key = ServiceKey::wildcard(Ipv4Addr::new(10, 96, 0, 10));
        assert!(key.is_wildcard());
        assert_eq!(key.protocol(), None);
        assert_eq!(key.to_string(), "10.96.0.10:*");
    }

    #[test]
    fn a_zero_backend_is_unused() {
        assert!(BackendValue::default().is_unused());
        let backend = BackendValue::new(Ipv4Addr::new(10, 244, 0, 7), 8080, Protocol::Tcp);
        assert!(!backend.is_unused());
        assert_eq!(backend.to_string(), "10.244.0.7:8080/tcp");
    }
}
