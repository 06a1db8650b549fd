// SPDX-License-Identifier: Apache-2.0
//! What the programs know of this node and the others.

use core::net::IpAddr;

use crate::address::{self, Address};

/// Value of NODE_ADDRESSES (key [`Address`]): node ports answer here. Of this host, or of another node.
pub const ADDRESS_NODE_PORT: u32 = 1;
/// Value of NODE_ADDRESSES: an address of this host.
pub const ADDRESS_OWN: u32 = 2;

/// Flag of [`DatapathConfig`]: node ports do not answer at IPv4 loopback addresses.
pub const CONFIG_SILENT_LOOPBACK4: u32 = 1;
/// Flag of [`DatapathConfig`]: node ports do not answer at the IPv6 loopback address.
pub const CONFIG_SILENT_LOOPBACK6: u32 = 2;
/// Flag of [`DatapathConfig`], which the loader sets and clears: flows are on their way from maps of another size or version. A
/// segment of a connection that is not known is dropped, to come again, instead of refused.
pub const CONFIG_MIGRATING: u32 = 4;
/// Flag of [`DatapathConfig`], which the loader sets and clears: an uplink has no program at its egress.
pub const CONFIG_BLIND_UPLINK: u32 = 8;

/// VXLAN network identifier of packets for direct server return; the overlay's own is 4242.
pub const DSR_VNI: u32 = 4243;

/// A node, by its index in NODES; 0 is none. 32 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct NodeValue {
    /// Its IPv4 overlay address; zero without one.
    pub overlay4: Address,
    /// Its IPv6 overlay address; zero without one.
    pub overlay6: Address,
}

impl NodeValue {
    /// A node with these overlay addresses.
    pub fn new(ipv4: Option<IpAddr>, ipv6: Option<IpAddr>) -> Self {
        let held = |ip: Option<IpAddr>| ip.map_or(address::UNSPECIFIED, address::address);
        Self { overlay4: held(ipv4), overlay6: held(ipv6) }
    }
}

/// What the programs know of this node: the one entry of CONFIG. All zero until user space writes it: then there is no host
/// netns, no node port and no source NAT. 96 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DatapathConfig {
    /// Cookie of the host's netns; 0 is none.
    pub host_netns: u64,
    /// This node's IPv4 overlay address: the source of what it sends on for others; zero without one.
    pub overlay4: Address,
    /// The same for IPv6.
    pub overlay6: Address,
    /// Interface index of the device that packets for direct server return go through; 0 without one.
    pub dsr_ifindex: u32,
    /// Reserved for the uplink's program.
    pub uplink_flags: u32,
    /// First node port; 0 without node ports.
    pub node_port_min: u16,
    /// Last node port.
    pub node_port_max: u16,
    /// First source port of source NAT.
    pub snat_port_min: u16,
    /// Last source port of source NAT.
    pub snat_port_max: u16,
    /// Longest IPv4 packet that fits the device for direct server return, bytes.
    pub dsr_mtu4: u16,
    /// Longest IPv6 packet that fits it, bytes.
    pub dsr_mtu6: u16,
    /// Seed of [`hash`](crate::hash): the same on all nodes, so that each of them chooses the same backend.
    pub hash_seed: u32,
    /// `CONFIG_*`.
    pub flags: u32,
    /// This node's IPv4 address outside: backends that are no pods are asked from it when the address that was asked is not the
    /// host's; zero without one.
    pub underlay4: [u8; 4],
    /// The same for IPv6.
    pub underlay6: Address,
    /// Zero.
    pub pad: [u32; 2],
}

// The layouts are the ABI: a change here must fail to compile before it confuses a running program.
const _: () = {
    assert!(size_of::<NodeValue>() == 32);
    assert!(size_of::<DatapathConfig>() == 96);
};
