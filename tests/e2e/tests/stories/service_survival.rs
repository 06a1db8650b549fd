// SPDX-License-Identifier: Apache-2.0
//! Services while the agent dies, starts again, or has no room: connections and new ones go on.

use crate::service_stage::{ENDLESS, Given, LINE, PORT, Stage, checked, service, slice, spec};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::net::SocketAddr;
use weft_lab::{PodSpec, Running, Said};

const BOTH: &[&str] = &["b1", "b2"];
/// The least number of frontends that fit; a service with two families and two ports has six with its wildcards.
const FRONTENDS: usize = 1_024;

#[test]
fn connections_survive_daemon_kill_restart_and_map_resize() -> Result<()> {
    let Some(mut stage) = Stage::of("svcsurvive", 2, "vxlan", &[])? else { return Ok(()) };
    set(&mut stage)?;
    stage.backend("n2", "b2", "web")?;
    let given = stage.service(&web("web", json!({"type": "NodePort"})))?;
    let talks = talks(&stage, &given)?;

    let new_ones = |when: &str| -> Result<()> {
        for v6 in [false, true] {
            let node = SocketAddr::new(stage.node_ip("n1", v6)?, given.node_port("TCP")?);
            for (from, to) in [("c1", given.vip(v6)?), ("g1", given.vip(v6)?), ("outside", node)] {
                stage.reaches(from, to, &[], BOTH).with_context(|| when.to_owned())?;
            }
        }
        Ok(())
    };
    checked("netd killed", {
        stage.lab.node_kill("n1")?;
        new_ones("while netd is dead")
    })?;
    stage.lab.node_start("n1")?;
    checked("netd started again", new_ones("with the new netd"))?;
    checked("connections after the kill", talks.iter().try_for_each(unharmed))?;
    stage.lab.node_stop("n1")?;
    let sizes = ["--service-connections-max", "16384", "--service-frontends-max", "4096"];
    stage.lab.netd_args(&sizes)?;
    stage.lab.node_start("n1")?;
    checked("maps of other sizes", new_ones("with maps of other sizes"))?;
    checked("connections after the maps' resize", talks.iter().try_for_each(unharmed))?;
    stage.lab.netd_args(&[])?;
    stage.lab.node_stop("n1")?;
    stage.lab.node_start("n1")?;
    checked("maps of the first sizes again", new_ones("with the first sizes again"))?;
    checked("connections at the end", talks.iter().try_for_each(unharmed))?;
    stage.lab.down()
}

#[test]
fn a_full_map_is_said_and_never_a_wrong_translation() -> Result<()> {
    let frontends = FRONTENDS.to_string();
    let Some(mut stage) = Stage::alone("svcfull", &["--service-frontends-max", &frontends])? else {
        return Ok(());
    };
    set(&mut stage)?;
    let web = stage.service(&web("web", json!({})))?;
    // Others, each with a backend of its own that is nobody: more than fit.
    let more = FRONTENDS / 6 + 30;
    let endpoint = |v6| vec![json!({"addresses": [if v6 { "fd00:10:244::dead" } else { "10.244.99.99" }]})];
    for batch in (0..more).collect::<Vec<_>>().chunks(50) {
        let objects = batch.iter().flat_map(|number| {
            let name = format!("x{number}");
            [
                service(&name, spec(json!({}))),
                slice(&name, "a", false, endpoint(false)),
                slice(&name, "a", true, endpoint(true)),
            ]
        });
        // Whether all are programmed is the question here.
        let text: Vec<String> = objects.map(|object| object.to_string()).collect();
        let applied = stage.lab.apply(&text.join("\n---\n"));
        if let Err(error) = applied {
            let error = format!("{error:#}");
            ensure!(error.contains("programmed"), "{error}");
        }
    }
    let status = stage.lab.status("n1")?;
    let said = status.bad_values.iter().any(|bad| bad.reason.contains("make the map larger"));
    ensure!(said, "nobody says that the map is full: {:?} {:?}", status.bad_values.first(), status.reasons);
    let metrics = stage.lab.exec("n1", &["curl", "-s", "http://127.0.0.1:9157/metrics"])?.text("metrics")?;
    let left_out = metrics.lines().find(|line| line.starts_with("weft_service_left_out"));
    let count: u64 = left_out.and_then(|line| line.rsplit(' ').next()?.parse().ok()).context("no metric")?;
    ensure!(count > 0, "{left_out:?}");
    // Who is in, works; who is not, is nobody's, and never somebody else's.
    for vip in web.vips() {
        for from in ["c1", "g1"] {
            stage.reaches_all_ways(from, vip, &["b1"])?;
        }
    }
    for number in [0, more / 2, more - 2, more - 1] {
        let detail = stage.detail("n1", &format!("x{number}"))?;
        for ip in detail.info.cluster_ips {
            for from in ["c1", "g1"] {
                let report = stage.ask(from, SocketAddr::new(ip, PORT), 2, &["--timeout", "400ms"])?;
                ensure!(report.ok == 0, "x{number}: {} answers", report.spread());
            }
        }
    }
    // With room again, everybody is in.
    stage.lab.node_stop("n1")?;
    stage.lab.netd_args(&[])?;
    stage.lab.node_start("n1")?;
    let late = stage.service(&web_of("late", "web"))?;
    for vip in late.vips() {
        stage.reaches("c1", vip, &[], &["b1"])?;
        stage.reaches("g1", vip, &[], &["b1"])?;
    }
    let status = stage.lab.status("n1")?;
    ensure!(status.bad_values.is_empty(), "{:?}", status.bad_values);
    stage.lab.down()
}

fn set(stage: &mut Stage) -> Result<()> {
    stage.backend("n1", "b1", "web")?;
    stage.client("n1", "c1")?;
    stage.lab.pod_add(&PodSpec::new("n1", "g1").outside_cgroup()).map(drop)
}

fn web(name: &str, more: Value) -> Value {
    let mut spec = spec(more);
    spec["selector"] = json!({"app": "web"});
    service(name, spec)
}

fn web_of(name: &str, app: &str) -> Value {
    let mut spec = spec(json!({}));
    spec["selector"] = json!({"app": app});
    service(name, spec)
}

/// A client that keeps its socket.
struct Talk {
    what: String,
    running: Running,
    /// Who answered first.
    server: RefCell<Option<String>>,
}

/// Connections and datagram sockets of each path and family, one each.
fn talks(stage: &Stage, given: &Given) -> Result<Vec<Talk>> {
    let mut talks = Vec::new();
    for v6 in [false, true] {
        let node = stage.node_ip("n1", v6)?;
        for how in [&[][..], &["--udp", "--connected"]] {
            let port = given.node_port(if how.is_empty() { "TCP" } else { "UDP" })?;
            for (from, to) in
                [("c1", given.vip(v6)?), ("g1", given.vip(v6)?), ("outside", SocketAddr::new(node, port))]
            {
                let address = to.to_string();
                let args = [&["talk", "--to", &address, "--timeout", "10s", "--for", ENDLESS], how].concat();
                let (what, running) =
                    (format!("{from} to {to} {how:?}"), stage.lab.worker_start(from, &args)?);
                talks.push(Talk { what, running, server: RefCell::default() });
            }
        }
    }
    talks.iter().try_for_each(unharmed)?;
    Ok(talks)
}

/// Every question so far was answered, each by the one that answered the first; and one more is.
fn unharmed(talk: &Talk) -> Result<()> {
    let what = &talk.what;
    let mut lines = talk.running.lines();
    lines.push(talk.running.wait_line(LINE).with_context(|| what.clone())?);
    for line in lines {
        let said: Said = serde_json::from_str(&line)?;
        let mut server = talk.server.borrow_mut();
        if server.is_none() {
            server.clone_from(&said.server);
        }
        ensure!(said.error.is_none() && said.server == *server, "{what}: {said:?}, before {server:?}");
    }
    Ok(())
}
