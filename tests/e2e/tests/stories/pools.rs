// SPDX-License-Identifier: Apache-2.0
//! Pools that come, are drained and go while everything runs; and what happens when they are full.

use crate::ipam::{added_soon, agree, complaint, label, reach, refused, show, soon};
use crate::left::keys;
use crate::{have, lab, lab_with};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;
use weft_lab::{Lab, Output, PodSpec, UpOptions, wait_until};

const NODES: [&str; 2] = ["n1", "n2"];
/// The pool that a lab begins with.
const FIRST: &str = "10.244.";

fn pool(lab: &Lab, verb: &str, rest: &[&str]) -> Result<Output> {
    lab.weft("n1", &[&["ipam", "pool", verb], rest].concat())
}

fn changed(lab: &Lab, verb: &str, rest: &[&str]) -> Result<()> {
    pool(lab, verb, rest)?.text(&format!("weft ipam pool {verb}")).map(drop)
}

/// Drains or undrains, and waits until every node knows.
fn turn(lab: &Lab, verb: &str, name: &str) -> Result<()> {
    changed(lab, verb, &[name])?;
    let wanted = if verb == "drain" { "draining" } else { "active" };
    for node in lab.state()?.nodes.iter().map(|node| node.name.as_str()) {
        let state = || Ok(shown(lab, node, name)?.map(|pool| pool["state"].clone()));
        soon(&format!("{node}: {verb} {name}"), state, |state| *state == Some(wanted.into()))?;
    }
    Ok(())
}

/// A pool as a node tells it.
fn shown(lab: &Lab, node: &str, name: &str) -> Result<Option<Value>> {
    let pools = show(lab, node)?["pools"].take();
    Ok(pools.as_array().context("no pools")?.iter().find(|pool| pool["name"] == name).cloned())
}

fn overlay(lab: &Lab, node: &str) -> Result<IpAddr> {
    lab.status(node)?.node.overlay.with_context(|| format!("{node} has no overlay address"))
}

fn is_of(ip: &IpAddr, prefix: &str) -> bool {
    ip.to_string().starts_with(prefix)
}

#[test]
fn a_pool_is_added_drained_and_removed_under_traffic() -> Result<()> {
    if !have("etcdctl", "pools") {
        return Ok(());
    }
    let Some(lab) = lab("pools", 2)? else { return Ok(()) };
    let a = lab.pod_add(&PodSpec::new("n1", "a"))?;
    let b = lab.pod_add(&PodSpec::new("n2", "b"))?;
    let add = ["big", "10.250.0.0/24", "--block-prefix", "28"];
    ensure!(pool(&lab, "add", &add)?.stdout == "pool big added\n");
    changed(&lab, "add", &add)?;
    let overlapping = pool(&lab, "add", &["other", "10.250.0.128/25"])?;
    ensure!(!overlapping.ok() && overlapping.stderr.contains("big"), "{overlapping:?}");
    let early = pool(&lab, "rm", &["default"])?;
    ensure!(!early.ok() && early.stderr.contains("drain"), "{early:?}");

    // Nothing new comes from the drained one; who has something of it keeps it.
    turn(&lab, "drain", "default")?;
    let c = lab.pod_add(&PodSpec::new("n1", "c"))?;
    let d = lab.pod_add(&PodSpec::new("n2", "d"))?;
    ensure!(is_of(&c.ips[0], "10.250.") && is_of(&d.ips[0], "10.250."), "{:?} {:?}", c.ips, d.ips);
    let all = [a.ips[0], b.ips[0], c.ips[0], d.ips[0]];
    reach(&lab, &["a", "b", "c", "d", "n1", "n2"], &all)?;
    let blocks: Vec<_> = keys(&lab, "ipam/blocks/10.250.")?;
    ensure!(!blocks.is_empty() && blocks.iter().all(|key| key.ends_with("28")), "{blocks:?}");
    let owned = pool(&lab, "rm", &["default"])?;
    ensure!(!owned.ok() && owned.stderr.contains("2 blocks"), "{owned:?}");

    // Back into use, and the other one out of it.
    turn(&lab, "undrain", "default")?;
    turn(&lab, "drain", "big")?;
    let e = lab.pod_add(&PodSpec::new("n1", "e"))?;
    ensure!(is_of(&e.ips[0], FIRST), "{:?}", e.ips);
    reach(&lab, &["a", "b", "c", "d", "e", "n1", "n2"], &all)?;

    // Out for good: the blocks go with the last pods, and the nodes' overlay addresses move.
    turn(&lab, "undrain", "big")?;
    turn(&lab, "drain", "default")?;
    let _server = lab.serve("d", "d", &[8080], &[])?;
    let mut transfer = lab.stream("c", &format!("{}:8080", d.ips[0]), Duration::from_secs(60))?;
    transfer.wait_line(Duration::from_secs(5))?;
    for (node, pod) in [("n1", "a"), ("n2", "b"), ("n1", "e")] {
        lab.pod_rm(node, pod)?;
    }
    let left = || keys(&lab, &format!("ipam/blocks/{FIRST}"));
    soon("the blocks are given back", left, Vec::is_empty)?;
    for node in NODES {
        soon(&format!("{node}'s overlay address moves"), || overlay(&lab, node), |ip| is_of(ip, "10.250."))?;
    }
    reach(&lab, &["c", "d", "n1", "n2"], &[c.ips[0], d.ips[0], overlay(&lab, "n1")?, overlay(&lab, "n2")?])?;
    ensure!(transfer.alive(), "the transfer broke: {:?}", transfer.errors());
    drop(transfer);
    changed(&lab, "rm", &["default"])?;
    for node in NODES {
        soon(&format!("{node} forgets the pool"), || shown(&lab, node, "default"), Option::is_none)?;
    }
    let f = lab.pod_add(&PodSpec::new("n2", "f"))?;
    reach(&lab, &["c", "d", "f", "n1", "n2"], &[c.ips[0], d.ips[0], f.ips[0]])?;
    for node in NODES {
        lab.node_kill(node)?;
        let status = lab.node_start(node)?;
        ensure!(status.bad_values.is_empty() && status.pending.is_empty(), "{status:?}");
    }
    ensure!(shown(&lab, "n1", "default")?.is_none(), "a start brings the removed pool back");
    reach(&lab, &["c", "d", "f", "n1", "n2"], &[c.ips[0], d.ips[0], f.ips[0]])?;
    agree(&lab, &NODES)?;
    lab.down()
}

#[test]
fn a_pool_serves_the_nodes_that_it_selects() -> Result<()> {
    let Some(lab) = lab("selector", 2)? else { return Ok(()) };
    for (node, zone) in [("n1", "zone=a"), ("n2", "zone=b")] {
        label(&lab, node, zone)?;
        lab.node_stop(node)?;
        lab.node_start(node)?;
    }
    changed(&lab, "add", &["edge", "10.251.0.0/24", "--node-selector", "zone=b"])?;
    turn(&lab, "drain", "default")?;
    let p = added_soon(&lab, &PodSpec::new("n2", "p"))?;
    ensure!(is_of(&p.ips[0], "10.251."), "{:?}", p.ips);
    let refusal = refused(lab.pod_add(&PodSpec::new("n1", "q")))?;
    refusal.says(100, &["weft ipam pool add"])?;
    changed(&lab, "add", &["rest", "10.252.0.0/24", "--node-selector", "zone=a"])?;
    let q = added_soon(&lab, &PodSpec::new("n1", "q"))?;
    ensure!(is_of(&q.ips[0], "10.252."), "{:?}", q.ips);
    reach(&lab, &["p", "q", "n1", "n2"], &[p.ips[0], q.ips[0]])?;
    agree(&lab, &NODES)?;
    lab.down()
}

#[test]
fn a_second_family_is_a_pool_away() -> Result<()> {
    let Some(lab) = lab("family", 2)? else { return Ok(()) };
    let old = lab.pod_add(&PodSpec::new("n1", "old"))?;
    let added = pool(&lab, "add", &["six", "fd00:10:244::/56"])?;
    ensure!(added.ok() && added.stderr.contains("dual-stack"), "{added:?}");
    for node in NODES {
        let own = || Ok(lab.weft(node, &["ipam", "show"])?.stdout);
        soon(&format!("{node} has an IPv6 block"), own, |text| {
            text.contains(&format!("six  {node}")) || text.contains("fd00:10:244:")
        })?;
    }
    let (p, q) = (added_soon(&lab, &PodSpec::new("n1", "p"))?, added_soon(&lab, &PodSpec::new("n2", "q"))?);
    for pod in [&p, &q] {
        ensure!(pod.ips.len() == 2 && pod.ips[1].is_ipv6(), "{:?}", pod.ips);
    }
    reach(&lab, &["p", "q", "n1", "n2"], &[p.ips[0], p.ips[1], q.ips[0], q.ips[1], old.ips[0]])?;
    reach(&lab, &["old"], &[p.ips[0], q.ips[0]])?;
    // Away again: what is new has one family, what runs keeps both.
    turn(&lab, "drain", "six")?;
    let r = lab.pod_add(&PodSpec::new("n2", "r"))?;
    ensure!(r.ips.len() == 1, "{:?}", r.ips);
    reach(&lab, &["p", "q"], &[p.ips[1], q.ips[1], r.ips[0]])?;
    agree(&lab, &NODES)?;
    let held = pool(&lab, "rm", &["six"])?;
    ensure!(!held.ok() && held.stderr.contains("2 addresses of pods"), "{held:?}");
    // And without a trace once its last pods are gone: the nodes' own addresses of the family go with them.
    let own = overlay(&lab, "n1")?;
    lab.pod_rm("n1", "p")?;
    let address6 = || lab.exec("n2", &["ip", "-6", "-o", "address", "show"])?.text("ip address");
    ensure!(address6()?.contains("fd00:10:244:"), "q is still spoken to from it: {}", address6()?);
    lab.pod_rm("n2", "q")?;
    soon("the pool goes", || pool(&lab, "rm", &["six"]), Output::ok)?;
    for node in NODES {
        let shown = || Ok(lab.weft(node, &["ipam", "show"])?.stdout);
        soon(&format!("{node} has nothing of IPv6"), shown, |text| !text.contains("fd00:10:244:"))?;
    }
    soon("no device has anything of it", address6, |text| !text.contains("fd00:10:244:"))?;
    ensure!(overlay(&lab, "n1")? == own, "the IPv4 address of n1 changed");
    reach(&lab, &["old", "r", "n1", "n2"], &[old.ips[0], r.ips[0]])?;
    agree(&lab, &NODES)?;
    lab.down()
}

#[test]
fn a_full_pool_says_so_everywhere_and_recovers() -> Result<()> {
    if !have("curl", "full") {
        return Ok(());
    }
    let netd_args = ["--cool-down-secs", "2"].map(String::from).to_vec();
    let options = UpOptions { nodes: 1, netd_args, ..UpOptions::new(&Lab::unique_name("full")) };
    let Some(lab) = lab_with(options)? else { return Ok(()) };
    // Its own pool overlaps nothing that it begins with, and is all that there is from now on.
    changed(&lab, "add", &["tiny", "10.251.9.0/29", "--block-prefix", "29"])?;
    turn(&lab, "drain", "default")?;
    soon("the overlay address moves", || overlay(&lab, "n1"), |ip| is_of(ip, "10.251.9."))?;
    let metric = || -> Result<f64> {
        let text = lab.exec("n1", &["curl", "-sSf", "http://127.0.0.1:9157/metrics"])?.text("metrics")?;
        let line = text.lines().find_map(|line| line.strip_prefix("weft_ipam_exhausted_total "));
        Ok(line.context("no metric")?.parse()?)
    };
    let before = metric()?;
    let mut pods = BTreeSet::new();
    let refusal = loop {
        let name = format!("p{}", pods.len());
        ensure!(pods.len() < 8, "eight addresses, one of them the node's, hold no more: {pods:?}");
        match lab.pod_add(&PodSpec::new("n1", &name)) {
            Ok(_) => drop(pods.insert(name)),
            refused => break crate::ipam::refused(refused)?,
        }
    };
    ensure!(pods.len() >= 5, "{pods:?}");
    let words = ["tiny", "10.251.9.0/29", "weft ipam pool add", "weft ipam pool undrain default"];
    refusal.says(100, &words)?;
    for _ in 0..2 {
        refused(lab.pod_add(&PodSpec::new("n1", "more")))?.says(100, &words)?;
    }
    ensure!(metric()? == before + 3.0, "{} after {before}", metric()?);
    let status = soon("STATUS says so", || complaint(&lab, "n1"), Option::is_some)?.context("none")?;
    status.says(50, &["tiny", "10.251.9.0/29"])?;
    let log = lab.node_log("n1", 400)?;
    let told = log.lines().filter(|line| line.contains("ERROR") && line.contains("ADD is refused")).count();
    ensure!(told == 1, "logged {told} times:\n{log}");
    let of_requests = log.lines().filter(|line| line.contains("WARN") && line.contains("allocate")).count();
    ensure!(of_requests == 0, "{of_requests} lines of requests that were refused:\n{log}");
    let first = pods.first().context("no pods")?;
    reach(&lab, &["p1"], &lab.pod("p2")?.ips)?;

    lab.pod_rm("n1", first)?;
    // It rests first: two seconds of that are left.
    refused(lab.pod_add(&PodSpec::new("n1", "soon")))?.says(100, &words)?;
    added_soon(&lab, &PodSpec::new("n1", "soon"))?;
    // Another pool is the other way out, at once.
    changed(&lab, "add", &["more", "10.251.10.0/28", "--block-prefix", "29"])?;
    added_soon(&lab, &PodSpec::new("n1", "more"))?;
    let quiet = wait_until(Duration::from_secs(8), || Ok(complaint(&lab, "n1")?.is_none()))?;
    ensure!(quiet, "{:?}", complaint(&lab, "n1")?);
    reach(&lab, &["more"], &lab.pod("soon")?.ips)?;
    agree(&lab, &["n1"])?;
    lab.down()
}
