// SPDX-License-Identifier: Apache-2.0
//! Layouts of ABI version 1 (services over IPv4 only), for those who carry living entries over from its pins.

use core::fmt;
use core::net::Ipv4Addr;

use crate::protocol::{PROTO_WILDCARD, Protocol, protocol_name};

/// Entries of SERVICES and of SERVICE_COUNTERS.
pub const SERVICES_MAX: u32 = 65_536;

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
    /// Stable identifier of the frontend, index of its counters; below [`SERVICES_MAX`].
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

const fn address([a, b, c, d]: [u8; 4]) -> Ipv4Addr {
    Ipv4Addr::new(a, b, c, d)
}

// The layouts are the ABI: a change here must fail to compile before it confuses a running program.
const _: () = {
    assert!(size_of::<ServiceKey>() == 8);
    assert!(size_of::<ServiceValue>() == 16);
    assert!(size_of::<BackendValue>() == 8);
    assert!(size_of::<FlowKey>() == 16);
    assert!(size_of::<FlowValue>() == 16);
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
        assert_eq!(key.to_string(), "10.96.0.10:53/udp");
    }
}
