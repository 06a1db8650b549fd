// SPDX-License-Identifier: Apache-2.0
//! The demo: each promise proved with real traffic in a lab of its own, one line for each.

mod alone;
mod dns;
mod leftovers;
mod pods;
mod report;
mod services;
mod stage;
mod survival;
mod wireguard;

use crate::cli::{DemoArgs, default_nodes};
use crate::families::StoreKind;
use crate::interrupt;
use crate::lab::Lab;
use crate::overlay::Overlay;
use crate::run::on_path;
use crate::say::{complain, say};
use crate::up::UpOptions;
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
pub(crate) fn run(name: Option<&str>, args: &DemoArgs) -> Result<ExitCode> {
    ensure!(on_path("tcpdump"), "tcpdump is not installed: apt-get install tcpdump");
    interrupt::install()?;
    let name = name.unwrap_or(DEFAULT_LAB);
    let before = Before::look(name)?;
    let mut report = Report::default();
    let nodes = args.nodes.unwrap_or_else(|| default_nodes(args.store));
    let how_many = if nodes == 1 { "one node" } else { "three nodes" };
    let store = if args.store == StoreKind::File { " whose store is a file" } else { ", a store" };
    say(format!(
        "Weft demo: {how_many}{store} and an outside host, each a network namespace on this machine"
    ));
    let started = Instant::now();
    let overlay = args.overlay.as_str().into();
    let lab = Lab::up(UpOptions { nodes, store: args.store, overlay, ..UpOptions::new(name) })?;
    say(format!(
        "the lab is up in {:.1} s; now each promise with real traffic",
        started.elapsed().as_secs_f64()
    ));
    let staged = Stage::set(&lab);
    match staged {
        Ok(mut stage) => play(&mut stage, &mut report, args),
        Err(error) => report.prove("pods and a service are made", || Err(error)),
    }
    if report.failed() > 0 {
        show_logs(&lab);
        if args.keep {
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

fn play(stage: &mut Stage<'_>, report: &mut Report, args: &DemoArgs) {
    let several = stage.nodes.len() > 1;
    report.prove("pod to pod on one node", || pods::same_node(stage));
    if several {
        report.prove("pod to pod across nodes", || pods::across_nodes(stage));
        match args.overlay {
            Overlay::Auto | Overlay::Native => {}
            Overlay::Vxlan => {
                report.prove(
                    "the underlay carries VXLAN with our VNI and nothing of the pods outside it",
                    || pods::underlay(stage),
                );
            }
            Overlay::Wireguard => wireguard::prove(stage, report),
        }
    }
    report.prove("pod to outside, masqueraded", || pods::outside(stage));
    let one_or_more = |one: &'static str, more: &'static str| if several { more } else { one };
    let promise = one_or_more("node to its own pods", "node to own and remote pods");
    report.prove(promise, || pods::from_nodes(stage));
    let promise =
        one_or_more("a service by its VIP from pods", "a service by its VIP from a pod on each node");
    report.prove(promise, || services::from_pods(stage));
    let promise =
        one_or_more("the VIP from the node's own processes", "the VIP from each node's own processes");
    report.prove(promise, || services::from_nodes(stage));
    report.prove("getpeername shows the VIP", || services::peer_name(stage));
    report.prove("UDP through the VIP", || services::datagrams(stage));
    report.prove("a port the service does not have is refused", || services::refused(stage));
    report.prove("the service's name from a pod by the node's DNS, A and SRV", || dns::records(stage));
    report.prove("connections by that name", || dns::connect(stage));
    report.prove("an outside name is forwarded", || dns::forwarded(stage));
    report.prove("a backend removed gets no new connection", || services::backend_removed(stage));
    report.prove("netd killed during a transfer: it and new connections go on", || survival::kill(stage));
    report.prove("netd started again: nothing was torn down", || survival::restart(stage));
    match args.store {
        StoreKind::Etcd => {
            report.prove("etcd stopped: ADD, services and DNS go on", || survival::without_store(stage));
        }
        StoreKind::File => {
            report.prove("the node cut off from every other host: ADD, services and DNS go on", || {
                alone::cut_off(stage)
            });
            report.prove("netd killed right after an apply: the store's file has it", || {
                alone::killed_after_apply(stage)
            });
        }
    }
    report.prove("a pod deleted: veth, address, routes, map entries and name are gone", || {
        survival::pod_deleted(stage)
    });
    // Plain routes show pods' addresses to the underlay by choice.
    if !(several && matches!(args.overlay, Overlay::Auto | Overlay::Native)) {
        report.prove(
            "in all this no packet with a pod's or service's address was bare on the underlay",
            || stage.bare_packets(),
        );
    }
}

fn show_logs(lab: &Lab) {
    for node in lab.state().map(|state| state.nodes).unwrap_or_default() {
        let log = lab.node_log(&node.name, LOG_LINES).unwrap_or_default();
        complain(format!("--- last lines of {}'s log\n{log}", node.name));
    }
}
