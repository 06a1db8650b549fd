// SPDX-License-Identifier: Apache-2.0
//! Whether names outside are answered: what is known of the servers that netd asks, for `weft doctor`.

use std::collections::BTreeMap;

use dns_server::{DnsCounts, UpstreamCounts};
use netd_api::Verdict;

use crate::config::{DnsOptions, UpstreamOption};
use crate::node::Node;

/// What there is to say about them: one line for each zone where something is wrong, or one for all.
pub(crate) fn check_outside(node: &Node) -> Vec<(Verdict, String)> {
    said(&node.dns_stats.counts(), &node.config.dns)
}

fn said(counts: &DnsCounts, options: &DnsOptions) -> Vec<(Verdict, String)> {
    // Servers are asked for a probe, too: before anybody missed an answer nobody knows whether one is wanted.
    let is_missed = counts.forward_failures > 0 || counts.stale > 0;
    let mut zones: BTreeMap<&str, Vec<&UpstreamCounts>> = BTreeMap::new();
    for upstream in &counts.upstreams {
        zones.entry(&upstream.zone).or_default().push(upstream);
    }
    let mut lines = Vec::new();
    for (zone, servers) in &zones {
        let silent: Vec<_> = servers.iter().filter(|server| !server.healthy).copied().collect();
        let Some(first) = silent.first() else { continue };
        let tls_name = tls_name(first, options);
        let list = silent.iter().map(|server| shown(server, options)).collect::<Vec<_>>().join(", ");
        let (names, try_it) = (names(zone), try_it(first, tls_name));
        if silent.len() < servers.len() {
            let text =
                format!("{names}: no usable answer from {list}; others of the zone are asked; {try_it}");
            lines.push((Verdict::Note, text));
            continue;
        }
        let option = match *zone {
            "." if options.upstreams.is_none() => "the node's /etc/resolv.conf",
            "." => "dns-upstreams",
            _ => "dns-stubs",
        };
        let of_certificate =
            if tls_name.is_some() { ", and that its certificate is for that name" } else { "" };
        let (verdict, so) = if is_missed {
            (Verdict::Wrong, "clients get SERVFAIL")
        } else {
            (Verdict::Note, "nobody has asked yet; who does will get SERVFAIL")
        };
        let text = format!(
            "{names} are not resolved: no usable answer from any server of {option}: {list}; {so}. See that this node \
             reaches them{of_certificate}: {try_it}"
        );
        lines.push((verdict, text));
    }
    if lines.is_empty() && !counts.upstreams.is_empty() {
        let servers = match counts.upstreams.len() {
            1 => "the one server that is".to_owned(),
            several => format!("all {several} servers that are"),
        };
        lines.push((Verdict::Ok, format!("no failure of {servers} asked for names outside")));
    }
    lines
}

fn names(zone: &str) -> String {
    match zone {
        "." => "names outside the cluster (zone .)".to_owned(),
        _ => format!("names of zone {}", zone.trim_end_matches('.')),
    }
}

/// Whose certificate it must show.
fn tls_name<'a>(server: &UpstreamCounts, options: &'a DnsOptions) -> Option<&'a str> {
    let zone = server.zone.trim_end_matches('.');
    let of_zone: &[UpstreamOption] = match zone {
        "" => options.upstreams.as_deref().unwrap_or_default(),
        _ => options.stubs.get(zone).map(Vec::as_slice).unwrap_or_default(),
    };
    of_zone.iter().find(|one| one.address == server.address)?.tls_name.as_deref()
}

fn shown(server: &UpstreamCounts, options: &DnsOptions) -> String {
    match tls_name(server, options) {
        Some(name) => format!("{} (TLS, as {name})", server.address),
        None => server.address.to_string(),
    }
}

/// What an operator types to see what netd sees.
fn try_it(server: &UpstreamCounts, tls_name: Option<&str>) -> String {
    let (ip, port) = (server.address.ip(), server.address.port());
    match tls_name {
        Some(name) => format!(
            "`openssl s_client -connect {} -servername {name} -verify_hostname {name}`",
            server.address
        ),
        None => format!("`dig @{ip} -p {port} {}`", server.zone),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::checked_dns;

    fn server(zone: &str, address: &str, healthy: bool) -> UpstreamCounts {
        let address = address.parse().unwrap();
        UpstreamCounts {
            address,
            zone: zone.into(),
            answers: 0,
            failures: 2,
            rtt: Default::default(),
            healthy,
        }
    }

    #[test]
    fn a_zone_without_a_server_that_answers_is_wrong_and_says_what_to_do() {
        let text = "dns-upstreams = [\"192.0.2.1:853#dot.example\", \"192.0.2.2\"]\ndns-stubs = [\"corp.example=192.0.2.3\"]";
        let options = checked_dns(text);
        let said = |first, second, stub, failures| {
            let upstreams = vec![
                server(".", "192.0.2.1:853", first),
                server(".", "192.0.2.2:53", second),
                server("corp.example.", "192.0.2.3:53", stub),
            ];
            said(&DnsCounts { upstreams, forward_failures: failures, ..DnsCounts::default() }, &options)
        };
        let fine = said(true, true, true, 3);
        assert_eq!(fine.len(), 1);
        assert!(fine[0].0 == Verdict::Ok && fine[0].1.contains("all 3 servers"), "{fine:?}");

        let one = said(false, true, true, 0);
        assert!(one.len() == 1 && one[0].0 == Verdict::Note, "{one:?}");
        for part in
            ["192.0.2.1:853 (TLS, as dot.example)", "others of the zone", "-verify_hostname dot.example"]
        {
            assert!(one[0].1.contains(part), "{one:?}");
        }
        let none = said(false, false, false, 1);
        assert_eq!(none.iter().map(|line| line.0).collect::<Vec<_>>(), [Verdict::Wrong, Verdict::Wrong]);
        for part in ["zone .", "dns-upstreams: 192.0.2.1:853", "192.0.2.2:53", "certificate", "SERVFAIL"] {
            assert!(none[0].1.contains(part), "{none:?}");
        }
        for part in ["zone corp.example ", "dns-stubs: 192.0.2.3:53", "`dig @192.0.2.3 -p 53 corp.example.`"]
        {
            assert!(none[1].1.contains(part), "{none:?}");
        }
        let unasked = said(true, true, false, 0);
        assert!(unasked.len() == 1 && unasked[0].0 == Verdict::Note, "{unasked:?}");
        assert!(unasked[0].1.contains("nobody has asked"), "{unasked:?}");
    }

    #[test]
    fn servers_of_resolv_conf_are_named_so_and_without_any_nothing_is_said() {
        let options = checked_dns("");
        let counts = DnsCounts {
            upstreams: vec![server(".", "192.0.2.1:53", false)],
            stale: 1,
            ..DnsCounts::default()
        };
        let lines = said(&counts, &options);
        assert!(lines[0].0 == Verdict::Wrong && lines[0].1.contains("/etc/resolv.conf"), "{lines:?}");
        assert!(said(&DnsCounts::default(), &options).is_empty());
    }
}
