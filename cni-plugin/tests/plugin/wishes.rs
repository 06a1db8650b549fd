// SPDX-License-Identifier: Apache-2.0
//! What runtime and operator ask for, on its way to netd.

use netd_api::{Bandwidth, PortMapping, PortProtocol};
use serde_json::{Value, json};

use crate::fake::Fake;
use crate::runtime::{Node, with};

#[test]
fn what_the_runtime_asks_for_reaches_netd() {
    let Some(node) = Node::new() else { return };
    let netd = Fake::start(&node.socket());
    let mut config = node.config("1.1.0");
    config["mtu"] = 1400.into();
    config["sticky"] = "pod".into();
    config["fastPath"] = false.into();
    config["runtimeConfig"] = json!({
        "ips": ["10.244.0.2"], "mac": "02:00:00:00:00:07", "aliases": {"weft": ["Web"], "other": ["x"]},
        "portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "UDP", "HostIP": "127.0.0.1"}],
        "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 64_000},
        "ipRanges": [[{"subnet": "10.244.0.0/24", "rangeStart": "10.244.0.2", "gateway": "10.244.0.1"}]],
        "cgroupPath": "/kubepods/x", "dns": {"Servers": ["9.9.9.9"], "Searches": null},
    });
    config["args"] = json!({"cni": {"labels": [{"key": "app", "value": "web"}]}});
    let vars = [
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u1;IP=10.9.9.9"),
        ("WEFT_CNI_LOG", "info"),
    ];
    let answer = node.call_with("ADD", "c1", &config, &vars);
    assert!(answer.success, "{answer:?}");
    assert!(answer.stderr.contains("gateway 10.244.0.1"), "what is ignored is said: {answer:?}");
    let result = answer.json();
    assert_eq!(result["interfaces"][1]["mac"], "02:00:00:00:00:07");
    assert_eq!(result["dns"], json!({"nameservers": ["9.9.9.9"]}));
    assert_eq!(node.pod.ip("link show eth0")[0]["mtu"], 1400);

    let request = netd.book().only().request.clone();
    let pod = request.pod.unwrap();
    assert_eq!(
        (pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_deref()),
        ("shop", "web-0", Some("u1"))
    );
    assert_eq!(request.labels["app"], "web");
    assert_eq!(request.requested_ips, ["10.244.0.2".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(request.sticky.as_deref(), Some("weft/shop/web-0/eth0"));
    assert_eq!(request.aliases, ["web"]);
    assert!(!request.fast_path);
    assert_eq!(request.cgroup_path.as_deref(), Some("/kubepods/x"));
    let mapping = PortMapping {
        host_ip: Some("127.0.0.1".parse().unwrap()),
        host_port: 8080,
        container_port: 80,
        protocol: PortProtocol::Udp,
    };
    assert_eq!(request.port_mappings, [mapping]);
    let limits = Bandwidth { ingress_rate: 8_000_000, ingress_burst: 64_000, ..Bandwidth::default() };
    assert_eq!(request.bandwidth, Some(limits));
    assert_eq!(request.ip_ranges[0][0].first, Some("10.244.0.2".parse().unwrap()));
    assert!(node.call("CHECK", "c1", &with(&config, "prevResult", result)).success);
}

#[test]
fn a_wish_that_cannot_be_fulfilled_is_refused_before_anything_happens() {
    let Some(node) = Node::new() else { return };
    let netd = Fake::start(&node.socket());
    let config = node.config("1.1.0");
    for (key, value, code) in [
        ("runtimeConfig", json!({"infinibandGUID": "c2:11:22:33:44:55:66:77"}), 2),
        ("runtimeConfig", json!({"deviceID": "0000:04:00.5"}), 2),
        ("runtimeConfig", json!({"aliases": ["no_label"]}), 7),
        (
            "runtimeConfig",
            json!({"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "icmp"}]}),
            7,
        ),
        ("ipam", json!({"type": "host-local"}), 2),
        ("ipMasq", Value::Bool(false), 2),
        ("sticky", "pod".into(), 7),
    ] {
        let answer = node.call("ADD", "c1", &with(&config, key, value.clone()));
        assert_eq!(answer.code(), code, "{key} {value}: {answer:?}");
    }
    assert!(netd.book().calls.is_empty() && node.is_bare());
}

#[test]
fn the_runtimes_trace_goes_on_in_netd() {
    let Some(node) = Node::new() else { return };
    let netd = Fake::start(&node.socket());
    let config = node.config("1.1.0");
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let vars = [("TRACEPARENT", parent.as_str()), ("WEFT_CNI_LOG", "info")];
    let answer = node.call_with("ADD", "c1", &config, &vars);
    assert!(answer.success, "{answer:?}");
    let sent = std::mem::take(&mut netd.book().traces);
    assert_eq!(sent.len(), 2, "allocate and commit: {sent:?}");
    assert!(sent.iter().all(|header| header == &sent[0] && header != &parent), "one span of ours: {sent:?}");
    let parts: Vec<&str> = sent[0].split('-').collect();
    assert_eq!((parts[0], parts[1], parts[3]), ("00", trace, "01"));
    for part in [trace, "00f067aa0ba902b7", parts[2]] {
        assert!(answer.stderr.contains(part), "{part} is not in the log: {answer:?}");
    }
    // A failure is logged in its span, at the usual level.
    let answer = node.call_with("ADD", "c1", &config, &[("TRACEPARENT", &parent)]);
    assert!(answer.stderr.contains(trace) && answer.stderr.contains("c1"), "{answer:?}");

    // What is no trace is none, and no reason to fail.
    netd.book().traces.clear();
    for odd in ["", "rubbish", "00-00000000000000000000000000000000-00f067aa0ba902b7-01"] {
        let answer = node.call_with("STATUS", "", &config, &[("TRACEPARENT", odd)]);
        assert!(answer.success, "{odd:?}: {answer:?}");
    }
    assert!(netd.book().traces.is_empty());
}
