// SPDX-License-Identifier: Apache-2.0

//! The gate for trusted hosts: a table of its own, rules that lead there, and a next hop that WireGuard's routes do not
//! get in the way of.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    process::Command,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use netd_host::{Host, HostError};
use netd_plan::{
    Backend, GateConfig, HostObject, HostObjects, HostOp, NodeFacts, Path, PeerPath, RuleSpec,
    WireguardConfig, WireguardKind, gate_objects, overlay_objects, plan, vtep_mac,
};
use uuid::Uuid;

use crate::ground::{converge, in_fresh_netns, ip, uplink};

const DEVICE: &str = "weft.gate";
const TUN: &str = "weft.wg1";

fn node(n: u8) -> NodeFacts {
    let uuid = Uuid::from_u128(n.into());
    NodeFacts {
        uuid,
        name: format!("n{n}"),
        underlay: format!("172.30.0.{n}").parse().unwrap(),
        overlays: vec![
            format!("10.244.{n}.0").parse().unwrap(),
            format!("fd00:10:244:{n}::").parse().unwrap(),
        ],
        vtep_mac: vtep_mac(uuid),
        blocks: vec![
            format!("10.244.{n}.0/26").parse().unwrap(),
            format!("fd00:10:244:{n}::/122").parse().unwrap(),
        ],
    }
}

/// Node 1 of two, connected by WireGuard.
fn ungated() -> HostObjects {
    let generations = BTreeSet::from([1]);
    let up = [Backend::Wireguard(WireguardConfig { kind: WireguardKind::User, mtu: 1440, generations })];
    overlay_objects(&up, &node(1), &peers(), &pools(), &[])
}

fn peers() -> [PeerPath; 1] {
    [PeerPath { facts: node(2), path: Some(Path::Wireguard { generation: 1 }), mtu: Some(1400) }]
}

fn pools() -> [IpNet; 2] {
    ["10.244.0.0/16", "fd00:10:244::/48"].map(|net| net.parse().unwrap())
}

/// The same with a gate; a pod of its own has an address out of the other's block.
fn gated() -> HostObjects {
    let mut objects = ungated();
    let trusted = ["198.51.100.0/24", "203.0.113.7/32", "2001:db8:f::/48"];
    let config = GateConfig {
        vni: 4242,
        port: 51822,
        wireguard_mtu: 1440,
        trusted: trusted.map(|net| net.parse().unwrap()).into(),
    };
    let pods: [IpAddr; 2] = ["10.244.2.9", "fd00:10:244:2::9"].map(|ip| ip.parse().unwrap());
    objects.merge(gate_objects(&config, &node(1), &peers(), &pools(), &pods));
    assert_eq!(objects.rules.len(), 3);
    objects
}

fn ground() -> Host {
    uplink("up0", "172.30.0.1/24");
    ip("address add 2001:db8:30::1/64 dev up0 nodad");
    ip("route add default via 172.30.0.254");
    ip("-6 route add default via 2001:db8:30::254");
    for family in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        fs::write(format!("/proc/sys/{family}"), "1").unwrap();
    }
    ip(&format!("tuntap add dev {TUN} mode tun"));
    Host::open().unwrap()
}

/// Where a packet goes that the uplink brings.
fn route(from: &str, to: &str) -> String {
    brought_by("up0", from, to)
}

fn brought_by(device: &str, from: &str, to: &str) -> String {
    let family = if to.contains(':') { "-6" } else { "-4" };
    ip(&format!("{family} route get {to} from {from} iif {device}"))
}

/// The kernel routes to an IPv6 address of its own some moments after it was added, also without duplicate detection.
fn wait_for_local(shown_by: &str) {
    let begun = Instant::now();
    while ip(shown_by).is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(5), "no local route: {shown_by}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn rules() -> String {
    format!("{}{}", ip("-4 rule"), ip("-6 rule"))
}

#[test]
fn only_trusted_sources_take_the_table() {
    in_fresh_netns(|| async {
        let host = ground();
        let desired = gated();
        converge(&host, &desired).await;
        assert_eq!(host.observe().await.unwrap(), desired);
        for (trusted, other, pod, away) in [
            ("198.51.100.9", "192.0.2.9", "10.244.2.7", "10.244.2.9"),
            ("203.0.113.7", "203.0.113.8", "10.244.2.7", "10.244.2.9"),
            ("2001:db8:f::9", "2001:db8:e::9", "fd00:10:244:2::7", "fd00:10:244:2::9"),
        ] {
            let through = route(trusted, pod);
            assert!(through.contains(&format!("dev {DEVICE}")) && through.contains("mtu 1350"), "{through}");
            let main = route(other, pod);
            assert!(main.contains(&format!("dev {TUN}")), "{main}");
            // Its own route is not there, so what stands in the main table counts: all but the gate.
            let moved = route(trusted, away);
            assert!(!moved.contains(DEVICE), "{moved}");
        }
        for (family, pod) in [("-4", "10.244.2.7"), ("-6", "fd00:10:244:2::7")] {
            let own = ip(&format!("{family} route get {pod}"));
            assert!(own.contains(&format!("dev {TUN}")), "this node's own packets: {own}");
        }
        // What another node's gate sends is taken, though answers go by the uplink: the command fails otherwise.
        for (trusted, own) in [("198.51.100.9", "10.244.1.0"), ("2001:db8:f::9", "fd00:10:244:1::")] {
            let family = if own.contains(':') { "-6" } else { "-4" };
            wait_for_local(&format!("{family} route show table local to exact {own}"));
            let taken = brought_by(DEVICE, trusted, own);
            assert!(taken.contains("local"), "{taken}");
        }
        let details = ip(&format!("-d link show {DEVICE}"));
        assert!(details.contains("local 10.244.1.0") && details.contains("mtu 1390"), "{details}");
        let shown = rules();
        assert_eq!(shown.matches("lookup 157 proto 157").count(), 3, "{shown}");
    });
}

#[test]
fn what_is_there_is_not_made_twice_and_goes_whole() {
    in_fresh_netns(|| async {
        let host = ground();
        let before = rules();
        converge(&host, &gated()).await;
        let index = host.link_index(DEVICE).await.unwrap();
        for object in gated().objects() {
            for op in [HostOp::Add(object.clone()), HostOp::Replace(object.clone())] {
                host.apply(&op).await.unwrap_or_else(|error| panic!("{op}: {error}"));
            }
        }
        assert_eq!(host.observe().await.unwrap(), gated());
        assert_eq!(host.link_index(DEVICE).await.unwrap(), index, "the device was not made anew");
        // Its address is on `lo`, too, and what has that as its source stays.
        converge(&host, &ungated()).await;
        assert_eq!(host.observe().await.unwrap(), ungated());
        converge(&host, &gated()).await;
        for op in plan(&HostObjects::new(), &host.observe().await.unwrap()) {
            host.apply(&op).await.unwrap_or_else(|error| panic!("{op}: {error}"));
            host.apply(&op).await.unwrap_or_else(|error| panic!("{op} again: {error}"));
        }
        assert_eq!(host.observe().await.unwrap(), HostObjects::new());
        assert_eq!(rules(), before);
        // An empty table is no table: some versions of ip say so with an error.
        let left = Command::new("ip").args(["route", "show", "table", "157"]).output().unwrap();
        assert!(left.stdout.is_empty(), "{left:?}");
    });
}

#[test]
fn rules_of_others_are_left_alone() {
    in_fresh_netns(|| async {
        let host = ground();
        ip("rule add from 198.51.100.0/24 lookup 157 pref 1570 proto static");
        ip("rule add from 198.51.100.0/24 lookup 100 pref 1570");
        ip("rule add from 198.51.100.0/24 iif up0 lookup 157 pref 1571 proto 157");
        let before = rules();
        assert!(host.observe().await.unwrap().rules.is_empty());
        let rule = RuleSpec { source: "198.51.100.0/24".parse().unwrap(), table: 157, priority: 1570 };
        let rule = HostObject::Rule(rule);
        host.apply(&HostOp::Remove(rule.clone())).await.expect("what is not ours counts as absent");
        assert_eq!(rules(), before);
        match host.apply(&HostOp::Add(rule.clone())).await {
            // Kernels differ in whether the protocol makes another rule of it.
            Ok(()) => {
                assert_eq!(host.observe().await.unwrap().rules.len(), 1);
                host.apply(&HostOp::Remove(rule)).await.unwrap();
            }
            Err(error) => assert!(matches!(error, HostError::Foreign { .. }), "{error}"),
        }
        assert_eq!(rules(), before);
    });
}

#[test]
fn somebody_who_deletes_our_rule_is_noticed_and_it_comes_back() {
    in_fresh_netns(|| async {
        let host = ground();
        converge(&host, &gated()).await;
        let mut events = host.events().await.unwrap();
        let quiet = Duration::from_millis(300);
        // The kernel tells of some IPv6 objects a little after they are there.
        let mut late = 0;
        while tokio::time::timeout(quiet, events.next()).await.is_ok() {
            late += 1;
            assert!(late < 10, "something happens all the time");
        }
        ip("rule add from 192.0.2.0/24 lookup 100");
        assert!(tokio::time::timeout(quiet, events.next()).await.is_err(), "other people's rules");
        for family in ["-4", "-6"] {
            let source = if family == "-4" { "203.0.113.7" } else { "2001:db8:f::/48" };
            ip(&format!("{family} rule del from {source} lookup 157"));
            let noticed = tokio::time::timeout(Duration::from_secs(5), events.next()).await;
            assert_eq!(noticed.expect("within 5 s"), Some(()), "{family}");
        }
        assert_eq!(host.observe().await.unwrap().rules.len(), 1);
        converge(&host, &gated()).await;
        assert_eq!(host.observe().await.unwrap(), gated());
    });
}
