// SPDX-License-Identifier: Apache-2.0
//! Promises about pods, nodes and the world outside.

use super::stage::{BACKENDS, CLIENTS, INNER, Stage, TCP_PORT, only};
use crate::names::{OUTSIDE_FAR_IP, OUTSIDE_IP};
use crate::outside::ECHO_PORT;
use crate::workers::stream::Progress;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::time::Duration;

const COUNT: u32 = 20;
/// UDP 4789 (RFC 7348).
const VXLAN: &str = "udp port 4789";
/// The VNI stands in the upper three of bytes 12 to 15 from the UDP header on.
pub(super) const OUR_VNI: &str = "udp port 4789 and udp[12:4] = 0x00109200";
const OTHER_VNI: &str = "udp port 4789 and udp[12:4] != 0x00109200";

pub(super) fn same_node(stage: &Stage<'_>) -> Result<String> {
    let mut slowest = 0;
    for (client, backend) in CLIENTS.into_iter().zip(BACKENDS) {
        slowest = slowest.max(pod_to_pod(stage, client, backend)?);
    }
    Ok(format!(
        "{} connections of 3 pairs, backends see the pods' own addresses, worst median {slowest} µs",
        3 * COUNT
    ))
}

pub(super) fn across_nodes(stage: &Stage<'_>) -> Result<String> {
    let mut slowest = 0;
    for (client, backend) in
        [("c1", "b2"), ("c1", "b3"), ("c2", "b1"), ("c2", "b3"), ("c3", "b1"), ("c3", "b2")]
    {
        slowest = slowest.max(pod_to_pod(stage, client, backend)?);
    }
    // Full-sized packets: a wrong MTU shows here, not in a handshake.
    let to = stage.at("b2", TCP_PORT)?;
    let mut stream = stage.lab.stream("c1", &to, Duration::from_millis(300))?;
    ensure!(stream.wait(Duration::from_secs(10))?, "a transfer to {to}: {}", stream.errors().join(" "));
    let progress: Progress = serde_json::from_str(stream.lines().last().context("no progress")?)?;
    Ok(format!(
        "{} connections over 6 paths, own addresses seen, worst median {slowest} µs; {} KiB there and back unharmed",
        6 * COUNT,
        progress.bytes / 1024
    ))
}

pub(super) fn underlay(stage: &Stage<'_>) -> Result<String> {
    let capture = stage.lab.capture("")?;
    stage.connect("c1", &stage.at("b2", TCP_PORT)?, COUNT)?;
    stage.connect("c3", &stage.at("b1", TCP_PORT)?, COUNT)?;
    let packets = capture.stop()?;
    let (ours, others) = (packets.count(OUR_VNI)?, packets.count(OTHER_VNI)?);
    let bare = packets.print(&format!("not ({VXLAN}) and ({INNER})"))?;
    // SYN, SYN-ACK, ACK, data, FIN of each connection at the least.
    let least = 2 * COUNT as usize * 5;
    ensure!(ours >= least, "only {ours} packets with VNI 4242 for {} connections", 2 * COUNT);
    ensure!(others == 0, "{others} packets with another VNI");
    ensure!(bare.is_empty(), "bare packets:\n{bare}");
    Ok(format!("tcpdump on the bridge: {ours} VXLAN packets with VNI 4242, {others} with another, 0 bare"))
}

pub(super) fn outside(stage: &Stage<'_>) -> Result<String> {
    let mut seen = BTreeSet::new();
    for client in CLIENTS {
        let node_ip = stage.lab.state()?.node(stage.node_of(client)?)?.underlay_ip.to_string();
        for target in [OUTSIDE_IP, OUTSIDE_FAR_IP] {
            let report = stage.connect(client, &format!("{target}:{ECHO_PORT}"), 5)?;
            only(&report.seen_as, &node_ip, &format!("{target} sees {client} as"))?;
        }
        seen.insert(node_ip);
    }
    Ok(format!("30 connections, the outside host saw only {}", Vec::from_iter(seen).join(", ")))
}

pub(super) fn from_nodes(stage: &Stage<'_>) -> Result<String> {
    let mut sources = Vec::new();
    for node in stage.nodes {
        let overlay =
            stage.lab.status(node)?.node.overlay.context("a node without overlay address")?.to_string();
        for backend in BACKENDS {
            let report = stage.connect(node, &stage.at(backend, TCP_PORT)?, 5)?;
            if stage.node_of(backend)? != *node {
                only(&report.seen_as, &overlay, &format!("{backend} sees {node} as"))?;
            }
        }
        sources.push(overlay);
    }
    let count = 15 * sources.len();
    if sources.len() == 1 {
        return Ok(format!("{count} connections"));
    }
    Ok(format!("{count} connections; remote pods see the nodes' overlay addresses {}", sources.join(", ")))
}

/// Median in microseconds.
fn pod_to_pod(stage: &Stage<'_>, client: &str, backend: &str) -> Result<u64> {
    let report = stage.connect(client, &stage.at(backend, TCP_PORT)?, COUNT)?;
    only(&report.servers, backend, "answered by")?;
    only(&report.seen_as, &stage.ip(client)?.to_string(), &format!("{backend} sees {client} as"))?;
    Ok(report.p50_us)
}
