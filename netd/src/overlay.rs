// SPDX-License-Identifier: Apache-2.0
//! How this node reaches each other one: the pure choice of paths ([`netd_plan::Paths`]), fed with the nodes' records and
//! with what the tunnel's devices say, and what follows from it for links, MTU and firewall.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use netd_plan::{
    Backend, BackendKind, GateConfig, NodeFacts, Overlay, Path, PathPeer, Paths, PathsInput, PathsPlan,
    PeerPath, VxlanConfig, WireguardConfig, WireguardKind, WireguardTunnel, gate_port, vxlan_mtu,
    wireguard_mtu, wireguard_ports,
};
use netd_store::records::{ClusterConfig, NodeRecord, OverlayBackend};
use netd_wireguard::DeviceKind;
use uuid::Uuid;

use crate::desired::VXLAN_DEVICE;
use crate::mtu::ProbedPath;
use crate::node::{Node, monotonic_ms, now_ms};
use crate::tunnel::TunnelState;
use crate::view::View;

/// Largest payload of one UDP datagram that the kernel cuts into segments: 65,535 less the headers of IPv4 and UDP.
const UDP_PAYLOAD_MAX: u32 = 65_507;
/// What WireGuard puts around a packet inside the datagram: header 16, authentication tag 16.
const SEALED_EXTRA: u32 = 32;

/// The overlay as of the last pass.
#[derive(Clone, Debug, Default)]
pub(crate) struct OverlayNow {
    pub plan: PathsPlan,
    /// What this node can receive by.
    pub up: BTreeSet<BackendKind>,
    /// The backends of `plan.keep`, with their settings.
    pub backends: Vec<Backend>,
    /// MTU of the underlay device, in bytes.
    pub underlay_mtu: u32,
    /// MTU of pods, in bytes: what fits into each of the backends.
    pub mtu: u32,
    /// What probes say of the ways to peers.
    pub probed: Arc<BTreeMap<Uuid, ProbedPath>>,
    /// A peer that less fits through to than pods may send, though its packets could take the fast path: look-ups of
    /// programs pass over a route's MTU (`ip_mtu_from_fib_result` of the kernel), the host's stack does not.
    pub narrow: Option<String>,
}

impl OverlayNow {
    /// A device of this kind is there, or shall be.
    pub(crate) fn keeps(&self, kind: BackendKind) -> bool {
        self.plan.keep.contains(&kind)
    }

    /// Most segments of a pod's large packets, where the tunnel is in user space and sends each as one datagram to be cut.
    pub(crate) fn gso_max_segs(&self) -> Option<u32> {
        let in_user_space = self.backends.iter().any(
            |backend| matches!(backend, Backend::Wireguard(config) if config.kind == WireguardKind::User),
        );
        in_user_space.then(|| UDP_PAYLOAD_MAX / (self.mtu + SEALED_EXTRA))
    }
}

/// What this node's routes stand for, as its record says it: peers let go of what nobody sends by.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Routed {
    /// All that goes to live peers goes as this wish has it.
    pub sends: Option<Overlay>,
    /// The lowest generation of keys that is still sent over.
    pub generation: Option<u64>,
}

impl Routed {
    /// While routes change from this to `next`: no more than holds before and after.
    pub(crate) fn until(self, next: Self) -> Self {
        Self {
            sends: self.sends.filter(|sends| Some(*sends) == next.sends),
            generation: match (self.generation, next.generation) {
                (Some(before), Some(after)) => Some(before.min(after)),
                (before, _) => before,
            },
        }
    }
}

/// Chooses the paths; remembers since when what is moving.
#[derive(Debug)]
pub(crate) struct OverlayPaths {
    paths: Paths,
    /// On-link prefixes of the underlay device.
    pub subnets: Vec<IpNet>,
    /// Its MTU in bytes, which may change while netd runs.
    pub underlay_mtu: u32,
}

impl OverlayPaths {
    pub(crate) fn new(underlay_mtu: u32) -> Self {
        Self { paths: Paths::new(monotonic_ms()), subnets: Vec::new(), underlay_mtu }
    }

    pub(crate) fn choose(&mut self, node: &Node, view: &View) -> OverlayNow {
        let tunnel = node.tunnel.state.load();
        let wanted = overlay(view.config.overlay);
        let offered: Vec<OverlayBackend> =
            node.overlay.load().plan.up.iter().copied().map(recorded).collect();
        let own = view.nodes.get(&node.uuid).and_then(|record| record.backends_up.as_ref());
        let input = PathsInput {
            wanted,
            told: view.in_sync && node.mirror.borrow().connected && own == Some(&offered),
            up: up(node, view, wanted, &tunnel),
            subnets: self.subnets.clone(),
            peers: view
                .peers(node.uuid)
                .into_iter()
                .filter_map(|peer| Some(path_peer(view.nodes.get(&peer.uuid)?, view, &tunnel)))
                .collect(),
            uptime_ms: monotonic_ms(),
        };
        let plan = self.paths.step(&input, now_ms());
        let backends = self.backends(node, view, &plan.keep, &tunnel);
        let mtu = backends.iter().map(|backend| self.mtu(backend)).min().unwrap_or(self.underlay_mtu);
        let probed = node.probed.load_full();
        let (up, underlay_mtu) = (input.up, self.underlay_mtu);
        let mut now = OverlayNow { up, underlay_mtu, mtu, plan, backends, probed, narrow: None };
        now.narrow = narrow(node, view, &now);
        now
    }

    fn backends(
        &self,
        node: &Node,
        view: &View,
        keep: &BTreeSet<BackendKind>,
        tunnel: &TunnelState,
    ) -> Vec<Backend> {
        let address = node.underlay.load().address;
        let backend = |kind: &BackendKind| match kind {
            BackendKind::Native => Backend::Native,
            BackendKind::Vxlan => Backend::Vxlan(VxlanConfig {
                vni: view.config.vni,
                port: view.config.vxlan_port,
                mtu: vxlan_mtu(self.underlay_mtu, address),
                device: VXLAN_DEVICE.into(),
            }),
            BackendKind::Wireguard => Backend::Wireguard(WireguardConfig {
                kind: match node.tunnel.kind {
                    DeviceKind::Kernel => WireguardKind::Kernel,
                    DeviceKind::User => WireguardKind::User,
                },
                mtu: wireguard_mtu(self.underlay_mtu, address),
                generations: tunnel.generations.clone(),
            }),
        };
        keep.iter().map(backend).collect()
    }

    fn mtu(&self, backend: &Backend) -> u32 {
        match backend {
            Backend::Native => self.underlay_mtu,
            Backend::Vxlan(config) => config.mtu,
            Backend::Wireguard(config) => config.mtu,
        }
    }
}

/// The peers with their paths.
pub(crate) fn peer_paths(node: &Node, view: &View, now: &OverlayNow) -> Vec<PeerPath> {
    let with_path = |facts: NodeFacts| {
        let path = now.plan.peers.get(&facts.uuid).and_then(|choice| choice.path);
        PeerPath { mtu: peer_mtu(view, now, &facts, path), path, facts }
    };
    view.peers(node.uuid).into_iter().map(with_path).collect()
}

fn narrow(node: &Node, view: &View, now: &OverlayNow) -> Option<String> {
    let is_narrow = |peer: &NodeFacts| {
        let path = now.plan.peers.get(&peer.uuid).and_then(|choice| choice.path);
        let fast = matches!(path, Some(Path::Native | Path::Vxlan));
        fast && peer_mtu(view, now, peer, path).is_some_and(|mtu| mtu < now.mtu)
    };
    view.peers(node.uuid).into_iter().find(is_narrow).map(|peer| peer.name)
}

/// What fits through to a peer, where that is less than what pods may send: its underlay takes less than this node's, or
/// probes say that something on the way does.
pub(crate) fn peer_mtu(view: &View, now: &OverlayNow, peer: &NodeFacts, path: Option<Path>) -> Option<u32> {
    let probed = now.probed.get(&peer.uuid).map(|probed| probed.mtu).filter(|probed| *probed < now.mtu);
    smaller_end(view, now, peer, path).into_iter().chain(probed).min()
}

/// What fits through to a peer as far as both ends say, in bytes.
pub(crate) fn ends_mtu(view: &View, now: &OverlayNow, peer: &NodeFacts, path: Option<Path>) -> u32 {
    smaller_end(view, now, peer, path).map_or(now.mtu, |mtu| mtu.min(now.mtu))
}

/// What fits through to a peer whose underlay takes less than this node's; `None` where it takes as much.
fn smaller_end(view: &View, now: &OverlayNow, peer: &NodeFacts, path: Option<Path>) -> Option<u32> {
    // 0: its netd does not say.
    let theirs = view.nodes.get(&peer.uuid)?.underlay_mtu;
    let smaller = theirs > 0 && theirs < now.underlay_mtu;
    smaller.then(|| match path {
        Some(Path::Wireguard { .. }) => wireguard_mtu(theirs, peer.underlay),
        Some(Path::Vxlan) => vxlan_mtu(theirs, peer.underlay),
        Some(Path::Native) | None => theirs,
    })
}

/// What the cluster wants, in the plan's words.
pub(crate) fn overlay(backend: OverlayBackend) -> Overlay {
    match backend {
        OverlayBackend::Auto => Overlay::Auto,
        OverlayBackend::Native => Overlay::Native,
        OverlayBackend::Vxlan => Overlay::Vxlan,
        OverlayBackend::Wireguard => Overlay::Wireguard,
    }
}

/// The same in the store's words.
pub(crate) fn sent_by(overlay: Overlay) -> OverlayBackend {
    match overlay {
        Overlay::Auto => OverlayBackend::Auto,
        Overlay::Native => OverlayBackend::Native,
        Overlay::Vxlan => OverlayBackend::Vxlan,
        Overlay::Wireguard => OverlayBackend::Wireguard,
    }
}

/// A kind of path in the store's words.
pub(crate) fn recorded(kind: BackendKind) -> OverlayBackend {
    match kind {
        BackendKind::Native => OverlayBackend::Native,
        BackendKind::Vxlan => OverlayBackend::Vxlan,
        BackendKind::Wireguard => OverlayBackend::Wireguard,
    }
}

/// Before this netd has chosen anything: whether the node's record says that it had this kind up. Whoever sends by it goes on.
pub(crate) fn offered_before(node: &Node, view: &View, kind: BackendKind) -> bool {
    let fresh = node.overlay.load().plan.keep.is_empty();
    // Keys stay in the record a little longer than the offer: as long as somebody may still send by them.
    let has = |record: &NodeRecord| {
        record.backends_up.iter().flatten().any(|up| *up == recorded(kind))
            || (kind == BackendKind::Wireguard && record.wireguard.is_some())
    };
    fresh && view.nodes.get(&node.uuid).is_some_and(has)
}

/// What works now. Plain routes and VXLAN are made in the same pass that wants them; WireGuard is up once a device has a key
/// and listens.
fn up(node: &Node, view: &View, wanted: Overlay, tunnel: &TunnelState) -> BTreeSet<BackendKind> {
    let last = node.overlay.load();
    let kept = |kind| wanted.kinds().contains(&kind) || last.keeps(kind) || offered_before(node, view, kind);
    let vxlan = || kept(BackendKind::Vxlan) || netd_host::interface_index(VXLAN_DEVICE).is_some();
    let mut up = BTreeSet::new();
    if kept(BackendKind::Native) {
        up.insert(BackendKind::Native);
    }
    if vxlan() {
        up.insert(BackendKind::Vxlan);
    }
    if tunnel.is_up() {
        up.insert(BackendKind::Wireguard);
    }
    up
}

fn path_peer(record: &NodeRecord, view: &View, tunnel: &TunnelState) -> PathPeer {
    let kind = |backend: &OverlayBackend| match backend {
        OverlayBackend::Native => Some(BackendKind::Native),
        OverlayBackend::Vxlan => Some(BackendKind::Vxlan),
        OverlayBackend::Wireguard => Some(BackendKind::Wireguard),
        OverlayBackend::Auto => None,
    };
    let up: BTreeSet<BackendKind> = match &record.backends_up {
        // A netd that does not say: what the cluster wants, as far as it can.
        None => {
            let can = |kind: &BackendKind| *kind != BackendKind::Wireguard || record.wireguard.is_some();
            overlay(view.config.overlay).kinds().into_iter().filter(can).collect()
        }
        Some(up) => up.iter().filter_map(kind).collect(),
    };
    let generation = tunnel.plan.peers.get(&record.uuid).and_then(|plan| plan.path);
    let wireguard = generation.map(|generation| WireguardTunnel {
        generation,
        handshake_ms: tunnel
            .peers
            .get(&record.uuid)
            .and_then(|links| links.iter().find(|link| link.generation == generation))
            .and_then(|link| link.handshake_ms),
    });
    PathPeer {
        uuid: record.uuid,
        name: record.name.clone(),
        underlay: record.underlay,
        live: view.alive.contains(&record.uuid),
        up,
        sends: record.sends.map(overlay),
        wireguard,
    }
}

/// UDP ports of the tunnels that are up or shall be: pods must not send there.
pub(crate) fn ports(now: &OverlayNow, config: &ClusterConfig) -> Vec<u16> {
    let mut ports = Vec::new();
    if now.keeps(BackendKind::Vxlan) {
        ports.push(config.vxlan_port);
    }
    if now.keeps(BackendKind::Wireguard) {
        ports.extend(wireguard_ports(config.wireguard_port));
    }
    ports
}

/// The way of trusted hosts' packets to pods of nodes behind WireGuard, where there are such hosts and WireGuard is up.
pub(crate) fn gate(view: &View, now: &OverlayNow) -> Option<GateConfig> {
    let wireguard_mtu = now.backends.iter().find_map(|backend| match backend {
        Backend::Wireguard(config) => Some(config.mtu),
        Backend::Native | Backend::Vxlan(_) => None,
    })?;
    let (vni, port) = (view.config.vni, gate_port(view.config.wireguard_port));
    let trusted = view.config.trusted_cidrs.clone();
    (!trusted.is_empty()).then_some(GateConfig { vni, port, wireguard_mtu, trusted })
}

/// What crosses uplinks in the clear by choice: the blocks and addresses of peers that are reached by plain routes.
pub(crate) fn clear_cidrs(node: &Node, view: &View, now: &OverlayNow) -> Vec<IpNet> {
    if now.plan.clear.is_empty() {
        return Vec::new();
    }
    let claims = netd_plan::allowed_ips(&node.facts(), &view.peers(node.uuid), &view.pod_cidrs());
    let theirs = claims.into_iter().filter(|(uuid, _)| now.plan.clear.contains(uuid));
    theirs.flat_map(|(_, nets)| nets).collect()
}
