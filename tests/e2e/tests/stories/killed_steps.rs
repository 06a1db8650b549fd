// SPDX-License-Identifier: Apache-2.0
//! ADD is all or nothing, also when it is killed: at each of its steps, that is just before each system call by which it
//! does anything to the world. What a killed ADD leaves, the DEL that a runtime sends next removes.

use crate::left::{nothing_left, on_node};
use crate::{have, lab};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;
use weft_lab::{Lab, Output, Pod, PodSpec, in_netns, netns_path, output, sibling};

/// One call under strace takes some tens of milliseconds.
const LIMIT: Duration = Duration::from_secs(30);
/// Calls that do something to the world: netd's socket, netlink, sysctls, namespaces, stdout.
const STEPS: [&str; 9] =
    ["clone3", "connect", "openat", "sendmsg", "sendto", "setns", "socket", "write", "writev"];

#[test]
fn an_add_killed_at_any_step_leaves_nothing_after_its_del() -> Result<()> {
    if !have("strace", "killedsteps") || !have("etcdctl", "killedsteps") {
        return Ok(());
    }
    let Some(lab) = lab("killedsteps", 1)? else { return Ok(()) };
    // A pod of its own for the namespace; its attachment goes at once.
    let pod = lab.pod_add(&PodSpec::new("n1", "a"))?;
    weft_lab::cni(lab.name(), &pod, "DEL")?.text("the first DEL")?;
    nothing_left(&lab, "n1")?;

    let counts = count(&lab, &pod)?;
    del_leaves_nothing(&lab, &pod)?;
    let (mut killed, mut ended) = (0, 0);
    for (call, times) in &counts {
        for nth in 1..=*times {
            let inject = format!("inject={call}:signal=SIGKILL:when={nth}");
            let answer = strace(&lab, &pod, &["-e", &format!("trace={call}"), "-e", &inject])?;
            if answer.ok() {
                ended += 1
            } else {
                killed += 1
            }
            del_leaves_nothing(&lab, &pod).with_context(|| format!("killed before {call} number {nth}"))?;
        }
    }
    println!("killedsteps: {killed} ADDs were killed at {counts:?}; {ended} ended before their step");
    ensure!(killed > 20, "only {killed} of the steps were reached");

    nothing_left(&lab, "n1")?;
    let add = weft_lab::cni(lab.name(), &pod, "ADD")?;
    ensure!(add.ok(), "a fresh ADD: {}", add.stdout);
    let check =
        weft_lab::cni(lab.name(), &Pod { result: Some(serde_json::from_str(&add.stdout)?), ..pod }, "CHECK")?;
    ensure!(check.ok(), "CHECK of a fresh ADD: {}", check.stdout);
    lab.down()
}

/// How often a whole ADD makes each of the calls.
fn count(lab: &Lab, pod: &Pod) -> Result<BTreeMap<String, u32>> {
    let summary = tempfile::NamedTempFile::new()?;
    let path = summary.path().to_str().context("a path")?.to_owned();
    let answer = strace(lab, pod, &["-c", "-o", &path])?;
    ensure!(answer.ok(), "ADD under strace: {answer:?}");
    let mut counts = BTreeMap::new();
    // % time, seconds, usecs/call, calls, [errors,] syscall
    for line in std::fs::read_to_string(&path)?.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (Some(name), Some(calls)) = (words.last(), words.get(3)) else { continue };
        if STEPS.contains(name) {
            counts.insert((*name).to_owned(), calls.parse()?);
        }
    }
    ensure!(!counts.is_empty(), "strace counted nothing");
    Ok(counts)
}

fn strace(lab: &Lab, pod: &Pod, options: &[&str]) -> Result<Output> {
    let node = lab.state()?.node(&pod.node)?.netns.clone();
    let mut command = Command::new("strace");
    command.args(["-f", "-qq"]);
    if !options.contains(&"-o") {
        command.args(["-o", "/dev/null"]);
    }
    command.args(options).arg(sibling("weft-cni")?);
    command
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", &pod.container_id)
        .env("CNI_NETNS", netns_path(&pod.netns))
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/");
    let config = serde_json::to_vec(&pod.config)?;
    in_netns(&node, || output(&mut command, &config, LIMIT))
}

fn del_leaves_nothing(lab: &Lab, pod: &Pod) -> Result<()> {
    let del = weft_lab::cni(lab.name(), pod, "DEL")?;
    ensure!(del.ok(), "DEL: {}", del.stdout);
    let left = on_node(lab, "n1")?;
    ensure!(left.is_empty(), "left: {}\n{}", left.join(", "), lab.node_log("n1", 25)?);
    let inside = lab.exec(&pod.name, &["ip", "-o", "link"])?.text("ip link")?;
    ensure!(!inside.contains("eth0"), "the pod keeps its link: {inside}");
    Ok(())
}
