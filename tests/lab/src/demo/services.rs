// SPDX-License-Identifier: Apache-2.0
//! Promises about services by their VIP.

use super::stage::{BACKENDS, CLIENTS, Stage, only, total};
use crate::workers::probe::ProbeReport;
use anyhow::{Result, ensure};

const FROM_EACH_POD: u32 = 40;
/// From each of three; the only node makes as many as three together.
const FROM_EACH_NODE: u32 = 20;
/// 120 connections over three backends: fewer than this on one is about five standard deviations off.
const LEAST_SHARE: u32 = 15;
/// A port that `web` does not have.
const UNDEFINED_PORT: u16 = 82;

pub(super) fn from_pods(stage: &Stage<'_>) -> Result<String> {
    let sum = from_all(stage, &CLIENTS, FROM_EACH_POD)?;
    spread_over(&sum, &BACKENDS, LEAST_SHARE)?;
    Ok(format!("{} connections to {}: {}", sum.ok, stage.vip(80), sum.spread()))
}

pub(super) fn from_nodes(stage: &Stage<'_>) -> Result<String> {
    let sum = from_all(stage, stage.nodes, FROM_EACH_NODE * 3 / stage.nodes.len() as u32)?;
    spread_over(&sum, &BACKENDS, 1)?;
    Ok(format!("{} connections: {}", sum.ok, sum.spread()))
}

pub(super) fn peer_name(stage: &Stage<'_>) -> Result<String> {
    let vip = stage.vip(80);
    let mut count = 0;
    for from in CLIENTS.iter().chain(stage.nodes) {
        let report = stage.connect(from, &vip, 10)?;
        only(&report.peers, &vip, &format!("getpeername in {from}"))?;
        count += report.ok;
    }
    Ok(format!("{vip} for {count} of {count} sockets"))
}

pub(super) fn datagrams(stage: &Stage<'_>) -> Result<String> {
    let vip = stage.vip(81);
    let mut lines = Vec::new();
    for (kind, args) in [("unconnected", &["--udp"][..]), ("connected", &["--udp", "--connected"][..])] {
        let args = [&["--to", &vip, "--count", "60"], args].concat();
        let node = stage.nodes.last().copied().unwrap_or_default();
        let reports = [stage.probe("c1", &args)?, stage.probe(node, &args)?];
        for report in &reports {
            only(&report.peers, &vip, &format!("{kind} datagrams come from"))?;
        }
        let sum = total(&reports);
        spread_over(&sum, &BACKENDS, 1)?;
        lines.push(format!("{} {kind}: {}", sum.ok, sum.spread()));
    }
    Ok(format!("{}; answers come from {vip}", lines.join("; ")))
}

pub(super) fn refused(stage: &Stage<'_>) -> Result<String> {
    let mut slowest = 0;
    for from in ["c1", "n1"] {
        let report = stage.lab.probe(from, &["--to", &stage.vip(UNDEFINED_PORT), "--count", "5"])?;
        only(&report.errors, "refused", &format!("{from} to port {UNDEFINED_PORT}"))?;
        slowest = slowest.max(report.max_us);
    }
    Ok(format!("10 of 10 refused at once on port {UNDEFINED_PORT}"))
}

pub(super) fn backend_removed(stage: &mut Stage<'_>) -> Result<String> {
    stage.lab.pod_rm(stage.node_of("b3")?, "b3")?;
    let settled = stage.wait_backends(2)?;
    stage.end_server("b3");
    let sum = from_all(stage, &CLIENTS, FROM_EACH_POD)?;
    ensure!(!sum.servers.contains_key("b3"), "b3 is gone and got connections: {}", sum.spread());
    spread_over(&sum, &["b1", "b2"], LEAST_SHARE)?;
    Ok(format!(
        "{} connections: {}; all nodes knew {} ms after DEL",
        sum.ok,
        sum.spread(),
        settled.as_millis()
    ))
}

fn from_all(stage: &Stage<'_>, from: &[&str], count: u32) -> Result<ProbeReport> {
    let reports: Result<Vec<_>> =
        from.iter().map(|from| stage.connect(from, &stage.vip(80), count)).collect();
    Ok(total(&reports?))
}

fn spread_over(report: &ProbeReport, backends: &[&str], least: u32) -> Result<()> {
    for backend in backends {
        let share = report.servers.get(*backend).copied().unwrap_or_default();
        ensure!(share >= least, "{backend} got {share} of {}: {}", report.ok, report.spread());
    }
    Ok(())
}
