// SPDX-License-Identifier: Apache-2.0
//! netd starts while the store is away: from the last-known-good snapshot, adding and repairing only.

use crate::left::{addresses, keys};
use crate::{have, service, vxlan_lab};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::time::{Duration, Instant};
use weft_lab::{Lab, Maps, PodSpec, wait_until};

/// netd waits 5 s for the store before the snapshot stands in.
const READY_LIMIT: Duration = Duration::from_secs(8);
/// Longest back-off against the store, and some.
const SYNC_LIMIT: Duration = Duration::from_secs(12);

#[test]
fn a_start_without_the_store_goes_on_from_the_last_known_good() -> Result<()> {
    if !have("etcdctl", "lastknown") {
        return Ok(());
    }
    let Some(lab) = vxlan_lab("lastknown", 2)? else { return Ok(()) };
    lab.pod_add(&PodSpec::new("n1", "client"))?;
    lab.pod_add(&PodSpec::new("n1", "b1").label("app", "web"))?;
    let goes = lab.pod_add(&PodSpec::new("n1", "goes"))?;
    let b2 = lab.pod_add(&PodSpec::new("n2", "b2").label("app", "web"))?;
    let _b1 = lab.serve("b1", "b1", &[8080], &[])?;
    let _b2 = lab.serve("b2", "b2", &[8080], &[])?;
    let vip = format!("{}:80", lab.apply(&service("web", "web"))?.results[0].cluster_ip.unwrap());
    let works = |when: &str, from: &str| -> Result<()> {
        let report = lab.probe(from, &["--to", &vip, "--count", "20"])?;
        ensure!(
            report.all_ok() && report.servers.len() == 2,
            "{when}: {from}: {} {}",
            report.spread(),
            report.failures()
        );
        let report = lab.probe(from, &["--to", &format!("{}:8080", b2.ips[0]), "--count", "5"])?;
        ensure!(report.all_ok(), "{when}: {from} to b2: {}", report.failures());
        let name = lab.query(from, &["web.default.svc.cluster.local", "A"])?;
        ensure!(vip.starts_with(&format!("{}:", name.data.join(" "))), "{when}: {from}: {name:?}");
        Ok(())
    };
    works("at first", "client")?;
    let written = wait_until(Duration::from_secs(5), || {
        Ok(snapshot_revision(&lab)? >= lab.status("n1")?.store.revision)
    })?;
    ensure!(written, "the snapshot is at revision {}", snapshot_revision(&lab)?);
    let (objects, maps) = (objects(&lab)?, maps(&lab)?);

    lab.etcd_stop()?;
    let mut transfer = lab.stream("client", &vip, Duration::from_secs(60))?;
    transfer.wait_line(Duration::from_secs(5))?;
    lab.node_kill("n1")?;
    let begun = Instant::now();
    let status = lab.node_start("n1")?;
    let took = begun.elapsed();
    println!("lastknown: ready {took:?} after the start, without the store");
    ensure!(took < READY_LIMIT, "ready after {took:?}");
    ensure!(!status.store.in_sync && !status.store.connected, "{:?}", status.store);
    ensure!(status.store.last_error.is_some() && status.pods == 3, "{status:?}");
    works("from the snapshot", "client")?;
    unchanged(&lab, &objects, &maps).context("from the snapshot")?;

    let late = lab.pod_add(&PodSpec::new("n1", "late"))?;
    works("from the snapshot", "late")?;
    let ping =
        |from: &str, to: &str| Ok::<_, anyhow::Error>(lab.exec(from, &["ping", "-c1", "-W2", to])?.ok());
    ensure!(ping("b2", &late.ips[0].to_string())?, "n2 does not reach the new pod in n1's old block");
    lab.pod_rm("n1", "goes")?;
    ensure!(!addresses(&lab, "n1")?.contains_key(&goes.ips[0].to_string()), "a DEL without the store");
    lab.pod_rm("n1", "late")?;
    unchanged_but(&lab, &objects, &goes.ips[0].to_string()).context("after ADD and DEL")?;
    let late = lab.pod_add(&PodSpec::new("n1", "later"))?;

    lab.etcd_start()?;
    let mut store = None;
    let synced = wait_until(SYNC_LIMIT, || {
        let status = lab.status("n1")?;
        let done = status.store.in_sync && status.store.connected && status.published_revision > 0;
        store = Some(status.store);
        Ok(done)
    })?;
    ensure!(synced, "{store:?}\n{}", lab.node_log("n1", 20)?);
    let known = wait_until(SYNC_LIMIT, || {
        let pods = lab.ask("n2", async |client| client.pods().await)?;
        Ok(pods.iter().any(|pod| pod.name == "later") && !pods.iter().any(|pod| pod.name == "goes"))
    })?;
    ensure!(known, "n2 does not know n1's pods: {:?}", keys(&lab, "pods/")?);
    ensure!(
        !keys(&lab, "pods/")?.iter().any(|key| key.contains(&goes.container_id)),
        "a deleted pod came back"
    );
    works("with the store again", "client")?;
    works("with the store again", "later")?;
    ensure!(ping("b2", &late.ips[0].to_string())?, "n2 does not reach the new pod");
    ensure!(transfer.alive(), "the transfer broke: {:?}", transfer.errors());
    drop(transfer);
    let status = lab.status("n1")?;
    ensure!(status.ready && status.pending.is_empty() && status.bad_values.is_empty(), "{status:?}");
    lab.down()
}

/// 0 before the first one is written.
fn snapshot_revision(lab: &Lab) -> Result<u64> {
    let path = lab.state()?.node("n1")?.dir.join("state/snapshot.json");
    let Ok(text) = fs::read(&path) else { return Ok(0) };
    let snapshot: Value = serde_json::from_slice(&text)?;
    snapshot["revision"].as_u64().context("no revision")
}

/// Whatever netd keeps in n1's kernel: routes, addresses, neighbours, FDB, devices, rules.
fn objects(lab: &Lab) -> Result<Vec<String>> {
    let command = "ip -o route show table all proto 157
        ip -o -4 address show
        ip neigh show nud permanent
        bridge fdb show dev weft.vxlan
        ip -o -d link show type vxlan
        nft -s list table inet weft";
    let text = lab.exec("n1", &["sh", "-ec", command])?.text("ip, bridge, nft")?;
    let mut lines: Vec<_> = text.lines().map(|line| line.trim().to_owned()).collect();
    lines.sort();
    Ok(lines)
}

fn maps(lab: &Lab) -> Result<Maps> {
    let mut maps = lab.maps("n1")?;
    maps.pods.sort();
    maps.backends.sort();
    Ok(maps)
}

fn unchanged(lab: &Lab, objects: &[String], maps: &Maps) -> Result<()> {
    unchanged_but(lab, objects, "nothing")?;
    let now = self::maps(lab)?;
    ensure!(now == *maps, "the maps hold {now:?} instead of {maps:?}");
    Ok(())
}

/// No object more or less, but for those of an address.
fn unchanged_but(lab: &Lab, objects: &[String], address: &str) -> Result<()> {
    let now = self::objects(lab)?;
    let missing: Vec<_> =
        objects.iter().filter(|line| !now.contains(line) && !line.contains(address)).collect();
    let extra: Vec<_> = now.iter().filter(|line| !objects.contains(line)).collect();
    ensure!(missing.is_empty() && extra.is_empty(), "missing: {missing:#?}\nnew: {extra:#?}");
    Ok(())
}
