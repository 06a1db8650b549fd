// SPDX-License-Identifier: Apache-2.0
//! The encrypted overlay, part 9: nodes that move, and nodes that nobody can reach until they speak.

use crate::wireguard::{PORT, Pair, connect, progress, reach, wg, wireguard_lab};
use anyhow::{Context, Result, ensure};
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;
use weft_lab::{Lab, wait_until};

/// A peer learns the endpoint from the first packet; TCP needs this long at most to send one again.
const LEARN_LIMIT: Duration = Duration::from_secs(20);
/// Routers forget a silent flow of UDP after 30 s and more (RFC 4787, 4.3 asks for 2 minutes; Linux' default is 30 s until
/// both sides have spoken twice).
const NAT_MEMORY_SECS: u64 = 30;

#[test]
fn part_9_a_node_behind_a_nat_joins_and_is_reached() -> Result<()> {
    let Some(lab) = wireguard_lab("nat", |options| {
        options.nodes = 3;
        options.nat = vec!["n3".into()];
    })?
    else {
        return Ok(());
    };
    let witness = lab.witness()?;
    let memory = NAT_MEMORY_SECS.to_string();
    for timeout in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
        let set = format!("net.netfilter.{timeout}={memory}");
        lab.exec("n3-nat", &["sysctl", "-q", "-w", &set])?.text("sysctl")?;
    }
    let pair = Pair::on(&lab, "n1", "n3")?;
    let public = lab.state()?.node("n3")?.wire_ip();
    let known = endpoints(&lab, "n1")?;
    let seen = known.iter().find(|endpoint| endpoint.ip() == IpAddr::V4(public));
    let seen = seen.with_context(|| format!("n1 knows {known:?}, not {public}"))?;
    ensure!(!(51820..=51821).contains(&seen.port()), "the router kept the port, which shows nothing: {seen}");
    // Both ways, and longer than the router remembers what nobody uses: n1 speaks first.
    let _client = lab.serve("client", "client", &[PORT], &[])?;
    connect(&lab, "server", &SocketAddr::new(pair.client.ips[0], PORT).to_string())?;
    thread::sleep(Duration::from_secs(NAT_MEMORY_SECS + 5));
    connect(&lab, "client", &pair.to()[0]).context("after a silence")?;
    let clear = witness.stop()?;
    ensure!(clear.packets == 0, "{} packets in the clear:\n{}", clear.packets, clear.lines);
    lab.down()
}

#[test]
fn part_9_the_router_of_a_node_gets_another_address() -> Result<()> {
    let Some(lab) = wireguard_lab("natroam", |options| options.nat = vec!["n2".into()])? else {
        return Ok(());
    };
    roams(&lab, "n2")
}

#[test]
fn part_9_a_node_roams_under_a_transfer() -> Result<()> {
    let Some(lab) = wireguard_lab("roam", |_| {})? else { return Ok(()) };
    roams(&lab, "n2")
}

/// The node of the server moves twice while a transfer runs.
fn roams(lab: &Lab, node: &str) -> Result<()> {
    let pair = Pair::on(lab, "n1", node)?;
    let to = &pair.to()[0];
    let mut transfer = lab.stream("client", to, Duration::from_secs(120))?;
    let mut before = progress(&mut transfer)?;
    for _ in 0..2 {
        let new = IpAddr::V4(lab.roam(node)?);
        let mut known = Vec::new();
        let learnt = wait_until(LEARN_LIMIT, || {
            known = endpoints(lab, "n1")?;
            Ok(known.iter().any(|endpoint| endpoint.ip() == new))
        })?;
        ensure!(learnt, "{LEARN_LIMIT:?} after {node} moved to {new}, n1 knows {known:?}");
        reach(lab, "client", to)?;
        let after = progress(&mut transfer)?;
        ensure!(after.bytes > before.bytes, "the transfer stands still at {} bytes", after.bytes);
        before = after;
    }
    println!("{node} moved twice: longest pause of a transfer {} ms", before.longest_pause_ms);
    Ok(())
}

/// Where a node sends packets for its peers.
fn endpoints(lab: &Lab, node: &str) -> Result<Vec<SocketAddr>> {
    Ok(wg(lab, node, "endpoints")?.values().filter_map(|endpoint| endpoint.parse().ok()).collect())
}
