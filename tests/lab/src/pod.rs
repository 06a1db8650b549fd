// SPDX-License-Identifier: Apache-2.0
//! Pods: made and removed by the real weft-cni, with its environment and JSON on standard input, as a runtime does.

use crate::run::{Output, output, output_always, sibling};
use crate::state::{self, Node, Pod, State};
use crate::{cgroup, names, place, topology, usage};
use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use uuid::Uuid;

/// The network's name in the configuration.
pub const NETWORK: &str = "weft";
/// What weft-cni is asked to speak: the newest version it knows.
const CNI_VERSION: &str = "1.1.0";
/// A runtime gives a plugin minutes; here nothing may take that long.
const CNI_LIMIT: Duration = Duration::from_secs(30);

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
    /// An address it asks for.
    pub ip: Option<IpAddr>,
}

/// A port of the node that leads to a port of the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMapping {
    /// The node's port.
    pub host: u16,
    /// The pod's port.
    pub container: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
}

impl PodSpec {
    /// A pod without labels in the namespace `default`.
    pub fn new(node: &str, name: &str) -> PodSpec {
        PodSpec {
            node: node.into(),
            name: name.into(),
            namespace: "default".into(),
            labels: BTreeMap::new(),
            ports: Vec::new(),
            ip: None,
        }
    }

    /// With a label.
    pub fn label(mut self, key: &str, value: &str) -> PodSpec {
        self.labels.insert(key.into(), value.into());
        self
    }
}

/// The network configuration of a node, as weft-cni gets it on standard input.
pub fn network_config(node: &Node) -> Value {
    json!({
        "cniVersion": CNI_VERSION,
        "name": NETWORK,
        "type": "weft-cni",
        "socket": node.socket(),
    })
}

/// Adds a pod: namespace, control group, CNI ADD. Undone when ADD fails.
pub(crate) fn add(lab: &str, spec: &PodSpec) -> Result<Pod> {
    let pod = state::edit(lab, |state| {
        let node = state.node(&spec.node)?.clone();
        names::check_pod(&spec.name, state.nodes.iter().map(|node| node.name.as_str()))?;
        if let Some(other) = state.pods.get(&spec.name) {
            bail!("pod {} exists already, on {}", other.name, other.node);
        }
        let pod = Pod {
            name: spec.name.clone(),
            node: spec.node.clone(),
            namespace: spec.namespace.clone(),
            netns: names::netns(lab, &spec.name),
            container_id: Uuid::new_v4().simple().to_string(),
            config: pod_config(&node, spec),
            ips: Vec::new(),
            result: None,
        };
        state.pods.insert(pod.name.clone(), pod.clone());
        Ok(pod)
    })?;
    // Until the namespace is ours there is nothing to undo but the entry.
    if let Err(error) = topology::add_netns(lab, &pod.netns) {
        forget(lab, &pod.name)?;
        return Err(error);
    }
    match attach(lab, &pod) {
        Ok(added) => Ok(added),
        Err(error) => {
            // Runtimes answer a failed ADD with DEL. It cannot add to what the message already says.
            let _ = cni(lab, &pod, "DEL");
            discard(lab, &pod)?;
            Err(error)
        }
    }
}

/// Removes a pod: its processes, CNI DEL, control group, namespace. A failed DEL leaves it for another try.
pub(crate) fn remove(lab: &str, node: &str, name: &str) -> Result<()> {
    let state = State::read(lab)?;
    state.node(node)?;
    let pod = state.pods.get(name).filter(|pod| pod.node == node);
    let pod = pod.ok_or_else(|| usage::usage(format!("no pod {name:?} on {node}")))?;
    cgroup::kill_all(&pod_cgroup(lab, pod)?)?;
    cni(lab, pod, "DEL")?.text(&format!("DEL of pod {name}"))?;
    discard(lab, pod)
}

/// Runs weft-cni for a pod once, whatever its answer.
///
/// `command` is what CNI_COMMAND says: ADD, DEL, CHECK, …
pub fn cni(lab: &str, pod: &Pod, command: &str) -> Result<Output> {
    let state = State::read(lab)?;
    let node = state.node(&pod.node)?;
    let mut config = pod.config.clone();
    if let (Some(result), true) = (&pod.result, command != "ADD") {
        config["prevResult"] = result.clone();
    }
    let program = sibling("weft-cni")?;
    let mut plugin = Command::new(&program);
    plugin
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", &pod.container_id)
        .env("CNI_NETNS", names::netns_path(&pod.netns))
        .env("CNI_IFNAME", names::POD_IF)
        .env("CNI_PATH", program.parent().unwrap_or(&program))
        .env(
            "CNI_ARGS",
            format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={}", pod.namespace, pod.name),
        );
    let stdin = serde_json::to_vec(&config)?;
    // A runtime runs in the node's own network namespace. Only ADD gives way to Ctrl-C: DEL is how we clean up.
    place::in_netns(&node.netns, || match command {
        "ADD" => output(&mut plugin, &stdin, CNI_LIMIT),
        _ => output_always(&mut plugin, &stdin, CNI_LIMIT),
    })
}

/// The control group of a pod.
pub fn pod_cgroup(lab: &str, pod: &Pod) -> Result<PathBuf> {
    Ok(State::read(lab)?.node(&pod.node)?.cgroup.join(&pod.name))
}

/// The resolv.conf of a pod.
pub(crate) fn resolv_conf(lab: &str, pod: &str) -> PathBuf {
    names::lab_dir(lab).join("pods").join(pod).join("resolv.conf")
}

fn attach(lab: &str, pod: &Pod) -> Result<Pod> {
    cgroup::create(&pod_cgroup(lab, pod)?)?;
    let answer = cni(lab, pod, "ADD")?;
    if !answer.ok() {
        let said = [answer.stdout.trim(), answer.stderr.trim()].join("\n");
        bail!(
            "ADD of pod {} on {} failed (exit code {:?}): {}",
            pod.name,
            pod.node,
            answer.code,
            said.trim()
        );
    }
    let result: Value = answer.json("the result of ADD")?;
    let ips = result_ips(&result)?;
    let file = resolv_conf(lab, &pod.name);
    fs::create_dir_all(file.parent().unwrap_or(&file))?;
    fs::write(&file, render_resolv_conf(&result["dns"]))?;
    state::edit(lab, |state| {
        let pod = state.pods.get_mut(&pod.name).context("the pod was taken down meanwhile")?;
        pod.ips = ips;
        pod.result = Some(result);
        Ok(pod.clone())
    })
}

/// Removes all that is ours of a pod.
fn discard(lab: &str, pod: &Pod) -> Result<()> {
    cgroup::remove(&pod_cgroup(lab, pod)?)?;
    topology::remove_netns(lab, &pod.netns)?;
    if let Some(folder) = resolv_conf(lab, &pod.name).parent().filter(|folder| folder.exists()) {
        fs::remove_dir_all(folder)?;
    }
    forget(lab, &pod.name)
}

fn forget(lab: &str, pod: &str) -> Result<()> {
    state::edit(lab, |state| {
        state.pods.remove(pod);
        Ok(())
    })
}

fn pod_config(node: &Node, spec: &PodSpec) -> Value {
    let mut config = network_config(node);
    if !spec.labels.is_empty() {
        let labels: Vec<_> =
            spec.labels.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect();
        config["args"]["cni"]["labels"] = labels.into();
    }
    if let Some(ip) = spec.ip {
        config["args"]["cni"]["ips"] = json!([ip]);
    }
    if !spec.ports.is_empty() {
        let mapping = |port: &PortMapping| json!({ "hostPort": port.host, "containerPort": port.container, "protocol": port.protocol });
        config["runtimeConfig"]["portMappings"] = spec.ports.iter().map(mapping).collect();
    }
    config
}

/// The bare addresses of a CNI result: `ips[].address` are written with a prefix length.
fn result_ips(result: &Value) -> Result<Vec<IpAddr>> {
    let bare = |entry: &Value| {
        let address = entry["address"].as_str()?.split('/').next()?;
        address.parse().ok()
    };
    let ips = result["ips"].as_array().map(|ips| ips.iter().map(bare).collect::<Option<Vec<_>>>());
    ips.flatten()
        .filter(|ips| !ips.is_empty())
        .ok_or_else(|| anyhow!("a CNI result without addresses: {result}"))
}

/// What a runtime writes into a container for the `dns` of a CNI result.
fn render_resolv_conf(dns: &Value) -> String {
    let words = |key: &str| {
        let list = dns[key].as_array().map(|list| list.iter().filter_map(Value::as_str).collect::<Vec<_>>());
        list.unwrap_or_default()
    };
    let mut text: String =
        words("nameservers").iter().map(|server| format!("nameserver {server}\n")).collect();
    for (key, values) in [("search", words("search")), ("options", words("options"))] {
        if !values.is_empty() {
            text += &format!("{key} {}\n", values.join(" "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_becomes_addresses_and_a_resolv_conf() {
        let result = json!({
            "ips": [{ "address": "10.244.0.5/32", "gateway": "169.254.1.1" }],
            "dns": {
                "nameservers": ["169.254.53.53", "10.96.0.10"],
                "search": ["default.svc.cluster.local", "svc.cluster.local"],
                "options": ["ndots:5"],
            },
        });
        assert_eq!(result_ips(&result).unwrap(), ["10.244.0.5".parse::<IpAddr>().unwrap()]);
        assert_eq!(
            render_resolv_conf(&result["dns"]),
            "nameserver 169.254.53.53\nnameserver 10.96.0.10\n\
             search default.svc.cluster.local svc.cluster.local\noptions ndots:5\n"
        );
        assert!(result_ips(&json!({ "ips": [] })).is_err());
        assert_eq!(render_resolv_conf(&Value::Null), "");
    }
}
