// SPDX-License-Identifier: Apache-2.0
//! What ADD is asked for: the sources, their order, and the capabilities in the shapes that runtimes send.

use std::net::IpAddr;

use cni_types::{Bandwidth, Code, PortMapping, PortProtocol};
use serde_json::{Value, json};

use super::gather;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// With one capability asked for.
fn asked(capability: &str, value: Value) -> Result<cni_types::AddOptions, cni_types::CniError> {
    gather(json!({"runtimeConfig": {capability: value}}), "")
}

fn refused(capability: &str, value: Value, code: Code, part: &str) {
    let error = asked(capability, value.clone()).unwrap_err();
    assert_eq!(error.code, code, "{value}: {error}");
    assert!(error.msg.contains(part), "{value}: {error} lacks {part:?}");
}

#[test]
fn what_nobody_asks_for_is_nothing() {
    let options =
        gather(json!({"mtu": 0, "runtimeConfig": {"portMappings": null, "aliases": {}}}), "").unwrap();
    assert!(options.fast_path);
    assert_eq!((options.pod, options.mac, options.mtu, options.dns), (None, None, None, None));
    assert_eq!((options.sticky, options.bandwidth, options.cgroup_path), (None, None, None));
    assert!(options.port_mappings.is_empty() && options.ip_ranges.is_empty() && options.aliases.is_empty());
    assert!(options.labels.is_empty() && options.requested_ips.is_empty() && options.ignored.is_empty());
}

#[test]
fn addresses_come_from_the_most_specific_source() {
    let both = |ips: Value| json!({"runtimeConfig": {"ips": ips}, "args": {"cni": {"ips": ["10.244.0.8"]}}});
    let runtime = gather(both(json!(["10.244.0.9/16", "fd00::9"])), "IP=10.244.0.7").unwrap();
    assert_eq!(runtime.requested_ips, [ip("10.244.0.9"), ip("fd00::9")]);
    assert_eq!(gather(both(json!([])), "IP=10.244.0.7").unwrap().requested_ips, [ip("10.244.0.8")]);
    let args = gather(json!({}), "IP=10.244.0.7,fd00::7/64").unwrap();
    assert_eq!(args.requested_ips, [ip("10.244.0.7"), ip("fd00::7")]);
    assert_eq!(
        asked("ips", json!(["10.0.0.1", "10.0.0.1/24", "::ffff:10.0.0.1"])).unwrap().requested_ips.len(),
        1
    );
    refused("ips", json!(["10.0.0.1", "10.0.0.2"]), Code::INVALID_CONFIG, "one address of each family");
}

#[test]
fn a_mac_comes_from_the_most_specific_source() {
    let mac = |extra: Value, args: &str| gather(extra, args).unwrap().mac.unwrap()[5];
    let both =
        json!({"runtimeConfig": {"mac": "02:00:5E:00:00:01"}, "args": {"cni": {"mac": "02-00-5e-00-00-02"}}});
    assert_eq!(mac(both, "MAC=02:00:00:00:00:03"), 1);
    let args = json!({"runtimeConfig": {"mac": ""}, "args": {"cni": {"mac": "02-00-5e-00-00-02"}}});
    assert_eq!(mac(args, "MAC=02:00:00:00:00:03"), 2);
    assert_eq!(mac(json!({}), "MAC=02:00:00:00:00:03"), 3);
    assert_eq!(gather(json!({"mtu": 1400}), "").unwrap().mtu, Some(1400));
}

#[test]
fn labels_come_as_a_list_or_as_a_map() {
    let list = gather(json!({"args": {"cni": {"labels": [{"key": "app", "value": "web"}]}}}), "").unwrap();
    let map = gather(json!({"args": {"cni": {"labels": {"app": "web"}}}}), "").unwrap();
    assert_eq!(list.labels, map.labels);
    assert_eq!(list.labels["app"], "web");
}

#[test]
fn a_pod_without_a_namespace_is_in_default_and_a_namespace_alone_is_no_pod() {
    let pod = gather(json!({}), "K8S_POD_NAME=web").unwrap().pod.unwrap();
    assert_eq!((pod.namespace.as_str(), pod.name.as_str(), pod.uid), ("default", "web", None));
    assert_eq!(gather(json!({}), "K8S_POD_NAMESPACE=shop").unwrap().pod, None);
}

#[test]
fn the_dns_capability_goes_before_the_config() {
    let own = json!({"dns": {"nameservers": ["1.1.1.1"], "domain": "example.org"}});
    assert_eq!(gather(own.clone(), "").unwrap().dns.unwrap().domain.as_deref(), Some("example.org"));
    // The second is containerd's: keys of a Go struct, null for an empty list.
    for sent in [
        json!({"servers": ["9.9.9.9"], "searches": ["a.b"]}),
        json!({"Servers": ["9.9.9.9"], "Searches": ["a.b"], "Options": null}),
    ] {
        let mut both = own.clone();
        both["runtimeConfig"] = json!({"dns": sent});
        let dns = gather(both, "").unwrap().dns.unwrap();
        assert_eq!((dns.nameservers, dns.search), (vec!["9.9.9.9".to_owned()], vec!["a.b".to_owned()]));
        assert_eq!((dns.domain, dns.options), (None, Vec::new()));
    }
    let mut empty = own;
    empty["runtimeConfig"] = json!({"dns": {"Servers": null, "Searches": null, "Options": null}});
    assert_eq!(gather(empty, "").unwrap().dns.unwrap().nameservers, ["1.1.1.1"]);
}

#[test]
fn ports_are_read_as_podman_and_as_containerd_write_them() {
    let podman = json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8080, "containerPort": 80, "protocol": "UDP", "hostIP": "127.0.0.1"},
        {"hostPort": 8080, "containerPort": 81, "protocol": "udp", "hostIP": "::1"},
        {"hostPort": 9, "containerPort": 9, "protocol": "sctp", "hostIP": "0.0.0.0"},
        {"hostPort": 0, "containerPort": 7, "protocol": "tcp"},
        {"hostPort": 1},
    ]);
    refused("portMappings", podman.clone(), Code::INVALID_CONFIG, "hostPort 1 has no containerPort");
    let mut podman = podman;
    podman.as_array_mut().unwrap().pop();
    let expected = |host_ip: Option<&str>, ports: (u16, u16), protocol| PortMapping {
        host_ip: host_ip.map(ip),
        host_port: ports.0,
        container_port: ports.1,
        protocol,
    };
    assert_eq!(
        asked("portMappings", podman).unwrap().port_mappings,
        [
            expected(None, (8080, 80), PortProtocol::Tcp),
            expected(Some("127.0.0.1"), (8080, 80), PortProtocol::Udp),
            expected(Some("::1"), (8080, 81), PortProtocol::Udp),
            expected(Some("0.0.0.0"), (9, 9), PortProtocol::Sctp),
        ]
    );
    let containerd = json!([{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}]);
    assert_eq!(
        asked("portMappings", containerd).unwrap().port_mappings,
        [expected(None, (8080, 80), PortProtocol::Tcp)]
    );
}

#[test]
fn a_port_is_asked_for_once() {
    let twice = |a: &str, b: &str| {
        json!([
            {"hostPort": 53, "containerPort": 1, "protocol": "udp", "hostIP": a},
            {"hostPort": 53, "containerPort": 2, "protocol": "udp", "hostIP": b},
        ])
    };
    for (a, b) in
        [("", ""), ("", "10.0.0.1"), ("10.0.0.1", "10.0.0.1"), ("0.0.0.0", "10.0.0.1"), ("::", "::1")]
    {
        refused("portMappings", twice(a, b), Code::INVALID_CONFIG, "hostPort 53/udp is asked for twice");
    }
    for (a, b) in [("10.0.0.1", "10.0.0.2"), ("0.0.0.0", "::"), ("0.0.0.0", "fd00::1")] {
        assert_eq!(asked("portMappings", twice(a, b)).unwrap().port_mappings.len(), 2, "{a} {b}");
    }
    for (bad, part) in [
        (json!([{"hostPort": 65536, "containerPort": 1}]), "hostPort 65536"),
        (json!([{"hostPort": -1, "containerPort": 1}]), "hostPort -1"),
        (json!([{"hostPort": 1, "containerPort": 70000}]), "containerPort 70000"),
        (json!([{"hostPort": 1, "containerPort": 1, "protocol": "icmp"}]), "\"icmp\""),
        (json!([{"hostPort": 1, "containerPort": 1, "hostIP": "localhost"}]), "\"localhost\""),
        (json!({"hostPort": 1}), "portMappings"),
    ] {
        refused("portMappings", bad, Code::INVALID_CONFIG, part);
    }
}

#[test]
fn bandwidth_is_in_bits_and_a_burst_needs_a_rate() {
    let sent =
        json!({"ingressRate": 8_000_000, "ingressBurst": 64_000, "egressRate": 16_000_000, "egressBurst": 0});
    let limits = Bandwidth {
        ingress_rate: 8_000_000,
        ingress_burst: 64_000,
        egress_rate: 16_000_000,
        egress_burst: 0,
    };
    assert_eq!(asked("bandwidth", sent).unwrap().bandwidth, Some(limits));
    // containerd, from Kubernetes' annotations.
    let sent = json!({"IngressRate": 1_000_000, "IngressBurst": 4_294_967_295_u64, "EgressRate": 0, "EgressBurst": 0});
    assert_eq!(asked("bandwidth", sent).unwrap().bandwidth.unwrap().ingress_burst, 4_294_967_295);
    assert_eq!(asked("bandwidth", json!({"ingressRate": 0})).unwrap().bandwidth, None);
    refused("bandwidth", json!({"egressBurst": 8}), Code::INVALID_CONFIG, "egressBurst is 8");
    refused("bandwidth", json!({"egressRate": -8}), Code::INVALID_CONFIG, "bandwidth");
    let some = json!({"ingressRate": 8, "ingressBurst": 8, "unshapedSubnets": ["10.0.0.0/8"]});
    refused("bandwidth", some, Code::UNSUPPORTED_FIELD, "unshapedSubnets");
}

#[test]
fn ranges_come_in_sets_and_a_gateway_is_ignored_aloud() {
    let sent = json!([
        [{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.3", "rangeEnd": "10.1.2.99", "gateway": "10.1.2.254"},
         {"subnet": "10.1.3.0/24"}],
        [{"subnet": "fd00::/64", "rangeStart": "fd00::5"}],
    ]);
    let options = asked("ipRanges", sent).unwrap();
    assert_eq!(options.ip_ranges.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
    let range = &options.ip_ranges[0][0];
    assert_eq!((range.first, range.last), (Some(ip("10.1.2.3")), Some(ip("10.1.2.99"))));
    assert_eq!(options.ignored.len(), 1);
    assert!(options.ignored[0].contains("10.1.2.254"), "{:?}", options.ignored);

    // containerd's Go library: one list, unset texts empty.
    let flat = json!([
        {"Subnet": "fd00::/64", "RangeStart": "", "RangeEnd": "", "Gateway": ""},
        {"Subnet": "10.1.2.3/24", "RangeStart": "", "RangeEnd": "", "Gateway": ""},
    ]);
    let options = asked("ipRanges", flat).unwrap();
    assert_eq!(options.ip_ranges.len(), 2);
    assert_eq!(options.ip_ranges[0][0].subnet.to_string(), "10.1.2.0/24");
    assert!(options.ignored.is_empty());

    for (bad, part) in [
        (json!([[]]), "an empty set"),
        (json!([[{"subnet": "10.1.2.0"}]]), "not a CIDR"),
        (json!([[{}]]), "not a CIDR"),
        (json!([[{"subnet": "10.1.2.0/24", "rangeStart": "10.1.3.1"}]]), "10.1.3.1 is not in 10.1.2.0/24"),
        (json!([[{"subnet": "10.1.2.0/24", "rangeEnd": "fd00::1"}]]), "fd00::1 is not in"),
        (json!([[{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.8"}]]), "behind"),
        (json!([[{"subnet": "10.1.2.0/24"}, {"subnet": "fd00::/64"}]]), "mixes"),
        (json!([[{"subnet": "10.1.2.0/24"}], [{"subnet": "10.1.3.0/24"}]]), "two sets of IPv4"),
        (json!("10.1.2.0/24"), "no list"),
    ] {
        refused("ipRanges", bad, Code::INVALID_CONFIG, part);
    }
}

#[test]
fn aliases_come_as_a_list_or_by_network() {
    assert_eq!(asked("aliases", json!(["Web", "db-1", "web"])).unwrap().aliases, ["web", "db-1"]);
    let podman = json!({"weft": ["web", "0123456789ab"], "other": ["not_a_label"]});
    assert_eq!(asked("aliases", podman).unwrap().aliases, ["web", "0123456789ab"]);
    assert!(asked("aliases", json!({"other": ["web"]})).unwrap().aliases.is_empty());
    assert!(asked("aliases", json!({"weft": null})).unwrap().aliases.is_empty());
    for bad in [json!(["a_b"]), json!(["-a"]), json!(["a.b"]), json!([""]), json!(["x".repeat(64)])] {
        refused("aliases", bad, Code::INVALID_CONFIG, "not a DNS label");
    }
    refused("aliases", json!("web"), Code::INVALID_CONFIG, "aliases");
}

#[test]
fn a_cgroup_path_is_a_text() {
    let path = "/kubelet.slice/kubelet-kubepods.slice/x.slice";
    assert_eq!(asked("cgroupPath", json!(path)).unwrap().cgroup_path.as_deref(), Some(path));
    refused("cgroupPath", json!(7), Code::INVALID_CONFIG, "cgroupPath");
    refused("cgroupPath", json!("/a\nb"), Code::INVALID_CONFIG, "cgroupPath");
}

#[test]
fn a_sticky_name_is_the_pods_the_macs_or_its_own() {
    let pod = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0";
    let sticky = |extra: Value, args: &str| gather(extra, args).map(|options| options.sticky);
    assert_eq!(sticky(json!({"sticky": "off"}), pod).unwrap(), None);
    assert_eq!(sticky(json!({"sticky": "pod"}), pod).unwrap().as_deref(), Some("weft/shop/web-0/eth0"));
    let mac = json!({"sticky": "mac", "runtimeConfig": {"mac": "02:00:5E:00:00:01"}});
    assert_eq!(sticky(mac, pod).unwrap().as_deref(), Some("weft/mac/02:00:5e:00:00:01"));

    let over = |value: Value| json!({"sticky": "pod", "args": {"cni": {"sticky": value}}});
    assert_eq!(sticky(over("off".into()), pod).unwrap(), None);
    assert_eq!(sticky(over("name:db/0".into()), pod).unwrap().as_deref(), Some("db/0"));
    for (bad, args, part) in [
        (json!({"sticky": "pod"}), "", "names no pod"),
        (json!({"sticky": "pod"}), "K8S_POD_NAME=a/b", "slash"),
        (json!({"sticky": "mac"}), pod, "no MAC is asked for"),
        (json!({"sticky": true}), pod, "sticky is true"),
        (json!({"sticky": "name:x"}), pod, "sticky is \"name:x\""),
        (over("name:".into()), pod, "args.cni.sticky"),
        (over("name:a b".into()), pod, "args.cni.sticky"),
        (over("always".into()), pod, "name:NAME"),
    ] {
        let error = sticky(bad, args).unwrap_err();
        assert_eq!(error.code, Code::INVALID_CONFIG);
        assert!(error.msg.contains(part), "{error} lacks {part:?}");
    }
}

#[test]
fn the_fast_path_is_on_where_nobody_says_no() {
    assert!(!gather(json!({"fastPath": false}), "").unwrap().fast_path);
    assert_eq!(gather(json!({"fastPath": "no"}), "").unwrap_err().code, Code::INVALID_CONFIG);
}
