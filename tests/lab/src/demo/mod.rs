// SPDX-License-Identifier: Apache-2.0
//! The demo: each promise proved with real traffic in a lab of its own, one line for each.

mod dns;
mod leftovers;
mod pods;
mod report;
mod services;
mod stage;
mod survival;

use crate::lab::Lab;
use crate::run::on_path;
use crate::say::{complain, say};
use crate::up::UpOptions;
use crate::{interrupt, names};
use anyhow::{Result, ensure};
use leftovers::Before;
use report::Report;
use stage::Stage;
use std::process::ExitCode;
use std::time::Instant;

const DEFAULT_LAB: &str = "demo";
/// Nodes' log lines shown after a failure.
const LOG_LINES: usize = 12;

/// Runs the demo; fails when a promise is not kept. With `keep` a lab in which something failed stays up.
pub(crate) fn run(name: Option<&str>, keep: bool) -> Result<ExitCode> {
    ensure!(on_path("tcpdump"), "tcpdump is not installed: apt-get install tcpdump");
    interrupt::install()?;
    let name = name.unwrap_or(DEFAULT_LAB);
    let before = Before::look(name)?;
    let mut report = Report::default();
    say("Weft demo: three nodes, a store and an outside host, each a network namespace on this machine");
    let started = Instant::now();
    let lab = Lab::up(UpOptions::new(name))?;
    say(format!(
        "the lab is up in {:.1} s; now each promise with real traffic",
        started.elapsed().as_secs_f64()
    ));
    let staged = Stage::set(&lab);
    match staged {
        Ok(mut stage) => play(&mut stage, &mut report),
        Err(error) => report.prove("pods and a service are made", || Err(error)),
    }
    if report.failed() > 0 {
        show_logs(&lab);
        if keep {
            complain(format!("the lab stays: weft-lab --name {name} show; weft-lab --name {name} down"));
            lab.keep()?;
            return Ok(report.finish());
        }
    }
    let taken_down = lab.down();
    report.prove_always("after `down` nothing is left", || taken_down.and_then(|()| before.compare()));
    if interrupt::pending() {
        complain("interrupted; the lab is taken down");
    }
    Ok(report.finish())
}

fn play(stage: &mut Stage<'_>, report: &mut Report) {
    report.prove("pod to pod on one node", || pods::same_node(stage));
    report.prove("pod to pod across nodes", || pods::across_nodes(stage));
    report.prove("the underlay carries VXLAN with our VNI and nothing of the pods outside it", || {
        pods::underlay(stage)
    });
    report.prove("pod to outside, masqueraded", || pods::outside(stage));
    report.prove("node to own and remote pods", || pods::from_nodes(stage));
    report.prove("a service by its VIP from a pod on each node", || services::from_pods(stage));
    report.prove("the VIP from each node's own processes", || services::from_nodes(stage));
    report.prove("getpeername shows the VIP", || services::peer_name(stage));
    report.prove("UDP through the VIP", || services::datagrams(stage));
    report.prove("a port the service does not have is refused", || services::refused(stage));
    report.prove("the service's name from a pod by the node's DNS, A and SRV", || dns::records(stage));
    report.prove("connections by that name", || dns::connect(stage));
    report.prove("an outside name is forwarded", || dns::forwarded(stage));
    report.prove("a backend removed gets no new connection", || services::backend_removed(stage));
    report.prove("netd killed during a transfer: it and new connections go on", || survival::kill(stage));
    report.prove("netd started again: nothing was torn down", || survival::restart(stage));
    report.prove("etcd stopped: ADD, services and DNS go on", || survival::without_store(stage));
    report.prove("a pod deleted: veth, address, routes, map entries and name are gone", || {
        survival::pod_deleted(stage)
    });
    report.prove("in all this no packet with a pod's or service's address was bare on the underlay", || {
        stage.bare_packets()
    });
}

fn show_logs(lab: &Lab) {
    for index in 1..=3 {
        let node = names::node(index);
        let log = lab.node_log(&node, LOG_LINES).unwrap_or_default();
        complain(format!("--- last lines of {node}'s log\n{log}"));
    }
}
