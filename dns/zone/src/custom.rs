// SPDX-License-Identifier: Apache-2.0
//! Records of one's own, as configuration and store write them.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::skydns::Skydns;
use crate::{Name, RecordData, RecordType, Srv, Views};

/// RFC 2181, 8: the first bit is not for use.
pub(crate) const TTL_SECS_LARGEST: u32 = i32::MAX as u32;

/// A record that somebody wrote: not computed from services.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnRecord {
    /// Whose it is.
    pub name: Name,
    /// `None`: the zone's. More than 2³¹-1 is as much as that.
    pub ttl_secs: Option<u32>,
    /// Who may see it; `None`: everybody.
    pub views: Option<Views>,
    /// Its content.
    pub data: OwnData,
}

/// Content of such a record.
#[derive(Clone, Debug, PartialEq)]
pub enum OwnData {
    /// One record.
    Plain(RecordData),
    /// What SkyDNS makes of one: several kinds of records.
    Skydns(Skydns),
}

/// With the key or place that it came from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Own {
    pub(crate) source: Arc<str>,
    pub(crate) record: Arc<OwnRecord>,
}

impl Own {
    pub(crate) fn is_seen_by(&self, client: Option<&crate::Client>) -> bool {
        self.record.views.as_ref().is_none_or(|views| views.admit(client))
    }
}

/// A record in the configuration or the store: `{"name": "printer.example.com", "type": "A", "data": "192.0.2.7"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordSpec {
    /// Domain name, with or without the final dot.
    pub name: String,
    /// `A`, `AAAA`, `CNAME`, `MX`, `PTR`, `SRV` or `TXT`.
    #[serde(rename = "type")]
    pub record_type: String,
    /// As in a zone file: `10 mail.example.com` for MX, `PRIORITY WEIGHT PORT TARGET` for SRV, the bare text for TXT.
    pub data: String,
    /// Seconds, up to 2³¹-1; the zone's TTL without.
    #[serde(default, alias = "ttl-secs", skip_serializing_if = "Option::is_none")]
    pub ttl_secs: Option<u32>,
    /// Who may see it, as in `weft.dev/dns-views`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub views: Option<String>,
}

/// What is wrong with a record, link or rewrite. Displays the field and why.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{field}: {reason}")]
pub struct SpecError {
    /// Name of the field.
    pub field: &'static str,
    /// What is wrong with its value.
    pub reason: String,
}

/// For `map_err`: the field that an error is about.
pub(crate) fn of<E: ToString>(field: &'static str) -> impl Fn(E) -> SpecError {
    move |error| SpecError { field, reason: error.to_string() }
}

impl RecordSpec {
    /// The record.
    ///
    /// # Errors
    /// Names the first field that is wrong.
    pub fn parse(&self) -> Result<OwnRecord, SpecError> {
        let name = Name::parse(&self.name).map_err(of("name"))?;
        if name == Name::root() {
            return Err(of("name")("is the root"));
        }
        let views = self.views.as_deref().map(Views::parse).transpose().map_err(of("views"))?;
        if let Some(secs) = self.ttl_secs.filter(|secs| *secs > TTL_SECS_LARGEST) {
            return Err(of("ttl_secs")(format!("{secs} is more than {TTL_SECS_LARGEST}")));
        }
        let data = OwnData::Plain(self.parse_data()?);
        Ok(OwnRecord { name, ttl_secs: self.ttl_secs, views, data })
    }

    fn parse_data(&self) -> Result<RecordData, SpecError> {
        let text = self.data.as_str();
        let words: Vec<&str> = text.split_whitespace().collect();
        let wanted = |form: &str| of("data")(format!("{text:?} is not {form}"));
        let number = |word: &str| word.parse::<u16>().map_err(|e| of("data")(format!("{word:?}: {e}")));
        let name = |word: &str| Name::parse(word).map_err(of("data"));
        match (RecordType::parse(&self.record_type), words.as_slice()) {
            (Some(RecordType::A), _) => {
                text.parse().map(RecordData::A).map_err(|_| wanted("an IPv4 address"))
            }
            (Some(RecordType::AAAA), _) => {
                text.parse().map(RecordData::Aaaa).map_err(|_| wanted("an IPv6 address"))
            }
            (Some(RecordType::CNAME), [target]) => Ok(RecordData::Cname(name(target)?)),
            (Some(RecordType::PTR), [target]) => Ok(RecordData::Ptr(name(target)?)),
            (Some(RecordType::CNAME | RecordType::PTR), _) => Err(wanted("one name")),
            (Some(RecordType::MX), [preference, exchange]) => {
                Ok(RecordData::Mx { preference: number(preference)?, exchange: name(exchange)? })
            }
            (Some(RecordType::MX), _) => Err(wanted("PREFERENCE EXCHANGE")),
            (Some(RecordType::SRV), [priority, weight, port, target]) => Ok(RecordData::Srv(Srv {
                priority: number(priority)?,
                weight: number(weight)?,
                port: number(port)?,
                target: name(target)?,
            })),
            (Some(RecordType::SRV), _) => Err(wanted("PRIORITY WEIGHT PORT TARGET")),
            (Some(RecordType::TXT), _) => Ok(RecordData::Txt(text.to_owned())),
            _ => {
                let known = "A, AAAA, CNAME, MX, PTR, SRV or TXT";
                Err(of("type")(format!("{:?} is not one of {known}", self.record_type)))
            }
        }
    }
}

impl OwnRecord {
    /// For everybody, with the zone's TTL.
    #[must_use]
    pub fn address(name: Name, ip: IpAddr) -> Self {
        Self { name, ttl_secs: None, views: None, data: OwnData::Plain(ip.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, record_type: &str, data: &str) -> RecordSpec {
        let [name, record_type, data] = [name, record_type, data].map(str::to_owned);
        RecordSpec { name, record_type, data, ttl_secs: Some(60), views: None }
    }

    #[test]
    fn records_are_read_as_in_a_zone_file() {
        for (record_type, data, shown) in [
            ("A", "192.0.2.7", "192.0.2.7"),
            ("AAAA", "2001:db8::7", "2001:db8::7"),
            ("CNAME", "web.example.com", "web.example.com."),
            ("MX", "10 mail.example.com", "10 mail.example.com."),
            ("PTR", "web.example.com.", "web.example.com."),
            ("SRV", "0 100 80 web.example.com", "0 100 80 web.example.com."),
            ("TXT", "v=spf1 -all", "\"v=spf1 -all\""),
        ] {
            let record = spec("a.example.com", record_type, data).parse().unwrap();
            let OwnData::Plain(parsed) = record.data else { panic!("not plain") };
            assert_eq!(
                (parsed.to_string().as_str(), parsed.record_type()),
                (shown, RecordType::parse(record_type).unwrap())
            );
        }
    }

    #[test]
    fn the_wrong_field_is_named() {
        for (spec, expected) in [
            (spec("a..b", "A", "1.2.3.4"), "name: \"a.\" has an empty label"),
            (spec(".", "A", "1.2.3.4"), "name: is the root"),
            (spec("a", "NAPTR", "x"), "type: \"NAPTR\" is not one of A, AAAA, CNAME, MX, PTR, SRV or TXT"),
            (spec("a", "A", "::1"), "data: \"::1\" is not an IPv4 address"),
            (spec("a", "MX", "mail"), "data: \"mail\" is not PREFERENCE EXCHANGE"),
            (spec("a", "SRV", "0 0 99999 b"), "data: \"99999\": number too large to fit in target type"),
            (
                RecordSpec { ttl_secs: Some(1 << 31), ..spec("a", "TXT", "") },
                "ttl_secs: 2147483648 is more than 2147483647",
            ),
            (
                RecordSpec { views: Some("a,,b".into()), ..spec("a", "TXT", "") },
                "views: rule 1 of \"a,,b\": is empty; write \
                for instance `namespace=shop; app=web,tier`",
            ),
        ] {
            assert_eq!(spec.parse().unwrap_err().to_string(), expected);
        }
    }
}
