// SPDX-License-Identifier: Apache-2.0
//! The encrypted overlay, part 9: nodes that move, and nodes that nobody can reach until they speak; part 11: the address that a
//! node is reached at.

use crate::wireguard::{PORT, Pair, Pings, connect, progress, reach, wg, wireguard_lab};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};
use weft_lab::{Lab, UNDERLAY_IF, wait_until};

/// A peer learns the endpoint from the first packet; TCP needs this long at most to send one again.
const LEARN_LIMIT: Duration = Duration::from_secs(20);
/// The store's client notices within this that its connection had the former address.
const PUBLISH_LIMIT: Duration = Duration::from_secs(60);
/// In the underlay's network, and nobody has it.
const NOBODY: &str = "172.31.77.251:51820";
/// A look every 5 s, silence for 15 s, and a handshake repeated every 5 s.
const DEAD_LIMIT: Duration = Duration::from_secs(60);
/// Four seconds: the event of the kernel, a tick of the device, and a machine that is busy.
const LOST_MAX: usize = 400;
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

#[test]
fn part_9_a_node_that_moves_is_back_at_once_and_publishes_where_it_is() -> Result<()> {
    let Some(lab) = wireguard_lab("moves", |_| {})? else { return Ok(()) };
    let pair = Pair::on(&lab, "n1", "n2")?;
    // The moved node has nothing to say by itself: nothing is sent but from the other side.
    let pings = Pings::start(&lab, &pair)?;
    let new = IpAddr::V4(lab.roam("n2")?);
    published(&lab, "n2", new)?;
    let loss = pings.lost()?;
    ensure!(loss.lost <= LOST_MAX, "lost when n2 moved: {loss}");
    println!("n2 moved: lost {loss}");
    let mut said = String::new();
    let well = wait_until(PUBLISH_LIMIT, || {
        let doctor = lab.weft("n2", &["doctor"])?;
        said = format!("{}{}", doctor.stdout, doctor.stderr);
        Ok(doctor.ok() && doctor.stdout.contains(&new.to_string()))
    })?;
    ensure!(well, "{said}");
    lab.down()
}

#[test]
fn part_9_two_nodes_that_move_at_once_find_one_another() -> Result<()> {
    let Some(lab) = wireguard_lab("both", |options| options.nodes = 3)? else { return Ok(()) };
    let pair = Pair::on(&lab, "n2", "n3")?;
    let moved = [IpAddr::V4(lab.roam("n2")?), IpAddr::V4(lab.roam("n3")?)];
    for (node, new) in ["n2", "n3"].into_iter().zip(moved) {
        published(&lab, node, new)?;
    }
    let took = reach(&lab, "client", &pair.to()[0])?;
    println!("n2 and n3 moved at once: they talk {} ms after all know", took.as_millis());
    for node in ["n2", "n3"] {
        let well = wait_until(LEARN_LIMIT, || Ok(lab.weft(node, &["doctor"])?.ok()))?;
        ensure!(well, "{}", lab.weft(node, &["doctor"])?.stdout);
    }
    lab.down()
}

#[test]
fn part_9_an_endpoint_that_does_not_answer_gives_way_to_the_published_one() -> Result<()> {
    // Nothing corrects it but netd: the peer speaks to nobody by itself.
    let quiet = ["--wireguard-keepalive-secs", "0", "--mtu-probe-secs", "0"].map(str::to_owned);
    let Some(lab) = wireguard_lab("deadend", |options| options.netd_args.extend(quiet))? else {
        return Ok(());
    };
    let pair = Pair::on(&lab, "n1", "n2")?;
    let (device, peer) = wg(&lab, "n1", "endpoints")?.into_keys().next().context("n1 has no peer")?;
    let before = endpoints(&lab, "n1")?;
    lab.exec("n1", &["wg", "set", &device, "peer", &peer, "endpoint", NOBODY])?.text("wg set")?;
    let began = Instant::now();
    let found = wait_until(DEAD_LIMIT, || {
        Ok(lab.probe("client", &["--to", &pair.to()[0], "--count", "1", "--timeout", "500ms"])?.all_ok())
    })?;
    let known = endpoints(&lab, "n1")?;
    ensure!(found && known == before, "{DEAD_LIMIT:?} after n1 was led astray it knows {known:?}");
    println!("a dead endpoint gave way after {} ms", began.elapsed().as_millis());
    lab.down()
}

#[test]
fn part_11_the_underlay_s_address_is_chosen_by_a_rule_and_shown_with_its_reason() -> Result<()> {
    let Some(lab) = wireguard_lab("reason", |_| {})? else { return Ok(()) };
    let pair = Pair::on(&lab, "n1", "n2")?;
    let shows = |reason: &str| -> Result<()> {
        let status = lab.weft("n2", &["status"])?.stdout;
        let doctor = lab.weft("n2", &["doctor"])?.stdout;
        ensure!(status.contains(reason) && doctor.contains(reason), "no {reason:?} in\n{status}\n{doctor}");
        Ok(())
    };
    shows("it is on the route to the store at ")?;

    // What is configured comes first.
    let second = Ipv4Addr::from(u32::from(lab.state()?.node("n2")?.underlay_ip) ^ 0x80);
    let address = format!("{second}/24");
    lab.exec("n2", &["ip", "address", "add", &address, "dev", UNDERLAY_IF])?.text("ip address add")?;
    let path = lab.state()?.node("n2")?.dir.join("netd.toml");
    let text = fs::read_to_string(&path)?;
    fs::write(&path, format!("{text}underlay-address = \"{second}\"\n"))?;
    lab.node_stop("n2")?;
    lab.node_start("n2")?;
    shows("it is configured")?;
    published(&lab, "n2", IpAddr::V4(second))?;
    reach(&lab, "client", &pair.to()[0])?;
    lab.down()
}

/// Every node knows where one is by now.
fn published(lab: &Lab, node: &str, new: IpAddr) -> Result<()> {
    for on in lab.state()?.nodes {
        let mut shown = String::new();
        let told = wait_until(PUBLISH_LIMIT, || {
            shown = lab.weft(&on.name, &["node", "ls"])?.stdout;
            Ok(shown.lines().any(|line| line.contains(node) && line.contains(&new.to_string())))
        })?;
        ensure!(told, "{PUBLISH_LIMIT:?} after {node} moved to {new}, {} shows\n{shown}", on.name);
    }
    Ok(())
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
