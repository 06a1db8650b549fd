// SPDX-License-Identifier: Apache-2.0
//! `GET /v1/doctor`: everything that decides whether packets arrive, each with what was found.

use netd_api::{DoctorCheck, DoctorReply, PeerInfo, Status, Verdict};
use netd_host::Nft;
use netd_plan::BackendKind;
use netd_wireguard::DeviceKind;

use crate::args::WireguardKind;
use crate::attach::fast_path;
use crate::mtu::ProbedPath;
use crate::node::{Node, lock};
use crate::overlay;
use crate::status;

/// Sessions of WireGuard end after so long without a new handshake, in seconds (REJECT_AFTER_TIME, WireGuard paper 6.1).
const SESSION_SECS: u64 = 180;

/// Looks at everything, now.
pub(crate) async fn examine(node: &Node) -> DoctorReply {
    let status = status::status(node);
    let mut checks = Checks::default();
    checks.node(&status);
    checks.underlay(node, &status);
    checks.wireguard(node);
    for peer in &status.overlay.peers {
        checks.peer(node, peer);
    }
    checks.pods(node);
    checks.kernel(&status);
    checks.drops(node).await;
    DoctorReply { checks: checks.0 }
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

    fn underlay(&mut self, node: &Node, status: &Status) {
        let (underlay, now) = (&node.underlay, node.overlay.load());
        let text = format!(
            "{} on {}, MTU {}; chosen because {}",
            underlay.address, underlay.device, now.underlay_mtu, underlay.reason
        );
        self.say(Verdict::Ok, "underlay", text);
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

    fn peer(&mut self, node: &Node, peer: &PeerInfo) {
        let (view, now) = (node.view.load(), node.overlay.load());
        let facts = view.peers(node.uuid).into_iter().find(|facts| facts.uuid == peer.uuid);
        let path = now.plan.peers.get(&peer.uuid).and_then(|choice| choice.path);
        let ends_mtu = facts.map(|facts| overlay::ends_mtu(&view, &now, &facts, path));
        let seen = PeerSeen {
            alive: view.alive.contains(&peer.uuid),
            keepalive: node.config.wireguard_keepalive_secs > 0,
            ends_mtu,
            probed: node.probed.load().get(&peer.uuid).copied(),
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

/// What is known of a peer beside its status.
struct PeerSeen {
    alive: bool,
    /// Handshakes are renewed also while nobody speaks.
    keepalive: bool,
    ends_mtu: Option<u32>,
    probed: Option<ProbedPath>,
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
        None if by_tunnel => wrong.push("no handshake: do UDP packets get through both ways?".to_owned()),
        Some(secs) if by_tunnel && seen.keepalive && secs > SESSION_SECS => {
            wrong.push("the handshake is too old: do UDP packets get through both ways?".to_owned());
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
    match seen.probed {
        Some(probed) if probed.answers => parts.push("it answers probes".to_owned()),
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
        let probed = Some(ProbedPath { mtu: 1440, answers });
        PeerSeen { alive: true, keepalive: true, ends_mtu: Some(1440), probed }
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
        starts(&peer(Some("wireguard"), Some(181)), &seen(true), "the handshake is too old");
        starts(&peer(Some("wireguard"), Some(1)), &seen(false), "it does not answer");
        starts(
            &peer(Some("wireguard"), Some(1)),
            &PeerSeen { alive: false, ..seen(true) },
            "its lease is gone",
        );
        let refused = PeerInfo { problem: Some("not on the link".into()), ..peer(None, None) };
        starts(&refused, &PeerSeen { probed: None, ..seen(true) }, "not on the link");
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
