// SPDX-License-Identifier: Apache-2.0
//! Overlays, part 6: plain routes only on one link, and VXLAN where a network card spoils checksums; `weft doctor` says so.

use crate::wireguard::{PORT, connect, reach, wireguard_lab};
use crate::{have, lab_with};
use anyhow::{Context, Result, ensure};
use std::net::SocketAddr;
use std::time::Duration;
use weft_lab::{Lab, PodSpec, UpOptions, wait_until};

const CHANGE_LIMIT: Duration = Duration::from_secs(30);

/// A peer's name, how it is reached, what is not as wanted.
type Peer = (String, Option<String>, Option<String>);

/// Where packets of a pod on `node` for each other node go, and why they do not.
fn paths(lab: &Lab, node: &str) -> Result<Vec<Peer>> {
    let peers = lab.status(node)?.overlay.peers;
    let mut paths: Vec<_> = peers.into_iter().map(|peer| (peer.name, peer.path, peer.problem)).collect();
    paths.sort();
    Ok(paths)
}

#[test]
fn part_6_auto_is_native_on_the_link_and_encrypts_elsewhere() -> Result<()> {
    let Some(lab) = wireguard_lab("auto", |options| {
        options.nodes = 3;
        options.overlay = "auto".into();
        options.nat = vec!["n3".into()];
    })?
    else {
        return Ok(());
    };
    lab.pod_add(&PodSpec::new("n1", "client"))?;
    let mut serving = Vec::new();
    for node in ["n2", "n3"] {
        let name = format!("on-{node}");
        let pod = lab.pod_add(&PodSpec::new(node, &name))?;
        serving.push(lab.serve(&name, node, &[PORT], &[])?);
        let to = SocketAddr::new(pod.ips[0], PORT).to_string();
        reach(&lab, "client", &to)?;
        connect(&lab, "client", &to)?;
    }
    let found = paths(&lab, "n1")?;
    let wanted = [("n2", "native"), ("n3", "wireguard")];
    let as_wanted = wait_until(CHANGE_LIMIT, || {
        let found = paths(&lab, "n1")?;
        let found = found.iter().map(|(name, path, _)| (name.as_str(), path.as_deref().unwrap_or("none")));
        Ok(found.eq(wanted))
    })?;
    ensure!(as_wanted, "{found:?}");
    lab.down()
}

#[test]
fn part_6_native_refuses_a_peer_that_is_not_on_the_link_and_says_so() -> Result<()> {
    let options = UpOptions {
        nodes: 3,
        overlay: "native".into(),
        nat: vec!["n3".into()],
        ..UpOptions::new(&Lab::unique_name("offlink"))
    };
    let Some(lab) = lab_with(options)? else { return Ok(()) };
    lab.pod_add(&PodSpec::new("n1", "client"))?;
    let pod = lab.pod_add(&PodSpec::new("n2", "near"))?;
    let _near = lab.serve("near", "near", &[PORT], &[])?;
    reach(&lab, "client", &SocketAddr::new(pod.ips[0], PORT).to_string())?;
    let pod = lab.pod_add(&PodSpec::new("n3", "far"))?;
    let _far = lab.serve("far", "far", &[PORT], &[])?;
    let far = SocketAddr::new(pod.ips[0], PORT).to_string();
    let report = lab.probe("client", &["--to", &far, "--count", "2", "--timeout", "400ms"])?;
    ensure!(report.ok == 0, "a pod behind a router is reached by a plain route");
    let found = paths(&lab, "n1")?;
    ensure!(matches!(&found[0], (name, Some(path), None) if name == "n2" && path == "native"), "{found:?}");
    let (name, path, problem) = &found[1];
    let problem = problem.as_deref().context("no word about n3")?;
    ensure!(name == "n3" && path.is_none() && problem.contains("not on the link"), "{found:?}");
    let doctor = lab.weft("n1", &["doctor"])?;
    let line = doctor.stdout.lines().find(|line| line.contains("peer n3")).unwrap_or_default().to_owned();
    ensure!(line.starts_with("WRONG") && line.contains("not on the link"), "{}", doctor.stdout);
    ensure!(doctor.code == Some(1), "weft doctor ended with {:?} though n3 is not reached", doctor.code);
    lab.down()
}

/// Who computes checksums of packets that leave by the node's VXLAN device: true for the device.
fn offloads(lab: &Lab, node: &str) -> Result<bool> {
    let text = lab.exec(node, &["ethtool", "-k", "weft.vxlan"])?.text("ethtool -k")?;
    Ok(text.lines().any(|line| line.trim() == "tx-checksumming: on"))
}

fn vxlan_options(story: &str, args: &[&str]) -> UpOptions {
    UpOptions {
        nodes: 2,
        overlay: "vxlan".into(),
        netd_args: args.iter().map(|arg| (*arg).into()).collect(),
        ..UpOptions::new(&Lab::unique_name(story))
    }
}

#[test]
fn part_6_checksums_inside_vxlan_are_the_kernels_where_that_is_wished() -> Result<()> {
    if !have("ethtool", "vxsum") {
        return Ok(());
    }
    let Some(lab) = lab_with(vxlan_options("vxsum", &["--vxlan-tx-checksum", "off"]))? else { return Ok(()) };
    for node in ["n1", "n2"] {
        let off = wait_until(CHANGE_LIMIT, || Ok(!offloads(&lab, node)?))?;
        ensure!(off, "{node}: the device still computes checksums");
    }
    lab.pod_add(&PodSpec::new("n1", "client"))?;
    let pod = lab.pod_add(&PodSpec::new("n2", "server"))?;
    let _serving = lab.serve("server", "server", &[PORT], &[])?;
    reach(&lab, "client", &SocketAddr::new(pod.ips[0], PORT).to_string())?;
    lab.down()
}

#[test]
fn part_6_a_card_that_spoils_checksums_inside_vxlan_is_found() -> Result<()> {
    if !have("ethtool", "vxspoilt") {
        return Ok(());
    }
    let Some(lab) = lab_with(vxlan_options("vxspoilt", &[]))? else { return Ok(()) };
    ensure!(offloads(&lab, "n1")?, "this kernel's VXLAN devices have no checksum offload: nothing is shown");
    // As the other end's kernel drops what arrives with a wrong checksum; zero is none.
    let rules = "add table inet spoilt; add chain inet spoilt in { type filter hook prerouting priority -400; }; \
                 add rule inet spoilt in iifname \"weft.vxlan\" udp dport 51819 udp checksum != 0 counter drop";
    lab.exec("n2", &["nft", rules])?.text("nft")?;
    let off = wait_until(Duration::from_secs(90), || Ok(!offloads(&lab, "n1")?))?;
    ensure!(off, "n1 still leaves checksums to its device");
    lab.down()
}
