// SPDX-License-Identifier: Apache-2.0
//! What a pod should be, and the network configuration that says so.

use crate::members::Node;
use crate::names;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The network's name in the configuration, where a test wants no other.
pub const NETWORK: &str = "weft";
/// What weft-cni is asked to speak: the newest version it knows.
const CNI_VERSION: &str = "1.1.0";
/// What the configuration declares, so that a runtime would pass it on.
const CAPABILITIES: [&str; 8] =
    ["aliases", "bandwidth", "cgroupPath", "dns", "ipRanges", "ips", "mac", "portMappings"];
/// A bucket that holds a few of the largest segments (64 KiB), in bits: with less nothing large ever passes.
const BURST_LEAST: u64 = 4 * 64 * 1024 * 8;
/// Otherwise a bucket holds what flows in this part of a second.
const BURST_PARTS: u64 = 20;

/// What a pod should be.
#[derive(Debug, Clone)]
pub struct PodSpec {
    /// The node.
    pub node: String,
    /// The pod's name: a DNS label, unique in the lab.
    pub name: String,
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Ports of the node that lead to it.
    pub ports: Vec<PortMapping>,
    /// Addresses it asks for, one of a family at most.
    pub ips: Vec<IpAddr>,
    /// The interface. Where the pod is there already, it gets this one in addition.
    pub ifname: String,
    /// The network.
    pub network: String,
    /// The MAC it asks for.
    pub mac: Option<String>,
    /// Limits of its traffic.
    pub bandwidth: Option<Bandwidth>,
    /// Further names in its namespace.
    pub aliases: Vec<String>,
    /// The name whose addresses it gets; `pod` and `mac` leave the name to weft-cni.
    pub sticky: Option<String>,
    /// The CNI version of the configuration.
    pub cni_version: String,
    /// What an earlier plugin of the chain answered.
    pub prev_result: Option<Value>,
    /// Laid over the network configuration, key by key: for whatever has no field here.
    pub extra: Value,
    /// Its processes run outside of its node's control group, as those of a virtual machine do: only its packets are seen.
    pub outside_cgroup: bool,
}

/// A port of the node that leads to a port of the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMapping {
    /// The node's address; none for all of them.
    pub host_ip: Option<IpAddr>,
    /// The node's port.
    pub host: u16,
    /// The pod's port.
    pub container: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
}

/// Limits of a pod's traffic in bits per second, as the pod sees it; 0 for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bandwidth {
    /// To the pod.
    pub ingress: u64,
    /// From the pod.
    pub egress: u64,
}

impl PodSpec {
    /// A pod in the namespace `default` that wants nothing special.
    pub fn new(node: &str, name: &str) -> PodSpec {
        PodSpec {
            node: node.into(),
            name: name.into(),
            namespace: "default".into(),
            labels: BTreeMap::new(),
            ports: Vec::new(),
            ips: Vec::new(),
            ifname: names::POD_IF.into(),
            network: NETWORK.into(),
            mac: None,
            bandwidth: None,
            aliases: Vec::new(),
            sticky: None,
            cni_version: CNI_VERSION.into(),
            prev_result: None,
            extra: Value::Null,
            outside_cgroup: false,
        }
    }

    /// With its processes outside of the node's control group.
    pub fn outside_cgroup(mut self) -> PodSpec {
        self.outside_cgroup = true;
        self
    }

    /// With a label.
    pub fn label(mut self, key: &str, value: &str) -> PodSpec {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// In another Kubernetes namespace.
    pub fn namespace(mut self, namespace: &str) -> PodSpec {
        self.namespace = namespace.into();
        self
    }

    /// With a port of every address of the node; `protocol` is `tcp`, `udp` or `sctp`.
    pub fn port(mut self, host: u16, container: u16, protocol: &str) -> PodSpec {
        self.ports.push(PortMapping { host_ip: None, host, container, protocol: protocol.into() });
        self
    }

    /// With an address it asks for.
    pub fn ip(mut self, ip: IpAddr) -> PodSpec {
        self.ips.push(ip);
        self
    }

    /// On another network, by another interface.
    pub fn interface(mut self, network: &str, ifname: &str) -> PodSpec {
        (self.network, self.ifname) = (network.into(), ifname.into());
        self
    }

    /// With limits of its traffic, in bits per second.
    pub fn bandwidth(mut self, ingress: u64, egress: u64) -> PodSpec {
        self.bandwidth = Some(Bandwidth { ingress, egress });
        self
    }

    /// With a further name.
    pub fn alias(mut self, alias: &str) -> PodSpec {
        self.aliases.push(alias.into());
        self
    }

    /// With the addresses of a sticky name; `pod` and `mac` leave the name to weft-cni.
    pub fn sticky(mut self, name: &str) -> PodSpec {
        self.sticky = Some(name.into());
        self
    }

    /// With whatever else the network configuration shall say: laid over it key by key, also inside of objects.
    pub fn extra(mut self, extra: Value) -> PodSpec {
        merge(&mut self.extra, extra);
        self
    }

    /// The network configuration for this pod, without prevResult.
    pub(super) fn config(&self, node: &Node) -> Value {
        let mut config = network_config(node);
        config["cniVersion"] = self.cni_version.as_str().into();
        config["name"] = self.network.as_str().into();
        if !self.labels.is_empty() {
            let label = |(key, value)| json!({ "key": key, "value": value });
            config["args"]["cni"]["labels"] = self.labels.iter().map(label).collect();
        }
        if let Some(name) = &self.sticky {
            config["args"]["cni"]["sticky"] = sticky(name).into();
        }
        let asked = self.capability_args();
        if !asked.is_empty() {
            config["runtimeConfig"] = asked.into();
        }
        merge(&mut config, self.extra.clone());
        config
    }

    fn capability_args(&self) -> Map<String, Value> {
        let mut asked = Map::new();
        let mut ask = |name: &str, value: Option<Value>| {
            asked.extend(value.map(|value| (name.to_owned(), value)));
        };
        ask(
            "portMappings",
            (!self.ports.is_empty()).then(|| self.ports.iter().map(PortMapping::json).collect()),
        );
        ask("ips", (!self.ips.is_empty()).then(|| json!(self.ips)));
        ask("mac", self.mac.as_ref().map(|mac| json!(mac)));
        ask("aliases", (!self.aliases.is_empty()).then(|| json!(self.aliases)));
        ask("bandwidth", self.bandwidth.map(|bandwidth| bandwidth.json()));
        asked
    }
}

impl PortMapping {
    fn json(&self) -> Value {
        let PortMapping { host_ip, host, container, protocol } = self;
        let mut json = json!({ "hostPort": host, "containerPort": container, "protocol": protocol });
        if let Some(ip) = host_ip {
            json["hostIP"] = ip.to_string().into();
        }
        json
    }
}

impl Bandwidth {
    fn json(self) -> Value {
        let burst = |rate: u64| if rate == 0 { 0 } else { (rate / BURST_PARTS).max(BURST_LEAST) };
        json!({
            "ingressRate": self.ingress, "ingressBurst": burst(self.ingress),
            "egressRate": self.egress, "egressBurst": burst(self.egress),
        })
    }
}

/// The network configuration of a node, as weft-cni gets it on standard input.
pub fn network_config(node: &Node) -> Value {
    json!({
        "cniVersion": CNI_VERSION,
        "name": NETWORK,
        "type": "weft-cni",
        "socket": node.socket(),
        "capabilities": CAPABILITIES.iter().map(|name| (*name, true)).collect::<BTreeMap<_, _>>(),
    })
}

/// As weft-cni takes it: its own keywords, or `name:NAME`.
fn sticky(name: &str) -> String {
    if matches!(name, "mac" | "off" | "pod") { name.to_owned() } else { format!("name:{name}") }
}

/// Lays `over` over `under`: objects key by key, null leaves out, everything else replaces.
fn merge(under: &mut Value, over: Value) {
    match over {
        Value::Null => {}
        Value::Object(over) => {
            if !under.is_object() {
                *under = json!({});
            }
            for (key, value) in over {
                merge(&mut under[key], value);
            }
        }
        other => *under = other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Node {
        let dir = "/run/weft-lab/x/n1";
        serde_json::from_value(json!({
            "name": "n1", "netns": "weft-x-n1", "dir": dir, "cgroup": "/c", "underlay_ip": "172.31.77.11",
        }))
        .unwrap()
    }

    #[test]
    fn a_plain_pod_gets_the_node_s_configuration() {
        assert_eq!(PodSpec::new("n1", "a").config(&node()), network_config(&node()));
    }

    #[test]
    fn wishes_go_where_a_runtime_puts_them() {
        let spec = PodSpec::new("n1", "a")
            .label("app", "web")
            .port(8080, 80, "tcp")
            .ip("10.244.0.9".parse().unwrap())
            .alias("db")
            .sticky("db-0")
            .bandwidth(100_000_000, 0)
            .interface("blue", "net1")
            .extra(json!({"mtu": 1400, "runtimeConfig": {"cgroupPath": "/k"}}));
        let spec = PodSpec { mac: Some("02:00:00:00:00:01".into()), cni_version: "0.4.0".into(), ..spec };
        let config = spec.config(&node());
        assert_eq!(
            (&config["cniVersion"], &config["name"], &config["mtu"]),
            (&json!("0.4.0"), &json!("blue"), &json!(1400))
        );
        assert_eq!(
            config["args"]["cni"],
            json!({"labels": [{"key": "app", "value": "web"}], "sticky": "name:db-0"})
        );
        assert_eq!(
            config["runtimeConfig"],
            json!({
                "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
                "ips": ["10.244.0.9"], "mac": "02:00:00:00:00:01", "aliases": ["db"], "cgroupPath": "/k",
                "bandwidth": {"ingressRate": 100_000_000, "ingressBurst": 5_000_000, "egressRate": 0, "egressBurst": 0},
            })
        );
        for capability in config["runtimeConfig"].as_object().unwrap().keys() {
            assert_eq!(config["capabilities"][capability], true, "{capability} is not declared");
        }
    }
}
