// SPDX-License-Identifier: Apache-2.0
//! Somebody's hand in the kernel: netd puts back what is its own.

use crate::{have, lab, lab_with, service, vxlan_lab};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use weft_lab::{Lab, PodSpec, UpOptions, wait_until};

/// For what the kernel tells of.
const SOON: Duration = Duration::from_secs(2);
/// For what failed a few times and waits.
const RETRY: Duration = Duration::from_secs(10);
/// For what it does not: a full pass comes every 30 s.
const FULL_PASS: Duration = Duration::from_secs(35);

#[test]
fn drift_is_repaired() -> Result<()> {
    let Some(lab) = vxlan_lab("drift", 2)? else { return Ok(()) };
    let a = lab.pod_add(&PodSpec::new("n1", "a"))?;
    let b = lab.pod_add(&PodSpec::new("n2", "b").label("app", "web"))?;
    let _server = lab.serve("b", "b", &[8080], &[])?;
    let vip = lab.apply(&service("web", "web"))?.results[0].cluster_ip.unwrap();
    let (ip, link) = (a.ips[0], host_end(&lab, &a.ips[0].to_string())?);
    let works = |after: &str| -> Result<()> {
        let peer = b.ips[0];
        for to in [format!("{peer}:8080"), format!("{vip}:80")] {
            let report = lab.probe("a", &["--to", &to, "--count", "5"])?;
            ensure!(report.all_ok(), "after {after}: {to}: {}", report.failures());
        }
        for (from, to) in [("b", ip), ("n1", ip), ("n2", ip), ("n1", peer)] {
            let out = lab.exec(from, &["ping", "-c1", "-W2", &to.to_string()])?;
            ensure!(out.ok(), "after {after}: {from} does not reach {to}: {}", out.stdout);
        }
        Ok(())
    };
    works("nothing")?;
    let objects = settled(&lab)?;
    let peer = Peer::of_n1(&lab)?;
    let spoil = |what: &str, command: &str| -> Result<()> {
        lab.exec("n1", &["sh", "-ec", command])?.text(command)?;
        let mut now = Vec::new();
        let back = wait_until(SOON, || {
            now = self::objects(&lab)?;
            Ok(now == objects)
        })?;
        ensure!(back, "{what} is not back after {SOON:?}:\n{}", differences(&objects, &now));
        works(what)
    };
    let Peer { mac, underlay, overlay, block } = &peer;
    spoil("a pod's route", &format!("ip route del {ip}"))?;
    spoil("a pod's route, another one", &format!("ip route replace {ip} dev lo proto 157"))?;
    spoil("a pod's neighbour", &format!("ip neigh del {ip} dev {link}"))?;
    spoil(
        "a pod's neighbour, another one",
        &format!("ip neigh replace {ip} lladdr 02:00:00:00:00:99 dev {link} nud permanent"),
    )?;
    spoil("a peer's FDB entry", &format!("bridge fdb del {mac} dev weft.vxlan dst {underlay}"))?;
    spoil("a peer's neighbour", &format!("ip neigh del {overlay} dev weft.vxlan"))?;
    spoil("a peer's route", &format!("ip route del {block}"))?;
    spoil("the fail-closed route", "ip route del unreachable 10.244.0.0/16")?;
    spoil("the node's DNS address", "ip address del 169.254.53.53/32 dev lo")?;
    spoil("the overlay device, down", "ip link set weft.vxlan down")?;
    spoil("the overlay device", "ip link del weft.vxlan")?;
    spoil(
        "several at once",
        &format!("ip route del {ip}; ip neigh del {ip} dev {link}; ip route del {block}"),
    )?;

    let status = lab.status("n1")?;
    assert!(status.ready && status.pending.is_empty(), "{status:?}");
    lab.down()
}

#[test]
fn a_route_of_somebody_else_is_named_and_left_alone() -> Result<()> {
    let Some(lab) = lab("foreign", 1)? else { return Ok(()) };
    let ip = lab.pod_add(&PodSpec::new("n1", "a"))?.ips[0].to_string();
    let before = settled(&lab)?;
    let shell = |command: &str| lab.exec("n1", &["sh", "-ec", command])?.text(command);
    // The second makes netd look: the kernel tells of the first in the other's name.
    shell(&format!("ip route replace {ip} dev lo proto static; ip address del 169.254.53.53/32 dev lo"))?;
    let mut pending = Vec::new();
    let named = wait_until(SOON, || {
        pending = lab.status("n1")?.pending;
        Ok(pending.iter().any(|item| item.object.contains(&ip) && item.error.contains("static")))
    })?;
    assert!(named, "{pending:?}");
    assert!(shell(&format!("ip route show {ip}"))?.contains("proto static"), "it was taken over");
    // And once it is out of the way, ours stands again.
    shell(&format!("ip route del {ip} dev lo"))?;
    let back = wait_until(RETRY, || Ok(objects(&lab)? == before && lab.status("n1")?.pending.is_empty()))?;
    assert!(back, "{}\n{:?}", differences(&before, &objects(&lab)?), lab.status("n1")?.pending);
    assert!(lab.exec("n1", &["ping", "-c1", "-W1", &ip])?.ok());
    lab.down()
}

#[test]
fn drift_that_no_event_tells_of_is_repaired() -> Result<()> {
    silent_drift("silent", "tcx")
}

#[test]
fn drift_that_no_event_tells_of_is_repaired_with_clsact_too() -> Result<()> {
    if !have("tc", "silent-clsact") {
        return Ok(());
    }
    silent_drift("silent-clsact", "clsact")
}

/// The nft table and a pod's program: the kernel tells nobody that they went.
fn silent_drift(story: &str, mode: &str) -> Result<()> {
    if !have("curl", story) {
        return Ok(());
    }
    let options = UpOptions::new(&Lab::unique_name(story));
    let mut options = UpOptions { nodes: 1, overlay: "vxlan".into(), ..options };
    options.netd_args = vec!["--datapath-attach".into(), mode.into()];
    let lab = match lab_with(options) {
        Ok(Some(lab)) => lab,
        Ok(None) => return Ok(()),
        // Linux 6.6 has TCX; netd on an older one says so.
        Err(error) if format!("{error:#}").contains("TCX") => {
            println!("SKIP {story}: this kernel has no TCX");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let ip = lab.pod_add(&PodSpec::new("n1", "a"))?.ips[0];
    let link = host_end(&lab, &ip.to_string())?;
    let table = || lab.exec("n1", &["nft", "-s", "list", "table", "inet", "weft"]);
    let wanted = table()?.text("nft")?;
    let filter = |verb| lab.exec("n1", &["tc", "filter", verb, "dev", &link, "ingress"])?.text("tc");
    let pin = pod_pin(&lab, &link)?;
    let attached = || Ok::<_, anyhow::Error>(pin.exists() || filter("show")?.contains("weft_pod_ingress"));
    lab.exec("a", &["ip", "address", "add", "192.0.2.77/32", "dev", "lo"])?.text("ip")?;
    assert!(attached()? && cheating_is_caught(&lab)?, "before anything was touched");

    lab.exec("n1", &["nft", "delete", "table", "inet", "weft"])?.text("nft")?;
    if mode == "tcx" {
        fs::remove_file(&pin).with_context(|| pin.display().to_string())?;
    } else {
        filter("del")?;
    }
    let begun = Instant::now();
    let blind = !attached()? && cheating_is_caught(&lab)?;
    assert!(!blind, "the program is still at work: this test sees nothing");
    let (mut table_after, mut program_after) = (None, None);
    let back = wait_until(FULL_PASS, || {
        if table_after.is_none() && table()?.stdout.trim_end() == wanted {
            table_after = Some(begun.elapsed());
        }
        if program_after.is_none() && attached()? {
            program_after = Some(begun.elapsed());
        }
        Ok(table_after.is_some() && program_after.is_some())
    })?;
    assert!(back, "{FULL_PASS:?}: the nft table: {table_after:?}, a pod's program: {program_after:?}");
    assert!(cheating_is_caught(&lab)?, "the program is attached and does nothing");
    lab.down()
}

/// Whether a packet from an address that is not the pod's is dropped at its link, by n1's own count.
fn cheating_is_caught(lab: &Lab) -> Result<bool> {
    let drops = || -> Result<f64> {
        let text = lab.exec("n1", &["curl", "-sSf", "http://127.0.0.1:9157/metrics"])?.text("metrics")?;
        let samples = text.lines().filter(|line| line.starts_with("weft_datapath_drops_total"));
        Ok(samples.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
    };
    let before = drops()?;
    lab.exec("a", &["ping", "-c1", "-W1", "-I", "192.0.2.77", "169.254.1.1"])?;
    Ok(drops()? > before)
}

/// What n1 knows of n2.
struct Peer {
    mac: String,
    underlay: String,
    overlay: String,
    block: String,
}

impl Peer {
    fn of_n1(lab: &Lab) -> Result<Peer> {
        let peer = lab.status("n1")?.overlay.peers.into_iter().next().context("n1 has no peer")?;
        let fdb = lab.exec("n1", &["bridge", "fdb", "show", "dev", "weft.vxlan"])?.text("bridge")?;
        let underlay = peer.underlay.to_string();
        let entry =
            fdb.lines().find(|line| line.contains(&format!("dst {underlay} "))).context("no FDB entry")?;
        Ok(Peer {
            mac: entry.split(' ').next().context("no MAC")?.to_owned(),
            underlay,
            overlay: peer.overlay.context("n2 has no overlay address")?.to_string(),
            block: peer.blocks.first().context("n2 has no block")?.to_string(),
        })
    }
}

/// Everything of n1 that netd owns and the kernel tells of.
fn objects(lab: &Lab) -> Result<Vec<String>> {
    let command = "ip -o route show table all proto 157
        ip -o address show to 169.254.53.53
        ip -o address show to 10.244.0.0/16
        ip neigh show nud permanent
        bridge fdb show dev weft.vxlan
        ip -o -d link show type vxlan";
    let text = lab.exec("n1", &["sh", "-c", command])?.stdout;
    let mut lines: Vec<_> = text.lines().map(without_index).collect();
    lines.sort();
    Ok(lines)
}

/// The same once netd has gone over the route that weft-cni made, which does not know the node's own address.
fn settled(lab: &Lab) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let unfinished = |line: &String| line.contains("scope link") && !line.contains(" src ");
    let settled = wait_until(SOON, || {
        found = objects(lab)?;
        Ok(!found.iter().any(unfinished))
    })?;
    ensure!(settled, "routes without a source: {found:#?}");
    Ok(found)
}

/// A device that was made anew has another index.
fn without_index(line: &str) -> String {
    let line = line.trim();
    let rest = line.split_once(": ").filter(|(index, _)| index.parse::<u32>().is_ok());
    rest.map_or(line, |(_, rest)| rest).to_owned()
}

fn differences(wanted: &[String], found: &[String]) -> String {
    let missing = wanted.iter().filter(|line| !found.contains(line)).map(|line| format!("- {line}"));
    let extra = found.iter().filter(|line| !wanted.contains(line)).map(|line| format!("+ {line}"));
    missing.chain(extra).collect::<Vec<_>>().join("\n")
}

/// The host end that leads to an address of a pod of n1.
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
