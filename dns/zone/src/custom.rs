// SPDX-License-Identifier: Apache-2.0
//! Records of one's own, as configuration and store write them.

use std::net::IpAddr;
use std::sync::Arc;

use serde::de::{Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

use crate::skydns::Skydns;
use crate::{Name, RecordData, RecordType, Srv, Views};

/// RFC 2181, 8: the first bit is not for use.
pub(crate) const TTL_SECS_LARGEST: u32 = i32::MAX as u32;

/// Of what somebody writes: a day. Past it a change is not seen for longer than anyone waits.
const TTL_SECS_MAX: u32 = 86_400;

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
    /// Domain name, with or without the final dot. No wildcard.
    pub name: String,
    /// `A`, `AAAA`, `CNAME`, `MX`, `PTR`, `SRV` or `TXT`, in any case.
    #[serde(rename = "type")]
    pub record_type: String,
    /// As in a zone file: `10 mail.example.com` for MX, `PRIORITY WEIGHT PORT TARGET` for SRV, the bare text for TXT.
    pub data: String,
    /// Seconds, up to 86,400; the zone's TTL without.
    #[serde(
        default,
        alias = "ttl-secs",
        deserialize_with = "ttl_secs",
        skip_serializing_if = "Option::is_none"
    )]
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

/// Says of which field a number is wanted: serde names none.
fn ttl_secs<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Seconds {
        Number(u32),
        Other(IgnoredAny),
    }
    match Option::<Seconds>::deserialize(from)? {
        None => Ok(None),
        Some(Seconds::Number(secs)) => Ok(Some(secs)),
        Some(Seconds::Other(_)) => Err(D::Error::custom(format!(
            "ttl_secs: is no number of seconds; write one from 0 to {TTL_SECS_MAX}, without quotes"
        ))),
    }
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
        if name.labels().any(|label| label == b"*") {
            let reason =
                format!("{:?} has a `*`: there are no wildcards; write a record for each name", self.name);
            return Err(of("name")(reason));
        }
        let views = self.views.as_deref().map(Views::parse).transpose().map_err(of("views"))?;
        if let Some(secs) = self.ttl_secs.filter(|secs| *secs > TTL_SECS_MAX) {
            return Err(of("ttl_secs")(format!("{secs} is more than a day; write {TTL_SECS_MAX} at most")));
        }
        let data = self.parse_data()?;
        if matches!(&data, RecordData::Cname(target) if *target == name) {
            return Err(of("data")("is the name itself; write the name that it is to stand for"));
        }
        Ok(OwnRecord { name, ttl_secs: self.ttl_secs, views, data: OwnData::Plain(data) })
    }

    fn parse_data(&self) -> Result<RecordData, SpecError> {
        let text = self.data.as_str();
        let words: Vec<&str> = text.split_whitespace().collect();
        let wanted = |form: &str| of("data")(format!("{text:?} is not {form}"));
        let number = |word: &str| word.parse::<u16>().map_err(|e| of("data")(format!("{word:?}: {e}")));
        let name = |word: &str| Name::parse(word).map_err(of("data"));
        match (RecordType::parse(&self.record_type.to_ascii_uppercase()), words.as_slice()) {
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
            ("a", "192.0.2.7", "192.0.2.7"),
            ("cName", "web.example.com", "web.example.com."),
        ] {
            let record = spec("a.example.com", record_type, data).parse().unwrap();
            let OwnData::Plain(parsed) = record.data else { panic!("not plain") };
            assert_eq!(
                (parsed.to_string().as_str(), parsed.record_type()),
                (shown, RecordType::parse(&record_type.to_ascii_uppercase()).unwrap())
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
                RecordSpec { ttl_secs: Some(86_401), ..spec("a", "TXT", "") },
                "ttl_secs: 86401 is more than a day; write 86400 at most",
            ),
            (
                spec("*.a", "A", "1.2.3.4"),
                "name: \"*.a\" has a `*`: there are no wildcards; write a record for each name",
            ),
            (
                spec("a.*.b", "A", "1.2.3.4"),
                "name: \"a.*.b\" has a `*`: there are no wildcards; write a record for each name",
            ),
            (
                spec("a.b", "cname", "A.b."),
                "data: is the name itself; write the name that it is to stand for",
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

    #[test]
    fn a_ttl_is_a_number_and_the_field_is_named_where_it_is_none() {
        let read = |ttl: &str| {
            let text = format!(r#"{{"name": "a", "type": "a", "data": "192.0.2.7", "ttl_secs": {ttl}}}"#);
            serde_json::from_str::<RecordSpec>(&text).map_err(|error| error.to_string())
        };
        for (ttl, expected) in [("86400", Some(86_400)), ("0", Some(0)), ("null", None)] {
            let spec = read(ttl).unwrap();
            assert_eq!(spec.ttl_secs, expected);
            assert_eq!(spec.parse().unwrap().ttl_secs, expected);
        }
        for ttl in [r#""60""#, "-1", "1.5", "[60]", "99999999999"] {
            let error = read(ttl).unwrap_err();
            let expected = "ttl_secs: is no number of seconds; write one from 0 to 86400, without quotes";
            assert!(error.starts_with(expected), "{ttl}: {error}");
        }
        let without =
            serde_json::from_str::<RecordSpec>(r#"{"name": "a", "type": "A", "data": "192.0.2.7"}"#);
        assert_eq!(without.unwrap().ttl_secs, None);
    }
}
