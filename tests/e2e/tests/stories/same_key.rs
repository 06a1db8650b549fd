// SPDX-License-Identifier: Apache-2.0
//! What runtimes do to one attachment in bad moments: ADD and DEL at once, ADD twice, ADD and DEL killed.

use crate::left::{addresses, nothing_left, on_node};
use crate::{have, lab, service, soaking};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};
use weft_lab::{Lab, Output, Pod, PodSpec, in_netns, netns_path, output, sibling, wait_until};

/// The sweep looks every 20 s.
const SWEEP_LIMIT: Duration = Duration::from_secs(45);

#[test]
fn add_and_del_at_once_leave_nothing_after_a_last_del() -> Result<()> {
    let Some(scene) = Scene::set("adddel")? else { return Ok(()) };
    let (lab, pod) = (&scene.lab, &scene.pod);
    let (mut added, rounds) = (0, rounds(30));
    for round in 0..rounds {
        // DEL begins everywhere from a little before ADD to its end.
        let (add, del) = match round % 3 {
            0 => (scene.add_takes / 4 * round / rounds, Duration::ZERO),
            _ => (Duration::ZERO, scene.add_takes * round / rounds),
        };
        let answers = together(lab, pod, &[("ADD", add), ("DEL", del)])?;
        let what = format!("round {round}, ADD after {add:?}, DEL after {del:?}");
        ensure!(answers[1].ok(), "{what}: DEL failed: {}", answers[1].stdout);
        ensure!(answers[0].ok() || cni_code(&answers[0]).is_some(), "{what}: ADD: {:?}", answers[0]);
        added += u32::from(answers[0].ok());
        del_leaves_nothing(lab, pod, round).with_context(|| what)?;
    }
    println!(
        "adddel: {added} of {rounds} ADDs succeeded beside their DEL; one alone takes {:?}",
        scene.add_takes
    );
    scene.works_again()
}

#[test]
fn of_two_adds_at_once_one_wins_and_keeps_its_pod() -> Result<()> {
    let Some(scene) = Scene::set("twoadds")? else { return Ok(()) };
    let (lab, pod) = (&scene.lab, &scene.pod);
    let rounds = rounds(10);
    for round in 0..rounds {
        let later = scene.add_takes / 2 * round / rounds;
        let answers = together(lab, pod, &[("ADD", Duration::ZERO), ("ADD", later)])?;
        let what = format!("round {round}, the second after {later:?}");
        let (winners, losers): (Vec<&Output>, Vec<&Output>) = answers.iter().partition(|answer| answer.ok());
        ensure!(winners.len() == 1, "{what}: {} of 2 succeeded: {answers:?}", winners.len());
        ensure!(cni_code(losers[0]).is_some(), "{what}: the loser said {:?}", losers[0]);
        let result: Value = serde_json::from_str(&winners[0].stdout)?;
        let ip = result["ips"][0]["address"].as_str().context("no address")?.trim_end_matches("/32");
        let check = weft_lab::cni(lab.name(), &Pod { result: Some(result.clone()), ..pod.clone() }, "CHECK")?;
        ensure!(check.ok(), "{what}: CHECK of the winner: {}", check.stdout);
        let held = addresses(lab, "n1")?;
        ensure!(held.len() == 1 && held.contains_key(ip), "{what}: {ip}, but {held:?}");
        let report = lab.probe(&pod.name, &["--to", &scene.peer, "--count", "3"])?;
        ensure!(report.all_ok() && report.seen_as.contains_key(ip), "{what}: {report:?}");
        ensure!(lab.exec("peer", &["ping", "-c1", "-W1", ip])?.ok(), "{what}: the peer cannot reach {ip}");
        let del = weft_lab::cni(lab.name(), pod, "DEL")?;
        ensure!(del.ok(), "{what}: DEL: {}", del.stdout);
    }
    scene.works_again()
}

#[test]
fn whatever_a_killed_add_leaves_its_del_removes() -> Result<()> {
    let Some(scene) = Scene::set("killedadd")? else { return Ok(()) };
    let (lab, pod) = (&scene.lab, &scene.pod);
    let (mut ended, rounds) = (0, rounds(20));
    for round in 0..rounds {
        let after = scene.add_takes * (round + 1) / rounds;
        ended += u32::from(killed(lab, pod, "ADD", after)?);
        del_leaves_nothing(lab, pod, round)
            .with_context(|| format!("round {round}, ADD killed after {after:?}"))?;
    }
    println!("killedadd: {ended} of {rounds} ADDs ended before they were killed");
    // A DEL that is killed is repeated by the runtime.
    for round in 0..rounds / 2 {
        let add = weft_lab::cni(lab.name(), pod, "ADD")?;
        ensure!(add.ok(), "ADD: {}", add.stdout);
        let after = scene.add_takes * (round + 1) / rounds;
        killed(lab, pod, "DEL", after)?;
        del_leaves_nothing(lab, pod, round)
            .with_context(|| format!("round {round}, DEL killed after {after:?}"))?;
    }
    scene.works_again()
}

/// A DEL that nobody repeats: it waits for the store when it is killed, so it is surely half done.
#[test]
fn a_killed_del_is_finished_by_the_sweep() -> Result<()> {
    if !soaking() || !have("etcdctl", "killeddel") {
        return Ok(());
    }
    let Some(lab) = lab("killeddel", 1)? else { return Ok(()) };
    let pod = lab.pod_add(&PodSpec::new("n1", "a").label("app", "web"))?;
    lab.apply(&service("web", "web"))?;
    lab.etcd_stop()?;
    ensure!(!killed(&lab, &pod, "DEL", Duration::from_millis(400))?, "DEL did not wait for the store");
    ensure!(!addresses(&lab, "n1")?.is_empty(), "DEL was done before it was killed");
    lab.etcd_start()?;
    let gone = wait_until(SWEEP_LIMIT, || Ok(addresses(&lab, "n1")?.is_empty()))?;
    ensure!(gone, "after {SWEEP_LIMIT:?}: {:?}\n{}", addresses(&lab, "n1")?, lab.node_log("n1", 20)?);
    nothing_left(&lab, "n1")?;
    lab.down()
}

/// A pod on n1 that has its namespace and nothing else, and a peer on n2 that answers: every trace on n1 is the pod's.
struct Scene {
    lab: Lab,
    pod: Pod,
    peer: String,
    /// From the start of an ADD to its end, on this machine now.
    add_takes: Duration,
    _server: weft_lab::Running,
}

impl Scene {
    fn set(story: &str) -> Result<Option<Scene>> {
        if !have("etcdctl", story) {
            return Ok(None);
        }
        let Some(lab) = lab(story, 2)? else { return Ok(None) };
        let pod = lab.pod_add(&PodSpec::new("n1", "a"))?;
        weft_lab::cni(lab.name(), &pod, "DEL")?.text("the first DEL")?;
        nothing_left(&lab, "n1")?;
        let begun = Instant::now();
        let add = weft_lab::cni(lab.name(), &pod, "ADD")?;
        let add_takes = begun.elapsed();
        ensure!(add.ok(), "ADD: {}", add.stdout);
        weft_lab::cni(lab.name(), &pod, "DEL")?.text("the second DEL")?;
        let peer = lab.pod_add(&PodSpec::new("n2", "peer"))?;
        let server = lab.serve("peer", "peer", &[8080], &[])?;
        let peer = format!("{}:8080", peer.ips[0]);
        Ok(Some(Scene { lab, pod, peer, add_takes, _server: server }))
    }

    /// After all that: an ADD of the same key, with traffic; then it goes and nothing is left.
    fn works_again(self) -> Result<()> {
        let Scene { lab, pod, peer, .. } = self;
        let add = weft_lab::cni(lab.name(), &pod, "ADD")?;
        ensure!(add.ok(), "a fresh ADD: {}", add.stdout);
        let report = lab.probe(&pod.name, &["--to", &peer, "--count", "5"])?;
        ensure!(report.all_ok(), "{}", report.failures());
        lab.pod_rm("n1", &pod.name)?;
        nothing_left(&lab, "n1")?;
        let status = lab.status("n1")?;
        ensure!(status.ready && status.pending.is_empty(), "{status:?}");
        lab.down()
    }
}

/// DEL succeeds, and nothing of the pod is left, here or inside it. What piles up is looked for now and then.
fn del_leaves_nothing(lab: &Lab, pod: &Pod, round: u32) -> Result<()> {
    let del = weft_lab::cni(lab.name(), pod, "DEL")?;
    ensure!(del.ok(), "the last DEL: {}", del.stdout);
    let left = on_node(lab, "n1")?;
    ensure!(left.is_empty(), "left: {}\n{}", left.join(", "), lab.node_log("n1", 25)?);
    let inside = lab.exec(&pod.name, &["ip", "-o", "link"])?.text("ip link")?;
    ensure!(!inside.contains("eth0"), "the pod keeps its link: {inside}");
    if round % 8 == 7 { nothing_left(lab, "n1") } else { Ok(()) }
}

/// Calls of weft-cni for one pod, each begun after its own pause.
fn together(lab: &Lab, pod: &Pod, calls: &[(&str, Duration)]) -> Result<Vec<Output>> {
    thread::scope(|scope| {
        let call = |&(command, after)| {
            scope.spawn(move || {
                thread::sleep(after);
                weft_lab::cni(lab.name(), pod, command)
            })
        };
        let threads: Vec<_> = calls.iter().map(call).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// SIGKILL to weft-cni after a time; true when it had ended before.
fn killed(lab: &Lab, pod: &Pod, command: &str, after: Duration) -> Result<bool> {
    let node = lab.state()?.node(&pod.node)?.netns.clone();
    let mut plugin = Command::new(sibling("weft-cni")?);
    plugin
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", &pod.container_id)
        .env("CNI_NETNS", netns_path(&pod.netns))
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/");
    let config = serde_json::to_vec(&pod.config)?;
    match in_netns(&node, || output(&mut plugin, &config, after)) {
        Ok(answer) => {
            ensure!(answer.ok(), "{command}: {}", answer.stdout);
            Ok(true)
        }
        Err(error) if error.to_string().contains("no end after") => Ok(false),
        Err(error) => Err(error),
    }
}

/// The code of a CNI error.
fn cni_code(answer: &Output) -> Option<u64> {
    serde_json::from_str::<Value>(&answer.stdout).ok()?["code"].as_u64()
}

fn rounds(usual: u32) -> u32 {
    if soaking() { usual * 10 } else { usual }
}
