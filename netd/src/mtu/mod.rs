// SPDX-License-Identifier: Apache-2.0
//! What really fits through the way to each peer: asked of the peer itself, by packets of the size in question through the
//! same devices that pods' packets take ([`netd_plan::mtu`] says which sizes, and when). A router that drops large packets
//! without a word (a black hole) is found like this; the routes get the smaller MTU, and then this node's kernel tells pods.
//!
//! Cost: a peer is asked for its present size once a minute; while its device is busy every 2 s, all together
//! at most 20 times a second for that reason. Only nodes are heard (the nft table keeps pods away), so many
//! datagrams in a turn.

mod checksum;
mod message;
mod sockets;
mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use futures::FutureExt as _;
use netd_plan::{BackendKind, MtuProber, NodeFacts, Path};
use uuid::Uuid;

use crate::args::VxlanChecksumKind;
use crate::desired;
use crate::node::{Node, monotonic_ms, now_ms};
use crate::overlay;
use checksum::ChecksumDoubt;
use message::Message;
use sockets::Sockets;
use traffic::Traffic;

/// UDP port on overlay addresses where nodes answer.
pub(crate) const PROBE_PORT: u16 = 51_819;
/// How often busy devices are looked for: a transfer that large packets are lost of stands still for this and three lost
/// questions, and goes on before applications give up.
const LOOK_EVERY_MS: u64 = 2_000;
/// So many of their peers are asked at most after each look: 20 a second.
const SUSPECTS_MAX: usize = 40;
/// Questions in one go: more would fill queues, and be lost for that reason.
const BURST_MAX: usize = 32;
/// Rest after such a burst.
const BURST_REST: Duration = Duration::from_millis(20);
/// Datagrams taken before questions and timers have their turn again.
const RECEIVED_PER_TURN: usize = 64;
/// Bytes of IPv4 and UDP headers.
const HEADERS_V4: usize = 28;
/// Bytes of IPv6 and UDP headers.
const HEADERS_V6: usize = 48;

/// What probes say of the way to a peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct ProbedPath {
    /// The largest packet that arrives, as far as it is known, in bytes.
    pub mtu: u32,
    /// Whether the peer answers.
    pub answer: Answer,
}

/// One moment by two clocks.
#[derive(Clone, Copy, Debug)]
struct Moment {
    /// By one that nobody sets: everything that is waited for.
    uptime_ms: u64,
    /// In milliseconds since the Unix epoch: what is shown.
    wall_ms: u64,
}

/// Whether a peer answers over the path that it is reached by now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Answer {
    /// No question was answered yet, and not so many were lost that this means something.
    Awaited,
    /// The last one was, at that time in milliseconds since the Unix epoch.
    At(u64),
    /// Several in a row were not.
    Silent,
}

/// Probes until aborted.
pub(crate) async fn keep(node: Arc<Node>) -> Result<()> {
    let mut probes = Probes {
        node,
        sockets: Sockets::default(),
        peers: BTreeMap::new(),
        traffic: Traffic::default(),
        turn: 0,
        by_address: BTreeMap::new(),
        nodes: BTreeSet::new(),
        changed: false,
        underlay_mtu: 0,
    };
    let node = probes.node.clone();
    let mut look_at = 0;
    loop {
        let now = monotonic_ms();
        if look_at <= now {
            probes.look(now);
            look_at = now + LOOK_EVERY_MS;
        }
        let more = probes.ask(now);
        probes.publish();
        let next = probes.peers.values().filter(|peer| peer.live).map(|peer| peer.prober.next_ms());
        let wait = next.min().unwrap_or(look_at).min(look_at).saturating_sub(monotonic_ms());
        let pause = if more { BURST_REST } else { Duration::from_millis(wait).max(Duration::from_millis(1)) };
        tokio::select! {
            (bytes, from) = probes.sockets.receive() => {
                probes.received(&bytes, from);
                for _ in 1..RECEIVED_PER_TURN {
                    let Some((bytes, from)) = probes.sockets.receive().now_or_never() else { break };
                    probes.received(&bytes, from);
                }
            }
            () = node.probe_wake.notified() => probes.ask_all(),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

struct Probes {
    node: Arc<Node>,
    sockets: Sockets,
    peers: BTreeMap<Uuid, ProbedPeer>,
    traffic: Traffic,
    /// Where to go on among the peers of busy devices.
    turn: usize,
    /// Peers by the address that they are asked at.
    by_address: BTreeMap<IpAddr, Uuid>,
    /// The overlay addresses of all nodes, for those that are answered only.
    nodes: BTreeSet<IpAddr>,
    /// What is published may differ.
    changed: bool,
    /// MTU of the underlay's device when it was last looked at, in bytes; 0 before.
    underlay_mtu: u32,
}

struct ProbedPeer {
    prober: MtuProber,
    address: IpAddr,
    path: Path,
    live: bool,
    doubt: ChecksumDoubt,
    /// When it last answered over this path, in milliseconds since the Unix epoch.
    answered_ms: Option<u64>,
}

impl Probes {
    /// Follows the cluster, and confirms the size of the ways that are in use.
    fn look(&mut self, now: u64) {
        let (view, overlay) = (self.node.view.load_full(), self.node.overlay.load_full());
        let own = self.node.facts().overlays;
        if let Err(error) = self.sockets.bind(&own, PROBE_PORT) {
            tracing::debug!(%error, "the socket for MTU probes cannot be bound yet");
        }
        self.nodes = view.nodes.values().flat_map(|node| [node.overlay, node.overlay6]).flatten().collect();
        self.changed = true;
        let rewired = self.underlay_mtu != overlay.underlay_mtu && self.underlay_mtu != 0;
        self.underlay_mtu = overlay.underlay_mtu;
        self.by_address.clear();
        let mut known = std::mem::take(&mut self.peers);
        // Others are answered all the same.
        let Some(raise_every_ms) = self.node.config.mtu_probe_ms else { return };
        for facts in view.peers(self.node.uuid) {
            let path = overlay.plan.peers.get(&facts.uuid).and_then(|choice| choice.path);
            let (Some(path), Some(address)) = (path, common(&own, &facts)) else { continue };
            let ceiling = overlay::ends_mtu(&view, &overlay, &facts, Some(path));
            let mut peer = known.remove(&facts.uuid).unwrap_or_else(|| {
                let prober = MtuProber::new(ceiling, now).raising_every(raise_every_ms);
                ProbedPeer::new(prober, address, path)
            });
            peer.prober.set_ceiling(ceiling, now);
            if rewired {
                peer.prober.ends_changed(now);
            }
            if kind(peer.path) != kind(path) {
                peer.prober.suspect(now);
                // What came over another path says nothing of this one.
                (peer.doubt, peer.answered_ms) = (ChecksumDoubt::default(), None);
            }
            (peer.address, peer.path) = (address, path);
            peer.live = view.alive.contains(&facts.uuid);
            self.by_address.insert(address, facts.uuid);
            self.peers.insert(facts.uuid, peer);
        }
        self.suspect(now);
        self.doubt_checksums();
    }

    /// Where peers seem silent over VXLAN: whether only what needs a checksum is lost, and then no device computes it any
    /// more.
    fn doubt_checksums(&self) {
        if self.node.config.vxlan_tx_checksum != VxlanChecksumKind::Auto
            || self.node.vxlan_checksum_off.load(Ordering::Relaxed)
        {
            return;
        }
        let silent = |peer: &&ProbedPeer| peer.live && peer.path == Path::Vxlan && peer.doubt.is_due();
        for peer in self.peers.values().filter(silent) {
            let ask = Message::AskPlain.bytes(0);
            // What is lost is asked again.
            let _ = self.sockets.send_plain(&ask, SocketAddr::new(peer.address, PROBE_PORT));
        }
        if let Some((uuid, _)) = self.peers.iter().find(|(_, peer)| silent(peer) && peer.doubt.is_certain()) {
            let view = self.node.view.load();
            let peer = view.nodes.get(uuid).map_or("", |record| record.name.as_str());
            tracing::warn!(
                peer,
                device = desired::VXLAN_DEVICE,
                "only packets without a checksum arrive: a network card or driver spoils checksums inside VXLAN; from now on the \
                 kernel computes them (as `ethtool -K weft.vxlan tx off` does)"
            );
            self.node.vxlan_checksum_off.store(true, Ordering::Relaxed);
            self.node.agent_wake.notify_one();
        }
    }

    /// Large packets of pods may be lost on the ways that are in use.
    fn suspect(&mut self, now: u64) {
        let underlay = self.node.underlay.load_full();
        let underlay = underlay.device.as_str();
        self.traffic.look();
        let busy: Vec<Uuid> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.live && self.traffic.is_busy(device(peer.path, underlay)))
            .map(|(uuid, _)| *uuid)
            .collect();
        if busy.is_empty() {
            return;
        }
        let first = if busy.len() > SUSPECTS_MAX { self.turn % busy.len() } else { 0 };
        for uuid in busy.iter().cycle().skip(first).take(busy.len().min(SUSPECTS_MAX)) {
            if let Some(peer) = self.peers.get_mut(uuid) {
                peer.prober.suspect(now);
            }
        }
        self.turn = self.turn.wrapping_add(SUSPECTS_MAX);
    }

    /// Somebody wants to know who answers.
    fn ask_all(&mut self) {
        let now = monotonic_ms();
        // Of late there may be others.
        self.look(now);
        self.peers.values_mut().for_each(|peer| peer.prober.suspect(now));
    }

    /// Sends what is due; true where more is.
    fn ask(&mut self, now: u64) -> bool {
        let mut sent = 0;
        let underlay = self.node.underlay.load_full();
        for peer in self.peers.values_mut().filter(|peer| peer.live) {
            if peer.prober.next_ms() > now {
                continue;
            }
            if sent == BURST_MAX {
                return true;
            }
            let Some(probe) = peer.prober.next(now) else { continue };
            sent += 1;
            self.changed = true;
            peer.doubt.asked();
            let headers = if peer.address.is_ipv4() { HEADERS_V4 } else { HEADERS_V6 };
            let bytes = Message::Ask(probe.id).bytes((probe.size as usize).saturating_sub(headers));
            let to = SocketAddr::new(peer.address, PROBE_PORT);
            self.traffic.own(device(peer.path, &underlay.device), u64::from(probe.size));
            match self.sockets.send(&bytes, to) {
                Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EMSGSIZE as i32) => {
                    peer.prober.too_big(probe.id, now);
                }
                // Sent, or lost as any packet may be.
                _ => {}
            }
        }
        false
    }

    /// Questions and answers of other nodes; whatever else can send here is not heard.
    fn received(&mut self, bytes: &[u8], from: SocketAddr) {
        let Some(message) = Message::parse(bytes) else { return };
        let known = self.by_address.get(&from.ip()).and_then(|uuid| self.peers.get_mut(uuid));
        let is_node = self.nodes.contains(&from.ip());
        match message {
            Message::Ask(id) if is_node => {
                let answer = Message::Answer(id).bytes(message::HEADER_LEN);
                // One that is lost is asked for again.
                let _ = self.sockets.send(&answer, from);
            }
            Message::Answer(id) => {
                if let Some(peer) = known {
                    peer.answered(id, Moment { uptime_ms: monotonic_ms(), wall_ms: now_ms() });
                    self.changed = true;
                }
            }
            Message::AskPlain if is_node => {
                let _ = self.sockets.send_plain(&Message::AnswerPlain.bytes(0), from);
            }
            Message::AnswerPlain => {
                if let Some(peer) = known {
                    peer.doubt.plainly_answered();
                }
            }
            Message::Ask(_) | Message::AskPlain => {}
        }
    }

    /// Shows the agent (routes) and status what is known.
    fn publish(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let probed: BTreeMap<Uuid, ProbedPath> = self
            .peers
            .iter()
            .map(|(uuid, peer)| (*uuid, ProbedPath { mtu: peer.prober.mtu(), answer: peer.answer() }))
            .collect();
        let last = self.node.probed.load();
        if **last == probed {
            return;
        }
        let mut moved = false;
        for (uuid, now) in &probed {
            let Some(before) = last.get(uuid).filter(|before| before.mtu != now.mtu) else { continue };
            moved = true;
            let view = self.node.view.load();
            let peer = view.nodes.get(uuid).map_or("", |record| record.name.as_str());
            tracing::info!(
                peer,
                before = before.mtu,
                mtu = now.mtu,
                "what fits through to this node has changed"
            );
        }
        self.node.probed.store(Arc::new(probed));
        if moved {
            self.node.changed();
        }
    }
}

impl ProbedPeer {
    fn new(prober: MtuProber, address: IpAddr, path: Path) -> Self {
        let doubt = ChecksumDoubt::default();
        Self { prober, address, path, live: false, doubt, answered_ms: None }
    }

    fn answered(&mut self, id: u64, now: Moment) {
        self.doubt.answered();
        self.prober.answered(id, now.uptime_ms);
        self.answered_ms = Some(now.wall_ms);
    }

    fn answer(&self) -> Answer {
        match self.answered_ms {
            _ if self.doubt.unanswered() > netd_plan::mtu::PROBE_LOSSES_MAX => Answer::Silent,
            Some(at) => Answer::At(at),
            None => Answer::Awaited,
        }
    }
}

/// An address of the peer that this node has a socket for.
fn common(own: &[IpAddr], peer: &NodeFacts) -> Option<IpAddr> {
    peer.overlays.iter().copied().find(|ip| own.iter().any(|own| own.is_ipv4() == ip.is_ipv4()))
}

fn kind(path: Path) -> BackendKind {
    match path {
        Path::Native => BackendKind::Native,
        Path::Vxlan => BackendKind::Vxlan,
        Path::Wireguard { .. } => BackendKind::Wireguard,
    }
}

fn device(path: Path, underlay: &str) -> &str {
    match path {
        Path::Native => underlay,
        Path::Vxlan => desired::VXLAN_DEVICE,
        Path::Wireguard { generation } => netd_plan::wireguard_device(generation),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_stops_no_questions() {
        const HOUR_MS: u64 = 3_600_000;
        let path = Path::Wireguard { generation: 1 };
        let mut peer = ProbedPeer::new(MtuProber::new(1_420, 500), IpAddr::from([192, 0, 2, 2]), path);
        let mut wall_ms = 1_800_000_000_000;
        let mut uptime_ms = 500;
        for step_ms in [0, HOUR_MS, 24 * HOUR_MS] {
            wall_ms -= step_ms;
            let probe = peer.prober.next(uptime_ms).expect("a question is due");
            uptime_ms += 10;
            peer.answered(probe.id, Moment { uptime_ms, wall_ms });
            assert_eq!(peer.answer(), Answer::At(wall_ms), "what is shown is the time of day");
            let next_ms = peer.prober.next_ms();
            assert!(
                (uptime_ms..=uptime_ms + netd_plan::mtu::CONFIRM_MS).contains(&next_ms),
                "asked at {uptime_ms}, again at {next_ms}"
            );
            uptime_ms = next_ms;
        }
    }
}
