// SPDX-License-Identifier: Apache-2.0
//! The upstreams that a resolv.conf(5) text names.

use std::net::{IpAddr, SocketAddr};

use crate::group::{DNS_PORT, UPSTREAMS_MAX};

/// The first [`UPSTREAMS_MAX`] name servers of a resolv.conf text, in its order, each once.
///
/// `own` are this node's DNS addresses: they are skipped, because forwarding to ourselves would loop. Lines that do
/// not parse (a scoped `fe80::1%eth0`, a typing error) are skipped as the resolver of the C library does.
pub fn nameservers(resolv_conf: &str, own: &[IpAddr]) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for line in resolv_conf.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let Some(Ok(address)) = words.next().map(str::parse::<IpAddr>) else { continue };
        let upstream = SocketAddr::new(address, DNS_PORT);
        if address.is_unspecified() || own.contains(&address) || found.contains(&upstream) {
            continue;
        }
        found.push(upstream);
    }
    found.truncate(UPSTREAMS_MAX);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(text: &str, own: &[&str]) -> Vec<String> {
        let own: Vec<IpAddr> = own.iter().map(|a| a.parse().unwrap()).collect();
        nameservers(text, &own).iter().map(|a| a.ip().to_string()).collect()
    }

    #[test]
    fn order_is_kept_and_other_lines_are_ignored() {
        let text = "# nameserver 9.9.9.9\n; nameserver 8.8.4.4\nsearch example.org\n\
                    nameserver 192.0.2.1\n\tnameserver\t192.0.2.2 # note\nnameservers 192.0.2.3\noptions ndots:5\n";
        assert_eq!(addresses(text, &[]), ["192.0.2.1", "192.0.2.2"]);
    }

    #[test]
    fn own_addresses_are_skipped_because_they_would_loop() {
        let text = "nameserver 169.254.53.53\nnameserver 10.96.0.10\nnameserver 192.0.2.1\n";
        assert_eq!(addresses(text, &["169.254.53.53", "10.96.0.10"]), ["192.0.2.1"]);
    }

    #[test]
    fn duplicates_unspecified_and_broken_lines_are_skipped() {
        let text = "nameserver\nnameserver 0.0.0.0\nnameserver 1.2.3\nnameserver fe80::1%eth0\n\
                    nameserver 192.0.2.1\nnameserver 192.0.2.1\nnameserver 2001:db8::53\n";
        assert_eq!(addresses(text, &[]), ["192.0.2.1", "2001:db8::53"]);
    }

    #[test]
    fn no_more_than_the_maximum() {
        let text: String = (1..10).map(|n| format!("nameserver 192.0.2.{n}\n")).collect();
        assert_eq!(addresses(&text, &[]).len(), UPSTREAMS_MAX);
    }
}
