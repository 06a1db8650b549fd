// SPDX-License-Identifier: Apache-2.0
//! How large each map is, in entries.
//!
//! `*_DEFAULT` is what the object file says; user space may ask for another size when it makes the map, not below `*_MIN`.
//! `*_MAX` is the one size a map has.

/// Frontends (address, port, protocol, scope), the wildcard entries among them: 50,000 services with one port.
pub const FRONTENDS_DEFAULT: u32 = 131_072;
/// See [`FRONTENDS_DEFAULT`]: a handful of services.
pub const FRONTENDS_MIN: u32 = 1_024;

/// Counters per frontend, indexed by service identifier: as many as there are frontends, whatever their number.
pub const SERVICE_COUNTERS_DEFAULT: u32 = FRONTENDS_DEFAULT;

/// Distinct (address, port, protocol) backends; the backend identifier is the index: 50,000 services with two each.
pub const BACKENDS_DEFAULT: u32 = 131_072;
/// See [`BACKENDS_DEFAULT`].
pub const BACKENDS_MIN: u32 = 1_024;

/// Slots over all services, each a `u32` backend identifier: 8 per frontend at the full count, 8 MiB of memory
/// (arrays round their values up to 8 bytes).
pub const SLOTS_DEFAULT: u32 = 1 << 20;
/// See [`SLOTS_DEFAULT`]: one Maglev table of the largest size.
pub const SLOTS_MIN: u32 = 1 << 17;

/// Connected sockets that go to a backend; takes memory by use only.
pub const SOCKETS_DEFAULT: u32 = 262_144;
/// See [`SOCKETS_DEFAULT`].
pub const SOCKETS_MIN: u32 = 4_096;

/// Backends that unconnected UDP sockets have sent to; least recently used go first, so that a busy node cannot fill it.
pub const FLOWS_DEFAULT: u32 = 65_536;
/// See [`FLOWS_DEFAULT`].
pub const FLOWS_MIN: u32 = 1_024;

/// Clients that stay with a backend; least recently used go first.
pub const AFFINITY_DEFAULT: u32 = 131_072;
/// See [`AFFINITY_DEFAULT`].
pub const AFFINITY_MIN: u32 = 1_024;

/// Backends of services with affinity; takes memory by use only.
pub const AFFINITY_BACKENDS_DEFAULT: u32 = 131_072;
/// See [`AFFINITY_BACKENDS_DEFAULT`].
pub const AFFINITY_BACKENDS_MIN: u32 = 1_024;

/// Prefixes of load balancer source ranges over all frontends; takes memory by use only.
pub const SOURCE_RANGES_DEFAULT: u32 = 16_384;
/// See [`SOURCE_RANGES_DEFAULT`].
pub const SOURCE_RANGES_MIN: u32 = 1_024;

/// Addresses with something behind them that is a backend, as many as there are backends; takes memory by use only.
pub const BACKEND_ENDPOINTS_DEFAULT: u32 = BACKENDS_DEFAULT;
/// See [`BACKEND_ENDPOINTS_DEFAULT`].
pub const BACKEND_ENDPOINTS_MIN: u32 = BACKENDS_MIN;

/// Flows of the packet path that have begun, in each direction one entry.
pub const CT_LIVE_DEFAULT: u32 = 262_144;
/// See [`CT_LIVE_DEFAULT`].
pub const CT_LIVE_MIN: u32 = 4_096;

/// Flows of the packet path without an answer yet, and those of which only one side is seen: a flood fills only this one.
pub const CT_NEW_DEFAULT: u32 = 262_144;
/// See [`CT_NEW_DEFAULT`].
pub const CT_NEW_MIN: u32 = 4_096;

/// Fragmented packets on their way.
pub const FRAGMENTS_DEFAULT: u32 = 8_192;
/// See [`FRAGMENTS_DEFAULT`].
pub const FRAGMENTS_MIN: u32 = 512;

/// Addresses that answer node ports or are the host's own.
pub const NODE_ADDRESSES_MAX: u32 = 16_384;

/// Nodes of a cluster; the index in NODES.
pub const NODES_MAX: u32 = 8_192;

/// Netns with sockets of ours: one for each pod, and the host's.
pub const NETNS_MAX: u32 = PODS_MAX + 1;

/// Counters: more than there are, so that a new one does not change the map.
pub const COUNTERS_MAX: u32 = 64;

/// Pods of this node, in each family: well above what a kubelet admits (110 to 500).
pub const PODS_MAX: u32 = 4_096;

/// Pod links of this node: one per pod and interface.
pub const POD_LINKS_MAX: u32 = 4_096;

/// Addresses of pod links: one of each family for each link.
pub const POD_ADDRESSES_MAX: u32 = 2 * POD_LINKS_MAX;

/// Drop counters: more than there are reasons, so that a new reason does not change the map.
pub const DROPS_MAX: u32 = 64;
