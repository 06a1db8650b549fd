// SPDX-License-Identifier: Apache-2.0
//! Nodes that stop, die and are cut off.

use crate::{lab, service};
use anyhow::Result;
use std::time::Duration;
use weft_lab::{Lab, OUTSIDE_IP, PodSpec, wait_until};

#[test]
fn node_verbs_do_what_they_say() -> Result<()> {
    let Some(lab) = lab("verbs", 2)? else { return Ok(()) };
    lab.pod_add(&PodSpec::new("n1", "a").label("app", "web"))?;
    let mut server = lab.serve("a", "a", &[8080], &[])?;
    for (what, end) in [("kill", Lab::node_kill as fn(&Lab, &str) -> Result<()>), ("stop", Lab::node_stop)] {
        end(&lab, "n1")?;
        assert!(lab.status("n1").is_err(), "netd answers after {what}");
        assert!(server.alive(), "{what} ended a process of a pod");
        assert!(lab.node_start("n1")?.ready);
    }
    lab.node_crash("n1")?;
    assert!(!server.wait(Duration::from_secs(2))?, "a pod's process survived the crash");
    assert!(lab.status("n1").is_err());
    let status = lab.node_start("n1")?;
    assert_eq!(status.pods, 1, "the pod's attachment is not lost with its processes");

    let ping =
        |from: &str, to: &str| Ok::<_, anyhow::Error>(lab.exec(from, &["ping", "-c1", "-W1", to])?.ok());
    let n2 = lab.show()?.nodes[1].underlay_ip.to_string();
    let store = "172.31.77.2";
    for (from, reaches) in
        [("n2", (false, true, true)), ("store", (true, false, true)), ("all", (false, false, false))]
    {
        lab.partition("n1", from)?;
        let seen = (ping("n1", &n2)?, ping("n1", store)?, ping("n1", &OUTSIDE_IP.to_string())?);
        assert_eq!(seen, reaches, "cut off from {from}");
        lab.heal("n1")?;
        // Neighbours that were given up while cut off are asked for again.
        let healed = wait_until(Duration::from_secs(5), || Ok(ping("n1", &n2)? && ping("n1", store)?))?;
        assert!(healed, "not healed from {from}");
    }
    lab.mtu("n2", 1400)?;
    let link = lab.exec("n2", &["ip", "-o", "link", "show", "eth0"])?.text("ip link")?;
    assert!(link.contains("mtu 1400"), "{link}");
    lab.down()
}

#[test]
fn a_node_cut_off_from_the_store_goes_on_and_catches_up() -> Result<()> {
    let Some(lab) = lab("cutoff", 2)? else { return Ok(()) };
    lab.pod_add(&PodSpec::new("n1", "client"))?;
    lab.pod_add(&PodSpec::new("n2", "b1").label("app", "web"))?;
    let _b1 = lab.serve("b1", "b1", &[8080], &[])?;
    let vip = lab.apply(&service("web", "web"))?.results[0].cluster_ip.unwrap();
    let to = format!("{vip}:80");
    assert!(lab.probe("client", &["--to", &to, "--count", "5"])?.all_ok());

    lab.partition("n1", "store")?;
    lab.pod_add(&PodSpec::new("n2", "b2").label("app", "web"))?;
    let _b2 = lab.serve("b2", "b2", &[8080], &[])?;
    lab.pod_add(&PodSpec::new("n1", "late"))?;
    for from in ["client", "late"] {
        let report = lab.probe(from, &["--to", &to, "--count", "10"])?;
        assert_eq!(report.spread(), "b1 10", "{from}: {}", report.failures());
    }
    lab.heal("n1")?;
    let caught_up = wait_until(Duration::from_secs(20), || {
        Ok(lab.probe("late", &["--to", &to, "--count", "20"])?.servers.len() == 2)
    })?;
    assert!(caught_up, "{:?}", lab.status("n1")?);
    let known = wait_until(Duration::from_secs(10), || {
        Ok(lab.ask("n2", async |client| client.pods().await)?.iter().any(|pod| pod.name == "late"))
    })?;
    assert!(known, "n2 does not know the pod that n1 made while it was cut off");
    lab.down()
}
