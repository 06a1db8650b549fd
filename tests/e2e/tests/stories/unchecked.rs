// SPDX-License-Identifier: Apache-2.0
//! Nothing leaves a pod that no program of ours has checked: somebody takes the program off a pod's link while netd is away,
//! and the pod is cut off, alone, until netd is back. Each way of attaching, with and without short grace periods.

use crate::{have, lab_with};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use weft_lab::{Families, Lab, PodSpec, UpOptions, wait_until};

/// The kernel's switch for short grace periods, and what it says while netd is at work.
const SWITCH: &str = "/sys/kernel/rcu_expedited";
const OURS: &str = "157";
const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_pod_without_its_program_is_cut_off_until_netd_is_back() -> Result<()> {
    unchecked("unchecked", &["--datapath-attach", "auto", "--datapath-expedite", "auto"])
}

#[test]
fn a_pod_without_its_program_is_cut_off_with_clsact_and_ordinary_grace_periods_too() -> Result<()> {
    unchecked("unchecked-clsact", &["--datapath-attach", "clsact", "--datapath-expedite", "off"])
}

fn unchecked(story: &str, netd_args: &[&str]) -> Result<()> {
    if !have("tc", story) {
        return Ok(());
    }
    let netd_args = netd_args.iter().map(ToString::to_string).collect();
    let options = UpOptions::new(&Lab::unique_name(story));
    let Some(lab) = lab_with(UpOptions { nodes: 1, families: Families::Dual, netd_args, ..options })? else {
        return Ok(());
    };
    let loose = lab.pod_add(&PodSpec::new("n1", "loose"))?;
    let tight = lab.pod_add(&PodSpec::new("n1", "tight"))?;
    let node = lab.state()?.node("n1")?.underlay_ip.to_string();
    let [tight_v4, tight_v6] = tight.ips[..] else { bail!("{:?}", tight.ips) };
    let (tight_v4, tight_v6) = (tight_v4.to_string(), tight_v6.to_string());
    let all = [node.as_str(), "169.254.53.53", "fd00:53::53", &tight_v4, &tight_v6];
    for to in all {
        ensure!(pings(&lab, "loose", to)?, "before anything was touched: {to}");
    }
    lab.node_kill("n1")?;
    for to in all {
        ensure!(pings(&lab, "loose", to)?, "netd's absence alone: {to}");
    }
    let before = unchecked_in(&lab)?;

    let link = host_end(&lab, &loose.ips[0].to_string())?;
    match pod_pin(&lab, &link)? {
        pin if pin.exists() => fs::remove_file(&pin).with_context(|| pin.display().to_string())?,
        _ => drop(lab.exec("n1", &["tc", "filter", "del", "dev", &link, "ingress"])?.text("tc")?),
    }
    // The kernel takes the program off some moments after its last pin is gone.
    let off = wait_until(SOON, || Ok(!pings(&lab, "loose", &node)?))?;
    ensure!(off, "the program stays");
    for to in all {
        ensure!(!pings(&lab, "loose", to)?, "unchecked packets arrived at {to}");
    }
    let dropped = unchecked_in(&lab)? - before;
    ensure!(dropped >= all.len() as u64, "{dropped} packets were counted");
    // Nobody else notices.
    for to in [&node, "169.254.53.53", "fd00:53::53"] {
        ensure!(pings(&lab, "tight", to)?, "the other pod: {to}");
    }

    lab.node_start("n1")?;
    for to in all {
        ensure!(wait_until(SOON, || pings(&lab, "loose", to))?, "netd is back: {to}");
    }
    lab.pod_add(&PodSpec::new("n1", "new"))?;
    ensure!(pings(&lab, "new", &tight_v4)? && pings(&lab, "new", &node)?, "a pod that came later");
    lab.pod_rm("n1", "new")?;
    // Other labs of this machine may be at work now and then.
    let rested = || Ok(fs::read_to_string(SWITCH).map_or(true, |value| value.trim() != OURS));
    ensure!(wait_until(SOON, rested)?, "{SWITCH} stays at {OURS}");
    lab.down()
}

fn pings(lab: &Lab, from: &str, to: &str) -> Result<bool> {
    Ok(lab.exec(from, &["ping", "-c1", "-W1", to])?.ok())
}

/// Packets that n1 dropped because no program had checked them.
fn unchecked_in(lab: &Lab) -> Result<u64> {
    let listed: Value =
        lab.exec("n1", &["nft", "-j", "list", "counter", "inet", "weft", "unchecked_in"])?.json("nft")?;
    let counters = listed["nftables"].as_array().into_iter().flatten();
    counters.filter_map(|item| item["counter"]["packets"].as_u64()).next().context("no counter")
}

/// The host end of the pod with this address.
fn host_end(lab: &Lab, ip: &str) -> Result<String> {
    let route = lab.exec("n1", &["ip", "-o", "route", "show", "to", "exact", ip])?.text("ip route")?;
    let mut words = route.split_whitespace().skip_while(|word| *word != "dev");
    Ok(words.nth(1).with_context(|| format!("no route to {ip}: {route}"))?.to_owned())
}

/// Where the pin lies that holds a pod's program on its host end with TCX.
fn pod_pin(lab: &Lab, link: &str) -> Result<PathBuf> {
    let line = lab.exec("n1", &["ip", "-o", "link", "show", "dev", link])?.text("ip link")?;
    let index = line.split(':').next().context("no index")?;
    let version = fs::read_dir(lab.pin_dir("n1")?)?.next().context("no pins")??.path();
    Ok(version.join("links").join(format!("pod-{index}")))
}
