// SPDX-License-Identifier: Apache-2.0
//! A pod whose namespace goes without a DEL, as in a crash of the runtime.

use crate::left::{addresses, in_store};
use crate::{have, lab, service, soaking};
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};
use weft_lab::{PodSpec, tool, wait_until};

/// A start with the store there takes a fraction of this.
const READY_LIMIT: Duration = Duration::from_secs(5);
/// Missing for 60 s, seen by a sweep that looks every 20 s.
const SWEEP_LIMIT: Duration = Duration::from_secs(100);

#[test]
fn a_pod_that_vanished_while_netd_was_down_stops_nothing() -> Result<()> {
    if !have("etcdctl", "vanished") {
        return Ok(());
    }
    let Some(lab) = lab("vanished", 2)? else { return Ok(()) };
    let dead = lab.pod_add(&PodSpec::new("n1", "dead").label("app", "web"))?;
    let kept = lab.pod_add(&PodSpec::new("n1", "kept").label("app", "web"))?;
    lab.pod_add(&PodSpec::new("n2", "client"))?;
    let _server = lab.serve("kept", "kept", &[8080], &[])?;
    lab.apply(&service("web", "web"))?;
    lab.node_kill("n1")?;
    tool("ip", &["netns", "delete", &dead.netns])?;
    let veths = || lab.exec("n1", &["ip", "-o", "link", "show", "type", "veth"])?.text("ip link");
    // The kernel takes a namespace apart in its own time.
    let gone = wait_until(Duration::from_secs(10), || Ok(veths()?.lines().count() == 2))?;
    ensure!(gone, "the dead pod's host end is still there: {}", veths()?);

    let begun = Instant::now();
    let status = lab.node_start("n1")?;
    ensure!(begun.elapsed() < READY_LIMIT, "ready after {:?}", begun.elapsed());
    ensure!(status.pending.is_empty(), "{:?}", status.pending);
    ensure!(weft_lab::cni(lab.name(), &kept, "CHECK")?.ok(), "the pod that stays");
    let begun = Instant::now();
    let new = lab.pod_add(&PodSpec::new("n1", "new"))?;
    println!("vanished: ADD beside a dead pod takes {:?}", begun.elapsed());
    ensure!(new.ips != dead.ips, "the dead pod's address was given away at first sight");
    for to in [kept.ips[0], new.ips[0]] {
        let ping = lab.exec("client", &["ping", "-c1", "-W2", &to.to_string()])?;
        ensure!(ping.ok(), "{to}: {}", ping.stdout);
    }
    let report = lab.probe("client", &["--to", &format!("{}:8080", kept.ips[0]), "--count", "5"])?;
    ensure!(report.all_ok(), "{}", report.failures());
    let status = lab.status("n1")?;
    ensure!(status.ready && status.pending.is_empty(), "{status:?}");

    if soaking() {
        let held = || Ok::<_, anyhow::Error>(addresses(&lab, "n1")?.contains_key(&dead.ips[0].to_string()));
        ensure!(held()?, "released at first sight");
        let released = wait_until(SWEEP_LIMIT, || Ok(!held()?))?;
        ensure!(released, "not released after {SWEEP_LIMIT:?}\n{}", lab.node_log("n1", 20)?);
        println!("vanished: the dead pod is released {:?} after the start", begun.elapsed());
        let told = wait_until(Duration::from_secs(5), || {
            let left = in_store(&lab, "n1")?.join(" ");
            let backends = lab.ask("n2", async |client| client.services().await)?;
            let web = backends.iter().find(|service| service.name == "web");
            Ok(!left.contains(&dead.container_id) && web.is_some_and(|web| web.total_backends == 1))
        })?;
        ensure!(told, "{:?}", in_store(&lab, "n1")?);
        ensure!(!lab.maps("n1")?.pods.iter().any(|ip| *ip == dead.ips[0]), "its map entry is left");
    }
    // The runtime may still come with its DEL.
    ensure!(weft_lab::cni(lab.name(), &dead, "DEL")?.ok(), "a late DEL");
    ensure!(lab.status("n1")?.pods == 2, "{:?}", lab.status("n1")?);
    lab.down()
}
