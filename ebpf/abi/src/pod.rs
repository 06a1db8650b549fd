// SPDX-License-Identifier: Apache-2.0
//! Pods of this node as the packet program sees them.

use core::fmt;
use core::net::Ipv4Addr;

/// Flag of [`PodValue`] and [`PodLink`]: packets between this pod and others of the node that have it too go straight
/// from netns to netns, and those between it and other nodes' pods straight to and from the overlay device, past the
/// host's stack. Both directions or none: half a connection would confuse the stack's conntrack.
pub const POD_REDIRECT: u32 = 1;

/// A pod's address. 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct PodKey {
    /// Address, network order.
    pub addr: [u8; 4],
}

impl PodKey {
    /// The pod with this address.
    pub const fn new(address: Ipv4Addr) -> Self {
        Self { addr: address.octets() }
    }

    /// The pod's address.
    pub const fn address(&self) -> Ipv4Addr {
        address(self.addr)
    }
}

/// How a pod of this node is reached. 20 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct PodValue {
    /// Interface index of the veth's host end (`bpf_redirect_peer` takes that one and delivers at the other).
    pub ifindex: u32,
    /// [`POD_REDIRECT`] or 0.
    pub flags: u32,
    /// MAC of the container end: the destination of a delivered frame.
    pub mac: [u8; 6],
    /// MAC of the host end: the source of a delivered frame.
    pub host_mac: [u8; 6],
}

/// What one pod link may send; the key is the interface index (`u32`) of the host end. 16 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct PodLink {
    /// The only IPv4 source and ARP sender address, network order.
    pub addr: [u8; 4],
    /// The only source MAC and ARP sender hardware address.
    pub mac: [u8; 6],
    /// Zero.
    pub pad: [u8; 2],
    /// [`POD_REDIRECT`] or 0.
    pub flags: u32,
}

impl PodLink {
    /// A link that may send from `address` and `mac` only; `flags` is [`POD_REDIRECT`] or 0.
    pub const fn new(address: Ipv4Addr, mac: [u8; 6], flags: u32) -> Self {
        Self { addr: address.octets(), mac, pad: [0; 2], flags }
    }

    /// The pod's address.
    pub const fn address(&self) -> Ipv4Addr {
        address(self.addr)
    }
}

/// Why the packet program dropped a packet; the number is the index in DROPS and never changes its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum DropReason {
    /// The link has no entry in POD_LINKS: nothing says what it may send.
    UnknownLink = 0,
    /// Shorter than its headers, or an IPv4 header that is none.
    Malformed = 1,
    /// The source MAC is not the pod's.
    SourceMac = 2,
    /// The IPv4 source is not the pod's.
    SourceAddress = 3,
    /// An ARP sender address (hardware or IPv4) that is not the pod's.
    ArpSender = 4,
    /// Neither IPv4 nor ARP: nothing checks the source of those, so they do not leave the pod.
    EtherType = 5,
}

impl DropReason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::UnknownLink,
        Self::Malformed,
        Self::SourceMac,
        Self::SourceAddress,
        Self::ArpSender,
        Self::EtherType,
    ];

    /// The index in DROPS.
    pub const fn index(self) -> u32 {
        self as u32
    }

    /// A short name for logs and metric labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnknownLink => "unknown-link",
            Self::Malformed => "malformed",
            Self::SourceMac => "source-mac",
            Self::SourceAddress => "source-address",
            Self::ArpSender => "arp-sender",
            Self::EtherType => "ether-type",
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

const fn address([a, b, c, d]: [u8; 4]) -> Ipv4Addr {
    Ipv4Addr::new(a, b, c, d)
}

// The layouts are the ABI: a change here must fail to compile before it confuses a running program.
const _: () = {
    assert!(size_of::<PodKey>() == 4);
    assert!(size_of::<PodValue>() == 20);
    assert!(size_of::<PodLink>() == 16);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_stand_at_their_own_index() {
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index() as usize, index);
        }
        assert!(DropReason::ALL.len() <= crate::limits::DROPS_MAX as usize);
    }
}
