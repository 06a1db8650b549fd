// SPDX-License-Identifier: Apache-2.0
//! The encrypted overlay, part 1: devices in user space that `wg` knows, tunnels that outlive netd, a weft-wireguard that is
//! replaced while it runs. What the other parts share is here, too.

use crate::{have, lab_with};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use weft_lab::{Lab, Pod, PodSpec, Progress, Running, TUNNEL_DEVICES, UpOptions, sibling, wait_until};

/// Packets between the devices of nodes.
pub(crate) const TUNNEL: &str = "udp portrange 51820-51821";
/// What every server says first: found in a packet, it was readable.
pub(crate) const GREETING: &str = "unmistakable";
/// A handshake that goes unanswered is repeated after 5 s; this is three of them.
pub(crate) const FLOW_LIMIT: Duration = Duration::from_secs(15);
pub(crate) const PORT: u16 = 8080;
/// A key in base64.
const KEY_LEN: usize = 44;
const PING_EVERY_SECS: &str = "0.01";
/// Twenty minutes of them: no story takes longer.
const PINGS_MAX: u32 = 120_000;
const PING_LIMIT: Duration = Duration::from_secs(20);
/// netd looks at its devices every 5 s while nothing moves, and waits 3 s for an answer.
const LOOK_LIMIT: Duration = Duration::from_secs(20);
/// In two pauses as long as a transfer's may be.
const HANDOVER_LOST_MAX: usize = 2 * PAUSE_MS_MAX as usize / 10;
/// Handshakes of both nodes after their handovers; far below what a TCP connection takes as its end.
pub(crate) const PAUSE_MS_MAX: u64 = 5000;

/// A lab whose nodes talk through WireGuard in user space; two nodes unless `change` says otherwise.
pub(crate) fn wireguard_lab(story: &str, change: impl FnOnce(&mut UpOptions)) -> Result<Option<Lab>> {
    if sibling("weft-wireguard").is_err() {
        println!("SKIP {story}: weft-wireguard is not built");
        return Ok(None);
    }
    if !have("tcpdump", story) || !have("wg", story) {
        return Ok(None);
    }
    let mut options = UpOptions {
        nodes: 2,
        overlay: "wireguard".into(),
        netd_args: vec!["--wireguard-device".into(), "user".into()],
        ..UpOptions::new(&Lab::unique_name(story))
    };
    change(&mut options);
    lab_with(options)
}

/// A client and a server that talk through a tunnel.
pub(crate) struct Pair {
    pub(crate) client: Pod,
    pub(crate) server: Pod,
    _serving: Running,
}

impl Pair {
    /// Pods `client` and `server` on these nodes, once the client reaches each address of the server.
    pub(crate) fn on(lab: &Lab, client: &str, server: &str) -> Result<Pair> {
        let client = lab.pod_add(&PodSpec::new(client, "client"))?;
        let server = lab.pod_add(&PodSpec::new(server, "server"))?;
        let serving = lab.serve("server", GREETING, &[PORT], &[PORT])?;
        let pair = Pair { client, server, _serving: serving };
        for to in pair.to() {
            reach(lab, "client", &to)?;
        }
        Ok(pair)
    }

    /// The server's port, at each of its addresses.
    pub(crate) fn to(&self) -> Vec<String> {
        self.server.ips.iter().map(|ip| SocketAddr::new(*ip, PORT).to_string()).collect()
    }
}

/// Waits until a connection succeeds; how long it took.
pub(crate) fn reach(lab: &Lab, from: &str, to: &str) -> Result<Duration> {
    let started = Instant::now();
    let reached = wait_until(FLOW_LIMIT, || {
        Ok(lab.probe(from, &["--to", to, "--count", "1", "--timeout", "500ms"])?.all_ok())
    })?;
    ensure!(reached, "{from} does not reach {to} in {FLOW_LIMIT:?}: {}", state_of_tunnels(lab)?);
    Ok(started.elapsed())
}

/// Connects twenty times, all of which must succeed.
pub(crate) fn connect(lab: &Lab, from: &str, to: &str) -> Result<()> {
    let report = lab.probe(from, &["--to", to, "--count", "20"])?;
    ensure!(report.all_ok(), "{from} to {to}: {} of 20 ({})", report.ok, report.failures());
    Ok(())
}

/// Nothing gets through.
pub(crate) fn silent(lab: &Lab, from: &str, to: &str) -> Result<()> {
    let report = lab.probe(from, &["--to", to, "--count", "2", "--timeout", "400ms"])?;
    ensure!(report.ok == 0, "{from} reaches {to}: {} of 2", report.ok);
    Ok(())
}

/// A transfer that must be going on.
pub(crate) fn progress(transfer: &mut Running) -> Result<Progress> {
    // What waits in the pipe is the past.
    transfer.lines();
    let line = transfer.wait_line(Duration::from_secs(10)).context("the transfer")?;
    ensure!(transfer.alive(), "the transfer ended: {}", transfer.errors().join(" "));
    Ok(serde_json::from_str(&line)?)
}

/// What `wg show all WHAT` says on a node: device and peer, and the value.
pub(crate) fn wg(lab: &Lab, node: &str, what: &str) -> Result<BTreeMap<(String, String), String>> {
    let text = lab.exec(node, &["wg", "show", "all", what])?.text("wg show")?;
    // wg names a device at its first peer only, and one without peers just before the next.
    let is_key = |word: &str| word.len() == KEY_LEN && word.ends_with('=');
    let mut device = String::new();
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split('\t').skip_while(|word| {
            let skipped = !is_key(word);
            if skipped {
                device = (*word).to_owned();
            }
            skipped
        });
        let Some(peer) = words.next().map(str::to_owned) else { continue };
        let value: Vec<&str> = words.collect();
        found.insert((device.clone(), peer), value.join("\t"));
    }
    Ok(found)
}

/// Seconds since the epoch of the newest handshake of a node; 0 when there was none.
pub(crate) fn newest_handshake(lab: &Lab, node: &str) -> Result<u64> {
    Ok(wg(lab, node, "latest-handshakes")?.values().filter_map(|at| at.parse().ok()).max().unwrap_or(0))
}

fn state_of_tunnels(lab: &Lab) -> Result<String> {
    let mut all = String::new();
    for node in lab.state()?.nodes {
        let shown = lab.exec(&node.name, &["wg", "show", "all"])?;
        all += &format!(
            "\n--- {}: {}{}\n{}",
            node.name,
            shown.stdout,
            shown.stderr,
            lab.tunnel_log(&node.name, 5)?
        );
    }
    Ok(all)
}

/// Index of each tunnel device of a node: one that was made anew has another.
fn devices(lab: &Lab, node: &str) -> Result<BTreeMap<String, u64>> {
    let links: Vec<Value> = lab.exec(node, &["ip", "-j", "link"])?.json("ip link")?;
    let index = |link: &Value| Some((link["ifname"].as_str()?.to_owned(), link["ifindex"].as_u64()?));
    let all: BTreeMap<_, _> = links.iter().filter_map(index).collect();
    Ok(all.into_iter().filter(|(name, _)| TUNNEL_DEVICES.contains(&name.as_str())).collect())
}

/// Pings that run while something happens.
pub(crate) struct Pings {
    running: Running,
    answered: BTreeSet<u32>,
}

/// What became of pings.
pub(crate) struct Loss {
    pub(crate) lost: usize,
    pub(crate) sent: usize,
}

impl Pings {
    /// A hundred in a second, until they are counted.
    pub(crate) fn start(lab: &Lab, pair: &Pair) -> Result<Pings> {
        let (to, most) = (pair.server.ips[0].to_string(), PINGS_MAX.to_string());
        let running = lab.spawn("client", &["ping", "-i", PING_EVERY_SECS, "-c", &most, &to])?;
        let mut pings = Pings { running, answered: BTreeSet::new() };
        ensure!(pings.one_more()?, "no ping is answered: {}", pings.running.errors().join(" "));
        Ok(pings)
    }

    /// How many went unanswered between the first answer and one that comes now.
    pub(crate) fn lost(mut self) -> Result<Loss> {
        self.read();
        ensure!(self.running.alive(), "the pings ended before that which they were to see");
        ensure!(
            self.one_more()?,
            "no ping is answered any more; the last answered was {:?}",
            self.answered.last()
        );
        let (first, last) = (self.answered.first().context("first")?, self.answered.last().context("last")?);
        let sent = (last - first + 1) as usize;
        Ok(Loss { lost: sent - self.answered.len(), sent })
    }

    fn one_more(&mut self) -> Result<bool> {
        let before = self.answered.last().copied();
        wait_until(PING_LIMIT, || {
            self.read();
            Ok(self.answered.last().copied() > before)
        })
    }

    /// `64 bytes from 10.244.1.3: icmp_seq=12 ttl=62 time=0.3 ms`
    fn read(&mut self) {
        for line in self.running.lines() {
            let number = line.split("icmp_seq=").nth(1).and_then(|rest| rest.split(' ').next());
            self.answered
                .extend(number.filter(|_| line.contains("time=")).and_then(|n| n.parse::<u32>().ok()));
        }
    }
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} pings, one each {PING_EVERY_SECS} s", self.lost, self.sent)
    }
}

#[test]
fn part_1_pods_talk_through_devices_that_wg_shows() -> Result<()> {
    let Some(lab) = wireguard_lab("wg", |_| {})? else { return Ok(()) };
    let capture = lab.capture("")?;
    let pair = Pair::on(&lab, "n1", "n2")?;
    let to = &pair.to()[0];
    connect(&lab, "client", to)?;
    connect(&lab, "n1", to)?;
    let packets = capture.stop()?;
    let sealed = packets.count(TUNNEL)?;
    ensure!(sealed >= 2 * 20 * 5, "only {sealed} packets between the devices");
    ensure!(packets.count("net 10.244.0.0/16")? == 0, "{}", packets.print("net 10.244.0.0/16")?);
    ensure!(packets.holding(GREETING.as_bytes())? == 0, "the greeting can be read on the underlay");
    for node in ["n1", "n2"] {
        let devices = devices(&lab, node)?;
        ensure!(devices.keys().eq(&TUNNEL_DEVICES), "{node}: {devices:?}");
        ensure!(newest_handshake(&lab, node)? > 0, "{node}: wg shows no handshake");
        let moved = wg(&lab, node, "transfer")?;
        let both = |value: &String| value.split('\t').all(|bytes| bytes.parse().is_ok_and(|n: u64| n > 0));
        ensure!(moved.values().any(both), "{node}: {moved:?}");
        // What netd shows of its devices is some seconds old while nothing moves.
        let mut peers = Vec::new();
        let shown = wait_until(LOOK_LIMIT, || {
            peers = lab.status(node)?.overlay.peers;
            let [peer] = &peers[..] else { return Ok(false) };
            let shaken = peer.tunnels.iter().any(|tunnel| tunnel.handshake_secs.is_some());
            Ok(shaken && peer.path.as_deref() == Some("wireguard"))
        })?;
        ensure!(shown, "{node}: {peers:?}");
    }
    lab.down()
}

/// Without it, that nothing was seen would say nothing.
#[test]
fn part_1_what_is_in_the_clear_is_seen_by_the_witnesses() -> Result<()> {
    let Some(lab) = wireguard_lab("seen", |options| options.overlay = "vxlan".into())? else { return Ok(()) };
    let (capture, witness) = (lab.capture("")?, lab.witness()?);
    let pair = Pair::on(&lab, "n1", "n2")?;
    connect(&lab, "client", &pair.to()[0])?;
    let packets = capture.stop()?;
    ensure!(packets.holding(GREETING.as_bytes())? > 0, "VXLAN hides what is inside");
    ensure!(packets.count(TUNNEL)? == 0, "packets of WireGuard in a lab without");
    let node = lab.state()?.node("n2")?.underlay_ip.to_string();
    let pod = pair.server.ips[0].to_string();
    lab.exec("outside", &["ip", "route", "add", &pod, "via", &node])?.text("ip route")?;
    lab.exec("outside", &["ping", "-c1", "-W1", &pod])?;
    let clear = witness.stop()?;
    ensure!(
        clear.packets > 0 && clear.lines.contains(&pod),
        "an address in the clear was not seen: {clear:?}"
    );
    lab.down()
}

#[test]
fn part_1_netd_killed_and_restarted_costs_no_packet() -> Result<()> {
    let Some(lab) = wireguard_lab("wgkill", |_| {})? else { return Ok(()) };
    let pair = Pair::on(&lab, "n1", "n2")?;
    let pings = Pings::start(&lab, &pair)?;
    for node in ["n1", "n2"] {
        lab.node_kill(node)?;
        lab.node_start(node)?;
    }
    lab.node_stop("n1")?;
    lab.node_start("n1")?;
    let loss = pings.lost()?;
    ensure!(loss.lost == 0, "lost: {loss}");
    lab.down()
}

#[test]
fn part_1_a_second_weft_wireguard_takes_over() -> Result<()> {
    let Some(lab) = wireguard_lab("handover", |_| {})? else { return Ok(()) };
    let pair = Pair::on(&lab, "n1", "n2")?;
    let mut transfer = lab.stream("client", &pair.to()[0], Duration::from_secs(120))?;
    let before = progress(&mut transfer)?;
    let pings = Pings::start(&lab, &pair)?;
    for node in ["n1", "n2"] {
        let (old, links) = (lab.state()?.node(node)?.tunnel, devices(&lab, node)?);
        let peers: Vec<_> = wg(&lab, node, "allowed-ips")?.into_iter().collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        lab.tunnel_restart(node)?;
        let new = lab.state()?.node(node)?.tunnel;
        ensure!(old.is_some() && new.is_some() && old != new, "{node}: {old:?} became {new:?}");
        ensure!(devices(&lab, node)? == links, "{node}: the devices were made anew");
        let now_peers: Vec<_> = wg(&lab, node, "allowed-ips")?.into_iter().collect();
        ensure!(now_peers == peers, "{node}: {peers:?} became {now_peers:?}");
        let renewed = wait_until(FLOW_LIMIT, || Ok(newest_handshake(&lab, node)? >= now))?;
        ensure!(renewed, "{node}: no handshake after the handover:\n{}", lab.tunnel_log(node, 10)?);
    }
    let loss = pings.lost()?;
    let after = progress(&mut transfer)?;
    println!("handover of both ends: lost {loss}; longest pause of a transfer {} ms", after.longest_pause_ms);
    ensure!(loss.lost <= HANDOVER_LOST_MAX, "lost: {loss}");
    ensure!(after.bytes > before.bytes, "the transfer stands still at {} bytes", after.bytes);
    ensure!(after.longest_pause_ms <= PAUSE_MS_MAX, "the transfer paused {} ms", after.longest_pause_ms);
    lab.down()
}

#[test]
fn part_1_a_dead_weft_wireguard_leaves_device_and_routes_and_comes_back() -> Result<()> {
    let Some(lab) = wireguard_lab("dead", |_| {})? else { return Ok(()) };
    let pair = Pair::on(&lab, "n1", "n2")?;
    let to = &pair.to()[0];
    // A device that nobody runs has no carrier; the routes say so, and lead there all the same.
    let routes = || {
        let shown =
            lab.exec("n1", &["ip", "route", "show", "table", "all", "proto", "157"])?.text("ip route");
        let lead = |shown: String| -> Vec<String> {
            // Where probes went unanswered for a while, a smaller MTU may stand on a route; a pod's gets its source with the
            // agent's next pass.
            let way = |line: &str| {
                line.split(" mtu ")
                    .next()
                    .and_then(|line| line.split(" src ").next())
                    .map(|way| way.replace(" linkdown", ""))
            };
            shown.lines().filter_map(way).map(|way| way.trim().to_owned()).collect()
        };
        shown.map(lead)
    };
    let (links, before) = (devices(&lab, "n1")?, routes()?);
    for _ in 0..2 {
        lab.tunnel_kill("n1")?;
        silent(&lab, "client", to)?;
        // Only when netd has seen it: before, nothing could have changed.
        let mut reasons = Vec::new();
        let told = wait_until(LOOK_LIMIT, || {
            let status = lab.status("n1")?;
            reasons = status.reasons;
            Ok(reasons.iter().any(|reason| reason.contains("WireGuard does not run")))
        })?;
        ensure!(told, "netd does not say that the devices do not answer: {reasons:?}");
        ensure!(devices(&lab, "n1")? == links, "the device went with its process");
        ensure!(routes()? == before, "routes were {before:?}\nand are\n{:?}", routes()?);
        lab.tunnel_start("n1")?;
        let back = reach(&lab, "client", to)?;
        let ready = wait_until(LOOK_LIMIT, || Ok(lab.status("n1")?.ready))?;
        ensure!(ready, "n1 is not ready again: {:?}", lab.status("n1")?.reasons);
        println!("weft-wireguard killed and started: traffic flows {} ms after the start", back.as_millis());
        ensure!(devices(&lab, "n1")? == links, "the device was made anew");
        connect(&lab, "client", to)?;
    }
    lab.down()
}

#[test]
fn part_2_the_older_ways_work_with_each_other() -> Result<()> {
    let Some(lab) = wireguard_lab("older", |_| {})? else { return Ok(()) };
    let pair = Pair::on(&lab, "n1", "n2")?;
    let to = &pair.to()[0];
    let all = ["--no-tso", "--no-uso", "--no-udp-gso", "--no-udp-gro"];
    let ways: [&[&str]; 5] = [&all[..1], &all[1..2], &all[2..3], &all[3..], &all];
    for way in ways {
        lab.tunnel_args(way)?;
        lab.tunnel_restart("n1")?;
        transfer(&lab, to).with_context(|| format!("{way:?} on n1"))?;
    }
    // Both ends now have none of it.
    lab.tunnel_restart("n2")?;
    transfer(&lab, to).context("the oldest way on both nodes")?;
    lab.tunnel_args(&[])?;
    lab.tunnel_restart("n1")?;
    transfer(&lab, to).context("the oldest way on n2")?;
    lab.down()
}

/// Full-sized packets of TCP both ways, and datagrams.
pub(crate) fn transfer(lab: &Lab, to: &str) -> Result<()> {
    reach(lab, "client", to)?;
    let mut stream = lab.stream("client", to, Duration::from_millis(500))?;
    ensure!(stream.wait(Duration::from_secs(20))?, "a transfer to {to}: {}", stream.errors().join(" "));
    let report = lab.probe("client", &["--to", to, "--count", "20", "--udp"])?;
    ensure!(report.all_ok(), "datagrams to {to}: {}", report.failures());
    Ok(())
}

#[test]
fn part_3_private_keys_stay_on_the_node_for_root_only() -> Result<()> {
    if !have("etcdctl", "keys") {
        return Ok(());
    }
    let Some(lab) = wireguard_lab("keys", |_| {})? else { return Ok(()) };
    let url = lab.show()?.etcd[0].clone();
    let stored = lab.exec("n1", &["etcdctl", "--endpoints", &url, "get", "", "--prefix"])?.text("etcdctl")?;
    for node in lab.state()?.nodes {
        let folder = node.dir.join("state/wireguard");
        let mut keys = Vec::new();
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.extension().is_some_and(|end| end == "key") {
                let mode = fs::metadata(&path)?.permissions().mode() & 0o777;
                ensure!(mode == 0o600, "{}: {mode:o}", path.display());
                keys.push(
                    fs::read_to_string(&path)?.split_whitespace().next().unwrap_or_default().to_owned(),
                );
            }
        }
        ensure!(!keys.is_empty(), "{} holds no key", folder.display());
        for key in keys {
            ensure!(key.len() >= 44, "{}: a key of {} characters", node.name, key.len());
            ensure!(!stored.contains(&key), "the private key of {} is in the store", node.name);
        }
        let public = lab.exec(&node.name, &["wg", "show", "all", "public-key"])?.text("wg")?;
        let public = public.lines().filter_map(|line| line.split('\t').nth(1)).find(|key| key.len() == 44);
        ensure!(stored.contains(public.context("no public key")?), "{} is not published", node.name);
    }
    lab.down()
}
