// SPDX-License-Identifier: Apache-2.0
//! SkyDNS records as they lie in etcd (<https://coredns.io/plugins/etcd/>, <https://github.com/skynetservices/skydns>):
//! `/skydns/local/cluster/web/x1` holds JSON for `x1.web.cluster.local`. external-dns' CoreDNS provider writes them.

use std::net::IpAddr;

use serde_json::{Map, Value};
use thiserror::Error;

use crate::{Name, NameError, OwnData, OwnRecord};

/// Where CoreDNS and external-dns keep them.
pub const SKYDNS_PREFIX: &str = "/skydns";

/// What CoreDNS takes where a record names none.
const PRIORITY: u16 = 10;
/// Shared equally.
const WEIGHT: u16 = 100;

/// One SkyDNS record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skydns {
    /// Where it leads.
    pub host: Option<SkydnsHost>,
    /// For SRV.
    pub port: u16,
    /// For SRV and MX: lower is tried first.
    pub priority: u16,
    /// For SRV: share among equal priorities.
    pub weight: u16,
    /// For TXT.
    pub text: Option<String>,
    /// The host takes mail.
    pub mail: bool,
    /// Labels that go from the front of its name where that is a target of SRV.
    pub targetstrip: usize,
    /// Records of other groups beside it are not shown with it.
    pub group: Option<String>,
}

/// Where a record leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SkydnsHost {
    /// A, AAAA.
    Ip(IpAddr),
    /// CNAME, SRV, MX, PTR.
    Name(Name),
}

/// Why a key and its value are no record.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SkydnsError {
    /// A field has a value that it cannot have.
    #[error("field {field}: {reason}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Not below the prefix, or not made of labels.
    #[error("the key is not {prefix}/LABEL…: {reason}")]
    Key {
        /// Where such keys lie.
        prefix: String,
        /// What is wrong.
        reason: String,
    },
    /// The value is not a JSON object.
    #[error("the value is not a JSON object: {0}")]
    Value(String),
}

/// Reads one record. `prefix`: [`SKYDNS_PREFIX`], or another one that the cluster uses.
///
/// # Errors
/// Says what is wrong with the key or which field of the value; other records are not touched by it.
pub fn parse_skydns(key: &str, value: &[u8], prefix: &str) -> Result<OwnRecord, SkydnsError> {
    let name = name(key, prefix).map_err(|reason| SkydnsError::Key { prefix: prefix.to_owned(), reason })?;
    let value: Value = serde_json::from_slice(value).map_err(|e| SkydnsError::Value(e.to_string()))?;
    let Value::Object(fields) = value else {
        return Err(SkydnsError::Value("it is something else".to_owned()));
    };
    let ttl_secs = number(&fields, "ttl")?.filter(|ttl| *ttl > 0);
    let weight = number(&fields, "weight")?.filter(|weight| *weight > 0);
    let record = Skydns {
        host: text(&fields, "host")?.map(host).transpose()?,
        port: number(&fields, "port")?.unwrap_or(0),
        priority: number(&fields, "priority")?.filter(|priority| *priority > 0).unwrap_or(PRIORITY),
        weight: weight.unwrap_or(WEIGHT),
        text: text(&fields, "text")?.map(str::to_owned),
        mail: flag(&fields, "mail")?,
        targetstrip: number::<u8>(&fields, "targetstrip")?.unwrap_or(0).into(),
        group: text(&fields, "group")?.map(str::to_owned),
    };
    if record.host.is_none() && record.text.is_none() {
        return Err(SkydnsError::Field {
            field: "host",
            reason: "missing, and there is no text either".to_owned(),
        });
    }
    Ok(OwnRecord { name, ttl_secs, views: None, data: OwnData::Skydns(record) })
}

/// Labels of a key stand in the order of a path: the top one first.
fn name(key: &str, prefix: &str) -> Result<Name, String> {
    let path = key.strip_prefix(prefix).and_then(|path| path.strip_prefix('/')).ok_or("it lies elsewhere")?;
    let labels = path.trim_end_matches('/').split('/').rev();
    if let Some(dotted) = labels.clone().find(|label| label.contains('.')) {
        return Err(NameError::LabelWithDot(dotted.to_owned()).to_string());
    }
    Name::from_labels(labels.map(str::as_bytes)).map_err(|e| e.to_string())
}

fn host(text: &str) -> Result<SkydnsHost, SkydnsError> {
    match text.parse() {
        Ok(ip) => Ok(SkydnsHost::Ip(ip)),
        Err(_) => match Name::parse(text) {
            Ok(name) if name != Name::root() => Ok(SkydnsHost::Name(name)),
            Ok(_) => Err(wrong("host", "is the root")),
            Err(error) => Err(wrong("host", error)),
        },
    }
}

/// `null` and the empty text are as good as nothing.
fn text<'v>(fields: &'v Map<String, Value>, field: &'static str) -> Result<Option<&'v str>, SkydnsError> {
    match fields.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
        Some(other) => Err(wrong(field, format!("{other} is not a text"))),
    }
}

fn number<N: TryFrom<u64>>(
    fields: &Map<String, Value>,
    field: &'static str,
) -> Result<Option<N>, SkydnsError> {
    let value = match fields.get(field) {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value,
    };
    let number = value.as_u64().and_then(|number| N::try_from(number).ok());
    number.map(Some).ok_or_else(|| wrong(field, format!("{value} is not a number that fits")))
}

fn flag(fields: &Map<String, Value>, field: &'static str) -> Result<bool, SkydnsError> {
    match fields.get(field) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => Err(wrong(field, format!("{other} is neither true nor false"))),
    }
}

fn wrong(field: &'static str, reason: impl ToString) -> SkydnsError {
    SkydnsError::Field { field, reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_external_dns_is_read() {
        let value =
            br#"{"host":"192.0.2.7","text":"\"heritage=external-dns\"","targetstrip":1,"ttl":30,"new":1}"#;
        let record = parse_skydns("/skydns/org/example/nginx/2f7a", value, SKYDNS_PREFIX).unwrap();
        assert_eq!(
            (record.name.to_string().as_str(), record.ttl_secs),
            ("2f7a.nginx.example.org.", Some(30))
        );
        let OwnData::Skydns(record) = record.data else { panic!("plain") };
        assert_eq!(record.host, Some(SkydnsHost::Ip("192.0.2.7".parse().unwrap())));
        assert_eq!((record.targetstrip, record.priority, record.weight), (1, 10, 100));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (key, value, expected) in [
            ("/elsewhere/a", "{}", "the key is not /skydns/LABEL…: it lies elsewhere"),
            ("/skydns/a//b", "{}", "the key is not /skydns/LABEL…: \"b.\" has an empty label"),
            (
                "/skydns/a.b",
                "{}",
                "the key is not /skydns/LABEL…: \"a.b\" has a dot in it and is not one label",
            ),
            ("/skydns/a", "[1]", "the value is not a JSON object: it is something else"),
            (
                "/skydns/a",
                "{",
                "the value is not a JSON object: EOF while parsing an object at line 1 column 1",
            ),
            ("/skydns/a", "{}", "field host: missing, and there is no text either"),
            ("/skydns/a", r#"{"host": "a", "port": "80"}"#, "field port: \"80\" is not a number that fits"),
            ("/skydns/a", r#"{"host": "a", "port": 70000}"#, "field port: 70000 is not a number that fits"),
            ("/skydns/a", r#"{"host": 1}"#, "field host: 1 is not a text"),
            ("/skydns/a", r#"{"host": "a..b"}"#, "field host: \"a.\" has an empty label"),
            ("/skydns/a", r#"{"host": "a", "mail": 1}"#, "field mail: 1 is neither true nor false"),
        ] {
            let error = parse_skydns(key, value.as_bytes(), SKYDNS_PREFIX).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }
}
