// SPDX-License-Identifier: Apache-2.0
//! Why a packet was dropped.

use core::fmt;

/// Why a packet program dropped a packet; the number is the index in DROPS and never changes its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum DropReason {
    /// The link has no entry in POD_LINKS: nothing says what it may send.
    UnknownLink = 0,
    /// Shorter than its headers say, or an IP header that is none.
    Malformed = 1,
    /// The source MAC is not the pod's.
    SourceMac = 2,
    /// The IPv4 source is not the pod's.
    SourceAddress = 3,
    /// An ARP sender address (hardware or IPv4) that is not the pod's.
    ArpSender = 4,
    /// No protocol that the pod has an address of (nor ARP): nothing could check the source, so it does not leave the pod.
    EtherType = 5,
    /// The IPv6 source is not the pod's.
    SourceAddress6 = 6,
    /// Neighbour discovery that speaks for another: a target or a link-layer address that is not the pod's.
    NeighbourSender = 7,
    /// What only a router says: router advertisement, redirect, MLD query and the like.
    RouterMessage = 8,
    /// IPv6 extension headers that could hide neighbour discovery: before such a message, too many, or cut off.
    ExtensionHeaders = 9,
    /// For 127.0.0.0/8: the node's own, whatever a sysctl lets through.
    LoopbackAddress = 10,
    /// For a frontend of traffic policy Local without a backend on this node.
    ServiceEmpty = 11,
    /// From a client outside of the load balancer's source ranges.
    SourceRange = 12,
    /// For or from a service, with headers that cannot be translated: IP options, extension headers, a cut-off transport header.
    ServiceHeaders = 13,
    /// A fragment for or from a service whose first one was not seen.
    ServiceFragment = 14,
    /// Every source port of source NAT towards this backend is taken.
    SnatPorts = 15,
    /// No room for the flow in conntrack.
    ConntrackFull = 16,
    /// Translated, and the host has no route for it.
    NoRoute = 17,
    /// Too long for direct server return; the sender is told the MTU.
    DsrTooBig = 18,
    /// For direct server return, and not from a node, or for no backend of this one.
    DsrSender = 19,
    /// For a backend that is gone, or a flow whose service is.
    NoBackend = 20,
    /// Translated, and too long for its next link; the sender is told the MTU.
    TooBig = 21,
    /// Of a connection that is not known, while flows are on their way from maps of another size: it comes again.
    Migrating = 22,
    /// By a fault that was injected into the service.
    Fault = 23,
}

impl DropReason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 24] = [
        Self::UnknownLink,
        Self::Malformed,
        Self::SourceMac,
        Self::SourceAddress,
        Self::ArpSender,
        Self::EtherType,
        Self::SourceAddress6,
        Self::NeighbourSender,
        Self::RouterMessage,
        Self::ExtensionHeaders,
        Self::LoopbackAddress,
        Self::ServiceEmpty,
        Self::SourceRange,
        Self::ServiceHeaders,
        Self::ServiceFragment,
        Self::SnatPorts,
        Self::ConntrackFull,
        Self::NoRoute,
        Self::DsrTooBig,
        Self::DsrSender,
        Self::NoBackend,
        Self::TooBig,
        Self::Migrating,
        Self::Fault,
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
            Self::SourceAddress6 => "source-address6",
            Self::NeighbourSender => "neighbour-sender",
            Self::RouterMessage => "router-message",
            Self::ExtensionHeaders => "extension-headers",
            Self::LoopbackAddress => "loopback-address",
            Self::ServiceEmpty => "service-empty",
            Self::SourceRange => "source-range",
            Self::ServiceHeaders => "service-headers",
            Self::ServiceFragment => "service-fragment",
            Self::SnatPorts => "snat-ports",
            Self::ConntrackFull => "conntrack-full",
            Self::NoRoute => "no-route",
            Self::DsrTooBig => "dsr-too-big",
            Self::DsrSender => "dsr-sender",
            Self::NoBackend => "no-backend",
            Self::TooBig => "too-big",
            Self::Migrating => "migrating",
            Self::Fault => "fault",
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

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
