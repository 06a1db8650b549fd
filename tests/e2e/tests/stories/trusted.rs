// SPDX-License-Identifier: Apache-2.0
//! `trusted_cidrs`: hosts outside the cluster that route to pods and talk with them under everybody's own address.

use crate::lab_with;
use crate::wireguard::{FLOW_LIMIT, silent, wireguard_lab};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use weft_lab::{Lab, OUTSIDE_IP, Pod, PodSpec, Running, UpOptions, wait_until};

const NODES: [&str; 2] = ["n1", "n2"];
const POD_CIDR: &str = "10.244.0.0/16";
const POD_PORT: u16 = 8080;
const OUTSIDE_PORT: u16 = 9000;

/// A server on the outside host and in a pod on each node.
struct Stage {
    lab: Lab,
    pods: Vec<(Pod, Running)>,
    _outside: Running,
}

impl Stage {
    fn new(lab: Lab) -> Result<Stage> {
        let pod = |node: &&str| {
            let name = format!("on-{node}");
            let pod = lab.pod_add(&PodSpec::new(node, &name))?;
            Ok((pod, lab.serve(&name, &name, &[POD_PORT], &[POD_PORT])?))
        };
        let pods = NODES.iter().map(pod).collect::<Result<_>>()?;
        let outside = lab.serve("outside", "outside", &[OUTSIDE_PORT], &[OUTSIDE_PORT])?;
        Ok(Stage { lab, pods, _outside: outside })
    }

    /// The outside host sends packets for these addresses to a node.
    fn route(&self, cidr: &str, node: &str) -> Result<()> {
        let via = self.lab.state()?.node(node)?.underlay_ip.to_string();
        self.lab.exec("outside", &["ip", "route", "replace", cidr, "via", &via])?.text("ip route").map(drop)
    }

    fn trust(&self, cidrs: &str) -> Result<String> {
        let set = self.lab.weft("n2", &["config", "set", "--trusted-cidrs", cidrs])?;
        ensure!(set.ok(), "{}", set.stderr);
        Ok(set.stderr)
    }

    /// Nobody opens a connection to a pod from outside.
    fn closed(&self) -> Result<()> {
        for (pod, _) in &self.pods {
            silent(&self.lab, "outside", &SocketAddr::new(pod.ips[0], POD_PORT).to_string())?;
        }
        Ok(())
    }

    /// Both ways with a pod on each node, TCP and UDP; nobody's address is translated.
    fn open(&self) -> Result<()> {
        for (pod, _) in &self.pods {
            let ip = pod.ips[0];
            for udp in [false, true] {
                seen_as(&self.lab, "outside", SocketAddr::new(ip, POD_PORT), OUTSIDE_IP.into(), udp)?;
                seen_as(&self.lab, &pod.name, SocketAddr::new(OUTSIDE_IP.into(), OUTSIDE_PORT), ip, udp)?;
            }
        }
        Ok(())
    }
}

fn seen_as(lab: &Lab, from: &str, to: SocketAddr, own: IpAddr, udp: bool) -> Result<()> {
    let to = to.to_string();
    let args: Vec<&str> =
        ["--to", &to, "--timeout", "500ms"].into_iter().chain(udp.then_some("--udp")).collect();
    let mut report = lab.probe(from, &args)?;
    // What was just configured takes a moment on the other nodes.
    let reached = wait_until(FLOW_LIMIT, || {
        report = lab.probe(from, &[&args[..], &["--count", "10"]].concat())?;
        Ok(report.all_ok())
    })?;
    ensure!(reached, "{from} to {to} (udp {udp}): {} of 10 ({})", report.ok, report.failures());
    ensure!(report.seen_as.keys().eq([&own.to_string()]), "{from} to {to}: seen as {:?}", report.seen_as);
    Ok(())
}

/// Any node is a gateway to the pods of all.
fn any_node(story: &str, overlay: &str) -> Result<()> {
    let options = UpOptions { nodes: 2, overlay: overlay.into(), ..UpOptions::new(&Lab::unique_name(story)) };
    let Some(lab) = lab_with(options)? else { return Ok(()) };
    let stage = Stage::new(lab)?;
    stage.route(POD_CIDR, "n1")?;
    stage.closed()?;
    let told = stage.trust(&format!("{OUTSIDE_IP}/32"))?;
    ensure!(told.is_empty(), "{told}");
    for node in NODES {
        stage.route(POD_CIDR, node)?;
        stage.open()?;
    }
    stage.trust("none")?;
    let closed = wait_until(FLOW_LIMIT, || Ok(stage.closed().is_ok()))?;
    ensure!(closed, "pods are reached from outside");
    stage.lab.down()
}

#[test]
fn part_5_any_node_is_a_gateway_for_trusted_hosts_with_vxlan() -> Result<()> {
    any_node("trusted", "vxlan")
}

#[test]
fn part_5_any_node_is_a_gateway_for_trusted_hosts_with_native() -> Result<()> {
    any_node("trustnative", "native")
}

/// WireGuard goes by source addresses: each node leads to its own pods, and `weft config set` says so.
#[test]
fn part_5_each_node_is_a_gateway_to_its_own_pods_with_wireguard() -> Result<()> {
    let Some(lab) = wireguard_lab("trustwg", |_| {})? else { return Ok(()) };
    let stage = Stage::new(lab)?;
    for node in stage.lab.weft("n1", &["node", "ls", "--json"])?.json::<Vec<Value>>("weft node ls")? {
        let name = node["name"].as_str().context("a node without a name")?;
        for block in node["blocks"].as_array().context("a node without blocks")? {
            stage.route(block.as_str().context("a block")?, name)?;
        }
    }
    stage.closed()?;
    let told = stage.trust(&format!("{OUTSIDE_IP}/32"))?;
    ensure!(told.contains("each node's blocks"), "{told}");
    stage.open()?;
    stage.lab.down()
}
