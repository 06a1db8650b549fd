// SPDX-License-Identifier: Apache-2.0
//! `GET /v1/doctor`: everything that decides whether packets arrive, each with what was found.

use std::time::Duration;

use ebpf_abi::Counter;
use netd_api::{DoctorCheck, DoctorReply, PeerInfo, Status, Verdict};
use netd_host::{Host, Nft, Underlay, UnderlayNow};
use netd_plan::BackendKind;
use netd_wireguard::DeviceKind;

use crate::args::WireguardKind;
use crate::attach::fast_path;
use crate::desired;
use crate::dns;
use crate::members;
use crate::mtu::{Answer, ProbedPath};
use crate::node::{Node, lock, now_ms};
use crate::overlay;
use crate::services;
use crate::{status, tunnel};

/// Sessions of WireGuard end after so long without a new handshake, in seconds (REJECT_AFTER_TIME, WireGuard paper 6.1).
const SESSION_SECS: u64 = 180;

/// Three questions of the full size and one of the least may be lost before a peer counts as silent, each after 1 s.
const ANSWER_WAIT: Duration = Duration::from_millis(4_500);
/// How often it is looked whether all have answered.
const LOOK_EVERY: Duration = Duration::from_millis(20);

const HANDSHAKE_HINT: &str =
    "do UDP packets get through both ways, and have both nodes the same preshared key (wireguard-psk-file)?";

/// Looks at everything, now.
pub(crate) async fn examine(node: &Node) -> DoctorReply {
    let asked_ms = ask_peers(node).await;
    // Whoever answered has shaken hands, and is to be seen so.
    tunnel::look(node).await;
    let status = status::status(node);
    let mut checks = Checks::default();
    checks.node(&status);
    checks.configuration(node);
    checks.underlay(node, &status).await;
    checks.wireguard(node);
    for peer in &status.overlay.peers {
        checks.peer(node, peer, asked_ms);
    }
    if let Some((verdict, text)) = members::check(node) {
        checks.say(verdict, "members", text);
    }
    checks.pods(node);
    checks.services(node);
    let (verdict, text) = dns::check(node);
    checks.say(verdict, "names", text);
    for (verdict, text) in dns::check_outside(node) {
        checks.say(verdict, "names outside", text);
    }
    checks.kernel(&status);
    checks.drops(node).await;
    DoctorReply { checks: checks.0 }
}

/// The ports that the kernel chooses from for sockets that ask for none, of both families.
const LOCAL_PORTS: &str = "net.ipv4.ip_local_port_range";
/// The widest range that services take source ports from.
const SNAT_PORTS: (u16, u16) = (1_024, 29_999);

/// Something had no room, or was not understood.
const NOTEWORTHY: [Counter; 5] = [
    Counter::SocketsFull,
    Counter::CtFull,
    Counter::SnatPortExhausted,
    Counter::FragmentUnknown,
    Counter::NoRoute,
];

/// Asks every live peer now, and waits for their answers; when that was, in milliseconds since the Unix epoch.
async fn ask_peers(node: &Node) -> u64 {
    let asked_ms = now_ms();
    let missing = || {
        let (view, probed, overlay) = (node.view.load(), node.probed.load(), node.overlay.load());
        let answered = |path: &ProbedPath| matches!(path.answer, Answer::At(at) if at >= asked_ms);
        let reached = overlay.plan.peers.iter().filter(|(_, choice)| choice.path.is_some());
        let mut asked = reached.filter(|(uuid, _)| view.alive.contains(uuid));
        node.config.mtu_probe_ms.is_some() && asked.any(|(uuid, _)| !probed.get(uuid).is_some_and(answered))
    };
    node.probe_wake.notify_one();
    let answered = async {
        while missing() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    // Who has not answered by then is told of.
    let _ = tokio::time::timeout(ANSWER_WAIT, answered).await;
    asked_ms
}

#[derive(Default)]
struct Checks(Vec<DoctorCheck>);

impl Checks {
    fn say(&mut self, verdict: Verdict, about: impl Into<String>, text: impl Into<String>) {
        self.0.push(DoctorCheck { verdict, about: about.into(), text: text.into() });
    }

    fn node(&mut self, status: &Status) {
        if status.ready {
            self.say(Verdict::Ok, "node", format!("{} is ready", status.node.name));
        }
        for reason in &status.reasons {
            self.say(Verdict::Wrong, "node", reason);
        }
        let store = &status.store;
        if store.connected && store.in_sync {
            self.say(Verdict::Ok, "store", format!("in sync at revision {}", store.revision));
        } else {
            let why = store.last_error.as_deref().unwrap_or("no answer yet");
            self.say(
                Verdict::Wrong,
                "store",
                format!("not in sync, last known revision {}: {why}", store.revision),
            );
        }
    }

    /// What this node was told of the cluster and is not so.
    fn configuration(&mut self, node: &Node) {
        let view = node.view.load();
        if view.configured {
            for line in desired::not_in_force(&node.config, &view.config, &view.pod_cidrs()) {
                self.say(Verdict::Note, "configuration", line);
            }
        }
    }

    async fn underlay(&mut self, node: &Node, status: &Status) {
        let (underlay, now) = (node.underlay.load_full(), node.overlay.load());
        // As the kernel has it, whatever netd believes.
        let found = match Host::open() {
            Ok(host) => host.underlay_now(&underlay).await,
            Err(error) => Err(error),
        };
        let (verdict, text) = match found {
            Ok(found) => {
                let (verdict, text) = underlay_check(&underlay, &found, now.underlay_mtu);
                (verdict, format!("{text}; chosen because {}", underlay.reason))
            }
            Err(error) => (Verdict::Wrong, format!("{}: {error}", underlay.address)),
        };
        self.say(verdict, "underlay", text);
        let up: Vec<String> = now.up.iter().map(ToString::to_string).collect();
        let up = if up.is_empty() { "nothing".to_owned() } else { up.join(", ") };
        let text =
            format!("the cluster wants {}; up here: {up}; MTU of pods {}", status.overlay.backend, now.mtu);
        self.say(Verdict::Ok, "overlay", text);
    }

    fn wireguard(&mut self, node: &Node) {
        if !node.overlay.load().keeps(BackendKind::Wireguard) {
            return;
        }
        let place = match node.tunnel.kind {
            DeviceKind::Kernel => "in the kernel",
            DeviceKind::User => "in weft-wireguard",
        };
        let why = match (node.config.wireguard_device, node.tunnel.kind) {
            (WireguardKind::Auto, DeviceKind::Kernel) => "the kernel has WireGuard",
            (WireguardKind::Auto, DeviceKind::User) => "the kernel has no WireGuard",
            (WireguardKind::Kernel | WireguardKind::User, _) => "so it is configured",
        };
        let tunnel = node.tunnel.state.load();
        for error in &tunnel.errors {
            self.say(Verdict::Wrong, "wireguard", format!("{place} ({why}): {error}"));
        }
        for key in &tunnel.keys {
            let device = netd_plan::wireguard_device(key.generation);
            let text = format!(
                "{device} {place} ({why}), port {}, keys of generation {}, public key {}",
                key.port, key.generation, key.public
            );
            self.say(Verdict::Ok, "wireguard", text);
        }
    }

    fn peer(&mut self, node: &Node, peer: &PeerInfo, asked_ms: u64) {
        let (view, now) = (node.view.load(), node.overlay.load());
        let facts = view.peers(node.uuid).into_iter().find(|facts| facts.uuid == peer.uuid);
        let path = now.plan.peers.get(&peer.uuid).and_then(|choice| choice.path);
        let ends_mtu = facts.map(|facts| overlay::ends_mtu(&view, &now, &facts, path));
        let seen = PeerSeen {
            alive: view.alive.contains(&peer.uuid),
            keepalive: node.config.wireguard_keepalive_secs > 0,
            ends_mtu,
            probed: node.probed.load().get(&peer.uuid).copied(),
            asked_ms,
            device_answers: node.tunnel.state.load().answers,
        };
        let (verdict, text) = peer_check(peer, &seen);
        self.say(verdict, format!("peer {}", peer.name), text);
    }

    fn pods(&mut self, node: &Node) {
        let attachments = lock(&node.attachments).all();
        let count = attachments.len();
        let mut slow = 0;
        for attachment in attachments {
            if let Err(why) = fast_path(node, &attachment) {
                slow += 1;
                let about = format!("pod {}/{}", attachment.namespace, attachment.name);
                self.say(Verdict::Note, about, format!("its packets take the host's stack: {why}"));
            }
        }
        self.say(
            Verdict::Ok,
            "pods",
            format!("{count} on this node, {} of them on the fast path", count - slow),
        );
    }

    fn kernel(&mut self, status: &Status) {
        for item in &status.pending {
            let text = format!("{} (tried {} times)", item.error, item.retries);
            self.say(Verdict::Wrong, format!("not applied: {}", item.object), text);
        }
        for bad in &status.bad_values {
            self.say(Verdict::Wrong, format!("store value {}", bad.key), &bad.reason);
        }
    }

    /// How the world reaches services, and what of them does not fit.
    fn services(&mut self, node: &Node) {
        let view = node.view.load();
        let devices = match &node.config.services.devices {
            None => vec![node.underlay.load().device.clone()],
            Some(devices) => devices.clone(),
        };
        for device in devices.iter().filter(|device| netd_host::interface_index(device).is_none()) {
            let text =
                format!("{device}, which service-devices names, is not there: nobody reaches services by it");
            self.say(Verdict::Wrong, "services", text);
        }
        let (left_out, fills, counters) = tokio::task::block_in_place(|| {
            let left_out = lock(&node.services).compiler().capacity().len();
            let datapath = lock(&node.datapath);
            (left_out, datapath.conntrack_fill(), datapath.packet_counters().unwrap_or_default())
        });
        let by = if devices.is_empty() { "no device".to_owned() } else { devices.join(", ") };
        let text = format!(
            "{} services; from outside by {by}, node ports {} on {} addresses",
            view.table.services.len(),
            view.config.node_port_range,
            node.local_addresses.load().len()
        );
        self.say(Verdict::Ok, "services", text);
        if left_out > 0 {
            let text =
                format!("{left_out} do not fit into the maps whole: see service-frontends-max and its like");
            self.say(Verdict::Wrong, "services", text);
        }
        if let Some(text) = local_ports() {
            self.say(Verdict::Note, "services", text);
        }
        for (fill, flows) in fills.iter().zip(["established", "half-open"]) {
            if fill.max_entries > 0
                && fill.entries * 100 >= fill.max_entries as usize * services::PRESSURE_PERCENT
            {
                let text =
                    format!("conntrack holds {} of {} {flows} entries", fill.entries, fill.max_entries);
                self.say(Verdict::Note, "services", format!("{text}: the least recently used ones go"));
            }
        }
        for counter in NOTEWORTHY {
            let count = counters.get(&counter).copied().unwrap_or(0);
            if count > 0 {
                self.say(Verdict::Note, "services", format!("{count} times {}", counter.name()));
            }
        }
    }

    /// What was dropped on purpose since the table and the maps were made.
    async fn drops(&mut self, node: &Node) {
        let counted = match Nft::find() {
            Ok(nft) => nft.counters().await,
            Err(error) => Err(error),
        };
        match counted {
            Ok(counters) => {
                for (name, packets) in counters.into_iter().filter(|(_, packets)| *packets > 0) {
                    self.say(
                        Verdict::Note,
                        "drops",
                        format!("{packets} packets by the rule {name} of nft's table"),
                    );
                }
            }
            Err(error) => self.say(Verdict::Wrong, "drops", error.to_string()),
        }
        let drops = tokio::task::block_in_place(|| lock(&node.datapath).drops());
        match drops {
            Ok(drops) => {
                for (reason, packets) in drops.into_iter().filter(|(_, packets)| *packets > 0) {
                    let text = format!("{packets} packets of pods by their program: {}", reason.name());
                    self.say(Verdict::Note, "drops", text);
                }
            }
            Err(error) => self.say(Verdict::Wrong, "drops", error.to_string()),
        }
    }
}

/// Ports that a process gets by itself, and that the programs give out as source ports, too, as far as there are any: an answer
/// to this node's own address may then belong to either.
pub(crate) fn local_ports() -> Option<String> {
    shared_ports(&netd_host::read_sysctl(LOCAL_PORTS).ok()?, SNAT_PORTS)
}

/// `range` is what the sysctl says: first and last port.
fn shared_ports(range: &str, (first, last): (u16, u16)) -> Option<String> {
    let mut words = range.split_whitespace().map(str::parse::<u16>);
    let (Some(Ok(low)), Some(Ok(high))) = (words.next(), words.next()) else { return None };
    let (from, to) = (low.max(first), high.min(last));
    (from <= to).then(|| {
        format!(
            "processes of this host get ports {from} to {to} ({LOCAL_PORTS} = {low} {high}), which services take as source \
             ports, too: connections between the same addresses may clash; set {LOCAL_PORTS} to {} 60999",
            u32::from(last) + 1
        )
    })
}

/// What is known of a peer beside its status.
struct PeerSeen {
    alive: bool,
    /// Handshakes are renewed also while nobody speaks.
    keepalive: bool,
    ends_mtu: Option<u32>,
    probed: Option<ProbedPath>,
    /// When it was asked for this report, in milliseconds since the Unix epoch.
    asked_ms: u64,
    /// This node's own WireGuard device does.
    device_answers: bool,
}

fn underlay_check(underlay: &Underlay, found: &UnderlayNow, known_mtu: u32) -> (Verdict, String) {
    let text = format!("{} on {}, MTU {}", underlay.address, underlay.device, found.mtu);
    match found {
        UnderlayNow { has_address: false, .. } => {
            (Verdict::Wrong, format!("{} is not on {} any more", underlay.address, underlay.device))
        }
        UnderlayNow { is_up: false, .. } => {
            (Verdict::Wrong, format!("{text}, and {} is down", underlay.device))
        }
        UnderlayNow { mtu, .. } if *mtu != known_mtu => {
            (Verdict::Note, format!("{text}, of late: {known_mtu} is still counted with"))
        }
        _ => (Verdict::Ok, text),
    }
}

/// One line with all of it, and whether it is well.
fn peer_check(peer: &PeerInfo, seen: &PeerSeen) -> (Verdict, String) {
    let mut wrong = Vec::new();
    let mut parts = vec![match &peer.path {
        Some(path) => format!("reached by {path}"),
        None => "no way to it".to_owned(),
    }];
    if !seen.alive {
        wrong.push("its lease is gone: is netd running there?".to_owned());
    }
    wrong.extend(peer.problem.clone());
    let mut noteworthy = false;
    let by_tunnel = peer.path.as_deref() == Some("wireguard");
    let newest = peer.tunnels.iter().filter_map(|tunnel| tunnel.handshake_secs).min();
    for tunnel in &peer.tunnels {
        let endpoint = match tunnel.endpoint {
            Some(endpoint) if endpoint.ip() != peer.underlay => {
                format!("{endpoint} (it publishes {}: it is behind a NAT, or has moved)", peer.underlay)
            }
            Some(endpoint) => endpoint.to_string(),
            None => "an endpoint that is not known yet".to_owned(),
        };
        let handshake = tunnel
            .handshake_secs
            .map_or_else(|| "no handshake yet".to_owned(), |secs| format!("handshake {secs} s ago"));
        parts.push(format!("{} at {endpoint}, {handshake}", tunnel.device));
    }
    if peer.tunnels.is_empty() {
        parts.push(format!("at {}", peer.underlay));
    }
    match newest {
        _ if by_tunnel && !seen.device_answers => {
            wrong.push("this node's WireGuard device does not answer".to_owned());
        }
        None if by_tunnel => wrong.push(format!("no handshake: {HANDSHAKE_HINT}")),
        Some(secs) if by_tunnel && seen.keepalive && secs > SESSION_SECS => {
            wrong.push(format!("the handshake is too old: {HANDSHAKE_HINT}"));
        }
        _ => {}
    }
    if let Some(mtu) = peer.mtu {
        match seen.ends_mtu {
            Some(ends) if mtu < ends => {
                noteworthy = true;
                parts.push(format!(
                    "MTU {mtu}, found by probes: both ends take {ends}, something between drops more"
                ));
            }
            _ => parts.push(format!("MTU {mtu}")),
        }
    }
    let age = |at: u64| seen.asked_ms.saturating_sub(at) / 1_000;
    match seen.probed.map(|probed| probed.answer) {
        Some(Answer::At(at)) if at >= seen.asked_ms => parts.push("it answers probes".to_owned()),
        Some(Answer::At(at)) if seen.alive => {
            wrong.push(format!(
                "it does not answer probes through the overlay; the last answer came {} s ago",
                age(at)
            ));
        }
        Some(_) if seen.alive => wrong.push("it does not answer probes through the overlay".to_owned()),
        _ => {}
    }
    let verdict = match (wrong.is_empty(), noteworthy) {
        (false, _) => Verdict::Wrong,
        (true, true) => Verdict::Note,
        (true, false) => Verdict::Ok,
    };
    wrong.extend(parts);
    (verdict, wrong.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED_MS: u64 = 1_000_000;

    fn peer(path: Option<&str>, handshake_secs: Option<u64>) -> PeerInfo {
        serde_json::from_value(serde_json::json!({
            "uuid": "6f1c1b4e-0000-4000-8000-000000000002", "name": "n2", "underlay": "192.0.2.2",
            "path": path, "mtu": path.map(|_| 1440), "tunnels": [
                {"generation": 2, "device": "weft.wg0", "endpoint": "192.0.2.2:51820",
                 "handshake_secs": handshake_secs, "rx_bytes": 1, "tx_bytes": 1}],
        }))
        .unwrap()
    }

    fn seen(answers: bool) -> PeerSeen {
        seen_as(if answers { Answer::At(ASKED_MS + 2) } else { Answer::Silent })
    }

    fn seen_as(answer: Answer) -> PeerSeen {
        let probed = Some(ProbedPath { mtu: 1440, answer });
        let (alive, keepalive, device_answers) = (true, true, true);
        PeerSeen { alive, keepalive, ends_mtu: Some(1440), probed, asked_ms: ASKED_MS, device_answers }
    }

    #[test]
    fn a_peer_that_answers_is_well() {
        let (verdict, text) = peer_check(&peer(Some("wireguard"), Some(12)), &seen(true));
        assert_eq!(verdict, Verdict::Ok);
        assert_eq!(
            text,
            "reached by wireguard; weft.wg0 at 192.0.2.2:51820, handshake 12 s ago; MTU 1440; it answers probes"
        );
    }

    #[test]
    fn what_is_wrong_comes_first() {
        let starts = |peer: &PeerInfo, seen: &PeerSeen, with: &str| {
            let (verdict, text) = peer_check(peer, seen);
            assert!(verdict == Verdict::Wrong && text.starts_with(with), "{verdict:?} {text}");
        };
        starts(&peer(Some("wireguard"), None), &seen(true), "no handshake");
        let (_, text) = peer_check(&peer(Some("wireguard"), None), &seen(true));
        assert!(text.contains("wireguard-psk-file"), "another secret looks like a firewall: {text}");
        starts(&peer(Some("wireguard"), Some(181)), &seen(true), "the handshake is too old");
        starts(&peer(Some("wireguard"), Some(1)), &seen(false), "it does not answer");
        let tunnel = peer(Some("wireguard"), Some(1));
        starts(&tunnel, &seen_as(Answer::Awaited), "it does not answer");
        starts(
            &tunnel,
            &seen_as(Answer::At(ASKED_MS - 40_000)),
            "it does not answer probes through the overlay; the last answer came 40 s ago",
        );
        let dead = PeerSeen { device_answers: false, ..seen(true) };
        starts(&tunnel, &dead, "this node's WireGuard device does not answer");
        starts(
            &peer(Some("wireguard"), Some(1)),
            &PeerSeen { alive: false, ..seen(true) },
            "its lease is gone",
        );
        let refused = PeerInfo { problem: Some("not on the link".into()), ..peer(None, None) };
        starts(&refused, &PeerSeen { probed: None, ..seen(true) }, "not on the link");
    }

    #[test]
    fn an_underlay_is_what_the_kernel_has() {
        let underlay = Underlay {
            address: "192.0.2.1".parse().unwrap(),
            device: "eth0".into(),
            mtu: 1500,
            reason: String::new(),
        };
        let found = UnderlayNow { mtu: 1500, is_up: true, has_address: true, subnets: Vec::new() };
        let check = |found: UnderlayNow| underlay_check(&underlay, &found, 1500);
        assert_eq!(check(found.clone()), (Verdict::Ok, "192.0.2.1 on eth0, MTU 1500".to_owned()));
        let (verdict, text) = check(UnderlayNow { has_address: false, ..found.clone() });
        assert_eq!((verdict, text.as_str()), (Verdict::Wrong, "192.0.2.1 is not on eth0 any more"));
        assert_eq!(check(UnderlayNow { is_up: false, ..found.clone() }).0, Verdict::Wrong);
        let (verdict, text) = check(UnderlayNow { mtu: 1400, ..found });
        assert!(verdict == Verdict::Note && text.contains("MTU 1400, of late: 1500"), "{text}");
    }

    #[test]
    fn ports_that_are_given_out_twice_are_told() {
        let told = |range: &str| shared_ports(range, SNAT_PORTS);
        assert_eq!(told("32768\t60999\n"), None, "as the kernel has it by itself");
        assert_eq!(told("30000 60999"), None);
        assert!(told("1024\t65535\n").unwrap().contains("ports 1024 to 29999"));
        let text = told("29999 60999").unwrap();
        assert!(text.contains("ports 29999 to 29999") && text.ends_with("to 30000 60999"), "{text}");
        assert!(told("1 1024").unwrap().contains("ports 1024 to 1024"));
        assert_eq!(told(""), None, "what does not read tells nothing");
    }

    #[test]
    fn a_narrow_way_and_a_nat_are_told() {
        let narrow = PeerInfo { mtu: Some(1336), ..peer(Some("wireguard"), Some(1)) };
        let (verdict, text) = peer_check(&narrow, &seen(true));
        assert!(
            verdict == Verdict::Note && text.contains("MTU 1336, found by probes: both ends take 1440"),
            "{text}"
        );
        let mut behind = peer(Some("wireguard"), Some(1));
        behind.tunnels[0].endpoint = Some("198.51.100.7:40000".parse().unwrap());
        let (verdict, text) = peer_check(&behind, &seen(true));
        assert!(verdict == Verdict::Ok && text.contains("it publishes 192.0.2.2"), "{text}");
    }
}
