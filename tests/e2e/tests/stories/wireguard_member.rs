// SPDX-License-Identifier: Apache-2.0
//! The encrypted overlay, part 5: a machine outside the cluster joins with the ordinary WireGuard client.

use crate::have;
use crate::wireguard::{FLOW_LIMIT, GREETING, PORT, TUNNEL, reach, silent, wireguard_lab};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;
use weft_lab::{Families, Lab, Pod, PodSpec, Running, UpOptions, wait_until};

const NODES: [&str; 2] = ["n1", "n2"];
/// The interface of the member; wg-quick takes it from the file's name.
const DEVICE: &str = "member0";
/// wg-quick waits for the client that it starts.
const QUICK_LIMIT: Duration = Duration::from_secs(20);
/// The first of three ports of a cluster that has its own.
const OWN_PORT: u16 = 45120;
/// A rotation, and the seconds that the older key stays.
const ROTATION: &str = "25s";

/// A pod on each node that serves, and the member's file.
struct Stage {
    lab: Lab,
    pods: Vec<(Pod, Running)>,
    folder: tempfile::TempDir,
}

impl Stage {
    fn new(story: &str, families: Families, netd_args: &[&str]) -> Result<Option<Stage>> {
        if !have("wireguard-go", story) || !have("wg-quick", story) {
            return Ok(None);
        }
        let change = |options: &mut UpOptions| {
            options.families = families;
            options.netd_args.extend(netd_args.iter().map(ToString::to_string));
        };
        let Some(lab) = wireguard_lab(story, change)? else { return Ok(None) };
        let pod = |node: &&str| {
            let name = format!("on-{node}");
            let pod = lab.pod_add(&PodSpec::new(node, &name))?;
            Ok((pod, lab.serve(&name, GREETING, &[PORT], &[])?))
        };
        let pods = NODES.iter().map(pod).collect::<Result<_>>()?;
        Ok(Some(Stage { lab, pods, folder: tempfile::tempdir()? }))
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join(format!("{DEVICE}.conf"))
    }

    /// Brings the member's device up from a configuration as it was printed.
    fn up(&self, config: &str) -> Result<()> {
        fs::write(self.file(), config)?;
        self.quick("up").context("wg-quick up")
    }

    fn quick(&self, verb: &str) -> Result<()> {
        let file = self.file().display().to_string();
        self.lab.exec_within("outside", &["wg-quick", verb, &file], QUICK_LIMIT)?.text("wg-quick").map(drop)
    }

    /// Both ways between the member and a pod on each node, under their own addresses.
    fn talks(&self, member: &[IpAddr]) -> Result<()> {
        let _serving = self.lab.serve("outside", "member", &[PORT], &[])?;
        for (pod, _) in &self.pods {
            for ip in &pod.ips {
                let own = like(member, *ip).context("a family without an address")?;
                seen_as(&self.lab, "outside", *ip, own)?;
                seen_as(&self.lab, &pod.name, own, *ip)?;
            }
        }
        Ok(())
    }
}

fn like(ips: &[IpAddr], other: IpAddr) -> Option<IpAddr> {
    ips.iter().copied().find(|ip| ip.is_ipv4() == other.is_ipv4())
}

/// Connections succeed, and the server sees the client's own address.
fn seen_as(lab: &Lab, from: &str, to: IpAddr, own: IpAddr) -> Result<()> {
    let to = SocketAddr::new(to, PORT).to_string();
    reach(lab, from, &to)?;
    let report = lab.probe(from, &["--to", &to, "--count", "10"])?;
    ensure!(report.all_ok(), "{from} to {to}: {} of 10 ({})", report.ok, report.failures());
    ensure!(report.seen_as.keys().eq([&own.to_string()]), "{from} to {to}: seen as {:?}", report.seen_as);
    Ok(())
}

fn added(lab: &Lab, args: &[&str]) -> Result<(String, Vec<IpAddr>)> {
    let reply: Value =
        lab.weft("n1", &[&["member", "add", "--json"], args].concat())?.json("weft member add")?;
    let config = reply["config"].as_str().context("no configuration")?.to_owned();
    Ok((config, serde_json::from_value(reply["ips"].clone())?))
}

/// Every endpoint has one of these ports.
fn at_ports(config: &str, ports: [u16; 2]) -> bool {
    let mut endpoints = config.lines().filter(|line| line.starts_with("Endpoint = "));
    endpoints.clone().count() == NODES.len()
        && endpoints.all(|line| ports.iter().any(|port| line.ends_with(&format!(":{port}"))))
}

fn listed(lab: &Lab, node: &str) -> Result<Vec<Value>> {
    lab.weft(node, &["member", "ls", "--json"])?.json("weft member ls")
}

#[test]
fn part_5_an_outside_machine_joins_as_a_member_and_leaves() -> Result<()> {
    let Some(stage) = Stage::new("member", Families::Dual, &[])? else { return Ok(()) };
    let lab = &stage.lab;
    let capture = lab.capture("")?;
    let file = stage.file().display().to_string();
    let add = ["member", "add", "laptop", "--output", &file];
    lab.weft("n1", &add)?.text("weft member add")?;
    let config = fs::read_to_string(&file)?;
    let again = lab.weft("n1", &add)?;
    ensure!(again.code == Some(1) && again.stderr.contains("is there already"), "{again:?}");
    ensure!(fs::read_to_string(&file)? == config, "the only copy of the key is gone");
    let ips: Vec<IpAddr> = serde_json::from_value(listed(lab, "n1")?[0]["ips"].clone())?;
    ensure!(ips.len() == 2, "{ips:?}");
    ensure!(config.matches("[Peer]").count() == NODES.len(), "{config}");
    stage.quick("up").context("wg-quick up")?;
    stage.talks(&ips)?;
    for node in NODES {
        let mut members = Vec::new();
        let heard = wait_until(FLOW_LIMIT, || {
            members = listed(lab, node)?;
            Ok(members.len() == 1 && members[0]["handshake_secs"].is_u64())
        })?;
        ensure!(heard, "{node}: {members:?}");
        let agree = lab.weft(node, &["ipam", "check"])?;
        ensure!(agree.ok(), "{node}: {}{}", agree.stdout, agree.stderr);
    }
    let packets = capture.stop()?;
    ensure!(packets.count(TUNNEL)? > 0, "no packets between the devices");
    ensure!(packets.holding(GREETING.as_bytes())? == 0, "the greeting can be read on the underlay");

    // A netd that starts again has it from the store.
    lab.node_kill("n2")?;
    lab.node_start("n2")?;
    stage.talks(&ips)?;

    let removed = lab.weft("n2", &["member", "rm", "laptop"])?.text("weft member rm")?;
    ensure!(removed == "member laptop removed", "{removed}");
    for (pod, _) in &stage.pods {
        for node in NODES {
            let gone = wait_until(FLOW_LIMIT, || {
                let shown = lab.exec(node, &["wg", "show", "all", "allowed-ips"])?.text("wg show")?;
                let routes = lab.exec(node, &["ip", "route", "show", "root", &ips[0].to_string()])?;
                Ok(!shown.contains(&ips[0].to_string()) && !routes.stdout.contains(&ips[0].to_string()))
            })?;
            ensure!(gone, "{node} still has the member");
        }
        silent(lab, "outside", &SocketAddr::new(pod.ips[0], PORT).to_string())?;
    }
    ensure!(listed(lab, "n1")?.is_empty());
    let freed = wait_until(FLOW_LIMIT, || {
        Ok(!lab.weft("n1", &["ipam", "show", "--json"])?.text("weft ipam show")?.contains("member/laptop"))
    })?;
    ensure!(freed, "its addresses are not free");
    let unknown = lab.weft("n1", &["member", "rm", "laptop"])?;
    ensure!(unknown.code == Some(1) && unknown.stderr.contains("no member laptop"), "{unknown:?}");
    stage.quick("down")?;
    stage.lab.down()
}

#[test]
fn part_5_a_member_brings_its_own_key_and_renews_its_configuration_after_a_rotation() -> Result<()> {
    let own_port = OWN_PORT.to_string();
    let stage = Stage::new("ownkey", Families::V4, &["--wireguard-port", &own_port])?;
    let Some(stage) = stage else { return Ok(()) };
    let lab = &stage.lab;
    let private = lab.exec("outside", &["wg", "genkey"])?.text("wg genkey")?;
    let public =
        lab.exec("outside", &["sh", "-c", &format!("echo {private} | wg pubkey")])?.text("wg pubkey")?;
    let zeros = format!("{}=", "A".repeat(43));
    let none = lab.weft("n1", &["member", "add", "zero", "--public-key", &zeros])?;
    ensure!(none.code == Some(1) && none.stderr.contains("no private key"), "{none:?}");
    let node = lab.weft("n1", &["member", "add", "n2"])?;
    ensure!(node.code == Some(1) && node.stderr.contains("there is a node n2"), "{node:?}");
    // As if a router passed n1's ports on: here that is n1 itself.
    let outside = SocketAddr::new(lab.state()?.node("n1")?.underlay_ip.into(), OWN_PORT);
    let endpoint = format!("n1={outside}");
    let (config, ips) = added(lab, &["laptop", "--public-key", &public, "--endpoint", &endpoint])?;
    // Where the file says, the key has a file of its own; another folder than the machine's.
    let key = stage.folder.path().join("member.key");
    fs::write(&key, &private)?;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
    let whole = |config: &str| config.replace("/etc/wireguard/%i.key", &key.display().to_string());
    ensure!(whole(&config) != config, "no place for the key: {config}");
    ensure!(at_ports(&config, [OWN_PORT, OWN_PORT + 1]), "not at the cluster's ports: {config}");
    stage.up(&whole(&config))?;
    stage.talks(&ips)?;
    for (name, reason) in [("other", "member laptop"), ("laptop", "member laptop")] {
        let second = lab.weft("n2", &["member", "add", name, "--public-key", &public])?;
        ensure!(second.code == Some(1) && second.stderr.contains(reason), "{second:?}");
    }

    for line in [&["key", "rotate"][..], &["config", "set", "--overlay", "vxlan"]] {
        let unasked = lab.weft("n1", line)?;
        ensure!(unasked.code == Some(1) && unasked.stdout.contains("laptop"), "{unasked:?}");
        ensure!(unasked.stderr.contains("add --yes"), "{unasked:?}");
    }
    stage.talks(&ips)?;
    let rotated = lab.weft("n1", &["key", "rotate", "--yes", "--wait", ROTATION])?;
    ensure!(rotated.ok(), "{}{}", rotated.stdout, rotated.stderr);
    ensure!(rotated.stderr.contains("member laptop must get a new configuration"), "{}", rotated.stderr);
    let renewed = lab.weft("n1", &["member", "show", "laptop"])?.text("weft member show")?;
    ensure!(renewed != config.trim_end(), "the same keys as before:\n{renewed}");
    ensure!(at_ports(&renewed, [OWN_PORT, OWN_PORT + 1]), "not at the cluster's ports: {renewed}");
    let told = |config: &str| config.lines().find(|line| line.starts_with("Endpoint")).map(str::to_owned);
    ensure!(told(&renewed) != told(&config), "newer keys are at the other port: {renewed}");
    stage.quick("down")?;
    stage.up(&whole(&renewed))?;
    stage.talks(&ips)?;
    stage.quick("down")?;
    stage.lab.down()
}
