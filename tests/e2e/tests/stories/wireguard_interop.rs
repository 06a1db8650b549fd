// SPDX-License-Identifier: Apache-2.0
//! The encrypted overlay, part 1: weft-wireguard talks with the implementations that others have, set up by `wg` alone.

use crate::have;
use crate::wireguard::wireguard_lab;
use anyhow::{Context, Result, ensure};
use std::time::Duration;
use weft_lab::{Lab, OUTSIDE_IP, Running, sibling, tool, wait_until};

const READY_LIMIT: Duration = Duration::from_secs(5);
const STREAM_LIMIT: Duration = Duration::from_secs(20);
const OURS: (&str, &str, &str) = ("n1", "ours0", "10.9.0.1");
const THEIRS: (&str, &str, &str) = ("outside", "theirs0", "10.9.0.2");
const OUR_PORT: &str = "51900";
const THEIR_PORT: &str = "51901";
const TCP_PORT: u16 = 9000;

#[test]
fn part_1_it_talks_with_wireguard_go() -> Result<()> {
    talks("wireguard-go", &["wireguard-go", "-f", THEIRS.1])
}

#[test]
fn part_1_it_talks_with_boringtun_cli() -> Result<()> {
    talks("boringtun-cli", &["boringtun-cli", "--foreground", "--disable-drop-privileges", THEIRS.1])
}

#[test]
fn part_1_it_talks_with_gotatun() -> Result<()> {
    // `make bench` installs it, `make test` does not: building it takes minutes.
    if tool("sh", &["-c", "command -v gotatun"]).is_err() {
        println!("gotatun is not installed: left out");
        return Ok(());
    }
    talks("gotatun", &["gotatun", "--foreground", "--disable-drop-privileges", THEIRS.1])
}

/// One of ours in a node, one of theirs on the outside host; each begins once.
fn talks(program: &str, argv: &[&str]) -> Result<()> {
    if !have(program, "interop") {
        return Ok(());
    }
    let Some(lab) = wireguard_lab("interop", |options| options.nodes = 1)? else { return Ok(()) };
    let node = lab.state()?.node(OURS.0)?.clone();
    let run = tempfile::tempdir()?;
    let (sockets, run_dir) = (node.wireguard_dir().display().to_string(), run.path().display().to_string());
    let own = sibling("weft-wireguard")?.display().to_string();
    let ours = [&own, "--no-persist", "--socket-dir", &sockets, "--run-dir", &run_dir, OURS.1];
    let running = [(OURS, lab.spawn(OURS.0, &ours)?), (THEIRS, lab.spawn(THEIRS.0, argv)?)];
    for ((host, device, _), program) in &running {
        wait_device(&lab, host, device, program)?;
    }
    let (our_key, their_key) = (key(&lab)?, key(&lab)?);
    let node_ip = node.underlay_ip.to_string();
    set(&lab, OURS, (&our_key.0, OUR_PORT), &their_key.1, THEIRS.2, &format!("{OUTSIDE_IP}:{THEIR_PORT}"))?;
    set(&lab, THEIRS, (&their_key.0, THEIR_PORT), &our_key.1, OURS.2, &format!("{node_ip}:{OUR_PORT}"))?;
    for ((from, ..), (.., to)) in [(OURS, THEIRS), (THEIRS, OURS)] {
        let ping = lab.exec(from, &["ping", "-c", "20", "-i", "0.02", "-W", "2", to])?;
        ensure!(ping.stdout.contains(" 0% packet loss"), "{program}: {from} to {to}:\n{}", ping.stdout);
    }
    for ((client, ..), (server, _, ip)) in [(OURS, THEIRS), (THEIRS, OURS)] {
        let _server = lab.serve(server, server, &[TCP_PORT], &[])?;
        let mut stream = lab.stream(client, &format!("{ip}:{TCP_PORT}"), Duration::from_secs(1))?;
        ensure!(
            stream.wait(STREAM_LIMIT)?,
            "{program}: a transfer from {client}: {}",
            stream.errors().join(" ")
        );
    }
    // A new handshake, begun by the side whose session went.
    lab.exec(OURS.0, &["wg", "set", OURS.1, "peer", &their_key.1, "remove"])?.text("wg set")?;
    set(&lab, OURS, (&our_key.0, OUR_PORT), &their_key.1, THEIRS.2, &format!("{OUTSIDE_IP}:{THEIR_PORT}"))?;
    ensure!(
        lab.exec(OURS.0, &["ping", "-c", "5", "-i", "0.2", "-W", "2", THEIRS.2])?.ok(),
        "{program}: a second handshake"
    );
    drop(running);
    lab.down()
}

fn wait_device(lab: &Lab, host: &str, device: &str, program: &Running) -> Result<()> {
    let there = wait_until(READY_LIMIT, || Ok(lab.exec(host, &["wg", "show", device])?.ok()))?;
    ensure!(there, "{device} on {host} does not answer: {}", program.errors().join(" "));
    Ok(())
}

/// A private and its public key.
fn key(lab: &Lab) -> Result<(String, String)> {
    let private = lab.exec("outside", &["wg", "genkey"])?.text("wg genkey")?;
    let public =
        lab.exec("outside", &["sh", "-c", &format!("echo {private} | wg pubkey")])?.text("wg pubkey")?;
    Ok((private, public))
}

/// Key and port of an end, its peer, and the address in the tunnel.
fn set(
    lab: &Lab,
    (host, device, ip): (&str, &str, &str),
    (private, port): (&str, &str),
    peer: &str,
    peer_ip: &str,
    endpoint: &str,
) -> Result<()> {
    let script = format!(
        "wg set {device} private-key <(echo {private}) listen-port {port} peer {peer} allowed-ips {peer_ip}/32 endpoint {endpoint}
         ip address replace {ip}/24 dev {device}
         ip link set {device} mtu 1420 up"
    );
    lab.exec(host, &["bash", "-ec", &script])?.text("wg set").with_context(|| device.to_owned()).map(drop)
}
