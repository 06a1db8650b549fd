// SPDX-License-Identifier: Apache-2.0
//! Promises about what goes on when parts are missing, and what is gone when it should be.

use super::dns::NAME;
use super::stage::{CLIENTS, SETTLE_LIMIT, Stage, only, total};
use crate::interrupt::wait_until;
use crate::lab::Lab;
use crate::members::Pod;
use crate::names;
use crate::pod::PodSpec;
use crate::running::Running;
use crate::workers::stream::Progress;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Long enough for the kill, the connections and the restart that it must outlive.
const TRANSFER: Duration = Duration::from_secs(60);
const LINE_LIMIT: Duration = Duration::from_secs(5);
/// A transfer that stands still longer than this was cut in all but name.
pub(super) const PAUSE_MS_MAX: u64 = 1000;

pub(super) fn kill(stage: &mut Stage<'_>) -> Result<String> {
    let transfer = stage.lab.stream("c1", &stage.vip(80), TRANSFER)?;
    let before = progress(&transfer)?;
    stage.lab.node_kill("n1")?;
    ensure!(stage.lab.status("n1").is_err(), "n1's netd answers after SIGKILL");
    let report = stage.connect("c1", &stage.vip(80), 60)?;
    let from_node = stage.connect("n1", &stage.vip(80), 20)?;
    // Of one node alone the questions wait for its netd.
    let others = stage.nodes.len() > 1;
    if others {
        let answer = stage.lab.query("c1", &[NAME, "A"])?;
        ensure!(answer.data == [stage.vip.to_string()], "{NAME}: {} {:?}", answer.code, answer.answers);
    }
    let after = progress(&transfer)?;
    ensure!(after.bytes > before.bytes, "the transfer stands still at {} bytes", after.bytes);
    ensure!(after.longest_pause_ms <= PAUSE_MS_MAX, "the transfer paused {} ms", after.longest_pause_ms);
    stage.transfer = Some(transfer);
    let sum = total([&report, &from_node]);
    Ok(format!(
        "{} KiB more moved, longest pause {} ms; {} new connections: {}{}",
        (after.bytes - before.bytes) / 1024,
        after.longest_pause_ms,
        sum.ok,
        sum.spread(),
        if others { "; names by another node" } else { "" }
    ))
}

pub(super) fn restart(stage: &mut Stage<'_>) -> Result<String> {
    let mut transfer = stage.transfer.take().context("no transfer is under way")?;
    let lab = stage.lab;
    let (links, pins) = (link_indexes(lab, "n1")?, pins(lab, "n1")?);
    let monitor = lab.spawn("n1", &["ip", "monitor", "link", "address", "route"])?;
    let started = Instant::now();
    lab.node_start("n1")?;
    let ready = started.elapsed();
    stage.connect("c1", &stage.vip(80), 20)?;
    let moved = progress(&transfer)?;
    let deleted: Vec<_> = monitor.lines().into_iter().filter(|line| line.contains("Deleted")).collect();
    ensure!(deleted.is_empty(), "ip monitor saw: {}", deleted.join("; "));
    let now = link_indexes(lab, "n1")?;
    ensure!(links == now, "links were {links:?} and are {now:?}");
    for (pin, inode) in &pins {
        let now = fs::metadata(pin).map(|pin| pin.ino()).ok();
        ensure!(now == Some(*inode), "{} was replaced", pin.display());
    }
    ensure!(transfer.alive(), "the transfer ended: {}", transfer.errors().join(" "));
    ensure!(moved.longest_pause_ms <= PAUSE_MS_MAX, "the transfer paused {} ms", moved.longest_pause_ms);
    Ok(format!(
        "ready in {} ms; ip monitor: 0 deletions; {} links and {} pins the same; transfer at {} KiB, longest pause {} ms",
        ready.as_millis(),
        links.len(),
        pins.len(),
        moved.bytes / 1024,
        moved.longest_pause_ms
    ))
}

pub(super) fn without_store(stage: &mut Stage<'_>) -> Result<String> {
    let lab = stage.lab;
    lab.etcd_stop()?;
    let result = go_on(stage);
    // Whatever happened: the promises after this one need the store.
    lab.etcd_start()?;
    let back = Instant::now();
    for name in stage.nodes {
        let caught_up = wait_until(SETTLE_LIMIT, || {
            let pods = lab.ask(name, async |client| client.pods().await)?;
            let status = lab.status(name)?;
            Ok(status.store.connected && status.store.in_sync && pods.iter().any(|pod| pod.name == "c4"))
        })?;
        ensure!(
            caught_up,
            "{name} is not in sync, or does not know c4, {SETTLE_LIMIT:?} after etcd came back"
        );
    }
    Ok(format!("{}; etcd back: all nodes know the new pod after {} ms", result?, back.elapsed().as_millis()))
}

/// A new pod, its connections and its questions, while something that many would need is away.
pub(super) fn go_on(stage: &mut Stage<'_>) -> Result<String> {
    let started = Instant::now();
    let added = stage.lab.pod_add(&PodSpec::new("n1", "c4"))?;
    let add = started.elapsed();
    let ip = added.ips[0];
    stage.pods.insert("c4", added);
    let sum = total(&[stage.connect("c4", &stage.vip(80), 30)?, stage.connect("c3", &stage.vip(80), 30)?]);
    let by_name = stage.connect("c4", &format!("{NAME}:80"), 10)?;
    only(&by_name.peers, &stage.vip(80), "the name in c4 is")?;
    Ok(format!(
        "ADD in {} ms gave {ip}; {} connections: {}; 10 by name",
        add.as_millis(),
        sum.ok,
        sum.spread()
    ))
}

pub(super) fn pod_deleted(stage: &mut Stage<'_>) -> Result<String> {
    let lab = stage.lab;
    let pod = stage.pods.get("b2").context("b2 is not on the stage")?.clone();
    let ip = stage.ip("b2")?.to_string();
    let traces = traces(stage, &pod, &ip)?;
    let missing: Vec<_> =
        traces.iter().filter(|(_, there)| !**there).map(|(what, _)| what.as_str()).collect();
    ensure!(missing.is_empty(), "not even there before: {}", missing.join(", "));
    let started = Instant::now();
    lab.pod_rm(&pod.node, "b2")?;
    let delete = started.elapsed();
    stage.end_server("b2");
    let mut left = Vec::new();
    let gone = wait_until(SETTLE_LIMIT, || {
        let found = self::traces(stage, &pod, &ip)?;
        left = found.into_iter().filter(|(_, there)| *there).map(|(what, _)| what).collect();
        Ok(left.is_empty())
    })?;
    if !gone {
        bail!("{SETTLE_LIMIT:?} after DEL there still is: {}", left.join(", "));
    }
    Ok(format!(
        "{ip}: {} traces before, 0 after; DEL took {} ms, the last trace went {} ms after it began",
        traces.len(),
        delete.as_millis(),
        started.elapsed().as_millis()
    ))
}

/// Every place where a pod leaves a trace, and whether it does.
fn traces(stage: &Stage<'_>, pod: &Pod, ip: &str) -> Result<BTreeMap<String, bool>> {
    let (lab, own) = (stage.lab, pod.node.as_str());
    let mut found = BTreeMap::new();
    let mut trace = |what: String, there: bool| found.insert(what, there);
    let ip_of = |node: &str, args: &[&str]| lab.exec(node, &[&["ip"], args].concat())?.text("ip");
    trace("namespace".into(), names::netns_path(&pod.netns).exists());
    let pods = lab.ask(own, async |client| client.pods().await)?;
    trace("netd's record".into(), pods.iter().any(|pod| pod.ips.iter().any(|other| other.to_string() == ip)));
    // The pod's own names for its links are not needed: what leads to its address says enough.
    trace(
        "veth".into(),
        ip_of(own, &["-o", "link", "show", "type", "veth"])?.lines().count() > veths_of_others(lab, pod)?,
    );
    trace("route".into(), ip_of(own, &["route", "show", "table", "all", "to", "exact", ip])?.contains(ip));
    trace("neighbour".into(), ip_of(own, &["neigh", "show", "to", ip])?.contains(ip));
    trace("map entry of the pod".into(), lab.maps(own)?.pods.iter().any(|pod| pod.to_string() == ip));
    for node in stage.nodes {
        let backends = lab.maps(node)?.backends;
        trace(
            format!("map entry of the backend on {node}"),
            backends.iter().any(|backend| backend.to_string() == ip),
        );
    }
    for client in CLIENTS {
        let answer = lab.query(client, &["each.default.svc.cluster.local", "A"])?;
        trace(format!("name in {client}"), answer.data.iter().any(|data| data == ip));
    }
    Ok(found)
}

/// Host ends that belong to the other pods of its node, and the underlay's own veth.
fn veths_of_others(lab: &Lab, pod: &Pod) -> Result<usize> {
    let state = lab.state()?;
    Ok(state.pods.values().filter(|other| other.node == pod.node && other.name != pod.name).count() + 1)
}

/// How a transfer is now.
pub(super) fn progress(transfer: &Running) -> Result<Progress> {
    // What waits in the pipe is the past: only a line from now on says how it is.
    transfer.lines();
    let line = transfer.wait_line(LINE_LIMIT).context("the transfer")?;
    serde_json::from_str(&line).with_context(|| format!("progress: {line}"))
}

/// Index of each link: a link that was made anew has another.
fn link_indexes(lab: &Lab, node: &str) -> Result<BTreeMap<String, u64>> {
    let links: Vec<Value> = lab.exec(node, &["ip", "-j", "link"])?.json("ip link")?;
    let index = |link: &Value| Some((link["ifname"].as_str()?.to_owned(), link["ifindex"].as_u64()?));
    Ok(links.iter().filter_map(index).collect())
}

/// Inode of each pin: an object that was pinned anew has another.
fn pins(lab: &Lab, node: &str) -> Result<BTreeMap<PathBuf, u64>> {
    let mut folders = vec![lab.pin_dir(node)?];
    let mut found = BTreeMap::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                found.insert(entry.path(), entry.metadata()?.ino());
            }
        }
    }
    ensure!(!found.is_empty(), "no pins");
    Ok(found)
}
