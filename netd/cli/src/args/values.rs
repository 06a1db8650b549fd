// SPDX-License-Identifier: Apache-2.0
//! Values as people type them: names, labels, durations.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;

/// The namespace of an object that names none.
pub(crate) const DEFAULT_NAMESPACE: &str = "default";

/// A namespaced name as typed: `NS/NAME` or `NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ObjectName {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// One change of a pod's labels: `KEY=VALUE` sets, `KEY-` drops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LabelChange {
    pub(crate) key: String,
    /// None drops the label.
    pub(crate) value: Option<String>,
}

impl FromStr for ObjectName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, name) = text.split_once('/').unwrap_or((DEFAULT_NAMESPACE, text));
        if namespace.is_empty() || name.is_empty() || name.contains('/') {
            return Err("expected NAMESPACE/NAME or NAME".to_owned());
        }
        Ok(ObjectName { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

impl FromStr for LabelChange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (text.strip_suffix('-').unwrap_or_default(), None),
        };
        // What begins with a dash is a mistyped option, not a label.
        if key.is_empty() || key.starts_with('-') {
            return Err("expected KEY=VALUE to set a label, or KEY- to drop it".to_owned());
        }
        Ok(LabelChange { key: key.to_owned(), value })
    }
}

/// `KEY=VALUE`.
pub(super) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

/// `60s`, `500ms`, `2m`, `1h`; a bare number is seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 =
        digits.parse().map_err(|_| "expected a number with ms, s, m, h or d, as in 60s".to_owned())?;
    match &text[digits.len()..] {
        "ms" => Ok(Duration::from_millis(number)),
        "s" | "" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        "h" => Ok(Duration::from_secs(number.saturating_mul(3_600))),
        "d" => Ok(Duration::from_secs(number.saturating_mul(86_400))),
        unit => Err(format!("unknown unit {unit:?}: ms, s, m, h and d are known")),
    }
}

/// Seconds between two times, or `off`: 0.
pub(super) fn interval(text: &str) -> Result<u64, String> {
    match text {
        "off" => Ok(0),
        _ if text.bytes().all(|byte| byte.is_ascii_digit()) => {
            Err("expected a time with its unit, such as 12h or 7d, or `off`".to_owned())
        }
        _ => Ok(duration(text)?.as_secs()),
    }
}

/// Seconds as people type them: the largest unit that divides them.
pub(crate) fn interval_text(secs: u64) -> String {
    match secs {
        0 => "off".to_owned(),
        _ if secs.is_multiple_of(86_400) => format!("{}d", secs / 86_400),
        _ if secs.is_multiple_of(3_600) => format!("{}h", secs / 3_600),
        _ if secs.is_multiple_of(60) => format!("{}m", secs / 60),
        _ => format!("{secs}s"),
    }
}

/// `NODE=HOST` or `NODE=HOST:PORT`; without NODE, where there is one node only, its name is empty.
pub(super) fn endpoint(text: &str) -> Result<(String, String), String> {
    let (node, host) = text.split_once('=').unwrap_or(("", text));
    if host.is_empty() || (node.is_empty() && text.contains('=')) {
        return Err("expected NODE=HOST or NODE=HOST:PORT".to_owned());
    }
    Ok((node.to_owned(), host.to_owned()))
}

/// CIDRs as typed: comma-separated, or `none`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cidrs(pub(crate) Vec<IpNet>);

pub(super) fn cidrs(text: &str) -> Result<Cidrs, String> {
    if text == "none" {
        return Ok(Cidrs(Vec::new()));
    }
    let parse = |item: &str| {
        item.parse().map_err(|_| match item.parse::<IpAddr>() {
            Ok(host) => format!("a single host is {}", IpNet::from(host)),
            Err(_) => format!("{item:?} is no CIDR like 192.0.2.0/24"),
        })
    };
    text.split(',').map(parse).collect::<Result<_, _>>().map(Cidrs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_cidrs_may_be_empty() {
        assert_eq!(cidrs("none"), Ok(Cidrs(Vec::new())));
        assert_eq!(cidrs("192.0.2.0/24,fd00::/8").map(|cidrs| cidrs.0.len()), Ok(2));
        assert!(cidrs("192.0.2.1").is_err_and(|error| error.contains("192.0.2.1/32")));
        assert!(cidrs("192.0.2.0/24,x").is_err_and(|error| error.contains("\"x\"")));
    }

    #[test]
    fn never_is_an_interval() {
        assert_eq!((interval("off"), interval("7d")), (Ok(0), Ok(604_800)));
        assert!(interval("0").is_err() && interval("7").is_err() && interval("").is_err());
        assert_eq!([0, 90, 120, 3_600, 604_800].map(interval_text), ["off", "90s", "2m", "1h", "7d"]);
    }

    #[test]
    fn an_endpoint_belongs_to_a_node() {
        let typed = |text: &str| endpoint(text).ok();
        assert_eq!(typed("n1=host:4000"), Some(("n1".into(), "host:4000".into())));
        assert_eq!(typed("host"), Some((String::new(), "host".into())));
        assert_eq!((typed("=host"), typed("n1="), typed("")), (None, None, None));
    }

    #[test]
    fn a_name_without_namespace_is_in_default() {
        let name: ObjectName = "web".parse().unwrap();
        assert_eq!((name.namespace.as_str(), name.name.as_str()), ("default", "web"));
        let name: ObjectName = "shop/web".parse().unwrap();
        assert_eq!((name.namespace.as_str(), name.name.as_str()), ("shop", "web"));
        for wrong in ["", "/web", "shop/", "a/b/c"] {
            assert!(wrong.parse::<ObjectName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_label_is_set_with_an_equals_sign_and_dropped_with_a_dash() {
        let change = |text: &str| text.parse::<LabelChange>().map(|change| (change.key, change.value));
        assert_eq!(change("app=web"), Ok(("app".into(), Some("web".into()))));
        assert_eq!(change("app="), Ok(("app".into(), Some(String::new()))));
        assert_eq!(change("a.b/c-d=x=y"), Ok(("a.b/c-d".into(), Some("x=y".into()))));
        assert_eq!(change("app-"), Ok(("app".into(), None)));
        for wrong in ["app", "=web", "-", "", "--jsn"] {
            assert!(change(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_have_units() {
        let seconds = |text: &str| duration(text).map(|time| time.as_secs_f64());
        assert_eq!(seconds("60s"), Ok(60.0));
        assert_eq!(seconds("5"), Ok(5.0));
        assert_eq!(seconds("500ms"), Ok(0.5));
        assert_eq!(seconds("2m"), Ok(120.0));
        assert_eq!(seconds("1h"), Ok(3600.0));
        assert!(duration("soon").is_err() && duration("5y").is_err() && duration("").is_err());
    }
}
