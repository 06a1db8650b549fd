// SPDX-License-Identifier: Apache-2.0
//! Pods of this node as the packet program sees them.

use core::net::Ipv4Addr;

/// Flag of [`PodValue`] and [`PodLink`]: packets between this pod and others of the node that have it too go straight
/// from netns to netns, and those between it and other nodes' pods straight to and from the overlay device, past the
/// host's stack. Both directions or none: half a connection would confuse the stack's conntrack.
pub const POD_REDIRECT: u32 = 1;

/// Flag of [`PodLink`]: the link has an IPv6 address in POD_ADDRESSES; without it the pod may not send IPv6 at all.
pub const POD_IPV6: u32 = 2;

/// Bit of a packet's mark (`skb->mark`) that the pod's program sets on what it passes on to the host's stack. The nft table
/// drops what comes from a pod's veth without it, and takes it off again before anyone else looks; no pod can set it, for a
/// mark does not cross to another netns. Bit 12: the neighbours are taken (13 by the portmap plugin, 14 and 15 by
/// kube-proxy, 8 to 11 and 16 up by others).
pub const CHECKED_MARK: u32 = 0x1000;

/// Bit of a packet's mark, together with [`CHECKED_MARK`]: for a frontend without backends, and the nft table refuses it (TCP
/// reset, ICMP port unreachable). Bit 6: with bit 12 beside it no mark of others.
pub const REFUSE_MARK: u32 = 0x0040;

/// [`PodLink::addr`] of a link that may not send IPv4 or ARP.
pub const NO_IPV4: [u8; 4] = [0; 4];

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
    /// The first IPv4 source and ARP sender address, network order; [`NO_IPV4`] without one. Further addresses, and
    /// those of IPv6, are in POD_ADDRESSES.
    pub addr: [u8; 4],
    /// The only source MAC and ARP sender hardware address.
    pub mac: [u8; 6],
    /// Zero.
    pub pad: [u8; 2],
    /// Of [`POD_REDIRECT`] and [`POD_IPV6`].
    pub flags: u32,
}

impl PodLink {
    /// A link that may send from `mac` only, IPv4 and ARP first of all from `address`; `flags` is of [`POD_REDIRECT`]
    /// and [`POD_IPV6`].
    pub const fn new(address: Option<Ipv4Addr>, mac: [u8; 6], flags: u32) -> Self {
        let addr = match address {
            Some(address) => address.octets(),
            None => NO_IPV4,
        };
        Self { addr, mac, pad: [0; 2], flags }
    }

    /// The first IPv4 address, when the pod has one.
    pub const fn address(&self) -> Option<Ipv4Addr> {
        let [a, b, c, d] = self.addr;
        if a | b | c | d == 0 { None } else { Some(Ipv4Addr::new(a, b, c, d)) }
    }
}

// The layouts are the ABI: a change here must fail to compile before it confuses a running program.
const _: () = {
    assert!(size_of::<PodValue>() == 20);
    assert!(size_of::<PodLink>() == 16);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_without_ipv4_has_no_address() {
        assert_eq!(PodLink::new(None, [2; 6], POD_IPV6).address(), None);
        let address = Ipv4Addr::new(10, 244, 0, 7);
        assert_eq!(PodLink::new(Some(address), [2; 6], 0).address(), Some(address));
    }
}
