// SPDX-License-Identifier: Apache-2.0
//! What a pod's label may be: as Kubernetes has it, so that any selector can name it.

use std::collections::BTreeMap;

use lb::{NamedPort, Protocol};

/// A name, and a value (Kubernetes: Labels and Selectors, "Syntax and character set").
const NAME_MAX: usize = 63;
/// A prefix is a DNS subdomain (RFC 1123).
const PREFIX_MAX: usize = 253;
/// Prefix of labels that every pod has implicitly, with its own name and namespace.
const OWN_PREFIX: &str = "weft.dev";

/// Prefix of labels that name a port of the pod, for a Service's `targetPort` by name: `port.weft.dev/http=8080`, or
/// `8080-udp`.
const PORT_PREFIX: &str = "port.weft.dev";

/// The ports that a pod's labels name.
pub(crate) fn named_ports(labels: &BTreeMap<String, String>) -> Vec<NamedPort> {
    let named = |(key, value): (&String, &String)| {
        let (port, protocol) = port(value)?;
        Some(NamedPort { name: key.strip_prefix(PORT_PREFIX)?.strip_prefix('/')?.to_owned(), port, protocol })
    };
    labels.iter().filter_map(named).collect()
}

fn port(value: &str) -> Option<(u16, Protocol)> {
    let (number, protocol) = match value.split_once('-') {
        None => (value, Protocol::Tcp),
        Some((number, "tcp")) => (number, Protocol::Tcp),
        Some((number, "udp")) => (number, Protocol::Udp),
        Some((number, "sctp")) => (number, Protocol::Sctp),
        Some(_) => return None,
    };
    let number = number.parse().ok().filter(|number| *number != 0)?;
    Some((number, protocol))
}

/// Why this cannot be a label; `None` as a value means that it is dropped, which must be possible whatever it is.
pub(crate) fn objection(key: &str, value: Option<&str>) -> Option<String> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if prefix == Some(OWN_PREFIX) {
        return Some(format!(
            "label {key}: {OWN_PREFIX}/ is what netd says of a pod itself; choose another prefix"
        ));
    }
    let value = value?;
    let prefixed = prefix.is_none_or(|prefix| {
        let part = |part: &str| {
            is_name(part) && !part.bytes().any(|b| b.is_ascii_uppercase() || matches!(b, b'_' | b'.'))
        };
        prefix.len() <= PREFIX_MAX && prefix.split('.').all(part)
    });
    if !prefixed || !is_name(name) {
        return Some(format!(
            "label {key:?}: a key has at most {NAME_MAX} letters, digits, '-', '_' and '.', begins and ends with a letter or \
             digit, and may have a DNS name and '/' before it"
        ));
    }
    if prefix == Some(PORT_PREFIX) && port(value).is_none() {
        return Some(format!("label {key}: the value {value:?} is not a port: 8080, 8080-udp or 8080-sctp"));
    }
    (!value.is_empty() && !is_name(value)).then(|| {
        format!(
            "label {key}: the value {value:?} must be empty, or at most {NAME_MAX} letters, digits, '-', '_' and '.', with a \
             letter or digit first and last"
        )
    })
}

fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()].iter().all(|byte| byte.is_some_and(u8::is_ascii_alphanumeric));
    ends && bytes.len() <= NAME_MAX
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_name_the_ports_of_a_pod() {
        let labels = [("app", "80"), ("port.weft.dev/http", "8080"), ("port.weft.dev/dns", "53-udp")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let port = |name: &str, port, protocol| NamedPort { name: name.to_owned(), port, protocol };
        assert_eq!(named_ports(&labels), [port("dns", 53, Protocol::Udp), port("http", 8080, Protocol::Tcp)]);
    }

    #[test]
    fn a_label_is_what_a_selector_can_name() {
        let long = "x".repeat(64);
        for (key, value) in
            [("app", "web"), ("app", ""), ("a.b/c-d", "1.2_3"), ("App_1", "A"), ("app", &long[..63])]
        {
            assert_eq!(objection(key, Some(value)), None, "{key}={value}");
        }
        for (key, value) in [
            ("a", "b c"),
            ("a", long.as_str()),
            ("a", "-b"),
            ("a", "b."),
            ("a b", "c"),
            ("", "c"),
            ("x/", "c"),
            ("a/b/c", "d"),
            ("A.b/c", "d"),
            ("weft.dev/name", "zzz"),
            ("port.weft.dev/http", "eighty"),
            ("port.weft.dev/http", "80-icmp"),
            ("port.weft.dev/http", "0"),
        ] {
            assert!(objection(key, Some(value)).is_some(), "{key}={value}");
        }
        assert_eq!(objection("a b", None), None, "an old mistake can be dropped");
        assert!(objection("weft.dev/namespace", None).is_some());
    }
}
