// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! The maps, and a safe function for each thing the programs do with one. Here: what is counted, and what is configured.

mod pod;
mod service;
mod socket;

use aya_ebpf::{
    helpers::generated::bpf_ktime_get_ns,
    macros::map,
    maps::{Array, HashMap, PerCpuArray},
};
use ebpf_abi::{
    Address, Counter, DatapathConfig, DropReason, NodeValue,
    address::{UNSPECIFIED, is_ipv4, mapped},
    limits::{COUNTERS_MAX, DROPS_MAX, NODE_ADDRESSES_MAX, NODES_MAX},
    node::{ADDRESS_NODE_PORT, CONFIG_SILENT_LOOPBACK4, CONFIG_SILENT_LOOPBACK6},
    service::AGENT_SILENT_NS,
};

pub(crate) use pod::{may_send_from, overlay, pod, pod_link, pod6};
pub(crate) use service::{
    Backend, affinity, backend, begin_affinity, count_connection, count_refusal, is_affine, is_backend,
    is_in_ranges, load, service, slot,
};
pub(crate) use socket::{connection, flow, forget_connection, netns, remember_connection, remember_flow};

/// BPF_ANY (linux/bpf.h): create or replace.
const ANY: u64 = 0;
/// BPF_NOEXIST (linux/bpf.h): create only.
const NOEXIST: u64 = 1;
/// BPF_F_NO_PREALLOC (linux/bpf.h): memory by use.
const NO_PREALLOC: u32 = 1;

#[map]
static AGENT: Array<u64> = Array::with_max_entries(1, 0);
#[map]
static CONFIG: Array<DatapathConfig> = Array::with_max_entries(1, 0);
#[map]
static NODE_ADDRESSES: HashMap<Address, u32> = HashMap::with_max_entries(NODE_ADDRESSES_MAX, NO_PREALLOC);
#[map]
static NODES: Array<NodeValue> = Array::with_max_entries(NODES_MAX, 0);
#[map]
static DROPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(DROPS_MAX, 0);
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTERS_MAX, 0);

/// One more dropped packet.
#[inline(always)]
pub(crate) fn count_drop(reason: DropReason) {
    if let Some(counter) = DROPS.get_ptr_mut(reason.index()) {
        add_one(counter);
    }
}

/// One more of something.
#[inline(always)]
pub(crate) fn count(what: Counter) {
    if let Some(counter) = COUNTERS.get_ptr_mut(what.index()) {
        add_one(counter);
    }
}

/// What user space says of this node; it may change at any time, so each field is read when it is asked for.
#[derive(Clone, Copy)]
pub(crate) struct Config(*const DatapathConfig);

/// The configuration.
#[inline(always)]
pub(crate) fn config() -> Option<Config> {
    CONFIG.get_ptr(0).map(Config)
}

/// A field of the configuration, read once.
macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident: $kind:ty,)*) => {
        #[allow(dead_code, reason = "each field for whoever needs it")]
        impl Config {
            $(
                $(#[$doc])*
                #[inline(always)]
                pub(crate) fn $name(self) -> $kind {
                    // SAFETY: the pointer is to the live, aligned entry of CONFIG, of this type.
                    unsafe { (&raw const (*self.0).$name).read() }
                }
            )*
        }
    };
}

fields! {
    /// Cookie of the host's netns; 0 is none.
    host_netns: u64,
    /// This node's IPv4 overlay address, or zero.
    overlay4: Address,
    /// This node's IPv6 overlay address, or zero.
    overlay6: Address,
    /// Device for direct server return, or 0.
    dsr_ifindex: u32,
    /// Reserved.
    uplink_flags: u32,
    /// First node port, or 0.
    node_port_min: u16,
    /// Last node port.
    node_port_max: u16,
    /// First source port of source NAT.
    snat_port_min: u16,
    /// Last source port of source NAT.
    snat_port_max: u16,
    /// Longest IPv4 packet for direct server return.
    dsr_mtu4: u16,
    /// Longest IPv6 packet for direct server return.
    dsr_mtu6: u16,
    /// Seed of the hashes.
    hash_seed: u32,
    /// `CONFIG_*`.
    flags: u32,
    /// This node's IPv4 address outside, or zero.
    underlay4: [u8; 4],
    /// This node's IPv6 address outside, or zero.
    underlay6: Address,
}

impl Config {
    /// This node's address in the overlay; unspecified without one.
    #[inline(always)]
    pub(crate) fn overlay(self, is_ipv6: bool) -> &'static Address {
        // SAFETY: as above; user space writes it before anything needs it, and keeps it.
        unsafe { if is_ipv6 { &(*self.0).overlay6 } else { &(*self.0).overlay4 } }
    }

    /// This node's address outside; unspecified without one.
    #[inline(always)]
    pub(crate) fn underlay(self, is_ipv6: bool) -> Address {
        let ipv4 = self.underlay4();
        match (is_ipv6, ipv4) {
            (true, _) => self.underlay6(),
            (false, [0, 0, 0, 0]) => UNSPECIFIED,
            (false, _) => mapped(ipv4),
        }
    }

    /// First and last source port of source NAT; the first is 0 without any.
    #[inline(always)]
    pub(crate) fn source_ports(self) -> (u16, u16) {
        (self.snat_port_min(), self.snat_port_max())
    }

    /// Longest packet for direct server return; 0 where that is not known.
    #[inline(always)]
    pub(crate) fn dsr_mtu(self, is_ipv6: bool) -> u32 {
        u32::from(if is_ipv6 { self.dsr_mtu6() } else { self.dsr_mtu4() })
    }

    /// Whether this is the cookie of the host's netns.
    #[inline(always)]
    pub(crate) fn is_host_netns(self, cookie: u64) -> bool {
        cookie != 0 && cookie == self.host_netns()
    }

    /// Whether node ports answer at this loopback address, for the host itself.
    #[inline(always)]
    pub(crate) fn answers_loopback(self, address: &Address) -> bool {
        let silent = if is_ipv4(address) { CONFIG_SILENT_LOOPBACK4 } else { CONFIG_SILENT_LOOPBACK6 };
        self.flags() & silent == 0
    }

    /// Whether a port (network order) is in the range of node ports.
    #[inline(always)]
    pub(crate) fn is_node_port(self, port: [u8; 2]) -> bool {
        let (first, port) = (self.node_port_min(), u16::from_be_bytes(port));
        first != 0 && first <= port && port <= self.node_port_max()
    }
}

/// Whether the agent has said of late that its own servers answer.
#[inline(always)]
pub(crate) fn agent_is_there() -> bool {
    // SAFETY: a live, aligned map value of this type; the helper has no arguments and no requirements.
    AGENT
        .get_ptr(0)
        .is_some_and(|said| unsafe { said.read_volatile() + AGENT_SILENT_NS > bpf_ktime_get_ns() })
}

/// The flags of an address of this host or another node; 0 for all others.
#[inline(always)]
pub(crate) fn node_address(address: &Address) -> u32 {
    // SAFETY: the pointer is to a live map value of this type; it is copied before anything else happens.
    NODE_ADDRESSES.get_ptr(address).map_or(0, |flags| unsafe { flags.read_volatile() })
}

/// Whether node ports answer at this address.
#[inline(always)]
pub(crate) fn answers_node_ports(address: &Address) -> bool {
    node_address(address) & ADDRESS_NODE_PORT != 0
}

/// A node of the cluster; index 0 is none.
#[inline(always)]
pub(crate) fn node(index: u32) -> Option<&'static NodeValue> {
    if index == 0 {
        return None;
    }
    // SAFETY: a live map value of this type; a node that is replaced meanwhile is wrong before and after.
    NODES.get_ptr(index).map(|node| unsafe { &*node })
}

/// For counters per CPU.
#[inline(always)]
fn add_one(counter: *mut u64) {
    // Not atomic: per CPU, so that only a socket program preempted between the two steps by another on the same CPU
    // loses a count.
    // SAFETY: callers pass a pointer into a live map value; map values are aligned to 8.
    unsafe { counter.write(counter.read().wrapping_add(1)) };
}
