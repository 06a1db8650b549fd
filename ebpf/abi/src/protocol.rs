// SPDX-License-Identifier: Apache-2.0
//! Transport protocols by their IP protocol numbers.

use core::fmt;

/// IP protocol number of TCP (RFC 9293).
pub const PROTO_TCP: u8 = 6;
/// IP protocol number of UDP (RFC 768).
pub const PROTO_UDP: u8 = 17;
/// IP protocol number of SCTP (RFC 9260).
pub const PROTO_SCTP: u8 = 132;
/// Protocol of a wildcard [`FrontendKey`](crate::FrontendKey): "any port of this address that is not listed".
pub const PROTO_WILDCARD: u8 = 0;

/// Transport protocols that a frontend may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Protocol {
    /// TCP, 6.
    Tcp = PROTO_TCP,
    /// UDP, 17.
    Udp = PROTO_UDP,
    /// SCTP, 132: packets only, no socket of it passes the cgroup programs.
    Sctp = PROTO_SCTP,
}

impl Protocol {
    /// The protocol with this IP protocol number, when it is one of ours.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            PROTO_TCP => Some(Self::Tcp),
            PROTO_UDP => Some(Self::Udp),
            PROTO_SCTP => Some(Self::Sctp),
            _ => None,
        }
    }

    /// The IP protocol number.
    pub const fn number(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(protocol_name(self.number()))
    }
}

/// A protocol number in words, for people.
pub(crate) const fn protocol_name(number: u8) -> &'static str {
    match number {
        PROTO_TCP => "tcp",
        PROTO_UDP => "udp",
        PROTO_SCTP => "sctp",
        PROTO_WILDCARD => "any",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_protocols_are_inverse() {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            assert_eq!(Protocol::from_number(protocol.number()), Some(protocol));
        }
        assert_eq!(Protocol::from_number(PROTO_WILDCARD), None);
    }
}
