// SPDX-License-Identifier: Apache-2.0
//! Pods that are deleted while netd is not there.

use crate::{lab_with, service};
use anyhow::Result;
use std::fs;
use std::time::Duration;
use weft_lab::{Lab, PodSpec, UpOptions, wait_until};

/// netd looks at the queue at start and every ten seconds.
const REPLAY_LIMIT: Duration = Duration::from_secs(12);

#[test]
fn stale_del_queue() -> Result<()> {
    let mut options = UpOptions { nodes: 2, ..UpOptions::new(&Lab::unique_name("staledel")) };
    // A freed address can be had again at once: that it is free is what we want to see.
    options.netd_args = vec!["--cool-down-secs".into(), "0".into()];
    let Some(lab) = lab_with(options)? else { return Ok(()) };
    let a = lab.pod_add(&PodSpec::new("n1", "a").label("app", "web"))?;
    let b = lab.pod_add(&PodSpec::new("n1", "b").label("app", "web"))?;
    let kept = lab.pod_add(&PodSpec::new("n1", "kept").label("app", "web"))?;
    let _server = lab.serve("kept", "kept", &[8080], &[])?;
    let vip = lab.apply(&service("web", "web"))?.results[0].cluster_ip.unwrap();
    assert_eq!(backends(&lab, "n2")?, 3);

    // One after an orderly end, one after SIGKILL, which leaves a dead socket behind.
    lab.node_stop("n1")?;
    lab.pod_rm("n1", "a")?;
    assert_eq!(queued(&lab)?, 1);
    assert!(weft_lab::cni(lab.name(), &a, "DEL")?.ok(), "DEL may be repeated");
    assert_eq!(queued(&lab)?, 1, "one entry for each attachment");
    lab.node_start("n1")?;
    settled(&lab, 2)?;
    lab.node_kill("n1")?;
    lab.pod_rm("n1", "b")?;
    assert_eq!(queued(&lab)?, 1);
    let links = lab.exec("n1", &["ip", "-o", "link", "show", "type", "veth"])?.text("ip link")?;
    assert_eq!(links.lines().count(), 2, "the uplink and the kept pod's: {links}");
    lab.node_start("n1")?;
    settled(&lab, 1)?;

    // No trace of either, here or in the cluster; the third is as it was.
    let ipam = lab.ask("n1", async |client| client.ipam().await)?;
    for (pod, ip) in [(&a, a.ips[0]), (&b, b.ips[0])] {
        let left = ipam.addresses.iter().find(|address| address.owner.contains(&pod.container_id));
        assert!(left.is_none(), "{}: {left:?}", pod.name);
        assert!(!lab.maps("n1")?.pods.contains(&ip), "{} is in the maps", pod.name);
        let routes = lab.exec("n1", &["ip", "route", "show", "to", "exact", &ip.to_string()])?.text("ip")?;
        assert_eq!(routes, "");
    }
    let withdrawn = wait_until(Duration::from_secs(5), || Ok(backends(&lab, "n2")? == 1))?;
    assert!(withdrawn, "n2 still counts {} backends", backends(&lab, "n2")?);
    let report = lab.probe("n2", &["--to", &format!("{vip}:80"), "--count", "20"])?;
    assert_eq!(report.servers.get("kept"), Some(&20), "{} {}", report.spread(), report.failures());
    assert!(weft_lab::cni(lab.name(), &kept, "CHECK")?.ok(), "the pod that stays");

    for (old, name) in [(&a, "c"), (&b, "d")] {
        let spec = PodSpec::new("n1", name).ip(old.ips[0]);
        assert_eq!(lab.pod_add(&spec)?.ips, old.ips, "the address is free again");
        assert!(lab.exec("kept", &["ping", "-c1", "-W1", &old.ips[0].to_string()])?.ok(), "{name}");
    }
    lab.down()
}

/// Entries in n1's queue.
fn queued(lab: &Lab) -> Result<usize> {
    let folder = lab.state()?.node("n1")?.socket().with_file_name("deferred-del");
    Ok(fs::read_dir(folder)?.count())
}

/// Waits until n1 has carried the queue out and has so many pods.
fn settled(lab: &Lab, pods: usize) -> Result<()> {
    let done = wait_until(REPLAY_LIMIT, || Ok(queued(lab)? == 0 && lab.status("n1")?.pods == pods))?;
    assert!(done, "{} entries, {} pods\n{}", queued(lab)?, lab.status("n1")?.pods, lab.node_log("n1", 20)?);
    Ok(())
}

/// Backends of the service, as a node sees it.
fn backends(lab: &Lab, node: &str) -> Result<usize> {
    let services = lab.ask(node, async |client| client.services().await)?;
    Ok(services.iter().find(|service| service.name == "web").map_or(0, |service| service.total_backends))
}
