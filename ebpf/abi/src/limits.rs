// SPDX-License-Identifier: Apache-2.0
//! How large each map is, in entries.

/// Frontends (ClusterIP, port, protocol) including one wildcard entry per ClusterIP: a /16 of services.
pub const SERVICES_MAX: u32 = 65_536;

/// Distinct (address, port, protocol) backends; the backend identifier is the index.
pub const BACKENDS_MAX: u32 = 65_536;

/// Slots over all services, each a `u32` backend identifier: 16 per frontend at the full count, 8 MiB of memory
/// (arrays round their values up to 8 bytes).
pub const SLOTS_MAX: u32 = 1 << 20;

/// Sockets whose translated peer is remembered; least recently used go first, so that a busy node cannot fill it.
pub const FLOWS_MAX: u32 = 65_536;

/// Counters per frontend, indexed by service identifier: as many as there are frontends.
pub const SERVICE_COUNTERS_MAX: u32 = SERVICES_MAX;

/// Pods of this node, in each family: well above what a kubelet admits (110 to 500).
pub const PODS_MAX: u32 = 4_096;

/// Pod links of this node: one per pod and interface.
pub const POD_LINKS_MAX: u32 = 4_096;

/// Addresses of pod links: one of each family for each link.
pub const POD_ADDRESSES_MAX: u32 = 2 * POD_LINKS_MAX;

/// Drop counters: more than there are reasons, so that a new reason does not change the map.
pub const DROPS_MAX: u32 = 16;
