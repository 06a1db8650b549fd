// SPDX-License-Identifier: Apache-2.0
//! Where a member finds a node whose own address is of no use to it: behind a router that passes the node's ports on.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// A host by name or address, and the port there that stands for the cluster's `wireguard-port`.
#[derive(Debug, PartialEq, Eq)]
struct Endpoint {
    host: String,
    port: Option<u16>,
}

/// `HOST:PORT` for a node that listens on `port`, of a cluster whose `wireguard-port` is `base`. `None` for what
/// [`check`] would refuse.
pub(super) fn endpoint(text: &str, base: u16, port: u16) -> Option<String> {
    let endpoint = parse(text)?;
    // Keys of odd generations have the next port; a router passes both on.
    let port = endpoint.port.map_or(port, |outside| outside.saturating_add(port.saturating_sub(base)));
    Some(format!("{}:{port}", endpoint.host))
}

/// The endpoints as they go on record, each with its node's name.
pub(super) fn check(
    wished: &BTreeMap<String, String>,
    nodes: &[&str],
) -> Result<BTreeMap<String, String>, String> {
    let one = |(name, text): (&String, &String)| {
        let name = match (name.as_str(), nodes) {
            ("", [only]) => *only,
            ("", _) => {
                return Err(format!(
                    "endpoint {text}: say of which node, NODE={text} ({})",
                    nodes.join(", ")
                ));
            }
            (name, _) if nodes.contains(&name) => name,
            (name, _) => return Err(format!("endpoint {text}: no node {name}; `weft node ls` lists them")),
        };
        if parse(text).is_none() {
            return Err(format!("endpoint {text:?} of {name}: expected HOST or HOST:PORT, IPv6 in brackets"));
        }
        Ok((name.to_owned(), text.clone()))
    };
    wished.iter().map(one).collect()
}

fn parse(text: &str) -> Option<Endpoint> {
    let shown = |ip: IpAddr| if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Some(Endpoint { host: shown(ip), port: None });
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => {
            (host, Some(port.parse::<u16>().ok().filter(|port| (1..u16::MAX).contains(port))?))
        }
        None => (text, None),
    };
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(Endpoint { host: shown(address.ip()), port });
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let is_name = host.starts_with(|c: char| c.is_ascii_alphanumeric()) && host.chars().all(allowed);
    is_name.then(|| Endpoint { host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_stands_for_that_of_even_generations() {
        let at = |text| endpoint(text, 51820, 51821);
        assert_eq!(at("vpn.example.net").as_deref(), Some("vpn.example.net:51821"), "the node's own");
        assert_eq!(at("198.51.100.7:4000").as_deref(), Some("198.51.100.7:4001"));
        assert_eq!(endpoint("198.51.100.7:4000", 51820, 51820).as_deref(), Some("198.51.100.7:4000"));
        assert_eq!(at("2001:db8::1").as_deref(), Some("[2001:db8::1]:51821"));
        assert_eq!(at("[2001:db8::1]").as_deref(), Some("[2001:db8::1]:51821"));
        assert_eq!(at("[2001:db8::1]:4000").as_deref(), Some("[2001:db8::1]:4001"));
    }

    #[test]
    fn what_is_no_endpoint_or_of_no_node_is_refused() {
        for text in ["", ":51820", "host:", "host:0", "host:70000", "a b", "a\nPostUp = x", "-a", "[::1"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
        let wish = |node: &str, text: &str| BTreeMap::from([(node.to_owned(), text.to_owned())]);
        assert_eq!(check(&wish("", "host"), &["n1"]), Ok(wish("n1", "host")));
        assert!(check(&wish("", "host"), &["n1", "n2"]).is_err_and(|error| error.contains("NODE=host")));
        assert!(check(&wish("n3", "host"), &["n1", "n2"]).is_err_and(|error| error.contains("no node n3")));
        assert!(check(&wish("n1", "a b"), &["n1", "n2"]).is_err_and(|error| error.contains("of n1")));
    }
}
