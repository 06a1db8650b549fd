// SPDX-License-Identifier: Apache-2.0
//! The record types a service zone needs.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Name;

/// One resource record of class IN. Displays as in a zone file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// Owner; of the question's name in the question's case.
    pub name: Name,
    /// Seconds a resolver may keep it.
    pub ttl_secs: u32,
    /// Type and content.
    pub data: RecordData,
}

/// Type and content of a record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordData {
    /// IPv4 address (RFC 1035).
    A(Ipv4Addr),
    /// IPv6 address (RFC 3596).
    Aaaa(Ipv6Addr),
    /// The name that this one stands for (RFC 1035).
    Cname(Name),
    /// Mail exchange (RFC 1035).
    Mx {
        /// Lower is tried first.
        preference: u16,
        /// Who takes the mail.
        exchange: Name,
    },
    /// Name server (RFC 1035).
    Ns(Name),
    /// Of a type that this crate has no words for (RFC 3597).
    Other {
        /// Its type.
        record_type: RecordType,
        /// Its data on the wire, without compressed names.
        data: Box<[u8]>,
    },
    /// Name of an address (RFC 1035).
    Ptr(Name),
    /// Start of authority (RFC 1035).
    Soa(Soa),
    /// Where a named port is (RFC 2782).
    Srv(Srv),
    /// Text (RFC 1035); in strings of 255 octets on the wire.
    Txt(String),
}

/// Start of authority (RFC 1035, 3.3.13); times in seconds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Soa {
    /// Primary name server.
    pub mname: Name,
    /// Mailbox of the responsible person, its first dot for the `@`.
    pub rname: Name,
    /// Low 32 bits of the table's revision.
    pub serial: u32,
    /// For secondaries, of which there are none.
    pub refresh_secs: u32,
    /// For secondaries, of which there are none.
    pub retry_secs: u32,
    /// For secondaries, of which there are none.
    pub expire_secs: u32,
    /// How long "there is no such thing" may be kept (RFC 2308).
    pub minimum_secs: u32,
}

/// Location of a service (RFC 2782).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Srv {
    /// Lower is tried first.
    pub priority: u16,
    /// Share among equal priorities.
    pub weight: u16,
    /// Port on the target.
    pub port: u16,
    /// Name with the addresses.
    pub target: Name,
}

/// Type of a record or question, by its number in the IANA registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordType(pub u16);

impl RecordType {
    /// IPv4 address.
    pub const A: Self = Self(1);
    /// IPv6 address.
    pub const AAAA: Self = Self(28);
    /// Question only: anything there is (RFC 8482).
    pub const ANY: Self = Self(255);
    /// Question only: a whole zone.
    pub const AXFR: Self = Self(252);
    /// Alias.
    pub const CNAME: Self = Self(5);
    /// Question only: what changed in a zone.
    pub const IXFR: Self = Self(251);
    /// Mail exchange.
    pub const MX: Self = Self(15);
    /// Name server.
    pub const NS: Self = Self(2);
    /// EDNS (RFC 6891); no question.
    pub const OPT: Self = Self(41);
    /// Name of an address.
    pub const PTR: Self = Self(12);
    /// Start of authority.
    pub const SOA: Self = Self(6);
    /// Location of a service.
    pub const SRV: Self = Self(33);
    /// Text.
    pub const TXT: Self = Self(16);

    const NAMES: [(Self, &'static str); 13] = [
        (Self::A, "A"),
        (Self::AAAA, "AAAA"),
        (Self::ANY, "ANY"),
        (Self::AXFR, "AXFR"),
        (Self::CNAME, "CNAME"),
        (Self::IXFR, "IXFR"),
        (Self::MX, "MX"),
        (Self::NS, "NS"),
        (Self::OPT, "OPT"),
        (Self::PTR, "PTR"),
        (Self::SOA, "SOA"),
        (Self::SRV, "SRV"),
        (Self::TXT, "TXT"),
    ];

    /// By mnemonic; `TYPE65` for others (RFC 3597).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let known = Self::NAMES.iter().find(|(_, name)| *name == text).map(|(number, _)| *number);
        known.or_else(|| Some(Self(text.strip_prefix("TYPE")?.parse().ok()?)))
    }
}

impl fmt::Display for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMES.iter().find(|(number, _)| number == self) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "TYPE{}", self.0),
        }
    }
}

impl RecordData {
    /// Number of the type.
    #[must_use]
    pub fn record_type(&self) -> RecordType {
        match self {
            Self::A(_) => RecordType::A,
            Self::Aaaa(_) => RecordType::AAAA,
            Self::Cname(_) => RecordType::CNAME,
            Self::Mx { .. } => RecordType::MX,
            Self::Ns(_) => RecordType::NS,
            Self::Other { record_type, .. } => *record_type,
            Self::Ptr(_) => RecordType::PTR,
            Self::Soa(_) => RecordType::SOA,
            Self::Srv(_) => RecordType::SRV,
            Self::Txt(_) => RecordType::TXT,
        }
    }
}

impl From<IpAddr> for RecordData {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::A(v4),
            IpAddr::V6(v6) => Self::Aaaa(v6),
        }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} IN {} {}", self.name, self.ttl_secs, self.data.record_type(), self.data)
    }
}

impl fmt::Display for RecordData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::A(ip) => ip.fmt(f),
            Self::Aaaa(ip) => ip.fmt(f),
            Self::Cname(name) | Self::Ns(name) | Self::Ptr(name) => name.fmt(f),
            Self::Mx { preference, exchange } => write!(f, "{preference} {exchange}"),
            Self::Other { data, .. } => {
                write!(f, "\\# {}", data.len())?;
                if !data.is_empty() {
                    f.write_str(" ")?;
                }
                data.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
            }
            Self::Soa(soa) => write!(
                f,
                "{} {} {} {} {} {} {}",
                soa.mname,
                soa.rname,
                soa.serial,
                soa.refresh_secs,
                soa.retry_secs,
                soa.expire_secs,
                soa.minimum_secs
            ),
            Self::Srv(srv) => write!(f, "{} {} {} {}", srv.priority, srv.weight, srv.port, srv.target),
            Self::Txt(text) => write!(f, "{text:?}"),
        }
    }
}
