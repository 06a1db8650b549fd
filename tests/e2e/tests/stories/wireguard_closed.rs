// SPDX-License-Identifier: Apache-2.0
//! The encrypted overlay, part 4: pods' and overlay addresses never cross the underlay in the clear, whatever is missing.

use crate::have;
use crate::wireguard::{
    FLOW_LIMIT, PAUSE_MS_MAX, PORT, Pair, TUNNEL, connect, progress, reach, silent, wireguard_lab,
};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};
use weft_lab::{Lab, PodSpec, TUNNEL_DEVICES, Witness, in_netns, wait_until};

/// Nodes change the overlay within this, or say why not.
const CHANGE_LIMIT: Duration = Duration::from_secs(60);
/// A lease ends 15 s after its netd.
const LEASE_LIMIT: Duration = Duration::from_secs(30);
/// Longer than what is withdrawn stays (5 s) after those who are there have moved.
const WITHDRAWN: Duration = Duration::from_secs(8);
const HEARD_LIMIT: Duration = Duration::from_secs(3);
/// Of each forgery so many.
const EACH: usize = 3;

/// Sends UDP datagrams in frames of its own making: `frames` holds source, destination, text.
const FORGE: &str = r#"
import json, socket, struct, sys
a = json.loads(sys.argv[1])
def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return struct.pack("!H", ~total & 0xffff)
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
raw.bind(("eth0", 0))
for source, to, text in a["frames"]:
    text = text.encode()
    body = struct.pack("!HHHH", 5555, a["port"], 8 + len(text), 0) + text
    head = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(body), 1, 0, 64, 17)
    ends = socket.inet_aton(source) + socket.inet_aton(to)
    packet = head + checksum(head + b"\0\0" + ends) + ends + body
    for _ in range(a["each"]):
        raw.send(bytes.fromhex(a["mac"].replace(":", "")) + raw.getsockname()[4] + b"\x08\0" + packet)
"#;

fn nothing(witness: Witness) -> Result<()> {
    let clear = witness.stop()?;
    ensure!(clear.packets == 0, "{} packets in the clear:\n{}", clear.packets, clear.lines);
    Ok(())
}

#[test]
fn part_4_nothing_leaks_while_netd_or_weft_wireguard_is_down() -> Result<()> {
    let Some(lab) = wireguard_lab("closed", |_| {})? else { return Ok(()) };
    let witness = lab.witness()?;
    let pair = Pair::on(&lab, "n1", "n2")?;
    let to = &pair.to()[0];
    let _back = lab.serve("client", "client", &[PORT], &[])?;
    let back = SocketAddr::new(pair.client.ips[0], PORT).to_string();
    let all_silent = || {
        for (from, to) in [("client", to), ("n1", to), ("server", &back), ("n2", &back)] {
            silent(&lab, from, to)?;
        }
        Ok::<_, anyhow::Error>(())
    };
    lab.node_kill("n1")?;
    connect(&lab, "client", to).context("netd dead, weft-wireguard alive")?;
    lab.tunnel_kill("n1")?;
    all_silent().context("both dead")?;
    for device in TUNNEL_DEVICES {
        lab.exec("n1", &["ip", "link", "delete", device])?.text("ip link delete")?;
    }
    all_silent().context("both dead, the devices gone")?;
    lab.node_start("n1")?;
    reach(&lab, "client", to)?;
    reach(&lab, "server", &back)?;
    lab.tunnel_kill("n2")?;
    all_silent().context("weft-wireguard of the other node dead")?;
    lab.tunnel_start("n2")?;
    reach(&lab, "client", to)?;
    nothing(witness)?;
    lab.down()
}

#[test]
fn part_4_a_block_that_nobody_knows_is_unreachable() -> Result<()> {
    let Some(lab) = wireguard_lab("unknown", |_| {})? else { return Ok(()) };
    let witness = lab.witness()?;
    let _pair = Pair::on(&lab, "n1", "n2")?;
    let mut blocks = Vec::new();
    for node in ["n1", "n2"] {
        blocks.extend(lab.status(node)?.overlay.peers.into_iter().flat_map(|peer| peer.blocks));
    }
    let free = (0..=255).map(|third| Ipv4Addr::new(10, 244, third, 9));
    let free = free.map(IpAddr::V4).find(|ip| !blocks.iter().any(|block| block.contains(ip)));
    let to = SocketAddr::new(free.context("every block is known")?, PORT).to_string();
    for netd in ["alive", "dead"] {
        for from in ["client", "n1"] {
            silent(&lab, from, &to).with_context(|| format!("netd {netd}"))?;
        }
        lab.node_kill("n1")?;
    }
    nothing(witness)?;
    lab.down()
}

#[test]
fn part_4_a_spoofed_overlay_address_is_dropped_on_arrival() -> Result<()> {
    if !have("python3", "spoofed") {
        return Ok(());
    }
    let Some(lab) = wireguard_lab("spoofed", |_| {})? else { return Ok(()) };
    let pair = Pair::on(&lab, "n1", "n2")?;
    let state = lab.state()?;
    let outside = state.outside.ip.to_string();
    let (n1, n2) = (lab.status("n1")?.node.overlay, lab.status("n2")?.node.overlay);
    let (n1, n2) = (n1.context("n1 has no overlay address")?, n2.context("n2 has no overlay address")?);
    let host = state.node("n2")?;
    let in_pod = listen(&pair.server.netns, pair.server.ips[0])?;
    let in_node = listen(&host.netns, Ipv4Addr::UNSPECIFIED.into())?;
    let mut frames = Vec::new();
    for from in [pair.client.ips[0], n1, n2] {
        for to in [pair.server.ips[0], n2, host.underlay_ip.into()] {
            frames.push(json!([from, to, format!("{from} to {to}")]));
        }
    }
    // Last, and honest: frames made this way do arrive.
    frames.push(json!([outside, host.underlay_ip, "honest"]));
    let link: Vec<Value> = lab.exec("n2", &["ip", "-j", "link", "show", "eth0"])?.json("ip link")?;
    let about = json!({ "mac": link[0]["address"], "port": LISTEN_PORT, "each": EACH, "frames": frames });
    lab.exec("outside", &["python3", "-c", FORGE, &about.to_string()])?.text("the forger's script")?;
    ensure!(heard(&in_node)? == "honest", "a forgery came before the honest datagram");
    let honest = in_netns(&pair.client.netns, || Ok(UdpSocket::bind((pair.client.ips[0], 0))?))?;
    honest.send_to(b"honest", (pair.server.ips[0], LISTEN_PORT))?;
    let first = heard(&in_pod)?;
    ensure!(first == "honest", "the pod heard {first:?}");
    lab.down()
}

#[test]
fn part_4_a_cold_start_of_all_nodes_converges() -> Result<()> {
    let Some(lab) = wireguard_lab("cold", |options| options.nodes = 3)? else { return Ok(()) };
    let nodes = ["n1", "n2", "n3"];
    let witness = lab.witness()?;
    for node in nodes {
        lab.pod_add(&PodSpec::new(node, &format!("on-{node}")))?;
    }
    for node in nodes {
        lab.node_crash(node)?;
        // What a reboot takes away, too.
        for device in TUNNEL_DEVICES {
            lab.exec(node, &["ip", "link", "delete", device])?.text("ip link delete")?;
        }
    }
    lab.etcd_stop()?;
    lab.etcd_start()?;
    for node in nodes {
        lab.node_spawn(node)?;
    }
    let mut servers = Vec::new();
    for node in nodes {
        ensure!(lab.node_start(node)?.ready, "{node} is not ready");
        let pod = format!("on-{node}");
        servers.push((
            SocketAddr::new(lab.pod(&pod)?.ips[0], PORT).to_string(),
            lab.serve(&pod, &pod, &[PORT], &[])?,
        ));
    }
    for (to, _server) in &servers {
        for node in nodes {
            reach(&lab, &format!("on-{node}"), to)?;
        }
    }
    nothing(witness)?;
    lab.down()
}

#[test]
fn part_8_the_overlay_changes_under_a_transfer_and_nothing_is_in_the_clear() -> Result<()> {
    let Some(lab) = wireguard_lab("change", |_| {})? else { return Ok(()) };
    let witness = lab.witness()?;
    let pair = Pair::on(&lab, "n1", "n2")?;
    let mut transfer = lab.stream("client", &pair.to()[0], Duration::from_secs(180))?;
    let mut before = progress(&mut transfer)?;
    for overlay in ["vxlan", "wireguard"] {
        lab.weft("n1", &["config", "set", "--overlay", overlay])?.text("weft config set")?;
        wait_path(&lab, overlay)?;
        // Status tells of a path once it is chosen, a moment before the routes stand.
        let mut sealed = 0;
        let follows = wait_until(CHANGE_LIMIT, || {
            let capture = lab.capture("udp")?;
            connect(&lab, "client", &pair.to()[0])?;
            sealed = capture.stop()?.count(&format!("{TUNNEL} and greater 200"))?;
            Ok((sealed > 0) == (overlay == "wireguard"))
        })?;
        ensure!(follows, "{sealed} packets of WireGuard after the change to {overlay}");
        let after = progress(&mut transfer)?;
        ensure!(after.bytes > before.bytes, "the transfer stands still at {} bytes", after.bytes);
        before = after;
    }
    println!("overlay changed there and back: longest pause of a transfer {} ms", before.longest_pause_ms);
    nothing(witness)?;
    lab.down()
}

#[test]
fn part_8_a_netd_that_dies_in_the_middle_of_a_change_cuts_nobody_off() -> Result<()> {
    let Some(lab) = wireguard_lab("changekill", |_| {})? else { return Ok(()) };
    let witness = lab.witness()?;
    let pair = Pair::on(&lab, "n1", "n2")?;
    let to = &pair.to()[0];
    let mut transfer = lab.stream("client", to, Duration::from_secs(300))?;
    let mut before = progress(&mut transfer)?;
    for (from, overlay) in [("wireguard", "vxlan"), ("vxlan", "wireguard")] {
        // n2 cannot go over; n1, which could, starts anew between the two.
        lab.node_kill("n2")?;
        lab.weft("n1", &["config", "set", "--overlay", overlay])?.text("weft config set")?;
        lab.node_kill("n1")?;
        lab.node_start("n1")?;
        let still = |what: &str| {
            connect(&lab, "client", to).with_context(|| format!("from {from} to {overlay}, n2 {what}"))
        };
        for _ in 0..3 {
            still("away")?;
        }
        // Packets flow without its netd; nobody but it can take them another way.
        let forgotten = wait_until(LEASE_LIMIT, || {
            let nodes = lab.ask("n1", async |client| client.nodes().await)?;
            Ok(nodes.iter().any(|node| node.name == "n2" && !node.alive))
        })?;
        ensure!(forgotten, "n2's lease does not end");
        let since = Instant::now();
        while since.elapsed() < WITHDRAWN {
            still("without a lease")?;
        }
        lab.node_start("n2")?;
        lab.node_kill("n1")?;
        lab.node_start("n1")?;
        wait_path(&lab, overlay)?;
        connect(&lab, "client", to).with_context(|| format!("from {from} to {overlay}"))?;
        let after = progress(&mut transfer)?;
        ensure!(after.bytes > before.bytes, "the transfer stands still at {} bytes", after.bytes);
        before = after;
    }
    println!(
        "overlay changed there and back with netd killed: longest pause of a transfer {} ms",
        before.longest_pause_ms
    );
    ensure!(before.longest_pause_ms <= PAUSE_MS_MAX, "the transfer paused {} ms", before.longest_pause_ms);
    nothing(witness)?;
    lab.down()
}

#[test]
fn part_8_a_node_is_removed_after_a_change_away_from_wireguard() -> Result<()> {
    let Some(lab) = wireguard_lab("changerm", |options| options.nodes = 3)? else { return Ok(()) };
    let pair = Pair::on(&lab, "n1", "n2")?;
    lab.weft("n1", &["config", "set", "--overlay", "vxlan"])?.text("weft config set")?;
    wait_path(&lab, "vxlan")?;
    let without = wait_until(CHANGE_LIMIT, || {
        let nodes = lab.state()?.nodes;
        let with = nodes.iter().map(|node| Ok(lab.status(&node.name)?.overlay.wireguard.is_some()));
        Ok(!with.collect::<Result<Vec<bool>>>()?.contains(&true))
    })?;
    ensure!(without, "{CHANGE_LIMIT:?} after the change WireGuard is still up");
    // Who had no tunnel any more before the removal began said for ever that its devices still had the node.
    let removed = lab.weft("n1", &["node", "rm", "n3", "--yes"])?;
    ensure!(removed.ok() && removed.stdout.contains("removed"), "{removed:?}");
    connect(&lab, "client", &pair.to()[0])?;
    lab.down()
}

/// Waits until every node sends to every other by this backend.
pub(crate) fn wait_path(lab: &Lab, wanted: &str) -> Result<()> {
    let mut seen = String::new();
    let changed = wait_until(CHANGE_LIMIT, || {
        let mut paths = Vec::new();
        for node in lab.state()?.nodes {
            let peers = lab.status(&node.name)?.overlay.peers;
            paths.extend(
                peers.into_iter().map(|peer| (node.name.clone(), peer.name, peer.path, peer.problem)),
            );
        }
        seen = format!("{paths:?}");
        Ok(paths.iter().all(|(.., path, _)| path.as_deref() == Some(wanted)))
    })?;
    ensure!(changed, "{CHANGE_LIMIT:?} after the change to {wanted}: {seen}");
    Ok(())
}

const LISTEN_PORT: u16 = 7777;

fn listen(netns: &str, ip: IpAddr) -> Result<UdpSocket> {
    let socket = in_netns(netns, || Ok(UdpSocket::bind(SocketAddr::new(ip, LISTEN_PORT))?))?;
    socket.set_read_timeout(Some(HEARD_LIMIT))?;
    Ok(socket)
}

fn heard(socket: &UdpSocket) -> Result<String> {
    let mut buffer = [0; 100];
    let (length, _) = socket.recv_from(&mut buffer).context("nothing came")?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

#[test]
fn part_4_a_dead_tunnel_answers_nobody_and_takes_no_new_key() -> Result<()> {
    let Some(lab) = wireguard_lab("deadtun", |_| {})? else { return Ok(()) };
    let _pair = Pair::on(&lab, "n1", "n2")?;
    for node in ["n1", "n2"] {
        let mut said = String::new();
        let well = wait_until(FLOW_LIMIT, || {
            let doctor = lab.weft(node, &["doctor"])?;
            said = doctor.stdout.clone();
            Ok(doctor.ok() && doctor.stdout.contains("it answers probes"))
        })?;
        ensure!(well, "on {node}:\n{said}");
    }
    lab.tunnel_kill("n1")?;
    // At once: nobody has noticed anything yet.
    for node in ["n1", "n2"] {
        let doctor = lab.weft(node, &["doctor"])?;
        let line = doctor.stdout.lines().find(|line| line.contains("peer n"));
        let line = line.unwrap_or_default();
        ensure!(!doctor.ok() && line.starts_with("WRONG"), "on {node}:\n{}", doctor.stdout);
        ensure!(!line.contains("it answers probes"), "on {node}: {line}");
    }
    let before = lab.weft("n1", &["key", "rotate"])?;
    ensure!(
        !before.ok() && before.stderr.contains("no new key is made"),
        "{}{}",
        before.stdout,
        before.stderr
    );
    lab.down()
}
