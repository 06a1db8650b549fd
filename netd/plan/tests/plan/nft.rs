// SPDX-License-Identifier: Apache-2.0
//! The nft text, read by people and by `nft` in a network namespace of its own.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use netd_plan::nft::{NftConfig, render};
use netd_plan::{GateEnds, HostPort, PortProtocol};

fn config() -> NftConfig {
    NftConfig {
        pod_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        no_masquerade_cidrs: vec!["10.0.0.0/8".parse().unwrap(), "192.168.7.9/24".parse().unwrap()],
        trusted_cidrs: vec!["192.168.8.0/24".parse().unwrap()],
        node_dns: vec!["169.254.53.53".parse().unwrap()],
        overlay_ports: vec![4789, 51821, 51820, 4789],
        service_ports: vec![1_024..=29_999, 30_000..=32_767],
        forgeable_ports: vec![4789],
        probe_port: 51819,
        node_overlays: vec!["10.244.0.1".parse().unwrap(), "fd00:10:244::1".parse().unwrap()],
        checked_mark: 0x1000,
        refuse_mark: 0x40,
        dsr_port: 51823,
        ..NftConfig::default()
    }
}

/// Every kind: all transports, both families, with and without an address of the host, twice, and one that says nothing.
fn host_ports() -> Vec<HostPort> {
    let port = |host: Option<&str>, host_port, protocol, pod: &str| HostPort {
        host_ip: host.map(|ip| ip.parse().unwrap()),
        host_port,
        protocol,
        pod: pod.parse().unwrap(),
        pod_port: 80,
    };
    vec![
        port(None, 8080, PortProtocol::Tcp, "10.244.0.5"),
        port(None, 8080, PortProtocol::Tcp, "fd00:10:244::5"),
        port(Some("0.0.0.0"), 53, PortProtocol::Udp, "10.244.0.5"),
        port(Some("192.0.2.1"), 9, PortProtocol::Sctp, "10.244.0.5"),
        port(Some("2001:db8::1"), 9, PortProtocol::Sctp, "fd00:10:244::5"),
        port(Some("192.0.2.1"), 9, PortProtocol::Sctp, "10.244.0.6"),
        port(None, 8080, PortProtocol::Tcp, "10.244.0.7"),
        port(Some("192.0.2.1"), 10, PortProtocol::Tcp, "fd00:10:244::9"),
        port(Some("::"), 11, PortProtocol::Tcp, "10.244.0.9"),
        port(Some("::1"), 12, PortProtocol::Tcp, "fd00:10:244::9"),
    ]
}

/// Runs a shell command in a fresh network namespace with `input` on stdin; `None` where that cannot be.
fn in_fresh_netns(command: &str, input: &str) -> Option<Output> {
    let mut child = match Command::new("unshare")
        .args(["-n", "sh", "-c", command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    {
        Ok(child) => child,
        Err(error) => {
            eprintln!("SKIP: cannot run unshare (package util-linux): {error}");
            return None;
        }
    };
    // A child that stops early closes the pipe; its exit status tells the story.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let reason = if stderr.contains("Operation not permitted") || stderr.contains("unshare failed") {
        "no right to make a network namespace (run as root)"
    } else if output.status.code() == Some(127) {
        "nft is missing (package nftables)"
    } else {
        return Some(output);
    };
    eprintln!("SKIP: {reason}: {stderr}");
    None
}

#[test]
fn nft_takes_the_text_of_every_configuration() {
    let native = NftConfig { clear_cidrs: config().pod_cidrs, ..config() };
    let both_dns = ["169.254.53.53", "fd00:53::53"].map(|ip| ip.parse().unwrap());
    let v6_dns = NftConfig { node_dns: both_dns.into(), ..config() };
    let mapped = NftConfig { host_ports: host_ports(), ..config() };
    let one = NftConfig { host_ports: vec![host_ports().remove(0)], ..NftConfig::default() };
    let hostile = NftConfig { own_link_prefix: "we\"ft; drop\n".to_owned(), ..config() };
    let no_prefix = NftConfig { own_link_prefix: "\"".to_owned(), ..config() };
    let alone =
        NftConfig { gate: Some(GateEnds { port: 51822, sources: Vec::new() }), ..NftConfig::default() };
    let gated = NftConfig { gate: Some(gate()), ..config() };
    let all = [NftConfig::default(), config(), native, v6_dns, hostile, no_prefix, mapped, one, alone, gated];
    for config in all {
        let script = render(&config);
        let Some(output) = in_fresh_netns("nft -c -f -", &script) else { return };
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}\n{script}");
    }
}

#[test]
fn second_run_replaces_the_first_wholly() {
    let first = NftConfig { pod_cidrs: vec!["10.1.0.0/16".parse().unwrap()], ..config() };
    let script = format!("{}{}", render(&first), render(&config()));
    let Some(output) = in_fresh_netns("nft -f - && nft list ruleset", &script) else { return };
    let listed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(listed.matches("table inet weft").count(), 1, "{listed}");
    assert_eq!(listed.matches("masquerade fully-random").count(), 2, "{listed}");
    assert!(listed.contains("10.244.0.0/16") && !listed.contains("10.1.0.0/16"), "{listed}");
}

#[test]
fn text_reads_so() {
    let config = NftConfig { pod_cidrs: vec!["10.244.0.0/16".parse().unwrap()], ..config() };
    let text = render(&config);
    assert_eq!(text, render(&config));
    assert!(text.starts_with("table inet weft {}\ndelete table inet weft\n\ntable inet weft {\n"));
    for line in [
        "elements = { 10.0.0.0/8, 192.168.7.0/24 }",
        "ip daddr 169.254.53.53 meta l4proto { tcp, udp } th dport 53 notrack",
        "ip saddr 169.254.53.53 meta l4proto { tcp, udp } th sport 53 notrack",
        "iifname != \"lo\" iifname != \"weft*\" ip saddr @pods_v4 ip saddr != @clear_v4 counter name spoofed_in drop",
        "iifname \"weft*\" udp dport { 4789, 51820, 51821 } counter name overlay_port drop",
        "iifname \"weft*\" oifname != \"weft*\" udp dport { 4789 } counter name overlay_port drop",
        "iifname != \"weft*\" udp dport { 4789, 51820, 51821 } notrack",
        "udp sport { 4789, 51820, 51821 } notrack",
        "udp dport 51819 ip saddr @pods_v4 ip saddr != @nodes_v4 counter name overlay_port drop",
        "elements = { 10.244.0.1/32 }",
        "ip daddr != @inside_v4 meta l4proto tcp masquerade to :32768-65535 fully-random",
        "ip daddr != @inside_v4 meta l4proto udp masquerade to :32768-51819 fully-random",
        "ip6 daddr != @inside_v6 meta l4proto udp masquerade to :32768-51819 fully-random",
        "chain prerouting {\n\t\ttype filter hook prerouting priority raw; policy accept;\n\t\tmeta mark & 0x00001040 == 0x00001040 meta l4proto tcp counter name refused reject with tcp reset\n\t\tmeta mark & 0x00001040 == 0x00001040 counter name refused reject\n",
        "udp dport 51823 ip saddr != @nodes_v4 counter name overlay_port drop",
        "udp dport 51823 ip6 saddr != @nodes_v6 counter name overlay_port drop",
        "udp dport 51823 ip saddr @nodes_v4 notrack",
        "udp dport 51823 ip daddr @nodes_v4 notrack",
        "iifname \"weft*\" iifname != \"weft.*\" iifname != \"weftq*\" meta mark & 0x00001000 == 0 counter name unchecked_in drop",
        "iifname \"weft*\" iifname != \"weft.*\" iifname != \"weftq*\" meta mark set meta mark & 0xffffefff",
        "oifname != \"lo\" oifname != \"weft*\" ip saddr @pods_v4 ip daddr @pods_v4 ip daddr != @clear_v4 counter name clear_out drop",
        "oifname != \"lo\" oifname != \"weft*\" ip saddr @pods_v4 ip daddr != @inside_v4 masquerade fully-random",
    ] {
        assert!(text.contains(line), "no `{line}` in\n{text}");
    }
}

#[test]
fn masquerade_takes_no_port_of_a_tunnel() {
    let range = |overlay_ports: &[u16]| {
        let (overlay_ports, service_ports) = (overlay_ports.to_vec(), Vec::new());
        let text = render(&NftConfig { overlay_ports, service_ports, ..config() });
        let rule = text.lines().find(|line| line.contains("masquerade to :")).map(str::to_owned);
        rule.map(|rule| rule.split("to :").nth(1).unwrap().split(' ').next().unwrap().to_owned())
    };
    assert_eq!(range(&[]), None);
    assert_eq!(range(&[4789]), Some("4790-65535".into()));
    assert_eq!(range(&[40_000, 40_001]), Some("1024-39999".into()));
    assert_eq!(range(&[65_535, 65_534, 1_024]), Some("1025-65533".into()));
    assert_eq!(range(&[500]), None, "the kernel does not go there by itself");
}

#[test]
fn masquerade_takes_no_port_of_a_service() {
    let ranges = |service_ports: &[std::ops::RangeInclusive<u16>]| {
        let text = render(&NftConfig { service_ports: service_ports.to_vec(), ..config() });
        ["tcp", "udp"].map(|transport| {
            let rule = text.lines().find(|line| line.contains(&format!("{transport} masquerade to :")));
            rule.map(|rule| rule.split("to :").nth(1).unwrap().split(' ').next().unwrap().to_owned())
        })
    };
    let found = |tcp: &str, udp: &str| [Some(tcp.to_owned()), Some(udp.to_owned())];
    assert_eq!(ranges(&[1_024..=29_999, 30_000..=32_767]), found("32768-65535", "32768-51819"));
    assert_eq!(ranges(&[40_000..=50_000, 1_024..=29_999]), found("50001-65535", "51822-65535"));
    assert_eq!(ranges(&[1_024..=29_999, 2_000..=3_000]), found("30000-65535", "30000-51819"));
    // Nothing is left: then the kernel decides.
    assert_eq!(ranges(&[1..=65_535]), [None, None]);
}

#[test]
fn mapped_ports_read_so() {
    let config = NftConfig { host_ports: host_ports(), ..config() };
    let text = render(&config);
    for line in [
        "type nat hook prerouting priority -101; policy accept;",
        "type nat hook output priority -101; policy accept;",
        "elements = { tcp . 8080 : 10.244.0.5 . 80, udp . 53 : 10.244.0.5 . 80 }",
        "elements = { 192.0.2.1 . sctp . 9 : 10.244.0.5 . 80 }",
        "elements = { tcp . 8080 : fd00:10:244::5 . 80 }",
        "elements = { 2001:db8::1 . sctp . 9 : fd00:10:244::5 . 80 }",
        "elements = { 10.244.0.5 . 10.244.0.5, 10.244.0.6 . 10.244.0.6, 10.244.0.7 . 10.244.0.7 }",
        "meta nfproto ipv4 fib daddr type local dnat ip to meta l4proto . th dport map @host_ports_v4",
        "meta nfproto ipv4 fib daddr type local dnat ip to ip daddr . meta l4proto . th dport map @host_ip_ports_v4",
        "ct status dnat ip saddr . ip daddr @host_port_pods_v4 masquerade fully-random",
        "oifname \"weft*\" ct status dnat ip saddr 127.0.0.0/8 masquerade fully-random",
        "ct status dnat ip saddr . ip daddr @host_port_pods_v4 meta l4proto tcp masquerade to :32768-65535 fully-random",
        "oifname \"weft*\" ct status dnat ip saddr 127.0.0.0/8 meta l4proto udp masquerade to :32768-51819 fully-random",
        "iifname \"weft*\" ip daddr 127.0.0.0/8 counter name loopback_in drop",
        "meta nfproto ipv6 ip6 daddr != ::1 fib daddr type local dnat ip6 to",
        "ct status dnat accept",
    ] {
        assert!(text.contains(line), "no `{line}` in\n{text}");
    }
    assert!(!text.contains("10.244.0.9") && !text.contains("::9"), "another family's: {text}");
    let mut turned = host_ports();
    turned.reverse();
    assert_eq!(text, render(&NftConfig { host_ports: turned, ..config }), "whoever comes first");
    let none = render(&NftConfig::default());
    assert!(!none.contains("dnat ip") && none.contains("loopback_in drop"), "{none}");
}

/// Of two nodes, both families.
fn gate() -> GateEnds {
    let sources = ["10.244.2.0", "10.244.3.0", "fd00:10:244:2::"].map(|ip| ip.parse().unwrap());
    GateEnds { port: 51822, sources: sources.into() }
}

#[test]
fn nobody_but_nodes_speaks_to_the_gate() {
    let text = render(&NftConfig { gate: Some(gate()), ..config() });
    let input = text.split("chain input").nth(1).unwrap();
    let rules = [
        "iifname { \"weft.wg0\", \"weft.wg1\" } ip saddr @gates_v4 udp dport 51822 accept",
        "iifname { \"weft.wg0\", \"weft.wg1\" } ip6 saddr @gates_v6 udp dport 51822 accept",
        "\tudp dport 51822 counter name overlay_port drop",
        "iifname \"weft*\" udp dport { 4789, 51820, 51821 } counter name overlay_port drop",
    ];
    let places: Vec<usize> = rules
        .iter()
        .map(|rule| input.find(rule).unwrap_or_else(|| panic!("no `{rule}` in\n{text}")))
        .collect();
    assert!(places.is_sorted(), "nodes first, then the drop for all others:\n{text}");
    for line in [
        "elements = { 10.244.2.0/32, 10.244.3.0/32 }",
        "elements = { fd00:10:244:2::/128 }",
        "iifname { \"weft.wg0\", \"weft.wg1\" } ip saddr @gates_v4 udp dport 51822 notrack",
        "ip6 daddr @gates_v6 udp dport 51822 notrack",
    ] {
        assert!(text.contains(line), "no `{line}` in\n{text}");
    }
    let without = render(&config());
    assert!(!without.contains("gates") && !without.contains("51822"), "{without}");
}

#[test]
fn only_pods_of_peers_on_the_link_use_the_uplink() {
    let clear = vec!["10.244.2.0/26".parse().unwrap(), "fd00:10:244:2::/122".parse().unwrap()];
    let text = render(&NftConfig { clear_cidrs: clear, ..config() });
    for line in [
        "elements = { 10.244.2.0/26 }",
        "elements = { fd00:10:244:2::/122 }",
        // They open connections to pods here.
        "elements = { 10.244.2.0/26, 192.168.8.0/24 }",
        "ip6 saddr @pods_v6 ip6 saddr != @clear_v6 counter name spoofed_in drop",
        "ip6 daddr @pods_v6 ip6 daddr != @clear_v6 counter name clear_out drop",
    ] {
        assert!(text.contains(line), "no `{line}` in\n{text}");
    }
}
