// SPDX-License-Identifier: Apache-2.0
//! Addresses of the caller's choice: from own blocks, from blocks that nobody has, and from other nodes' blocks.

use crate::ipam::{added_soon, address, agree, blocks, reach, refused, route, show, soon};
use crate::lab_with;
use anyhow::{Context, Result, ensure};
use std::net::IpAddr;
use std::time::{Duration, Instant};
use weft_lab::{Families, Lab, PodSpec, UpOptions};

const NODES: [&str; 3] = ["n1", "n2", "n3"];
const PODS: [&str; 3] = ["c1", "c2", "c3"];
/// An answer that needs another node comes within 2 s, or is a no.
const REFUSAL_LIMIT: Duration = Duration::from_secs(5);

/// Three nodes with a pod each, where a freed address rests for a second.
fn scene(story: &str, families: Families) -> Result<Option<Lab>> {
    let netd_args = vec!["--cool-down-secs".into(), "1".into()];
    let options = UpOptions {
        families,
        netd_args,
        overlay: "vxlan".into(),
        ..UpOptions::new(&Lab::unique_name(story))
    };
    let Some(lab) = lab_with(options)? else { return Ok(None) };
    for (node, pod) in NODES.iter().zip(PODS) {
        lab.pod_add(&PodSpec::new(node, pod))?;
    }
    Ok(Some(lab))
}

fn everybody() -> Vec<&'static str> {
    [PODS, NODES].concat()
}

#[test]
fn an_address_is_had_from_any_block_and_goes_back_where_it_came_from() -> Result<()> {
    let Some(lab) = scene("requested", Families::V4)? else { return Ok(()) };
    let ask = |node: &str, name: &str, ip: IpAddr| lab.pod_add(&PodSpec::new(node, name).ip(ip));
    let own = address(&lab, "n1", 40)?;
    ensure!(ask("n1", "own", own)?.ips == [own]);
    let unclaimed: IpAddr = "10.244.200.77".parse()?;
    ensure!(ask("n1", "new", unclaimed)?.ips == [unclaimed]);
    ensure!(blocks(&lab, "n1")?.contains("10.244.200.64/26"), "{:?}", blocks(&lab, "n1")?);
    let lent = address(&lab, "n2", 41)?;
    ensure!(ask("n1", "lent", lent)?.ips == [lent]);
    reach(&lab, &everybody(), &[own, unclaimed, lent])?;
    for (node, over) in [("n1", false), ("n2", true), ("n3", true)] {
        let route = route(&lab, node, lent)?;
        ensure!(route.contains("dev weft.vxlan") == over && route.contains("dev weft"), "{node}: {route}");
    }
    agree(&lab, &NODES)?;

    // It stays lent over restarts of both; the owner does not give it to another pod.
    for node in ["n2", "n1"] {
        lab.node_kill(node)?;
        lab.node_start(node)?;
    }
    reach(&lab, &["c2", "c3", "n2"], &[lent])?;
    refused(ask("n2", "mine", lent))?.says(101, &[&lent.to_string()])?;

    lab.pod_rm("n1", "lent")?;
    let kept = || Ok(show(&lab, "n2")?["addresses"].to_string());
    soon("n2 has its address back", kept, |seen| !seen.contains(&format!("\"{lent}\"")))?;
    added_soon(&lab, &PodSpec::new("n2", "mine").ip(lent))?;
    reach(&lab, &everybody(), &[lent])?;
    ensure!(!route(&lab, "n2", lent)?.contains("vxlan"), "n2 leads it away: {}", route(&lab, "n2", lent)?);
    agree(&lab, &NODES)?;
    lab.down()
}

#[test]
fn an_address_that_cannot_be_had_is_refused_with_the_reason() -> Result<()> {
    let Some(lab) = scene("taken", Families::V4)? else { return Ok(()) };
    let ask = |node: &str, name: &str, ip: IpAddr| lab.pod_add(&PodSpec::new(node, name).ip(ip));
    let (c1, c2) = (lab.pod("c1")?, lab.pod("c2")?);
    refused(ask("n1", "x", c1.ips[0]))?.says(101, &[&c1.ips[0].to_string(), &c1.container_id])?;
    refused(ask("n1", "x", c2.ips[0]))?.says(101, &[&c2.ips[0].to_string(), "n2"])?;
    let lent = address(&lab, "n2", 41)?;
    let holder = ask("n1", "lent", lent)?;
    refused(ask("n3", "x", lent))?.says(101, &[&lent.to_string(), &holder.container_id, "n1"])?;
    for outside in ["192.0.2.9", "10.96.0.50", "fd00:10:244::9"] {
        refused(ask("n1", "x", outside.parse()?))?.says(7, &[outside])?;
    }

    // The pod is named, as far as anybody knows it.
    refused(ask("n1", "x", c1.ips[0]))?.says(101, &["pod default/c1"])?;
    let named = || {
        Ok(refused(ask("n3", "x", lent))?
            .says(101, &["pod default/lent"])
            .err()
            .map(|error| error.to_string()))
    };
    soon("n3 knows whose it is", named, Option::is_none)?;
    // A range in no pool can never be had; one in another node's block can, but not here.
    let within = |range: &str| {
        let wish = serde_json::json!({ "runtimeConfig": { "ipRanges": [[{ "subnet": range }]] } });
        lab.pod_add(&PodSpec::new("n1", "x").extra(wish))
    };
    refused(within("10.9.0.0/24"))?.says(7, &["10.9.0.0", "lies in no pool", "10.244.0.0/16"])?;
    let theirs = blocks(&lab, "n2")?;
    let theirs = theirs.first().context("n2 has no block")?;
    refused(within(theirs))?.says(100, &["another node's", "ips"])?;

    // The node that could say yes is not there: no for now, and soon.
    let wanted = address(&lab, "n2", 42)?;
    lab.node_kill("n2")?;
    let begun = Instant::now();
    refused(ask("n3", "x", wanted))?.says(11, &[&wanted.to_string(), "n2"])?;
    ensure!(begun.elapsed() < REFUSAL_LIMIT, "after {:?}", begun.elapsed());
    lab.node_start("n2")?;
    ensure!(ask("n3", "x", wanted)?.ips == [wanted]);
    reach(&lab, &everybody(), &[wanted])?;
    agree(&lab, &NODES)?;
    lab.down()
}

#[test]
fn both_families_are_had_together_or_not_at_all() -> Result<()> {
    let Some(lab) = scene("both", Families::Dual)? else { return Ok(()) };
    let c2 = lab.pod("c2")?;
    let v4 = address(&lab, "n2", 41)?;
    let IpAddr::V6(used) = c2.ips[1] else { anyhow::bail!("{:?}", c2.ips) };
    let v6 = IpAddr::from((u128::from(used) + 20).to_be_bytes());
    let ask = |name: &str, v6: IpAddr| lab.pod_add(&PodSpec::new("n1", name).ip(v4).ip(v6));
    refused(ask("half", IpAddr::V6(used)))?.says(101, &[&used.to_string(), "n2"])?;
    let kept = || Ok(show(&lab, "n2")?["addresses"].to_string());
    soon("nothing of it is kept", kept, |seen| !seen.contains(&format!("\"{v4}\"")))?;
    agree(&lab, &NODES)?;
    added_soon(&lab, &PodSpec::new("n1", "whole").ip(v4).ip(v6))?;
    reach(&lab, &everybody(), &[v4, v6])?;
    // One that is asked for, and one that comes of itself.
    let v6 = IpAddr::from((u128::from(used) + 21).to_be_bytes());
    let mixed = lab.pod_add(&PodSpec::new("n3", "mixed").ip(v6))?;
    ensure!(mixed.ips.len() == 2 && mixed.ips[1] == v6, "{:?}", mixed.ips);
    reach(&lab, &everybody(), &mixed.ips)?;
    agree(&lab, &NODES)?;
    lab.down()
}
