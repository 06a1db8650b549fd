// SPDX-License-Identifier: Apache-2.0
//! What a crash, a damaged book or a store outage leaves behind: found, explained, and given back once it is proven.

use crate::ipam::{SOON, agree, blocks, reach, show, soon};
use crate::left::{addresses, etcdctl, key, keys};
use crate::{have, lab_with};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;
use weft_lab::{Lab, Output, Pod, PodSpec, UpOptions, cni, tool, wait_until};

const NODES: [&str; 2] = ["n1", "n2"];
/// Freed 4 s after the first look, by one of a few looks.
const FREED_LIMIT: Duration = Duration::from_secs(20);
/// Threads that add and delete pods on each node.
const WORKERS: usize = 2;
/// A node that nobody knows.
const STRANGER: &str = "6f1c1b4e-0000-4000-8000-0000000000aa";

fn two(story: &str, netd_args: &[&str]) -> Result<Option<Lab>> {
    if !have("etcdctl", story) {
        return Ok(None);
    }
    let netd_args = netd_args.iter().map(ToString::to_string).collect();
    lab_with(UpOptions { nodes: 2, netd_args, ..UpOptions::new(&Lab::unique_name(story)) })
}

/// The entry of the runtime's cache.
fn cache_entry(lab: &Lab, pod: &Pod) -> Result<PathBuf> {
    let name = format!("{}-{}-{}", pod.network(), pod.container_id, pod.ifname);
    Ok(lab.state()?.node(&pod.node)?.cni_cache_dir().join("results").join(name))
}

/// Takes the pods' namespaces away, and waits until their host ends have gone with them.
fn lose(lab: &Lab, pods: &[&Pod]) -> Result<()> {
    let links = || lab.exec("n1", &["ip", "-o", "link", "show", "type", "veth"])?.text("ip link");
    let before = links()?.lines().count();
    for pod in pods {
        tool("ip", &["netns", "delete", &pod.netns])?;
    }
    soon("the links go", links, |text| text.lines().count() + pods.len() == before).map(drop)
}

fn holds(lab: &Lab, pod: &Pod) -> Result<bool> {
    Ok(addresses(lab, "n1")?.contains_key(&pod.ips[0].to_string()))
}

#[test]
fn after_a_reboot_nothing_leaks_and_nothing_is_freed_too_soon() -> Result<()> {
    let Some(lab) = two("reboot", &["--lost-after-secs", "4"])? else { return Ok(()) };
    let pod = |node, name| lab.pod_add(&PodSpec::new(node, name));
    lab.pod_add(&PodSpec::new("n2", "peer"))?;
    let (forgotten, listed, dropped) = (pod("n1", "forgotten")?, pod("n1", "listed")?, pod("n1", "dropped")?);
    let kept = (blocks(&lab, "n1")?, lab.status("n1")?.node.uuid);
    lab.node_crash("n1")?;
    lose(&lab, &[&forgotten, &listed, &dropped])?;
    fs::remove_file(cache_entry(&lab, &forgotten)?)?;

    let status = lab.node_start("n1")?;
    ensure!((blocks(&lab, "n1")?, status.node.uuid) == kept, "not the same node: {status:?}");
    ensure!(holds(&lab, &forgotten)? && holds(&lab, &listed)?, "freed at first sight");
    let told = lab.weft("n1", &["ipam", "check"])?;
    ensure!(told.code == Some(1) && told.stdout.contains("its link is gone"), "{told:?}");
    let repaired = lab.weft("n1", &["ipam", "repair", "--yes"])?;
    ensure!(!repaired.ok() && holds(&lab, &listed)?, "nothing of it is proven: {repaired:?}");
    let new = pod("n1", "new")?;
    let old: Vec<IpAddr> = [&forgotten, &listed, &dropped].iter().flat_map(|pod| pod.ips.clone()).collect();
    ensure!(!old.contains(&new.ips[0]), "{:?} was given away", new.ips);
    reach(&lab, &["peer", "n2"], &new.ips)?;

    // What nobody knows goes first, what the runtime still lists waits for its DEL.
    let freed = wait_until(FREED_LIMIT, || Ok(!holds(&lab, &forgotten)?))?;
    ensure!(freed, "{}", lab.node_log("n1", 20)?);
    ensure!(holds(&lab, &listed)? && holds(&lab, &dropped)?, "what the runtime lists was freed as soon");
    fs::remove_file(cache_entry(&lab, &dropped)?)?;
    let freed = wait_until(FREED_LIMIT, || Ok(!holds(&lab, &dropped)?))?;
    ensure!(freed && holds(&lab, &listed)?, "{}", lab.node_log("n1", 20)?);
    ensure!(cni(lab.name(), &listed, "DEL")?.ok() && !holds(&lab, &listed)?, "the DEL that came late");
    ensure!(cni(lab.name(), &forgotten, "DEL")?.ok(), "a DEL that comes too late");
    let known = || keys(&lab, &format!("pods/{}/", kept.1));
    soon("the store has the one pod that is left", known, |keys| keys.len() == 1)?;
    agree(&lab, &NODES)?;
    lab.down()
}

#[test]
fn what_is_planted_is_found_and_only_what_is_proven_is_mended() -> Result<()> {
    let Some(lab) = two("planted", &[])? else { return Ok(()) };
    let pod = |node, name| lab.pod_add(&PodSpec::new(node, name));
    let (gone, stays, far) = (pod("n1", "gone")?, pod("n1", "stays")?, pod("n2", "far")?);
    agree(&lab, &NODES)?;
    let put = |path: &str, value: &Value| {
        etcdctl(&lab, &["put", &key(&lab, path), &value.to_string()]).map(|_| key(&lab, path))
    };
    let record = |folder: &str, word: &str| -> Result<Value> {
        let found =
            keys(&lab, folder)?.into_iter().map(|key| etcdctl(&lab, &["get", "--print-value-only", &key]));
        let found = found.collect::<Result<Vec<_>>>()?.into_iter().find(|value| value.contains(word));
        Ok(serde_json::from_str(&found.context("no such record")?)?)
    };

    lab.node_kill("n1")?;
    // An address that is kept for nobody.
    let records = lab.state()?.node("n1")?.dir.join("state/attachments");
    let is_gone =
        |path: &PathBuf| fs::read_to_string(path).is_ok_and(|text| text.contains(&gone.container_id));
    let of_gone: Vec<_> =
        fs::read_dir(&records)?.flatten().map(|entry| entry.path()).filter(is_gone).collect();
    ensure!(of_gone.len() == 1, "{}: {of_gone:?}", records.display());
    fs::remove_file(&of_gone[0])?;
    lose(&lab, &[&gone])?;
    // Nor does the runtime know it: as long as it does, the pod may run with the address.
    fs::remove_file(cache_entry(&lab, &gone)?)?;
    // A pod that has another one's address, on a node that nobody knows; and a block of that node.
    let mut double = record("pods/", &stays.container_id)?;
    double["node"] = STRANGER.into();
    double["attachment"]["container_id"] = "planted".into();
    let double = put(&format!("pods/{STRANGER}/weft.planted.eth0"), &double)?;
    let mut block = record("ipam/blocks/", &far.container_id)?;
    (block["owner"], block["cidr"], block["allocations"]) =
        (STRANGER.into(), "10.244.255.192/26".into(), json!({}));
    let form = keys(&lab, "ipam/blocks/")?.remove(0);
    let slash = if form.ends_with("/26") { '/' } else { '-' };
    let block = put(&format!("ipam/blocks/10.244.255.192{slash}26"), &block)?;
    // A ClusterIP of no service.
    let claim = json!({"schema": 1, "namespace": "default", "name": "nobody"});
    let claim = put("ipam/services/10.96.77.77", &claim)?;
    lab.node_start("n1")?;

    let check = || lab.weft("n1", &["ipam", "check"]);
    let planted = ["leak", "double", "orphan", "10.96.77.77"];
    let all = |answer: &Output| planted.iter().all(|word| answer.stdout.contains(word));
    let found = soon("all of it is found", check, all)?;
    ensure!(found.code == Some(1), "{found:?}");
    let unasked = lab.weft("n1", &["ipam", "repair"])?;
    ensure!(unasked.code == Some(1) && unasked.stderr.contains("--yes"), "{unasked:?}");
    ensure!(holds(&lab, &gone)?, "repaired without being asked");

    let repaired = lab.weft("n1", &["ipam", "repair", "--yes"])?;
    let lines: Vec<_> = repaired.stdout.lines().filter(|line| line.starts_with("  - ")).collect();
    ensure!(repaired.code == Some(1) && lines.len() == 2, "{repaired:?}");
    ensure!(!holds(&lab, &gone)?, "the leak is left: {repaired:?}");
    ensure!(repaired.stdout.contains("2 findings left"), "{repaired:?}");
    let left = keys(&lab, "")?;
    ensure!(!left.contains(&claim) && left.contains(&double) && left.contains(&block), "{left:?}");
    reach(&lab, &["far", "n2"], &stays.ips)?;
    reach(&lab, &["stays"], &far.ips)?;

    // What is not proven is the operator's.
    for key in [&double, &block] {
        etcdctl(&lab, &["del", key])?;
    }
    agree(&lab, &NODES)?;
    let clean = lab.weft("n1", &["ipam", "repair", "--yes"])?;
    ensure!(clean.ok() && clean.stdout == "Nothing to repair.\n", "{clean:?}");
    lab.down()
}

#[test]
fn an_outage_of_the_store_stops_no_add_and_loses_nothing() -> Result<()> {
    let Some(lab) = two("outage", &["--cool-down-secs", "1"])? else { return Ok(()) };
    let (stop, added) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (pods, failed) = (Mutex::new(Vec::<Pod>::new()), Mutex::new(Vec::<String>::new()));
    let more = |by: usize| {
        let wanted = added.load(Ordering::Relaxed) + by;
        wait_until(SOON, || Ok(added.load(Ordering::Relaxed) >= wanted))
    };
    // Each adds three, deletes the first two, and so on; what is left at the end stays.
    let work = |node: &str, worker: usize| {
        let mut own: Vec<Pod> = Vec::new();
        for index in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            match lab.pod_add(&PodSpec::new(node, &format!("{node}-{worker}-{index}"))) {
                Ok(pod) => own.push(pod),
                Err(error) => failed.lock().unwrap().push(format!("{error:#}")),
            }
            added.fetch_add(1, Ordering::Relaxed);
            if own.len() == 3 {
                for pod in own.drain(..2) {
                    let removed = lab.pod_rm(node, &pod.name);
                    failed.lock().unwrap().extend(removed.err().map(|error| format!("{error:#}")));
                }
            }
        }
        pods.lock().unwrap().extend(own);
    };
    thread::scope(|scope| {
        for (node, worker) in NODES.iter().flat_map(|node| (0..WORKERS).map(move |worker| (node, worker))) {
            let work = &work;
            scope.spawn(move || work(node, worker));
        }
        let story = || -> Result<()> {
            ensure!(more(4)?, "before: {}", added.load(Ordering::Relaxed));
            lab.etcd_stop()?;
            ensure!(more(8)?, "without the store: {}", added.load(Ordering::Relaxed));
            lab.etcd_start()?;
            ensure!(more(4)?, "after: {}", added.load(Ordering::Relaxed));
            Ok(())
        };
        let told = story();
        stop.store(true, Ordering::Relaxed);
        told
    })?;
    let failed = failed.into_inner().unwrap();
    ensure!(failed.is_empty(), "{failed:?}");
    let pods = pods.into_inner().unwrap();
    let ips: BTreeSet<IpAddr> = pods.iter().map(|pod| pod.ips[0]).collect();
    ensure!(ips.len() == pods.len() && !pods.is_empty(), "{ips:?}");
    for node in NODES {
        let own: BTreeSet<String> =
            pods.iter().filter(|pod| pod.node == node).map(|pod| pod.ips[0].to_string()).collect();
        let held: BTreeSet<String> = addresses(&lab, node)?.into_keys().collect();
        ensure!(held == own, "{node}: {held:?} instead of {own:?}: {}", show(&lab, node)?);
    }
    let stored = || keys(&lab, "pods/");
    let has_all = |keys: &Vec<String>| {
        keys.len() == pods.len()
            && pods.iter().all(|pod| keys.iter().any(|key| key.contains(&pod.container_id)))
    };
    let caught_up = wait_until(FREED_LIMIT, || Ok(has_all(&stored()?)))?;
    ensure!(caught_up, "{:?}", stored()?);
    let ips: Vec<IpAddr> = ips.into_iter().collect();
    reach(&lab, &NODES, &ips)?;
    agree(&lab, &NODES)?;
    lab.down()
}
