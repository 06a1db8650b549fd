// SPDX-License-Identifier: Apache-2.0
//! Records on their way from the zone into an answer, borrowed: one decision (`resolve.rs`) fills packets (`encode.rs`) and
//! values (`collect.rs`) alike.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{Name, Record, RecordData, RecordType};

/// Octets of a name on the wire.
pub(crate) const NAME_MAX: usize = 255;
/// Octets of an address as a label: eight groups of four and their dashes.
pub(crate) const IP_LABEL_MAX: usize = 40;

/// Takes an answer, record by record.
pub(crate) trait Sink {
    /// For the answer section. `false`: it is full, and no further one will fit.
    fn answer(&mut self, owner: Owner<'_>, ttl_secs: u32, data: Data<'_>) -> bool;
    /// For the authority section.
    fn authority(&mut self, owner: NameRef<'_>, ttl_secs: u32, data: Data<'_>);
    /// For the additional section: all addresses of a name, or none. `false`: they do not fit, and hardly will those of others.
    fn additional(
        &mut self,
        owner: NameRef<'_>,
        ttl_secs: u32,
        addresses: impl Iterator<Item = IpAddr>,
    ) -> bool;
    /// Why the answer is as it is; for people.
    fn note(&mut self, _note: Note<'_>) {}
}

/// Whom a record of the answer section belongs to.
#[derive(Clone, Copy)]
pub(crate) enum Owner<'a> {
    Name(NameRef<'a>),
    /// The name asked, in the case that it was asked in.
    Question,
}

/// A name, or a label in front of one.
#[derive(Clone, Copy)]
pub(crate) struct NameRef<'a> {
    pub(crate) label: Label<'a>,
    pub(crate) rest: &'a [u8],
}

#[derive(Clone, Copy)]
pub(crate) enum Label<'a> {
    /// An address as a label: `10-244-0-7`.
    Ip(IpAddr),
    None,
    Text(&'a [u8]),
}

/// Content of a record.
#[derive(Clone, Copy)]
pub(crate) enum Data<'a> {
    A(Ipv4Addr),
    Aaaa(Ipv6Addr),
    Cname(NameRef<'a>),
    Mx { preference: u16, exchange: NameRef<'a> },
    Ns(NameRef<'a>),
    Other { record_type: RecordType, data: &'a [u8] },
    Ptr(NameRef<'a>),
    Soa { mname: NameRef<'a>, rname: NameRef<'a>, numbers: [u32; 5] },
    Srv { priority: u16, weight: u16, port: u16, target: NameRef<'a> },
    Txt(&'a str),
}

/// A step on the way to an answer.
#[derive(Clone, Copy)]
pub(crate) enum Note<'a> {
    /// A shorter name of the search path was meant.
    Autopath { target: NameRef<'a> },
    /// Aliases lead back to a name that they came from, or are more than `most`.
    Circle { most: usize },
    /// Of the records of one's own below a name only the first were looked at.
    Cut,
    /// There is such a Service, and this client may not see it.
    Hidden { service: &'a Name },
    /// An alias that a Service has.
    Alias { target: NameRef<'a> },
    /// A link or a rewrite of the configuration.
    Redirected { target: NameRef<'a> },
    /// The answer comes from this Service.
    Service { service: &'a Name },
    /// A Service's backend that is not named.
    LeftOut { address: IpAddr, reason: &'a str },
}

impl<'a> NameRef<'a> {
    /// Of a whole name in wire form.
    pub(crate) fn whole(wire: &'a [u8]) -> Self {
        Self { label: Label::None, rest: wire }
    }

    /// In one piece. What does not fit is left without its label: the builders of names see to it that all fit.
    pub(crate) fn write<'b>(&self, buffer: &'b mut [u8; NAME_MAX]) -> &'b [u8] {
        let mut label = [0; IP_LABEL_MAX];
        let label = match self.label {
            Label::Ip(ip) => ip_label(ip, &mut label),
            Label::None => &[],
            Label::Text(text) => text,
        };
        let front = if label.is_empty() { 0 } else { 1 + label.len() };
        let whole = front + self.rest.len() <= NAME_MAX && label.len() < 64;
        // Without its label it would be the name of something else.
        debug_assert!(whole, "a name of more than {NAME_MAX} octets");
        let front = if whole { front } else { 0 };
        if front > 0 {
            buffer[0] = label.len() as u8;
            buffer[1..front].copy_from_slice(label);
        }
        let len = (front + self.rest.len()).min(NAME_MAX);
        buffer[front..len].copy_from_slice(&self.rest[..len - front]);
        &buffer[..len]
    }

    /// As a value. Allocates.
    pub(crate) fn to_name(self) -> Name {
        Name::from_wire(self.write(&mut [0; NAME_MAX])).unwrap_or_else(|_| Name::root())
    }
}

impl<'a> From<&'a Name> for NameRef<'a> {
    fn from(name: &'a Name) -> Self {
        Self::whole(name.as_wire())
    }
}

/// `10-244-0-7`, `fd00-10-244--7`.
pub(crate) fn ip_label(ip: IpAddr, buffer: &mut [u8; IP_LABEL_MAX]) -> &[u8] {
    let mut rest = &mut buffer[..];
    // An address is shorter than the buffer.
    let _ = write!(rest, "{ip}");
    let len = IP_LABEL_MAX - rest.len();
    let label = &mut buffer[..len];
    label.iter_mut().filter(|octet| matches!(octet, b'.' | b':')).for_each(|octet| *octet = b'-');
    label
}

/// The address that a label stands for, whichever way it is written.
pub(crate) fn ip_of_label(label: &[u8]) -> Option<IpAddr> {
    let mut buffer = [0; IP_LABEL_MAX];
    let text = buffer.get_mut(..label.len())?;
    text.copy_from_slice(label);
    let is_v4 = label.iter().filter(|octet| **octet == b'-').count() == 3
        && !label.windows(2).any(|two| two == b"--");
    let separator = if is_v4 { b'.' } else { b':' };
    for octet in text.iter_mut() {
        match *octet {
            b'-' => *octet = separator,
            // Dots in a label are not those of an address.
            b'.' | b':' => return None,
            _ => {}
        }
    }
    let text = std::str::from_utf8(text).ok()?;
    if is_v4 { text.parse().ok().map(IpAddr::V4) } else { text.parse().ok().map(IpAddr::V6) }
}

impl From<IpAddr> for Data<'_> {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::A(v4),
            IpAddr::V6(v6) => Self::Aaaa(v6),
        }
    }
}

impl<'a> From<&'a RecordData> for Data<'a> {
    fn from(data: &'a RecordData) -> Self {
        match data {
            RecordData::A(ip) => Self::A(*ip),
            RecordData::Aaaa(ip) => Self::Aaaa(*ip),
            RecordData::Cname(name) => Self::Cname(name.into()),
            RecordData::Mx { preference, exchange } => {
                Self::Mx { preference: *preference, exchange: exchange.into() }
            }
            RecordData::Ns(name) => Self::Ns(name.into()),
            RecordData::Other { record_type, data } => Self::Other { record_type: *record_type, data },
            RecordData::Ptr(name) => Self::Ptr(name.into()),
            RecordData::Soa(soa) => Self::Soa {
                mname: (&soa.mname).into(),
                rname: (&soa.rname).into(),
                numbers: [soa.serial, soa.refresh_secs, soa.retry_secs, soa.expire_secs, soa.minimum_secs],
            },
            RecordData::Srv(srv) => Self::Srv {
                priority: srv.priority,
                weight: srv.weight,
                port: srv.port,
                target: (&srv.target).into(),
            },
            RecordData::Txt(text) => Self::Txt(text),
        }
    }
}

impl Data<'_> {
    pub(crate) fn record_type(&self) -> RecordType {
        match self {
            Self::A(_) => RecordType::A,
            Self::Aaaa(_) => RecordType::AAAA,
            Self::Cname(_) => RecordType::CNAME,
            Self::Mx { .. } => RecordType::MX,
            Self::Ns(_) => RecordType::NS,
            Self::Other { record_type, .. } => *record_type,
            Self::Ptr(_) => RecordType::PTR,
            Self::Soa { .. } => RecordType::SOA,
            Self::Srv { .. } => RecordType::SRV,
            Self::Txt(_) => RecordType::TXT,
        }
    }

    /// As a value. Allocates.
    pub(crate) fn to_data(self) -> RecordData {
        match self {
            Self::A(ip) => RecordData::A(ip),
            Self::Aaaa(ip) => RecordData::Aaaa(ip),
            Self::Cname(name) => RecordData::Cname(name.to_name()),
            Self::Mx { preference, exchange } => RecordData::Mx { preference, exchange: exchange.to_name() },
            Self::Ns(name) => RecordData::Ns(name.to_name()),
            Self::Other { record_type, data } => RecordData::Other { record_type, data: data.into() },
            Self::Ptr(name) => RecordData::Ptr(name.to_name()),
            Self::Soa {
                mname,
                rname,
                numbers: [serial, refresh_secs, retry_secs, expire_secs, minimum_secs],
            } => {
                let (mname, rname) = (mname.to_name(), rname.to_name());
                RecordData::Soa(crate::Soa {
                    mname,
                    rname,
                    serial,
                    refresh_secs,
                    retry_secs,
                    expire_secs,
                    minimum_secs,
                })
            }
            Self::Srv { priority, weight, port, target } => {
                RecordData::Srv(crate::Srv { priority, weight, port, target: target.to_name() })
            }
            Self::Txt(text) => RecordData::Txt(text.to_owned()),
        }
    }
}

/// A record as a value. Allocates.
pub(crate) fn record(owner: NameRef<'_>, ttl_secs: u32, data: Data<'_>) -> Record {
    Record { name: owner.to_name(), ttl_secs, data: data.to_data() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_address_is_found_again_by_its_label(ip: IpAddr) {
            let mut buffer = [0; IP_LABEL_MAX];
            let label = ip_label(ip, &mut buffer).to_vec();
            prop_assert_eq!(String::from_utf8(label.clone()).unwrap(), ip.to_string().replace(['.', ':'], "-"));
            // An IPv6 address that shows its last 32 bits in dots has too many dashes for one of IPv4.
            if !ip.to_string().contains('.') || ip.is_ipv4() {
                prop_assert_eq!(ip_of_label(&label), Some(ip));
            }
        }

        #[test]
        fn any_label_is_an_address_or_none(label in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = ip_of_label(&label);
        }
    }
}
