// SPDX-License-Identifier: Apache-2.0
//! Values as people type them.

use crate::pod::{Bandwidth, PortMapping};
use std::time::Duration;

/// `60s`, `500ms`, `2m`; a bare number is seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| "use a number with ms, s or m, such as 60s".to_owned())?;
    match &text[digits.len()..] {
        "ms" => Ok(Duration::from_millis(number)),
        "s" | "" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        unit => Err(format!("unknown unit {unit:?}: use ms, s or m")),
    }
}

/// How many etcd members make sense.
pub(super) fn members(text: &str) -> Result<u16, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        _ => Err("use 1 or 3".into()),
    }
}

/// `KEY=VALUE`.
pub(super) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("use KEY=VALUE".into()),
    }
}

/// `[ADDRESS:]HOST:CONTAINER[/PROTOCOL]`; an IPv6 address stands in brackets.
pub(super) fn port(text: &str) -> Result<PortMapping, String> {
    let wrong = || {
        "use HOST:CONTAINER or HOST:CONTAINER/udp, with ADDRESS: before it for one address only".to_owned()
    };
    let (ports, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
    if !matches!(protocol, "tcp" | "udp" | "sctp") {
        return Err(wrong());
    }
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(wrong);
    let (rest, container) = ports.rsplit_once(':').ok_or_else(wrong)?;
    let (host_ip, host) = match rest.rsplit_once(':') {
        Some((ip, host)) => {
            let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
            (Some(bare.parse().map_err(|_| wrong())?), host)
        }
        None => (None, rest),
    };
    Ok(PortMapping { host_ip, host: number(host)?, container: number(container)?, protocol: protocol.into() })
}

/// `INGRESS/EGRESS` in bits per second, as the pod sees it: `10M/500k`; 0 or nothing means no limit.
pub(super) fn bandwidth(text: &str) -> Result<Bandwidth, String> {
    let (ingress, egress) =
        text.split_once('/').ok_or("use INGRESS/EGRESS in bits per second, such as 10M/500k")?;
    Ok(Bandwidth { ingress: rate(ingress)?, egress: rate(egress)? })
}

fn rate(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.as_bytes().last() {
        None => return Ok(0),
        Some(b'k') => (&text[..text.len() - 1], 1_000),
        Some(b'M') => (&text[..text.len() - 1], 1_000_000),
        Some(b'G') => (&text[..text.len() - 1], 1_000_000_000),
        Some(_) => (text, 1),
    };
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    number.ok_or_else(|| format!("{text:?} is not a rate: use bits per second, with k, M or G"))
}

/// JSON.
pub(super) fn json(text: &str) -> Result<serde_json::Value, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_labels_are_read_as_people_write_them() {
        assert_eq!(duration("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(duration("5"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert!(duration("soon").is_err() && duration("5h").is_err());
        assert_eq!(label("app=web"), Ok(("app".into(), "web".into())));
        assert!(label("=web").is_err() && label("app").is_err());
    }

    #[test]
    fn a_port_may_have_an_address_and_a_protocol() {
        let read = |text: &str| {
            let mapping = port(text)?;
            let ip = mapping.host_ip.map(|ip| ip.to_string()).unwrap_or_default();
            Ok::<_, String>(format!("{ip} {} {} {}", mapping.host, mapping.container, mapping.protocol))
        };
        assert_eq!(read("8080:80/udp").unwrap(), " 8080 80 udp");
        assert_eq!(read("8080:80").unwrap(), " 8080 80 tcp");
        assert_eq!(read("127.0.0.1:8080:80").unwrap(), "127.0.0.1 8080 80 tcp");
        assert_eq!(read("[fd00::1]:8080:80/sctp").unwrap(), "fd00::1 8080 80 sctp");
        for wrong in ["80", "0:80", "80:0", "1:2/dccp", "x:1:2", "1:2:3:4", ":80", "1:2/"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rates_have_decimal_units() {
        let read = |text: &str| bandwidth(text).map(|limits| (limits.ingress, limits.egress));
        assert_eq!(read("10M/500k"), Ok((10_000_000, 500_000)));
        assert_eq!(read("1G/"), Ok((1_000_000_000, 0)));
        assert_eq!(read("0/800"), Ok((0, 800)));
        for wrong in ["10M", "fast/slow", "M/1", "99999999999999G/1"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
