// SPDX-License-Identifier: Apache-2.0
//! What the programs count besides drops and services.

use core::fmt;

/// Something worth a metric; the number is the index in COUNTERS (per CPU, `u64`) and never changes its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Counter {
    /// A connection went on without an entry in SOCKETS: the map is full. Its peer is the backend, and it stays when the
    /// backend is removed.
    SocketsFull = 0,
    /// A bind to a node port, refused with EADDRINUSE.
    BindConflict = 1,
    /// A flow found no room in conntrack.
    CtFull = 2,
    /// No source port was free for source NAT.
    SnatPortExhausted = 3,
    /// A fragment whose first one was not seen.
    FragmentUnknown = 4,
    /// An ICMP error, mapped back to the address that its reader knows.
    IcmpMapped = 5,
    /// An ICMP error about a flow that is not known.
    IcmpUnknown = 6,
    /// A packet too long for direct server return, answered with its MTU.
    DsrTooBig = 7,
    /// A flow that got another source port, because one with the same addresses and ports was there.
    PortMoved = 8,
    /// A packet to a frontend without backends, handed to the stack to be refused.
    Refused = 9,
    /// A host route that led nowhere for a translated packet.
    NoRoute = 10,
    /// A translated packet too long for its next link, answered with that link's MTU.
    TooBig = 11,
    /// A flow that began: an entry of the packet path for each direction.
    FlowBegun = 12,
    /// A flow that moved to CT_LIVE: both sides have spoken, and the client again.
    FlowEstablished = 13,
    /// A packet wrapped for the backend's node, which answers directly.
    DsrWrapped = 14,
    /// A packet that came wrapped from another node.
    DsrUnwrapped = 15,
}

impl Counter {
    /// Every counter, in the order of their numbers.
    pub const ALL: [Self; 16] = [
        Self::SocketsFull,
        Self::BindConflict,
        Self::CtFull,
        Self::SnatPortExhausted,
        Self::FragmentUnknown,
        Self::IcmpMapped,
        Self::IcmpUnknown,
        Self::DsrTooBig,
        Self::PortMoved,
        Self::Refused,
        Self::NoRoute,
        Self::TooBig,
        Self::FlowBegun,
        Self::FlowEstablished,
        Self::DsrWrapped,
        Self::DsrUnwrapped,
    ];

    /// The index in COUNTERS.
    pub const fn index(self) -> u32 {
        self as u32
    }

    /// A short name for logs and metric labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SocketsFull => "sockets-full",
            Self::BindConflict => "bind-conflict",
            Self::CtFull => "conntrack-full",
            Self::SnatPortExhausted => "snat-port-exhausted",
            Self::FragmentUnknown => "fragment-unknown",
            Self::IcmpMapped => "icmp-mapped",
            Self::IcmpUnknown => "icmp-unknown",
            Self::DsrTooBig => "dsr-too-big",
            Self::PortMoved => "port-moved",
            Self::Refused => "refused",
            Self::NoRoute => "no-route",
            Self::TooBig => "too-big",
            Self::FlowBegun => "flow-begun",
            Self::FlowEstablished => "flow-established",
            Self::DsrWrapped => "dsr-wrapped",
            Self::DsrUnwrapped => "dsr-unwrapped",
        }
    }
}

impl fmt::Display for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_stand_at_their_own_index() {
        for (index, counter) in Counter::ALL.into_iter().enumerate() {
            assert_eq!(counter.index() as usize, index);
        }
        assert!(Counter::ALL.len() <= crate::limits::COUNTERS_MAX as usize);
    }
}
