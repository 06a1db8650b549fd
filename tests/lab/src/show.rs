// SPDX-License-Identifier: Apache-2.0
//! What a lab looks like from outside: the JSON that scripts rely on, and the same for people.

use crate::members::{Node, Pod};
use crate::state::State;
use crate::{etcd, names, pod};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

/// netd's DNS address on every node, where its configuration says nothing else.
const NODE_DNS: &str = "169.254.53.53:53";
/// The same over IPv6, where pods have IPv6 addresses.
const NODE_DNS6: &str = "[fd00:53::53]:53";
/// netd's metrics, reachable in the node's own namespace.
const METRICS: &str = "http://127.0.0.1:9157/metrics";

/// A lab as `--json` prints it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Show {
    /// The lab's name.
    pub name: String,
    /// Its directory.
    pub dir: PathBuf,
    /// Client URLs of the store; none where it is a file.
    pub etcd: Vec<String>,
    /// The host that is no member.
    pub outside: ShowOutside,
    /// Nodes in their order.
    pub nodes: Vec<ShowNode>,
    /// Pods by name.
    pub pods: Vec<ShowPod>,
}

/// The host that is no member.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ShowOutside {
    /// Name of its namespace.
    pub netns: String,
    /// Its address.
    pub ip: Ipv4Addr,
}

/// One node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ShowNode {
    /// Its name.
    pub name: String,
    /// Name of its namespace.
    pub netns: String,
    /// The API socket of its netd.
    pub socket: PathBuf,
    /// Its DNS over IPv4, `address:port`.
    pub dns: String,
    /// Its DNS over IPv6; none in a lab without IPv6.
    pub dns6: Option<String>,
    /// Its underlay address.
    pub underlay_ip: Ipv4Addr,
    /// Its underlay interface.
    pub underlay_if: String,
    /// URL of its metrics, from within its namespace.
    pub metrics: String,
    /// What weft-cni gets on standard input.
    pub cni_config: Value,
}

/// One pod.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ShowPod {
    /// Its name.
    pub name: String,
    /// Its node.
    pub node: String,
    /// Name of its namespace.
    pub netns: String,
    /// Its bare addresses, of all its interfaces.
    pub ips: Vec<IpAddr>,
}

impl From<&State> for Show {
    fn from(state: &State) -> Show {
        let node = |node: &Node| ShowNode {
            name: node.name.clone(),
            netns: node.netns.clone(),
            socket: node.socket(),
            dns: NODE_DNS.into(),
            dns6: state.families.v6().then(|| NODE_DNS6.into()),
            underlay_ip: node.underlay_ip,
            underlay_if: names::UNDERLAY_IF.into(),
            metrics: METRICS.into(),
            cni_config: pod::network_config(node),
        };
        let pod = |pod: &Pod| ShowPod {
            name: pod.name.clone(),
            node: pod.node.clone(),
            netns: pod.netns.clone(),
            ips: pod.interfaces().into_iter().flat_map(|seen| seen.ips).collect(),
        };
        Show {
            name: state.name.clone(),
            dir: names::lab_dir(&state.name),
            etcd: etcd::urls(state),
            outside: ShowOutside { netns: state.outside.netns.clone(), ip: state.outside.ip },
            nodes: state.nodes.iter().map(node).collect(),
            // A pod whose ADD is under way is not there yet.
            pods: state.pods.values().filter(|pod| pod.ready).map(pod).collect(),
        }
    }
}

impl fmt::Display for Show {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "lab      {} in {}", self.name, self.dir.display())?;
        let store = if self.etcd.is_empty() { "a file of the node".to_owned() } else { self.etcd.join(" ") };
        writeln!(f, "store    {store}")?;
        writeln!(f, "outside  {} in {}", self.outside.ip, self.outside.netns)?;
        for node in &self.nodes {
            writeln!(f, "node     {:<8} {:<16} {}", node.name, node.underlay_ip, node.netns)?;
        }
        for pod in &self.pods {
            let ips: Vec<_> = pod.ips.iter().map(ToString::to_string).collect();
            writeln!(f, "pod      {:<8} {:<16} {} on {}", pod.name, ips.join(" "), pod.netns, pod.node)?;
        }
        Ok(())
    }
}
