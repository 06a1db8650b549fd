// SPDX-License-Identifier: Apache-2.0
//! `trusted_cidrs`: hosts outside the cluster that route to pods and talk with them under everybody's own address.

use crate::lab_with;
use crate::wireguard::{FLOW_LIMIT, TUNNEL, silent, wireguard_lab};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use weft_lab::{
    Families, Lab, OUTSIDE_IP, OUTSIDE_IP6, Packets, Pod, PodSpec, Running, UpOptions, wait_until,
};

const NODES: [&str; 2] = ["n1", "n2"];
const POD_CIDR: &str = "10.244.0.0/16";
const POD_PORT: u16 = 8080;
const OUTSIDE_PORT: u16 = 9000;
/// The VXLAN device inside WireGuard, and its port on overlay addresses.
const GATE: &str = "weft.gate";
const GATE_PORT: u16 = 51822;
/// What fits through it: 1500 of the underlay, less 60 of WireGuard and 50 of VXLAN between IPv4 overlay addresses.
const GATE_MTU: u16 = 1390;
/// Payload of a ping that fits through WireGuard and not through the gate, with headers of either family.
const BETWEEN_MTUS: &str = "1384";

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
        let state = self.lab.state()?;
        let host = state.node(node)?;
        let via = match cidr.contains(':') {
            true => host.underlay_ip6.context("no IPv6 on the underlay")?.to_string(),
            false => host.underlay_ip.to_string(),
        };
        self.lab.exec("outside", &["ip", "route", "replace", cidr, "via", &via])?.text("ip route").map(drop)
    }

    fn trust(&self, cidrs: &str) -> Result<String> {
        let set = self.lab.weft("n2", &["config", "set", "--trusted-cidrs", cidrs])?;
        ensure!(set.ok(), "{}", set.stderr);
        Ok(set.stderr)
    }

    /// Nobody opens a connection to a pod from outside.
    fn closed(&self) -> Result<()> {
        for ip in self.pods.iter().flat_map(|(pod, _)| &pod.ips) {
            silent(&self.lab, "outside", &SocketAddr::new(*ip, POD_PORT).to_string())?;
        }
        Ok(())
    }

    /// Both ways with a pod on each node, TCP and UDP; nobody's address is translated.
    fn open(&self) -> Result<()> {
        for (pod, _) in &self.pods {
            for ip in &pod.ips {
                let outside = outside_like(ip);
                for udp in [false, true] {
                    seen_as(&self.lab, "outside", SocketAddr::new(*ip, POD_PORT), outside, udp)?;
                    seen_as(&self.lab, &pod.name, SocketAddr::new(outside, OUTSIDE_PORT), *ip, udp)?;
                }
            }
        }
        Ok(())
    }

    /// Full-sized packets of TCP both ways, opened by either side, and datagrams that have to be cut.
    fn bulk(&self, pod: &Pod) -> Result<()> {
        for ip in &pod.ips {
            let to_pod = SocketAddr::new(*ip, POD_PORT).to_string();
            let to_outside = SocketAddr::new(outside_like(ip), OUTSIDE_PORT).to_string();
            for (from, to) in [("outside", to_pod), (pod.name.as_str(), to_outside)] {
                let mut stream = self.lab.stream(from, &to, Duration::from_millis(500))?;
                let done = stream.wait(Duration::from_secs(20))?;
                ensure!(done, "a transfer from {from} to {to}: {}", stream.errors().join(" "));
            }
            let ip = ip.to_string();
            let ping = ["ping", "-n", "-c", "3", "-i", "0.2", "-W", "2", "-M", "dont", "-s", "4000", &ip];
            self.lab.exec("outside", &ping)?.text(&format!("large datagrams to {ip}"))?;
        }
        Ok(())
    }

    /// Who sends more than fits is told how much does.
    fn told_of_the_mtu(&self, pod: &Pod) -> Result<()> {
        for ip in &pod.ips {
            let ip = ip.to_string();
            let ping = ["ping", "-n", "-c", "2", "-i", "0.2", "-W", "2", "-M", "do", "-s", BETWEEN_MTUS, &ip];
            let output = self.lab.exec("outside", &ping)?;
            let told = format!("{}{}", output.stdout, output.stderr);
            ensure!(!output.ok() && told.contains(&GATE_MTU.to_string()), "{ip}: {told}");
        }
        Ok(())
    }
}

/// The outside host's address of the same family.
fn outside_like(ip: &IpAddr) -> IpAddr {
    if ip.is_ipv4() { OUTSIDE_IP.into() } else { OUTSIDE_IP6.into() }
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

/// Between nodes it travels in VXLAN inside WireGuard: a node takes from another only what has that node's addresses.
#[test]
fn part_5_any_node_is_a_gateway_for_trusted_hosts_with_wireguard() -> Result<()> {
    any_node_with_wireguard("trustwg", Families::V4)
}

#[test]
fn part_5_any_node_is_a_gateway_for_trusted_hosts_with_wireguard_and_both_families() -> Result<()> {
    any_node_with_wireguard("trustwg6", Families::Dual)
}

fn any_node_with_wireguard(story: &str, families: Families) -> Result<()> {
    let Some(lab) = wireguard_lab(story, |options| options.families = families)? else { return Ok(()) };
    let stage = Stage::new(lab)?;
    let cidrs = families.pod_cidrs();
    let route = |node| cidrs.iter().try_for_each(|cidr| stage.route(cidr, node));
    route("n1")?;
    stage.closed()?;
    ensure!(gates(&stage.lab)?.is_empty(), "a gate that nobody asked for: {:?}", gates(&stage.lab)?);
    let told = stage.trust(&format!("{OUTSIDE_IP}/32,{OUTSIDE_IP6}/128"))?;
    ensure!(told.contains("all pod addresses to any node"), "{told}");
    for node in NODES {
        route(node)?;
        stage.open()?;
        let capture = stage.lab.capture("")?;
        for (pod, _) in &stage.pods {
            stage.bulk(pod)?;
        }
        sealed_between_nodes(&stage.lab, &capture.stop()?, node, cidrs)?;
        let far = stage.pods.iter().find(|(pod, _)| pod.node != node);
        stage.told_of_the_mtu(&far.context("no pod on another node")?.0)?;
    }
    restarts_keep_the_way(&stage)?;
    stage.trust("none")?;
    let closed = wait_until(FLOW_LIMIT, || Ok(stage.closed().is_ok() && gates(&stage.lab)?.is_empty()))?;
    ensure!(closed, "pods are reached from outside, or the way is left: {:?}", gates(&stage.lab)?);
    stage.lab.down()
}

/// Trusted hosts need no netd, and one that comes back makes nothing anew.
fn restarts_keep_the_way(stage: &Stage) -> Result<()> {
    let before = gates(&stage.lab)?;
    ensure!(before.iter().any(|line| line.contains(GATE)), "{before:?}");
    for node in NODES {
        stage.lab.node_kill(node)?;
        stage.open().with_context(|| format!("netd of {node} is dead"))?;
        stage.lab.node_start(node)?;
    }
    let same = wait_until(FLOW_LIMIT, || Ok(gates(&stage.lab)? == before))?;
    ensure!(same, "{before:#?} became {:#?}", gates(&stage.lab)?);
    stage.open()
}

/// Of each node: the gate's device, rules and table. Where probes went unanswered, a smaller MTU may stand on a route.
fn gates(lab: &Lab) -> Result<Vec<String>> {
    let script = format!(
        "ip -o link show dev {GATE} 2>/dev/null | cut -d: -f1,2
        for family in -4 -6; do
            ip $family rule | grep 'proto 157'
            ip $family route show table 157 2>/dev/null | sed 's/ linkdown//; s/ mtu .*//'
        done
        true"
    );
    let mut lines = Vec::new();
    for node in NODES {
        let text = lab.exec(node, &["sh", "-c", &script])?.text("the gate")?;
        lines.extend(text.lines().map(|line| format!("{node}: {}", line.trim())));
    }
    Ok(lines)
}

/// What went between the two nodes went sealed; the outside host's own packets are seen, as it knows no better.
fn sealed_between_nodes(lab: &Lab, packets: &Packets, gateway: &str, cidrs: &[&str]) -> Result<()> {
    let between = format!("ether host {} and ether host {}", mac(lab, "n1")?, mac(lab, "n2")?);
    let sealed = packets.count(&format!("{between} and {TUNNEL}"))?;
    ensure!(sealed > 100, "only {sealed} packets of WireGuard between the nodes");
    let to_gateway = format!("ether host {} and ether host {}", mac(lab, "outside")?, mac(lab, gateway)?);
    for cidr in cidrs {
        let seen = packets.count(&format!("{to_gateway} and net {cidr}"))?;
        ensure!(seen > 0, "not even the outside host's own packets to {cidr} were seen");
        let clear = format!("{between} and net {cidr}");
        ensure!(packets.count(&clear)? == 0, "in the clear:\n{}", packets.print(&clear)?);
    }
    let bare = format!("udp port {GATE_PORT}");
    ensure!(packets.count(&bare)? == 0, "VXLAN outside of WireGuard:\n{}", packets.print(&bare)?);
    Ok(())
}

fn mac(lab: &Lab, target: &str) -> Result<String> {
    let link: Vec<Value> = lab.exec(target, &["ip", "-j", "link", "show", "eth0"])?.json("ip link")?;
    Ok(link[0]["address"].as_str().context("eth0 has no address")?.to_owned())
}
