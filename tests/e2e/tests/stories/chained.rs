// SPDX-License-Identifier: Apache-2.0
//! The reference plugins behind weft-cni, and weft-cni behind the reference plugins, on traffic.

use crate::conflist::{Conflist, have_plugins};
use crate::rate::assert_rate;
use crate::{have, lab_with};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::net::{IpAddr, SocketAddr};
use weft_lab::{Families, Lab, PodSpec, UpOptions};

/// Bits per second; a test has to see it on a busy machine.
const INGRESS: u32 = 16_000_000;
const EGRESS: u32 = 8_000_000;
/// In bits: several of the largest segments.
const BURST: u32 = 2_000_000;
const TOLERANCE: f64 = 0.25;
const TUNED_MAC: &str = "02:00:5e:00:53:01";

#[test]
fn portmap_and_bandwidth_behind_weft_cni() -> Result<()> {
    portmap_and_bandwidth("tcx", Families::Dual)
}

#[test]
fn portmap_and_bandwidth_behind_weft_cni_with_clsact() -> Result<()> {
    portmap_and_bandwidth("clsact", Families::V4)
}

fn portmap_and_bandwidth(mode: &str, families: Families) -> Result<()> {
    let Some(lab) = chained_lab(mode, families)? else { return Ok(()) };
    let weft = json!({ "type": "weft-cni" });
    let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true }, "snat": true });
    let mapped = Conflist::write(&lab, "n1", "mapped", &[weft.clone(), portmap])?;
    let asked = json!({ "portMappings": [
        { "hostPort": 8088, "containerPort": 8080, "protocol": "tcp" },
        { "hostPort": 8089, "containerPort": 8081, "protocol": "udp" },
    ]});
    let web = mapped.add("web", "eth0", asked)?;
    lab.pod_add(&PodSpec::new("n1", "near"))?;
    lab.pod_add(&PodSpec::new("n2", "far"))?;
    let server = lab.serve("web", "web", &[8080], &[8081])?;
    let node = lab.state()?.node("n1")?.clone();
    let hosts = [Some(IpAddr::from(node.underlay_ip)), node.underlay_ip6.map(IpAddr::from)];
    for from in ["near", "far", "n1", "n2", "outside"] {
        for host in hosts.into_iter().flatten() {
            answers(&lab, from, SocketAddr::new(host, 8088), &[], "web")?;
            answers(&lab, from, SocketAddr::new(host, 8089), &["--udp"], "web")?;
        }
    }
    for ip in web.ips()? {
        for from in ["near", "far", "n1"] {
            answers(&lab, from, SocketAddr::new(ip, 8080), &[], "web")?;
        }
    }
    web.check()?;
    drop(server);
    web.del()?;
    let rules = lab.exec("n1", &["iptables-save"])?.text("iptables-save")?;
    assert!(!rules.contains(&web.pod.container_id), "{rules}");

    let near = lab.pod("near")?.ips;
    let limits = |egress: u32| {
        json!({
            "type": "bandwidth", "ingressRate": INGRESS, "ingressBurst": BURST,
            "egressRate": egress, "egressBurst": if egress == 0 { 0 } else { BURST },
        })
    };
    let both = Conflist::write(&lab, "n1", "limited", &[weft.clone(), limits(EGRESS)])?;
    if mode == "clsact" {
        // What limits packets from the pod needs a qdisc where our filter's is already: the plugin says so, and nothing is
        // left. The other way works, and weft-cni's own limits do both.
        let refused = both.add("slow", "eth0", json!({})).map(|_| ()).map_err(|error| format!("{error:#}"));
        assert!(refused.as_ref().is_err_and(|error| error.contains("ingress qdisc")), "{refused:?}");
        gone(&lab)?;
        let slow = Conflist::write(&lab, "n1", "one-way", &[weft, limits(0)])?;
        let slow = slow.add("slow", "eth0", json!({}))?;
        assert_rate(&lab, "near", ("slow", slow.ips()?[0]), f64::from(INGRESS), TOLERANCE)?;
        slow.del()?;
    } else {
        let slow = both.add("slow", "eth0", json!({}))?;
        for (own, other) in slow.ips()?.into_iter().zip(near.clone()) {
            assert_rate(&lab, "near", ("slow", own), f64::from(INGRESS), TOLERANCE)?;
            assert_rate(&lab, "slow", ("near", other), f64::from(EGRESS), TOLERANCE)?;
        }
        slow.check()?;
        slow.del()?;
        gone(&lab)?;
    }
    lab.down()
}

#[test]
fn tuning_sbr_and_firewall_behind_weft_cni() -> Result<()> {
    tuning_sbr_and_firewall("tcx", Families::Dual)
}

#[test]
fn tuning_sbr_and_firewall_behind_weft_cni_with_clsact() -> Result<()> {
    tuning_sbr_and_firewall("clsact", Families::V4)
}

fn tuning_sbr_and_firewall(mode: &str, families: Families) -> Result<()> {
    let Some(lab) = chained_lab(mode, families)? else { return Ok(()) };
    let backup = lab.state()?.node("n1")?.dir.join("tuning");
    let weft = json!({ "type": "weft-cni" });
    let tuning = json!({
        "type": "tuning", "mac": TUNED_MAC, "mtu": 1400, "sysctl": { "net.ipv4.ip_default_ttl": "77" }, "dataDir": backup,
    });
    let tuned = Conflist::write(&lab, "n1", "tuned", &[weft.clone(), tuning])?;
    let guarded = Conflist::write(
        &lab,
        "n1",
        "guarded",
        &[weft.clone(), json!({ "type": "firewall", "backend": "iptables" })],
    )?;
    let sourced = Conflist::write(&lab, "n1", "sourced", &[weft, json!({ "type": "sbr" })])?;
    lab.pod_add(&PodSpec::new("n1", "near"))?;
    lab.pod_add(&PodSpec::new("n2", "far"))?;

    // Another MAC and MTU and a sysctl: traffic goes on, and CHECK does not mind.
    let pod = tuned.add("tuned", "eth0", json!({}))?;
    let link = lab.exec("tuned", &["ip", "link", "show", "eth0"])?.text("ip link")?;
    assert!(link.contains(TUNED_MAC) && link.contains("mtu 1400"), "{link}");
    let ttl = lab.exec("tuned", &["cat", "/proc/sys/net/ipv4/ip_default_ttl"])?.text("sysctl")?;
    assert_eq!(ttl, "77");
    pod.check()?;
    reached(&lab, "tuned", &pod.ips()?)?;
    pod.del()?;

    // Packets to and from the pod pass the plugin's rules.
    let pod = guarded.add("guarded", "eth0", json!({}))?;
    reached(&lab, "guarded", &pod.ips()?)?;
    let rules = lab.exec("n1", &["iptables-save", "-c"])?.text("iptables-save")?;
    for (what, ip) in [("-d", pod.ips()?[0]), ("-s", pod.ips()?[0])] {
        let rule = format!("{what} {ip}/32");
        let counted = rules.lines().find(|line| line.contains("CNI-FORWARD") && line.contains(&rule));
        let counted = counted.with_context(|| format!("no rule {rule}: {rules}"))?;
        assert!(!counted.starts_with("[0:0]"), "packets passed by: {counted}");
    }
    pod.check()?;
    pod.del()?;
    let rules = lab.exec("n1", &["iptables-save"])?.text("iptables-save")?;
    assert!(!rules.contains(&pod.ips()?[0].to_string()), "{rules}");

    // A second interface whose answers leave by it.
    lab.pod_add(&PodSpec::new("n1", "both"))?;
    let pod = sourced.add("both", "net1", json!({}))?;
    let rule = lab.exec("both", &["ip", "rule"])?.text("ip rule")?;
    assert!(rule.contains(&pod.ips()?[0].to_string()), "{rule}");
    reached(&lab, "both", &pod.ips()?)?;
    pod.check()?;
    pod.del()?;
    reached(&lab, "both", &lab.pod("both")?.ips)?;
    lab.pod_rm("n1", "both")?;
    gone(&lab)?;
    lab.down()
}

#[test]
fn in_netd_s_own_list_each_job_is_one_plugin_s() -> Result<()> {
    if !have_plugins("ownlist") || !have("iptables", "ownlist") {
        return Ok(());
    }
    let chain = tempfile::NamedTempFile::new()?;
    let plugins = json!([
        { "type": "portmap", "capabilities": { "portMappings": true }, "snat": true },
        { "type": "bandwidth", "capabilities": { "bandwidth": true } },
    ]);
    std::fs::write(chain.path(), plugins.to_string())?;
    let netd_args = vec!["--cni-chain".into(), chain.path().display().to_string()];
    let options = UpOptions { nodes: 1, netd_args, ..UpOptions::new(&Lab::unique_name("ownlist")) };
    let Some(lab) = lab_with(options)? else { return Ok(()) };
    let list = Conflist::of_netd(&lab, "n1")?;
    lab.pod_add(&PodSpec::new("n1", "near"))?;
    // As a runtime hands it out: to each plugin what it declares.
    let asked = json!({
        "portMappings": [{ "hostPort": 8090, "containerPort": 8080, "protocol": "tcp" }],
        "bandwidth": {
            "ingressRate": INGRESS, "ingressBurst": BURST, "egressRate": EGRESS, "egressBurst": BURST,
        },
    });
    let pod = list.add("both", "eth0", asked)?;
    let node = lab.state()?.node("n1")?.clone();
    let server = lab.serve("both", "both", &[8080], &[])?;
    for from in ["near", "n1", "outside"] {
        answers(&lab, from, SocketAddr::new(IpAddr::from(node.underlay_ip), 8090), &[], "both")?;
    }
    drop(server);
    let table = lab.exec("n1", &["nft", "list", "table", "inet", "weft"])?.text("nft")?;
    assert!(!table.contains("8090"), "weft-cni published portmap's port, too: {table}");
    pod.check()?;
    pod.del()?;
    gone(&lab)?;
    lab.down()
}

/// Two nodes whose programs attach this way.
fn chained_lab(mode: &str, families: Families) -> Result<Option<Lab>> {
    if !have_plugins("chained") || !have("iptables", "chained") {
        return Ok(None);
    }
    let netd_args = vec!["--datapath-attach".into(), mode.into()];
    let options = UpOptions::new(&Lab::unique_name("chained"));
    let options = UpOptions { nodes: 2, families, netd_args, ..options };
    lab_with(options)
}

/// A server of the pod answers on these addresses to a pod of the same node, one of another node, and the node itself.
fn reached(lab: &Lab, pod: &str, ips: &[IpAddr]) -> Result<()> {
    let _server = lab.serve(pod, pod, &[8080], &[])?;
    for ip in ips {
        for from in ["near", "far", "n1"] {
            answers(lab, from, SocketAddr::new(*ip, 8080), &[], pod)?;
        }
    }
    Ok(())
}

fn answers(lab: &Lab, from: &str, to: SocketAddr, how: &[&str], server: &str) -> Result<()> {
    let to = to.to_string();
    let report = lab.probe(from, &[&["--to", &to, "--count", "2"], how].concat())?;
    let (spread, failures) = (report.spread(), report.failures());
    ensure!(report.servers.get(server) == Some(&2), "{from} to {to} {how:?}: {spread} {failures}");
    Ok(())
}

/// Nothing of the deleted pods is left: only `near` is there.
fn gone(lab: &Lab) -> Result<()> {
    let links = lab.exec("n1", &["ip", "-br", "link"])?.text("ip link")?;
    let of_pods = |line: &&str| (line.starts_with("weft") && line.contains('@')) || line.contains("ifb");
    ensure!(links.lines().filter(of_pods).count() == 1, "links of deleted pods: {links}");
    Ok(())
}
