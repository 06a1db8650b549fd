// SPDX-License-Identifier: Apache-2.0
//! A node is removed by an operator: fenced by every other node first, free of its blocks only then, and refused when it
//! comes back.

use crate::ipam::{agree, blocks, complaint, reach, refused, soon};
use crate::left::keys;
use crate::{have, service, vxlan_lab};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use weft_lab::{Lab, Output, Pod, PodSpec, sibling};

const REST: [&str; 2] = ["n1", "n2"];

/// Three nodes with a pod each.
fn scene(story: &str) -> Result<Option<(Lab, [Pod; 3])>> {
    if !have("etcdctl", story) {
        return Ok(None);
    }
    let Some(lab) = vxlan_lab(story, 3)? else { return Ok(None) };
    let pod = |node, name| lab.pod_add(&PodSpec::new(node, name));
    let pods = [pod("n1", "p1")?, pod("n2", "p2")?, pod("n3", "p3")?];
    reach(&lab, &["p1", "p2", "p3"], &[pods[0].ips[0], pods[1].ips[0], pods[2].ips[0]])?;
    Ok(Some((lab, pods)))
}

fn remove(lab: &Lab, rest: &[&str]) -> Result<Output> {
    lab.weft("n1", &[&["node", "rm", "n3", "--yes"], rest].concat())
}

/// What a node's kernel has of the others: routes and FDB entries of the overlay device.
fn ways(lab: &Lab, node: &str) -> Result<String> {
    let command = "ip -o route show dev weft.vxlan proto 157; bridge fdb show dev weft.vxlan; \
                   ip neigh show dev weft.vxlan nud permanent";
    lab.exec(node, &["sh", "-ec", command])?.text("ip, bridge")
}

/// Nothing of n3 is left on the others: no peer, no way to its blocks, no block and no record of it.
fn is_forgotten(lab: &Lab, of_n3: &BTreeSet<String>, uuid: &str) -> Result<()> {
    let underlay = lab.state()?.node("n3")?.underlay_ip.to_string();
    for node in REST {
        let peers: Vec<String> =
            lab.status(node)?.overlay.peers.iter().map(|peer| peer.name.clone()).collect();
        ensure!(!peers.contains(&"n3".to_owned()), "{node} has peers {peers:?}");
        let ways = ways(lab, node)?;
        let left = of_n3.iter().chain([&underlay]).find(|what| ways.contains(what.as_str()));
        ensure!(left.is_none(), "{node} has a way to {left:?}:\n{ways}");
    }
    // The fence stood before the end was told; that the record is gone comes by the watch.
    let listed = || lab.weft("n2", &["node", "ls"])?.text("weft node ls");
    soon("n2 does not list n3", listed, |text| !text.contains("n3") && text.contains("n2"))?;
    for folder in ["nodes/", "pods/", "ipam/blocks/"] {
        let keys = keys(lab, folder)?;
        let of_n3 =
            keys.iter().any(|key| key.contains(uuid) || of_n3.iter().any(|block| is_block(key, block)));
        ensure!(!of_n3, "{keys:?}");
    }
    Ok(())
}

fn is_block(key: &str, block: &str) -> bool {
    block.split('/').next().is_some_and(|address| key.contains(address))
}

/// n3 knows that it was removed: no addresses, no peers, and it says so to everybody who asks.
fn is_refused(lab: &Lab, own: IpAddr) -> Result<()> {
    soon("STATUS of n3", || complaint(lab, "n3"), |said| said.as_ref().is_some_and(|said| said.code == 51))?;
    let starting = || Ok(lab.status("n3")?.reasons.join("; "));
    soon("n3 has started", starting, |reasons| !reasons.contains("not been programmed"))?;
    let said = complaint(lab, "n3")?;
    ensure!(
        said.is_some_and(|said| said.text.contains("removed from the cluster")),
        "{:?}",
        lab.status("n3")?
    );
    refused(lab.pod_add(&PodSpec::new("n3", "late")))?.says(11, &["removed from the cluster"])?;
    soon("n3 has no peers", || Ok(lab.status("n3")?.overlay.peers), Vec::is_empty)?;
    soon("n3 has no ways", || ways(lab, "n3"), |ways| !ways.contains("172.31.77.1"))?;
    // The node itself and its pod still know each other.
    reach(lab, &["n3"], &[own])
}

#[test]
fn a_running_node_is_removed_and_steps_down() -> Result<()> {
    let Some((lab, pods)) = scene("rm")? else { return Ok(()) };
    let (of_n3, uuid) = (blocks(&lab, "n3")?, lab.status("n3")?.node.uuid.to_string());
    let own = lab.weft("n3", &["node", "rm", "n3", "--yes"])?;
    ensure!(own.code == Some(1) && own.stderr.contains("ask another one"), "{own:?}");
    let nobody = lab.weft("n1", &["node", "rm", "n9"])?;
    ensure!(nobody.code == Some(1) && nobody.stderr.contains("no node n9"), "{nobody:?}");

    // Records of pods follow their ADDs, and nobody waits for them.
    let ask = || lab.weft("n1", &["node", "rm", "n3"]);
    let says = |asked: &Output| asked.stdout.contains("is alive and has 1 pod (default/p3)");
    let unasked = soon("n1 tells what would be lost", ask, says)?;
    ensure!(unasked.code == Some(1) && unasked.stderr.contains("--yes"), "{unasked:?}");
    ensure!(lab.status("n3")?.ready, "removed without a yes");

    let removed = remove(&lab, &[])?;
    ensure!(removed.ok(), "{removed:?}");
    ensure!(removed.stdout == format!("node n3 ({uuid}) removed, its blocks are free\n"), "{removed:?}");
    is_forgotten(&lab, &of_n3, &uuid)?;
    is_refused(&lab, pods[2].ips[0])?;
    reach(&lab, &["p1", "n1"], &pods[1].ips)?;
    let ping = lab.exec("p1", &["ping", "-c1", "-W1", &pods[2].ips[0].to_string()])?;
    ensure!(!ping.ok(), "the removed node's pod is still reached");
    let again = remove(&lab, &["--json"])?.json::<Value>("weft node rm")?;
    ensure!(again["done"] == true, "{again}");

    // Its DEL works; an address of its old block can be had elsewhere.
    lab.pod_rm("n3", "p3")?;
    let heir = lab.pod_add(&PodSpec::new("n2", "heir").ip(pods[2].ips[0]))?;
    reach(&lab, &["p1", "p2", "n1", "n2"], &heir.ips)?;
    // A restart does not bring it back.
    lab.node_kill("n3")?;
    lab.node_spawn("n3")?;
    soon(
        "n3 answers",
        || Ok(lab.status("n3").ok().map(|status| status.ready)),
        |ready| *ready == Some(false),
    )?;
    soon(
        "n3 still knows",
        || complaint(&lab, "n3"),
        |said| said.as_ref().is_some_and(|said| said.code == 51),
    )?;
    is_forgotten(&lab, &BTreeSet::new(), &uuid)?;
    agree(&lab, &REST)?;
    lab.down()
}

#[test]
fn a_node_that_is_off_goes_by_force_once_all_others_have_let_go() -> Result<()> {
    let Some((lab, pods)) = scene("force")? else { return Ok(()) };
    let (of_n3, uuid) = (blocks(&lab, "n3")?, lab.status("n3")?.node.uuid.to_string());
    lab.node_crash("n3")?;
    lab.partition("n2", "store")?;
    let held = || -> Result<usize> {
        let keys = keys(&lab, "ipam/blocks/")?;
        Ok(of_n3.iter().filter(|block| keys.iter().any(|key| is_block(key, block))).count())
    };
    // Nobody but the operator knows whether it is off.
    let unsure = remove(&lab, &["--wait", "1s"])?;
    ensure!(unsure.code == Some(1) && unsure.stdout.contains("n3 has not acknowledged"), "{unsure:?}");
    ensure!(unsure.stdout.contains("--force"), "{unsure:?}");
    let waits = remove(&lab, &["--force", "--wait", "1s"])?;
    ensure!(waits.code == Some(1) && waits.stdout.contains("n2 has not confirmed"), "{waits:?}");
    let settled = ["n1 has not confirmed", "n3 has not acknowledged"];
    ensure!(!settled.iter().any(|line| waits.stdout.contains(line)), "{waits:?}");
    ensure!(held()? == of_n3.len(), "blocks are free while n2 may still have routes to them");
    lab.heal("n2")?;
    let removed = remove(&lab, &["--force"])?;
    ensure!(removed.ok(), "{removed:?}");
    is_forgotten(&lab, &of_n3, &uuid)?;
    let heir = lab.pod_add(&PodSpec::new("n1", "heir").ip(pods[2].ips[0]))?;
    reach(&lab, &["p1", "p2", "n2"], &heir.ips)?;

    // It was not off for good.
    lab.node_spawn("n3")?;
    soon("n3 answers", || Ok(lab.status("n3").is_ok()), |answers| *answers)?;
    is_refused(&lab, pods[2].ips[0])?;
    reach(&lab, &["p1", "p2", "n2"], &heir.ips)?;
    is_forgotten(&lab, &BTreeSet::new(), &uuid)?;
    agree(&lab, &REST)?;
    lab.down()
}

#[test]
fn a_removed_node_comes_back_as_a_new_one_and_nothing_of_the_old_one_is_left() -> Result<()> {
    let Some((lab, _)) = scene("rejoin")? else { return Ok(()) };
    let mut servers = Vec::new();
    for (node, name) in [("n1", "web1"), ("n2", "web2")] {
        lab.pod_add(&PodSpec::new(node, name).label("app", "web"))?;
        servers.push(lab.serve(name, name, &[8080], &[])?);
    }
    let applied = lab.apply(&service("web", "web"))?;
    let vip = format!("{}:80", applied.results[0].cluster_ip.context("no ClusterIP")?);
    let probe = |from: &str| lab.probe(from, &["--to", &vip, "--count", "20", "--timeout", "500ms"]);
    soon("the VIP answers on n3", || probe("p3"), |report| report.all_ok())?;
    // Twice: once an operator forgets what the message says, once it is done to the letter.
    for to_the_letter in [false, true] {
        let old = lab.pin_dir("n3")?;
        let others = [lab.pin_dir("n1")?, lab.pin_dir("n2")?];
        ensure!(remove(&lab, &[])?.ok(), "not removed");
        let way_back = || Ok(lab.status("n3")?.reasons.join("; "));
        soon("n3 says how it comes back", way_back, |said| {
            said.contains("netd clean") && said.contains("/state")
        })?;
        lab.node_stop("n3")?;
        if to_the_letter {
            lab.pod_rm("n3", "p3")?;
            clean(&lab)?;
            ensure!(!old.exists(), "a clean left {}", old.display());
        }
        for entry in fs::read_dir(lab.state()?.node("n3")?.dir.join("state"))? {
            let path = entry?.path();
            if path.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
        }
        let joined = lab.node_start("n3")?;
        let new = lab.pin_dir("n3")?;
        ensure!(joined.ready && new != old && new.exists(), "{joined:?}");
        ensure!(!old.exists(), "the old identity's programs are still attached: {}", old.display());
        ensure!(others.iter().all(|dir| dir.exists()), "pins of other nodes went");
        if !to_the_letter {
            // What the runtime still has of the old identity goes like any pod.
            lab.pod_rm("n3", "p3")?;
        }
        lab.pod_add(&PodSpec::new("n3", "p3"))?;
        // A backend changes: who follows the old maps connects to one that is gone.
        lab.pod_rm("n2", "web2")?;
        servers.truncate(1);
        let changed = || {
            let [p3, n3] = [probe("p3")?, probe("n3")?];
            Ok((p3.spread(), n3.spread()))
        };
        let all = ("web1 20".to_owned(), "web1 20".to_owned());
        soon("only the backend that is left is connected to", changed, |seen| *seen == all)?;
        lab.pod_add(&PodSpec::new("n2", "web2").label("app", "web"))?;
        servers.push(lab.serve("web2", "web2", &[8080], &[])?);
    }

    // Emptied first and cleaned after: the pins are found all the same.
    lab.node_stop("n3")?;
    let old = lab.pin_dir("n3")?;
    fs::remove_file(lab.state()?.node("n3")?.dir.join("state/node-id"))?;
    clean(&lab)?;
    ensure!(!old.exists(), "a clean without an identity left {}", old.display());
    lab.down()
}

/// `netd clean` on n3.
fn clean(lab: &Lab) -> Result<String> {
    let netd = sibling("netd")?.display().to_string();
    let config = lab.state()?.node("n3")?.dir.join("netd.toml").display().to_string();
    lab.exec("n3", &[&netd, "--config", &config, "clean"])?.text("netd clean")
}
