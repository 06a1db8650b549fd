// SPDX-License-Identifier: Apache-2.0
//! `netd clean`: a node as if Weft had never been there.

use crate::{lab, service};
use anyhow::Result;
use std::fs;
use std::time::Duration;
use weft_lab::{Lab, Output, PodSpec, sibling, wait_until};

/// What the kernel of a node holds that netd could have made or changed.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    links: Vec<String>,
    addresses: Vec<String>,
    routes: Vec<String>,
    rules: Vec<String>,
    neighbours: Vec<String>,
    tables: Vec<String>,
    sysctls: Vec<String>,
}

#[test]
fn clean_removes_everything() -> Result<()> {
    let Some(lab) = lab("clean", 2)? else { return Ok(()) };
    // As a host that never forwarded, with things of its own.
    lab.node_stop("n1")?;
    // One that runs keeps its devices.
    lab.tunnel_kill("n1")?;
    clean(&lab)?.text("the first clean")?;
    let host = [
        "sysctl -qw net.ipv4.ip_forward=0",
        "test ! -e /proc/sys/net/ipv6/conf/eth0/accept_ra || sysctl -qw net.ipv6.conf.eth0.accept_ra=1",
        "ip route add 198.51.100.0/24 via 172.31.77.254 proto static",
        "ip address add 198.51.100.1/32 dev lo",
        "nft add table inet other",
    ];
    lab.exec("n1", &["sh", "-ec", &host.join("\n")])?.text("the host's own")?;
    let before = traces(&lab)?;
    for mark in ["weft", "169.254.", "10.244.", "10.96.", "proto 157"] {
        assert!(!format!("{before:?}").contains(mark), "{mark}: {before:#?}");
    }

    // What is there for trusted hosts has to go, too.
    lab.weft("n2", &["config", "set", "--trusted-cidrs", "192.0.2.0/24"])?.text("weft config set")?;
    lab.node_start("n1")?;
    // No backend of the service: with its node cleaned, connections to it would have to fail.
    lab.pod_add(&PodSpec::new("n1", "a"))?;
    lab.pod_add(&PodSpec::new("n2", "b").label("app", "web"))?;
    let _b = lab.serve("b", "b", &[8080], &[])?;
    let vip = format!("{}:80", lab.apply(&service("web", "web"))?.results[0].cluster_ip.unwrap());
    let mut with = traces(&lab)?;
    // netd goes over the route that weft-cni made, which does not know the node's own address.
    let unfinished =
        |line: &String| line.contains("dev weft") && line.contains("scope link") && !line.contains(" src ");
    let settled = wait_until(Duration::from_secs(5), || {
        with = traces(&lab)?;
        let led = with.rules.iter().any(|rule| rule.contains("proto 157"));
        Ok(led && !with.routes.iter().any(unfinished))
    })?;
    assert!(settled, "{:#?}\n{:#?}", with.rules, with.routes);
    assert!(with.sysctls.contains(&"net.ipv4.ip_forward = 1".to_owned()), "{:?}", with.sysctls);
    assert!(with.tables.contains(&"table inet weft".to_owned()), "{:?}", with.tables);
    assert!(lab.pin_dir("n1")?.exists());

    let refused = clean(&lab)?;
    assert!(!refused.ok() && refused.stderr.contains("stop it first"), "{}", refused.stderr);
    assert_eq!(traces(&lab)?, with, "a clean that was refused removed something");
    assert!(lab.status("n1")?.ready);

    lab.node_stop("n1")?;
    assert_eq!(traces(&lab)?, with, "stopping netd removed something");
    lab.tunnel_kill("n1")?;
    clean(&lab)?.text("clean")?;
    assert_eq!(traces(&lab)?, before);
    assert!(!lab.pin_dir("n1")?.exists(), "pins are left");
    assert!(lab.pin_dir("n2")?.exists(), "the other node's pins went too");
    let report = lab.probe("n1", &["--to", &vip, "--count", "1", "--timeout", "500ms"])?;
    assert_eq!(report.ok, 0, "connections of n1's processes are still translated");
    clean(&lab)?.text("a second clean")?;
    assert_eq!(traces(&lab)?, before);

    // The other node did not notice.
    assert!(lab.status("n2")?.ready);
    let report = lab.probe("n2", &["--to", &vip, "--count", "5"])?;
    assert_eq!(report.ok, 5, "{}", report.failures());
    lab.down()
}

#[test]
fn a_node_that_was_cleaned_can_come_back() -> Result<()> {
    comes_back("cleaned", |lab| {
        lab.node_stop("n1")?;
        clean(lab)?.text("clean").map(drop)
    })
}

#[test]
fn a_node_that_was_rebooted_comes_back() -> Result<()> {
    comes_back("rebooted", |lab| {
        lab.node_crash("n1")?;
        // What a kernel starts without: links, routes, tables, pins, /run. What stays is the state directory.
        let script = "for link in $(ip -br link | awk '/^weft/ { sub(/@.*/, \"\", $1); print $1 }'); do ip link del $link; done
            ip route flush table all proto 157
            ip address del 169.254.53.53/32 dev lo
            nft delete table inet weft
            sysctl -qw net.ipv4.ip_forward=0";
        lab.exec("n1", &["sh", "-ec", script])?.text("the reboot")?;
        fs::remove_dir_all(lab.pin_dir("n1")?)?;
        let run = lab.state()?.node("n1")?.dir.join("run");
        fs::remove_dir_all(&run)?;
        Ok(fs::create_dir(&run)?)
    })
}

/// A node with a pod loses everything but its disk; it comes back as what it was, without the pod.
fn comes_back(story: &str, lose: impl Fn(&Lab) -> Result<()>) -> Result<()> {
    let Some(lab) = lab(story, 2)? else { return Ok(()) };
    let before = lab.status("n1")?.node;
    lab.pod_add(&PodSpec::new("n1", "a").label("app", "web"))?;
    lab.pod_add(&PodSpec::new("n2", "b").label("app", "web"))?;
    let _b = lab.serve("b", "b", &[8080], &[])?;
    let vip = format!("{}:80", lab.apply(&service("web", "web"))?.results[0].cluster_ip.unwrap());
    lose(&lab)?;

    let after = lab.node_start("n1")?.node;
    assert_eq!((after.uuid, after.overlay, after.blocks), (before.uuid, before.overlay, before.blocks));
    // The runtime finds its pod without a network, takes it down and makes another.
    lab.pod_rm("n1", "a")?;
    lab.pod_add(&PodSpec::new("n1", "c"))?;
    let works =
        wait_until(Duration::from_secs(5), || Ok(lab.probe("c", &["--to", &vip, "--count", "5"])?.all_ok()))?;
    let status = lab.status("n1")?;
    assert!(works && status.ready && status.pending.is_empty(), "{status:?}");
    assert_eq!(status.pods, 1);
    lab.down()
}

/// Runs `netd clean` as an operator on n1 would, with the node's own configuration.
fn clean(lab: &Lab) -> Result<Output> {
    let netd = sibling("netd")?.display().to_string();
    let config = lab.state()?.node("n1")?.dir.join("netd.toml").display().to_string();
    lab.exec("n1", &[&netd, "--config", &config, "clean"])
}

fn traces(lab: &Lab) -> Result<Traces> {
    let lines = |command: &str| -> Result<Vec<String>> {
        let text = lab.exec("n1", &["sh", "-c", command])?.text(command)?;
        let mut lines: Vec<_> = text.lines().map(|line| line.trim().to_owned()).collect();
        lines.sort();
        Ok(lines)
    };
    Ok(Traces {
        links: lines("ip -br link | awk '{print $1}'")?,
        addresses: lines("ip -4 -br address")?,
        routes: lines("ip -4 route show table all; ip -6 route show table all proto 157")?,
        rules: lines("ip -4 rule; ip -6 rule")?,
        // What the kernel asked for itself comes and goes.
        neighbours: lines("ip neighbour show nud permanent; bridge fdb show | grep -v 'dev eth0' || true")?,
        tables: lines("nft list tables")?,
        sysctls: lines(
            "sysctl -a 2>/dev/null | grep -E '^net\\.ipv[46]\\.(ip_forward|conf\\.(all|default|eth0|lo)\\.)'",
        )?,
    })
}
