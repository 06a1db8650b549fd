// SPDX-License-Identifier: Apache-2.0
//! Faults that are injected into a service, with real clients of each path: one lab with one node and both families.

use crate::have;
use crate::metrics::scrape;
use crate::service_stage::{Given, SOON, Stage, annotated, checked, refused_with, service, spec};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use weft_lab::{PodSpec, in_netns, wait_until};

const FAULT: &str = "weft.dev/fault";
/// Who asks: by the socket path, by the packet path, as a process of the host.
const INSIDE: [&str; 3] = ["c1", "g1", "n1"];
/// Half of these is 200; 35 to 65 percent are six standard deviations to both sides.
const CONNECTIONS: u32 = 400;
const SHARE: std::ops::RangeInclusive<u32> = 140..=260;
const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn faults_befall_new_connections_by_percent_and_client_and_are_taken_back_in_place() -> Result<()> {
    let Some(mut stage) = Stage::alone("svcfault", &["--fault-injection"])? else { return Ok(()) };
    stage.backend("n1", "b1", "web")?;
    stage.client("n1", "c1")?;
    stage.guest("n1", "g1")?;
    stage.lab.pod_add(&PodSpec::new("n1", "c2").label("role", "tester"))?;
    stage.lab.pod_add(&PodSpec::new("n1", "g2").label("role", "tester").outside_cgroup())?;
    let given = stage.service(&web(None))?;
    checked("without the annotation all is as ever", spared(&stage, &given, &INSIDE))?;
    checked("reset refuses pods, guests, the host and the world", reset(&stage, &given))?;
    checked("drop lets them wait in vain", drop_all(&stage, &given))?;
    checked("half of the connections, on both paths", half(&stage, &given))?;
    checked("what is open goes on, and taken back it ends", open_ones(&stage, &given))?;
    checked("only clients with a label", labelled(&stage, &given))?;
    checked(
        "a value that is not understood is refused, and the last good one stays",
        refused(&stage, &given),
    )?;
    checked("they are counted", counted(&stage))?;
    stage.lab.down()
}

fn web(fault: Option<&str>) -> Value {
    let mut spec = spec(json!({"type": "NodePort"}));
    spec["selector"] = json!({"app": "web"});
    let service = service("web", spec);
    fault.map_or(service.clone(), |fault| annotated(service, FAULT, fault))
}

/// Changes the fault in place: the service keeps all that it was given.
fn inject(stage: &Stage, fault: Option<&str>) -> Result<()> {
    let reply = stage.service(&web(fault))?;
    ensure!(reply.0.ignored.is_empty(), "{:?}", reply.0.ignored);
    let detail = stage.detail("n1", "web")?;
    let shown = detail.settings.get(FAULT);
    ensure!(shown.is_some() == fault.is_some(), "{fault:?} is shown as {shown:?}");
    ensure!(detail.problems.is_empty(), "{:?}", detail.problems);
    Ok(())
}

fn spared(stage: &Stage, given: &Given, who: &[&str]) -> Result<()> {
    for vip in given.vips() {
        for from in who {
            stage.reaches_all_ways(from, vip, &["b1"])?;
        }
    }
    Ok(())
}

fn node_ports(stage: &Stage, given: &Given) -> Result<Vec<SocketAddr>> {
    let port = given.node_port("TCP")?;
    [false, true].into_iter().map(|v6| Ok(SocketAddr::new(stage.node_ip("n1", v6)?, port))).collect()
}

fn reset(stage: &Stage, given: &Given) -> Result<()> {
    inject(stage, Some("reset,percent=100"))?;
    for vip in given.vips() {
        for from in INSIDE {
            stage.refused(from, vip)?;
        }
    }
    for to in node_ports(stage, given)? {
        let report = stage.ask("outside", to, 2, &[])?;
        ensure!(report.errors.get("refused") == Some(&2), "outside to {to}: {}", report.failures());
    }
    inject(stage, None)?;
    spared(stage, given, &INSIDE)?;
    node_ports(stage, given)?.into_iter().try_for_each(|to| stage.reaches("outside", to, &[], &["b1"]))
}

fn drop_all(stage: &Stage, given: &Given) -> Result<()> {
    inject(stage, Some("drop"))?;
    for vip in given.vips() {
        for from in INSIDE {
            stage.dropped(from, vip)?;
        }
        // A datagram of a socket that is not connected is nobody's to refuse.
        let report = stage.ask("c1", vip, 2, &["--udp", "--timeout", "400ms"])?;
        ensure!(report.errors.get("timeout") == Some(&2), "{vip}: {}", report.failures());
    }
    inject(stage, None)?;
    spared(stage, given, &INSIDE)
}

fn half(stage: &Stage, given: &Given) -> Result<()> {
    inject(stage, Some("percent=50,reset"))?;
    for vip in given.vips() {
        for from in ["c1", "g1"] {
            let report = stage.ask(from, vip, CONNECTIONS, &[])?;
            let refused = report.errors.get("refused").copied().unwrap_or_default();
            ensure!(
                SHARE.contains(&refused) && report.ok + refused == CONNECTIONS,
                "{from} to {vip}: {} of {CONNECTIONS} answered, {}",
                report.ok,
                report.failures()
            );
        }
    }
    inject(stage, None)
}

fn open_ones(stage: &Stage, given: &Given) -> Result<()> {
    let netns = stage.lab.pod("g1")?.netns;
    let mut open = Vec::new();
    for vip in given.vips() {
        let stream = in_netns(&netns, || Ok(TcpStream::connect_timeout(&vip, LIMIT)?))?;
        stream.set_read_timeout(Some(LIMIT))?;
        open.push((vip, stream));
    }
    for (vip, stream) in &mut open {
        let read = stream.read(&mut [0; 128]).with_context(|| format!("{vip}: the first line"))?;
        ensure!(read > 0, "{vip}: ended before it began");
    }
    for fault in ["reset", "drop"] {
        inject(stage, Some(fault))?;
        for (vip, stream) in &mut open {
            stream.write_all(b"ping")?;
            let mut back = [0; 4];
            stream.read_exact(&mut back).with_context(|| format!("{vip}, with {fault}"))?;
            ensure!(&back == b"ping", "{vip}: {back:?}");
        }
    }
    inject(stage, None)?;
    spared(stage, given, &INSIDE)
}

fn labelled(stage: &Stage, given: &Given) -> Result<()> {
    for fault in [
        "reset,client=role=tester",
        "reset,client=role",
        "reset,client=weft.dev/namespace=default,client=role",
    ] {
        inject(stage, Some(fault))?;
        for vip in given.vips() {
            for from in ["c2", "g2"] {
                stage.refused(from, vip).context(fault)?;
            }
        }
        spared(stage, given, &INSIDE).context(fault)?;
        let ports = node_ports(stage, given)?;
        ports.into_iter().try_for_each(|to| stage.reaches("outside", to, &[], &["b1"])).context(fault)?;
    }
    let reason = stage.detail("n1", "web")?.verdicts.into_iter().map(|verdict| verdict.reason);
    let tester = stage.ip("c2", false)?.to_string();
    ensure!(reason.clone().any(|reason| reason.contains(&tester)), "{:?}", reason.collect::<Vec<_>>());
    // Labels come and go while it lasts.
    for (label, befallen) in [("role=tester", true), ("role-", false)] {
        stage.lab.weft("n1", &["pod", "label", "default/c1", label])?.text("weft pod label")?;
        for vip in given.vips() {
            let noticed = wait_until(SOON, || Ok(stage.ask("c1", vip, 1, &[])?.all_ok() != befallen))?;
            ensure!(noticed, "{label}: c1 to {vip}, {befallen} expected");
        }
    }
    inject(stage, None)?;
    spared(stage, given, &["c1", "c2", "g2"])
}

fn refused(stage: &Stage, given: &Given) -> Result<()> {
    inject(stage, Some("reset"))?;
    refused_with(stage.put(&[web(Some("explode"))]), &[FAULT, "explode"])?;
    refused_with(stage.put(&[web(Some("delay=50ms,percent=10"))]), &[FAULT, "delay=50ms", "fq"])?;
    for vip in given.vips() {
        stage.refused("c1", vip)?;
    }
    inject(stage, None)
}

fn counted(stage: &Stage) -> Result<()> {
    let detail = stage.detail("n1", "web")?;
    ensure!(detail.frontends.iter().any(|frontend| frontend.refused > 0), "{:?}", detail.frontends);
    if have("curl", "the metric of faults") {
        let dropped = scrape(&stage.lab)?.value("weft_datapath_drops_total", &[("reason", "fault")])?;
        ensure!(dropped > 0.0, "{dropped} packets dropped by faults");
    }
    Ok(())
}
