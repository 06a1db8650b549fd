// SPDX-License-Identifier: Apache-2.0
//! The members of a lab, as they are written down.

use crate::names;
use crate::process::Process;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

/// One member of the store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EtcdMember {
    /// Its name: etcd1, …
    pub name: String,
    /// Its underlay address.
    pub ip: Ipv4Addr,
    /// Its process, while it should run.
    pub process: Option<Process>,
}

/// The host that is no member of the cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outside {
    /// Its namespace.
    pub netns: String,
    /// Its underlay address.
    pub ip: Ipv4Addr,
    /// Its IPv6 underlay address, in a lab that has IPv6.
    pub ip6: Option<Ipv6Addr>,
    /// Its servers.
    pub process: Option<Process>,
}

/// One node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Node {
    /// Its name: n1, …
    pub name: String,
    /// Its namespace.
    pub netns: String,
    /// Configuration, state, run directory and logs.
    pub dir: PathBuf,
    /// Its control group; pods lie below.
    pub cgroup: PathBuf,
    /// Its underlay address.
    pub underlay_ip: Ipv4Addr,
    /// Its IPv6 underlay address, in a lab that has IPv6.
    pub underlay_ip6: Option<Ipv6Addr>,
    /// The address of the router that it is behind, where it is behind one that does NAT.
    pub nat: Option<Ipv4Addr>,
    /// Its netd, while it should run.
    pub process: Option<Process>,
    /// Its weft-wireguard, while it should run.
    pub tunnel: Option<Process>,
    /// Its `netd hold-sockets`, while it should run.
    #[serde(default)]
    pub holder: Option<Process>,
}

/// One pod, seen through the interface it was made with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// The node it runs on.
    pub node: String,
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Its network namespace.
    pub netns: String,
    /// CNI container ID.
    pub container_id: String,
    /// Whether commands can run in it: its first ADD has succeeded, or it was made without one.
    pub ready: bool,
    /// CNI_IFNAME.
    pub ifname: String,
    /// The network configuration weft-cni got; null for a pod that was made without an interface.
    pub config: Value,
    /// What an earlier plugin of the chain answered: goes along with ADD.
    pub prev_result: Option<Value>,
    /// Its addresses, once ADD succeeded.
    pub ips: Vec<IpAddr>,
    /// What ADD answered.
    pub result: Option<Value>,
    /// Further interfaces, in the order in which they were added.
    pub further: Vec<Attachment>,
    /// Whether its processes run outside of its node's control group, where programs see its packets only.
    #[serde(default)]
    pub outside_cgroup: bool,
}

/// A further interface of a pod; the fields are those of [`Pod`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Attachment {
    /// CNI_IFNAME.
    pub ifname: String,
    /// The network configuration weft-cni got.
    pub config: Value,
    /// What an earlier plugin of the chain answered.
    pub prev_result: Option<Value>,
    /// The addresses, once ADD succeeded.
    pub ips: Vec<IpAddr>,
    /// What ADD answered.
    pub result: Option<Value>,
}

impl Node {
    /// The API socket of its netd.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/netd.sock")
    }

    /// The log of its netd.
    pub fn log(&self) -> PathBuf {
        self.dir.join("netd.log")
    }

    /// Where the control sockets of its devices in user space lie; in the node also /var/run/wireguard.
    pub fn wireguard_dir(&self) -> PathBuf {
        self.dir.join("wireguard")
    }

    /// The log of its weft-wireguard.
    pub fn tunnel_log(&self) -> PathBuf {
        self.dir.join("weft-wireguard.log")
    }

    /// The log of its `netd hold-sockets`.
    pub fn holder_log(&self) -> PathBuf {
        self.dir.join("hold-sockets.log")
    }

    /// Where others see its packets come from.
    pub fn wire_ip(&self) -> Ipv4Addr {
        self.nat.unwrap_or(self.underlay_ip)
    }

    /// Where its container runtime keeps network configurations, and netd its own.
    pub fn cni_conf_dir(&self) -> PathBuf {
        self.dir.join("cni-conf")
    }

    /// Where its container runtime caches results, in a folder `results`.
    pub fn cni_cache_dir(&self) -> PathBuf {
        self.dir.join("cni-cache")
    }

    /// Where pods run whose processes are outside of the node's control group.
    pub(crate) fn guests_cgroup(&self) -> PathBuf {
        self.cgroup.with_file_name(format!("{}-guests", self.name))
    }

    /// Whether its netd runs.
    pub fn alive(&self) -> bool {
        self.process.is_some_and(|process| process.alive())
    }

    /// Whether its weft-wireguard runs.
    pub fn tunnel_alive(&self) -> bool {
        self.tunnel.is_some_and(|process| process.alive())
    }

    /// The port in the bridge that leads to it.
    pub(crate) fn bridge_port(&self) -> String {
        if self.nat.is_some() { names::nat(&self.name) } else { self.name.clone() }
    }
}

impl Pod {
    /// The pod seen through one of its interfaces: `config`, `ips` and so on are those of the interface.
    pub fn through(&self, ifname: &str) -> Option<Pod> {
        if ifname == self.ifname {
            return Some(self.clone());
        }
        let Attachment { ifname, config, prev_result, ips, result } =
            self.further.iter().find(|further| further.ifname == ifname)?.clone();
        Some(Pod { ifname, config, prev_result, ips, result, ..self.clone() })
    }

    /// Each of its interfaces, the first one first.
    pub fn interfaces(&self) -> Vec<Pod> {
        let own = (!self.bare()).then(|| self.clone());
        let further = self.further.iter().filter_map(|further| self.through(&further.ifname));
        own.into_iter().chain(further).collect()
    }

    /// The CNI network's name.
    pub fn network(&self) -> &str {
        self.config["name"].as_str().unwrap_or_default()
    }

    /// Whether no interface was ever asked for.
    pub(crate) fn bare(&self) -> bool {
        self.config.is_null()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_can_be_seen_through_each_of_its_interfaces() {
        let further = json!({"ifname": "net1", "config": {"name": "b"}, "ips": ["10.0.0.2"]});
        let pod: Pod = serde_json::from_value(json!({
            "name": "p", "node": "n1", "namespace": "default", "netns": "weft-x-p", "container_id": "c", "ready": true,
            "ifname": "eth0", "config": {"name": "a"}, "ips": ["10.0.0.1"], "further": [further],
        }))
        .unwrap();
        let seen: Vec<_> = pod
            .interfaces()
            .iter()
            .map(|pod| format!("{} {} {} {}", pod.name, pod.ifname, pod.network(), pod.ips[0]))
            .collect();
        assert_eq!(seen, ["p eth0 a 10.0.0.1", "p net1 b 10.0.0.2"]);
        assert!(pod.through("net2").is_none());
        let bare = Pod { config: Value::Null, further: Vec::new(), ..pod };
        assert!(bare.interfaces().is_empty());
    }
}
