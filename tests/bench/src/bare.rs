// SPDX-License-Identifier: Apache-2.0
//! The baseline: the same namespaces, veths, MTUs and routes as the lab, made with `ip` alone. No Weft, no BPF, no nft.
//!
//! Two nodes on a bridge, a kernel VXLAN between them with a fixed FDB and neighbours, a pod on each; and on the first
//! node a second pod for the same-node path.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Namespaces of the baseline; the prefix is the bench's own.
pub(crate) const NET: &str = "weftbench-net";
pub(crate) const NODES: [&str; 2] = ["weftbench-n1", "weftbench-n2"];
/// (namespace, node, address)
pub(crate) const PODS: [(&str, usize, &str); 3] =
    [("weftbench-p1", 0, "10.201.1.2"), ("weftbench-p2", 1, "10.201.2.2"), ("weftbench-p3", 0, "10.201.1.3")];

/// Builds it; a rest of an earlier run is removed first.
pub(crate) fn create() -> Result<()> {
    remove();
    for netns in std::iter::once(NET).chain(NODES).chain(PODS.map(|p| p.0)) {
        ip(None, &["netns", "add", netns])?;
        ip(Some(netns), &["link", "set", "lo", "up"])?;
    }
    ip(Some(NET), &["link", "add", "br0", "type", "bridge"])?;
    ip(Some(NET), &["link", "set", "br0", "up"])?;
    for (i, node) in NODES.iter().enumerate() {
        underlay(i, node)?;
    }
    for (i, node) in NODES.iter().enumerate() {
        vxlan(i, node)?;
    }
    for (pod, node, address) in PODS {
        wire_pod(pod, NODES[node], address)?;
    }
    Ok(())
}

fn underlay(i: usize, node: &str) -> Result<()> {
    let port = format!("p{i}");
    ip(Some(NET), &["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", node])?;
    ip(Some(NET), &["link", "set", &port, "master", "br0", "up"])?;
    ip(Some(node), &["addr", "add", &format!("192.0.2.{}/24", i + 1), "dev", "eth0"])?;
    ip(Some(node), &["link", "set", "eth0", "up"])?;
    forward(node)
}

/// Lets a namespace pass packets on.
pub(crate) fn forward(netns: &str) -> Result<()> {
    let forward = Command::new("nsenter")
        .args([&format!("--net=/run/netns/{netns}"), "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])
        .status()?;
    if !forward.success() {
        bail!("cannot switch forwarding on in {netns}");
    }
    Ok(())
}

fn vxlan(i: usize, node: &str) -> Result<()> {
    let (own, peer) = (i + 1, 2 - i);
    let (own_mac, peer_mac) = (format!("02:00:00:00:01:0{own}"), format!("02:00:00:00:01:0{peer}"));
    let (local, remote) = (format!("192.0.2.{own}"), format!("192.0.2.{peer}"));
    let overlay = format!("10.201.{peer}.1");
    ip(
        Some(node),
        &[
            "link",
            "add",
            "vx0",
            "address",
            &own_mac,
            "mtu",
            "1450",
            "type",
            "vxlan",
            "id",
            "4243",
            "dstport",
            "4789",
            "local",
            &local,
            "nolearning",
        ],
    )?;
    ip(Some(node), &["addr", "add", &format!("10.201.{own}.1/32"), "dev", "vx0"])?;
    ip(Some(node), &["link", "set", "vx0", "up"])?;
    ip(Some(node), &["neigh", "add", &overlay, "lladdr", &peer_mac, "dev", "vx0", "nud", "permanent"])?;
    bridge(node, &["fdb", "append", &peer_mac, "dev", "vx0", "dst", &remote])?;
    ip(Some(node), &["route", "add", &format!("10.201.{peer}.0/24"), "via", &overlay, "dev", "vx0", "onlink"])
}

/// Joins a pod's namespace to its node's, with a route and fixed neighbours.
pub(crate) fn wire_pod(pod: &str, node: &str, address: &str) -> Result<()> {
    let host = format!("h{}", address.rsplit_once('.').map_or("", |p| p.1));
    ip(
        Some(node),
        &[
            "link", "add", &host, "mtu", "1450", "type", "veth", "peer", "name", "eth0", "mtu", "1450",
            "netns", pod,
        ],
    )?;
    ip(Some(node), &["link", "set", &host, "up"])?;
    ip(Some(pod), &["addr", "add", &format!("{address}/32"), "dev", "eth0"])?;
    ip(Some(pod), &["link", "set", "eth0", "up"])?;
    ip(Some(pod), &["route", "add", "169.254.1.1", "dev", "eth0", "scope", "link"])?;
    ip(Some(pod), &["route", "add", "default", "via", "169.254.1.1", "dev", "eth0", "onlink"])?;
    ip(Some(node), &["route", "add", &format!("{address}/32"), "dev", &host, "scope", "link"])?;
    let host_mac = mac(node, &host)?;
    let pod_mac = mac(pod, "eth0")?;
    ip(Some(pod), &["neigh", "add", "169.254.1.1", "lladdr", &host_mac, "dev", "eth0", "nud", "permanent"])?;
    ip(Some(node), &["neigh", "add", address, "lladdr", &pod_mac, "dev", &host, "nud", "permanent"])
}

fn mac(netns: &str, link: &str) -> Result<String> {
    let out = Command::new("ip").args(["-n", netns, "-j", "link", "show", link]).output()?;
    let links: serde_json::Value = serde_json::from_slice(&out.stdout).context("ip printed no JSON")?;
    links[0]["address"].as_str().map(str::to_owned).context("a link without an address")
}

/// Removes all of it; what is not there is fine.
pub(crate) fn remove() {
    for netns in std::iter::once(NET).chain(NODES).chain(PODS.map(|p| p.0)) {
        let _ = Command::new("ip").args(["netns", "del", netns]).stderr(Stdio::null()).status();
    }
}

pub(crate) fn ip(netns: Option<&str>, args: &[&str]) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(netns) = netns {
        command.args(["-n", netns]);
    }
    must(command.args(args))
}

fn bridge(netns: &str, args: &[&str]) -> Result<()> {
    must(Command::new("bridge").args(["-n", netns]).args(args))
}

fn must(command: &mut Command) -> Result<()> {
    let out = command.output().context("cannot run ip")?;
    if !out.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(())
}
