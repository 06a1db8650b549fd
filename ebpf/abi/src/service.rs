// SPDX-License-Identifier: Apache-2.0
//! Services as the programs see them: frontend, slots, backend.
//!
//! ```text
//! connect(10.96.0.10:53/udp)
//!   SERVICES[::ffff:10.96.0.10, 53, udp, internal] = { service_id, slot_offset, slot_count, … }
//!   SLOTS[slot_offset + choice below slot_count] = backend_id
//!   BACKENDS[backend_id] = 10.244.1.7:5353/udp                 -> the socket or packet goes there
//! ```
//!
//! A lookup asks for the exact key first; then, for a port in the node-port range at an address that answers node ports,
//! for the key with the family's unspecified address; then for the wildcard of the address.

use core::fmt;
use core::net::IpAddr;

use crate::address::{self, Address, UNSPECIFIED, UNSPECIFIED4};
use crate::hash::below;
use crate::protocol::{PROTO_WILDCARD, Protocol, protocol_name};

/// [`FrontendKey::scope`]: asked by pods and processes of the cluster.
pub const SCOPE_INTERNAL: u8 = 0;
/// [`FrontendKey::scope`]: asked by packets from outside the cluster.
pub const SCOPE_EXTERNAL: u8 = 1;
/// [`FrontendKey::scope`]: asked by packets that another node sent on for direct server return; only backends of this node.
pub const SCOPE_DSR: u8 = 2;

/// [`ServiceValue::flags`]: a client stays with its backend for `affinity_secs` after its last connection.
pub const SERVICE_AFFINITY: u32 = 1;
/// [`ServiceValue::flags`]: packets from outside reach their backend as they are, inside VXLAN, and answers go straight back.
pub const SERVICE_DSR: u32 = 2;
/// [`ServiceValue::flags`]: only clients within a prefix of SOURCE_RANGES may ask.
pub const SERVICE_SOURCE_RANGES: u32 = 4;
/// [`ServiceValue::flags`]: without slots packets are dropped, and sockets get EHOSTUNREACH, instead of a refusal.
pub const SERVICE_DROP_EMPTY: u32 = 8;
/// [`ServiceValue::flags`]: all slots are of this node, and the client's address stays (traffic policy Local).
pub const SERVICE_KEEP_SOURCE: u32 = 16;
/// [`ServiceValue::flags`]: the frontend is a node port.
pub const SERVICE_NODE_PORT: u32 = 32;
/// [`ServiceValue::flags`]: an injected fault: `fault_percent` of what begins is refused, as without backends.
pub const SERVICE_FAULT_RESET: u32 = 64;
/// [`ServiceValue::flags`]: an injected fault: of `fault_percent` of what begins the packets are dropped. A flow is dropped as a
/// whole: its SYN finds no way at the next attempt, either.
pub const SERVICE_FAULT_DROP: u32 = 128;
/// [`ServiceValue::flags`]: the fault befalls only clients within a prefix of SOURCE_RANGES. Never together with
/// [`SERVICE_SOURCE_RANGES`].
pub const SERVICE_FAULT_CLIENTS: u32 = 256;
/// [`ServiceValue::flags`]: the frontend is the address of a server of the agent itself: packets go there as they are, and only while
/// the agent is silent they go to the service's other backends.
pub const SERVICE_AGENT_SILENT: u32 = 512;
/// How long the agent counts as there after it has said so in AGENT, in nanoseconds: it says so several times in that time, and what
/// it does not answer meanwhile is less than the patience of those who ask.
pub const AGENT_SILENT_NS: u64 = 500_000_000;

/// [`ServiceValue::algorithm`]: any slot.
pub const ALGORITHM_RANDOM: u8 = 0;
/// [`ServiceValue::algorithm`]: the slots are a Maglev table; packets hash into it, sockets take any.
pub const ALGORITHM_HASH: u8 = 1;
/// [`ServiceValue::algorithm`]: of two random slots the one whose backend has fewer open connections (BACKEND_LOAD).
pub const ALGORITHM_LEAST_CONNECTIONS: u8 = 2;
/// [`ServiceValue::algorithm`]: the first slot, a server of the agent itself, while the agent is there; else any of the others.
pub const ALGORITHM_AGENT_FIRST: u8 = 3;

/// [`BackendValue::flags`]: a pod of this node.
pub const BACKEND_LOCAL: u8 = 1;
/// [`BackendValue::flags`]: a server of the agent itself, which is no backend while the agent is silent.
pub const BACKEND_AGENT: u8 = 2;

/// A frontend: an address that a service answers at, port, protocol, and who asks. 20 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct FrontendKey {
    /// ClusterIP, external or load balancer address; [`UNSPECIFIED`] or [`UNSPECIFIED4`] is any
    /// address of the family that answers node ports.
    pub addr: Address,
    /// Port, network order; 0 in a wildcard.
    pub port: [u8; 2],
    /// IP protocol number; [`PROTO_WILDCARD`] in a wildcard.
    pub proto: u8,
    /// [`SCOPE_INTERNAL`], [`SCOPE_EXTERNAL`] or [`SCOPE_DSR`].
    pub scope: u8,
}

impl FrontendKey {
    /// The frontend `address`:`port`/`protocol` for clients of `scope`.
    pub const fn new(address: IpAddr, port: u16, protocol: Protocol, scope: u8) -> Self {
        Self { addr: address::address(address), port: port.to_be_bytes(), proto: protocol.number(), scope }
    }

    /// The node port `port`/`protocol`, at every address of a family that answers node ports.
    pub const fn node_port(ipv6: bool, port: u16, protocol: Protocol, scope: u8) -> Self {
        let addr = if ipv6 { UNSPECIFIED } else { UNSPECIFIED4 };
        Self { addr, port: port.to_be_bytes(), proto: protocol.number(), scope }
    }

    /// The entry that answers for every port of `address` that no other entry names.
    pub const fn wildcard(address: IpAddr, scope: u8) -> Self {
        Self { addr: address::address(address), port: [0; 2], proto: PROTO_WILDCARD, scope }
    }

    /// The address; IPv4 as IPv4.
    pub const fn address(&self) -> IpAddr {
        address::ip(self.addr)
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

    /// Whether this is a node port.
    pub fn is_node_port(&self) -> bool {
        address::is_unspecified(&self.addr) && !self.is_wildcard()
    }
}

impl fmt::Display for FrontendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address() {
            IpAddr::V4(_) if self.is_node_port() => f.write_str("node")?,
            IpAddr::V6(_) if self.is_node_port() => f.write_str("[node]")?,
            IpAddr::V4(address) => write!(f, "{address}")?,
            IpAddr::V6(address) => write!(f, "[{address}]")?,
        }
        if self.is_wildcard() {
            f.write_str(":*")?;
        } else {
            write!(f, ":{}/{}", self.port_number(), protocol_name(self.proto))?;
        }
        match self.scope {
            SCOPE_INTERNAL => Ok(()),
            SCOPE_EXTERNAL => f.write_str(" external"),
            SCOPE_DSR => f.write_str(" dsr"),
            other => write!(f, " scope {other}"),
        }
    }
}

/// Where a frontend's slots lie, and how one of them is chosen. 32 bytes.
///
/// `slot_count` 0 means "refuse" (or drop, by [`SERVICE_DROP_EMPTY`]): a frontend without backends, or a wildcard entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct ServiceValue {
    /// Stable identifier of the frontend, never 0, index of its counters.
    pub service_id: u32,
    /// First slot in SLOTS.
    pub slot_offset: u32,
    /// Number of slots; 0 refuses.
    pub slot_count: u32,
    /// `SERVICE_*`.
    pub flags: u32,
    /// Seconds for which a client stays with its backend after its last connection; 0 without affinity.
    pub affinity_secs: u32,
    /// Whom the affinity is shared with: all frontends of a Service's port have the same; 0 without affinity.
    pub affinity_id: u32,
    /// `ALGORITHM_*`.
    pub algorithm: u8,
    /// How many of a hundred connections, flows and datagrams of unconnected sockets a fault befalls; 0 without one.
    pub fault_percent: u8,
    /// Zero.
    pub pad: [u8; 2],
    /// Reserved, zero.
    pub reserved: u32,
}

impl ServiceValue {
    /// Whether the service has a fault that befalls what has this number (random, or a hash).
    #[inline(always)]
    pub const fn is_befallen(&self, number: u32) -> bool {
        self.flags & (SERVICE_FAULT_RESET | SERVICE_FAULT_DROP) != 0
            && below(number, 100) < self.fault_percent as u32
    }
}

/// One backend. 24 bytes; an entry of zeroes is an unused identifier (BACKENDS is an array).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct BackendValue {
    /// Where connections go.
    pub addr: Address,
    /// Port, network order.
    pub port: [u8; 2],
    /// IP protocol number; 0 when the entry is unused.
    pub proto: u8,
    /// `BACKEND_*`.
    pub flags: u8,
    /// The backend's node as an index into NODES; 0 for none of ours.
    pub node: u32,
}

impl BackendValue {
    /// The backend `address`:`port`/`protocol`, of no node.
    pub const fn new(address: IpAddr, port: u16, protocol: Protocol) -> Self {
        Self {
            addr: address::address(address),
            port: port.to_be_bytes(),
            proto: protocol.number(),
            flags: 0,
            node: 0,
        }
    }

    /// The same with a node: an index into NODES, and whether it is this one.
    pub const fn on_node(self, node: u32, local: bool) -> Self {
        Self { flags: if local { BACKEND_LOCAL } else { 0 }, node, ..self }
    }

    /// The same as a server of the agent itself.
    pub const fn of_agent(self) -> Self {
        Self { flags: self.flags | BACKEND_AGENT, ..self }
    }

    /// Where connections go; IPv4 as IPv4.
    pub const fn address(&self) -> IpAddr {
        address::ip(self.addr)
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

    /// Whether it is a pod of this node.
    pub const fn is_local(&self) -> bool {
        self.flags & BACKEND_LOCAL != 0
    }

    /// Whether it is a server of the agent itself.
    pub const fn is_of_agent(&self) -> bool {
        self.flags & BACKEND_AGENT != 0
    }

    /// Its key in BACKEND_ENDPOINTS.
    pub const fn endpoint(&self) -> EndpointKey {
        EndpointKey { addr: self.addr, port: self.port, proto: self.proto, pad: 0 }
    }
}

impl fmt::Display for BackendValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address() {
            IpAddr::V4(address) => write!(f, "{address}")?,
            IpAddr::V6(address) => write!(f, "[{address}]")?,
        }
        write!(f, ":{}/{}", self.port_number(), protocol_name(self.proto))
    }
}

/// Key of BACKEND_ENDPOINTS: a direct connection to this goes to a backend. 20 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct EndpointKey {
    /// The backend's address.
    pub addr: Address,
    /// Its port, network order.
    pub port: [u8; 2],
    /// IP protocol number.
    pub proto: u8,
    /// Zero.
    pub pad: u8,
}

/// Key of SOURCE_RANGES, a longest-prefix trie: clients that may ask, or that an injected fault befalls. 24 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct SourceRangeKey {
    /// Bits that count, those of `service_id` included: 32, and the prefix of the mapped address (up to 128).
    pub prefix_len: u32,
    /// Identifier of the frontend, network order (a trie compares bits from the first byte on).
    pub service_id: [u8; 4],
    /// The prefix; in a lookup the client.
    pub addr: Address,
}

impl SourceRangeKey {
    /// Bits of `service_id`.
    const SERVICE_BITS: u32 = 32;
    /// Bits before the IPv4 part of a mapped address.
    const MAPPED_BITS: u32 = 96;

    /// The range `address`/`prefix` (bits in the address's own family) of a frontend. Host bits are cleared.
    pub const fn new(service_id: u32, address: IpAddr, prefix: u8) -> Self {
        let (whole, bits) = match address {
            IpAddr::V4(_) => (Self::MAPPED_BITS, min(prefix as u32, 32)),
            IpAddr::V6(_) => (0, min(prefix as u32, 128)),
        };
        let bits = whole + bits;
        let mask = if bits == 0 { 0 } else { u128::MAX << (128 - bits) };
        let addr = u128::from_be_bytes(address::address(address)) & mask;
        Self {
            prefix_len: Self::SERVICE_BITS + bits,
            service_id: service_id.to_be_bytes(),
            addr: addr.to_be_bytes(),
        }
    }

    /// What a program looks up for a client.
    #[inline(always)]
    pub const fn client(service_id: u32, client: Address) -> Self {
        Self { prefix_len: Self::SERVICE_BITS + 128, service_id: service_id.to_be_bytes(), addr: client }
    }
}

/// What happened at one frontend, per CPU; sums are per node. 16 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct ServiceCounters {
    /// Connections, and datagrams of unconnected sockets, sent to a backend.
    pub connections: u64,
    /// Connections and datagrams refused or dropped: no backend, no such port, not in a source range.
    pub refused: u64,
}

const fn min(a: u32, b: u32) -> u32 {
    if a < b { a } else { b }
}

// The layouts are the ABI: a change here must fail to compile before it confuses a running program.
const _: () = {
    assert!(size_of::<FrontendKey>() == 20);
    assert!(size_of::<ServiceValue>() == 32);
    assert!(size_of::<BackendValue>() == 24);
    assert!(size_of::<EndpointKey>() == 20);
    assert!(size_of::<SourceRangeKey>() == 24);
    assert!(size_of::<ServiceCounters>() == 16);
};

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_key_lies_in_network_order() {
        let key = FrontendKey::new(ip("10.96.0.10"), 53, Protocol::Udp, SCOPE_INTERNAL);
        assert_eq!(key.addr, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 96, 0, 10]);
        assert_eq!((key.port, key.proto, key.scope), ([0, 53], 17, 0));
        assert_eq!((key.address(), key.port_number()), (ip("10.96.0.10"), 53));
        assert_eq!(key.protocol(), Some(Protocol::Udp));
        assert_eq!(key.to_string(), "10.96.0.10:53/udp");
    }

    #[test]
    fn keys_name_themselves() {
        let key = FrontendKey::new(ip("fd00:10:96::a"), 80, Protocol::Sctp, SCOPE_EXTERNAL);
        assert_eq!(key.to_string(), "[fd00:10:96::a]:80/sctp external");
        let key = FrontendKey::node_port(false, 30_080, Protocol::Tcp, SCOPE_DSR);
        assert_eq!(key.to_string(), "node:30080/tcp dsr");
        assert!(key.is_node_port() && !key.is_wildcard());
        let key = FrontendKey::node_port(true, 30_080, Protocol::Udp, SCOPE_INTERNAL);
        assert_eq!((key.to_string().as_str(), key.is_node_port()), ("[node]:30080/udp", true));
        let key = FrontendKey::wildcard(ip("10.96.0.10"), SCOPE_INTERNAL);
        assert_eq!((key.protocol(), key.to_string().as_str()), (None, "10.96.0.10:*"));
        assert!(key.is_wildcard() && !key.is_node_port());
    }

    #[test]
    fn a_fault_befalls_so_many_of_a_hundred() {
        let service = |flags, fault_percent| ServiceValue { flags, fault_percent, ..ServiceValue::default() };
        let hits = |service: ServiceValue| {
            (0..100_000_u32).filter(|number| service.is_befallen(number * 42_949)).count()
        };
        assert_eq!(hits(service(0, 50)), 0, "no fault");
        assert_eq!(hits(service(SERVICE_FAULT_RESET, 0)), 0);
        assert_eq!(hits(service(SERVICE_FAULT_DROP, 100)), 100_000);
        assert!(hits(service(SERVICE_FAULT_DROP, 10)).abs_diff(10_000) < 10);
    }

    #[test]
    fn a_zero_backend_is_unused() {
        assert!(BackendValue::default().is_unused());
        let backend = BackendValue::new(ip("10.244.0.7"), 8080, Protocol::Tcp).on_node(3, true);
        assert!(!backend.is_unused() && backend.is_local());
        assert_eq!((backend.node, backend.to_string().as_str()), (3, "10.244.0.7:8080/tcp"));
        let other = BackendValue::new(ip("fd00::7"), 8080, Protocol::Udp);
        assert_eq!((other.is_local(), other.to_string().as_str()), (false, "[fd00::7]:8080/udp"));
        assert_eq!(other.endpoint().addr, other.addr);
    }

    #[test]
    fn a_source_range_counts_the_bits_of_the_mapped_form() {
        let range = SourceRangeKey::new(7, ip("192.0.2.77"), 24);
        assert_eq!(range.prefix_len, 32 + 96 + 24);
        assert_eq!((range.service_id, address::ip(range.addr)), ([0, 0, 0, 7], ip("192.0.2.0")));
        assert_eq!(SourceRangeKey::new(7, ip("0.0.0.0"), 0).prefix_len, 32 + 96);
        let range = SourceRangeKey::new(7, ip("2001:db8::1"), 32);
        assert_eq!((range.prefix_len, address::ip(range.addr)), (64, ip("2001:db8::")));
        assert_eq!(SourceRangeKey::new(7, ip("::1"), 0).addr, UNSPECIFIED);
        assert_eq!(SourceRangeKey::client(7, range.addr).prefix_len, 160);
    }
}
