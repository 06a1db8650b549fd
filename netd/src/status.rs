// SPDX-License-Identifier: Apache-2.0
//! What netd tells about itself: the agent's progress, readiness with its reasons, and the answers of the API's GETs.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use netd_api::{
    BadValue, NodeInfo, OverlayStatus, PeerInfo, PeerTunnel, PendingItem, PodInfo, Status, StoreStatus,
};
use netd_plan::{BackendKind, NodeFacts, Path};
use netd_store::records::OverlayBackend;

use crate::attachments::Phase;
use crate::desired;
use crate::node::{Node, lock, now_ms};
use crate::overlay::{self, OverlayNow};
use crate::removal;
use crate::tunnel::{PeerLink, TunnelState};
use crate::view::View;

/// `netd --version`: version, commit, ABI of the pinned maps.
pub(crate) const VERSION: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (commit ", env!("WEFT_COMMIT"), ", abi 2)");
const _: () = assert!(ebpf_abi::ABI_VERSION == 2, "VERSION above names the ABI");

/// What the agent last did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// Store revision that the kernel has been made to match.
    pub programmed_revision: u64,
    /// The first pass is over: ADD may be answered.
    pub programmed_once: bool,
    /// Socket programs are attached.
    pub attached: bool,
    /// What keeps failing, with its last error.
    pub pending: Vec<PendingItem>,
    /// What the pass as a whole could not do.
    pub errors: Vec<String>,
    /// Those of them that keep the kernel from what is wished: settings, nft, links, routes, programs, maps.
    pub kernel_errors: Vec<String>,
    /// Problems found by the compiler of the maps.
    pub problems: Vec<BadValue>,
}

/// Why this node is not ready; empty when it is.
pub(crate) fn not_ready_reasons(node: &Node) -> Vec<String> {
    let mut reasons = Vec::new();
    let progress = node.progress.load();
    let mirror = node.mirror.borrow().clone();
    if !progress.programmed_once {
        if mirror.in_sync || node.view.load().revision > 0 {
            reasons.push("the kernel has not been programmed yet".to_owned());
        } else {
            let why = mirror.last_error.clone().unwrap_or_else(|| "no answer yet".into());
            reasons.push(format!(
                "the store {} has not been read yet and there is no snapshot on disk: {why}; still trying",
                node.config.store.endpoints.join(",")
            ));
        }
    }
    let families = node.view.load().picture(node.uuid, BTreeMap::new(), None).families();
    let addresses = node.addressing.addresses();
    if progress.programmed_once && addresses.node_addresses().is_empty() {
        reasons.push("this node has no address block yet (see `weft ipam show`)".to_owned());
    }
    let now = node.addressing.now();
    let full = families.iter().any(|family| addresses.allocator().free_count(*family, now) == 0);
    drop(addresses);
    if full && let Some(error) = node.claim_error.load_full() {
        reasons.push(error.to_string());
    }
    let native = node.view.load().config.overlay == OverlayBackend::Native;
    let underlay = ipam::Family::of(&node.underlay.load().address);
    if native && let Some(family) = families.iter().find(|family| **family != underlay) {
        reasons.push(format!(
            "overlay native routes {family} pods over {family} addresses of the nodes, and this node's is {}: use vxlan for \
             two families, or drain the {family} pools",
            node.underlay.load().address
        ));
    }
    reasons.extend(node.underlay_error.load_full().map(|error| error.to_string()));
    let encrypted =
        matches!(node.view.load().config.overlay, OverlayBackend::Auto | OverlayBackend::Wireguard);
    let tunnel = node.tunnel.state.load();
    // On a single node there is nobody to speak with: no reason to refuse pods.
    let alone = node.view.load().peers(node.uuid).is_empty();
    // Routes into a device that does not answer stay, and nothing comes through them.
    if encrypted && !alone && progress.programmed_once && !(tunnel.is_up() && tunnel.answers) {
        reasons.push(format!("WireGuard does not run on this node: {}", tunnel.errors.join("; ")));
    }
    if is_removed(node) {
        reasons.push(format!(
            "this node was removed from the cluster (`weft node rm`): its pods reach no other node; to join again as a new \
             node: {}",
            removal::join_again(&node.config.state_dir)
        ));
    }
    reasons.extend(progress.errors.iter().cloned());
    reasons
}

/// An operator removed this node.
pub(crate) fn is_removed(node: &Node) -> bool {
    node.view.load().tombstones.contains_key(&node.uuid)
}

/// `GET /v1/status`.
pub(crate) fn status(node: &Node) -> Status {
    let (view, progress, mirror) = (node.view.load(), node.progress.load(), node.mirror.borrow().clone());
    let reasons = not_ready_reasons(node);
    let own = node.facts();
    let mut pending = progress.pending.clone();
    if let Some(error) = node.publish_error.load_full() {
        let object = "records of this node in the store".to_owned();
        pending.push(PendingItem { object, error: error.to_string(), retries: 0 });
    }
    let external = node.external.now();
    pending.extend(external.pending.iter().cloned());
    let mut bad_values = view.bad_values.clone();
    bad_values.extend(external.problems.iter().cloned());
    bad_values.extend(progress.problems.iter().cloned());
    Status {
        version: VERSION.to_owned(),
        abi: ebpf_abi::ABI_VERSION,
        cluster: node.config.cluster.clone(),
        node: NodeInfo {
            uuid: node.uuid,
            name: node.config.node_name.clone(),
            underlay: Some(node.underlay.load().address),
            overlay: own.overlays.first().copied(),
            alive: true,
            removing: is_removed(node),
            blocks: own.blocks,
            version: VERSION.to_owned(),
        },
        ready: reasons.is_empty(),
        limited_connectivity: !progress.attached || is_removed(node),
        reasons,
        store: StoreStatus {
            endpoints: node.config.store.endpoints.clone(),
            connected: mirror.connected,
            in_sync: mirror.in_sync,
            revision: mirror.revision,
            last_error: mirror.last_error.clone(),
        },
        programmed_revision: progress.programmed_revision,
        named_revision: node.named_revision.load(Ordering::Acquire),
        published_revision: node.published.borrow().revision,
        overlay: overlay_status(node, &view),
        pods: lock(&node.attachments).len(),
        services: view.table.services.len(),
        members: view.members.len(),
        pending,
        bad_values,
        uptime_secs: node.started.elapsed().as_secs(),
    }
}

fn overlay_status(node: &Node, view: &View) -> OverlayStatus {
    let (now, tunnel) = (node.overlay.load(), node.tunnel.state.load());
    let wireguard = now.keeps(BackendKind::Wireguard);
    let newest = tunnel.generations.last().copied().unwrap_or_default();
    let device = match (wireguard, now.keeps(BackendKind::Vxlan)) {
        (true, _) => Some(netd_plan::wireguard_device(newest).to_owned()),
        (false, true) => Some(desired::VXLAN_DEVICE.to_owned()),
        (false, false) => None,
    };
    let peers = view.peers(node.uuid).into_iter();
    OverlayStatus {
        backend: view.config.overlay.as_str().to_owned(),
        device,
        wireguard: wireguard.then(|| node.tunnel.kind.as_str().to_owned()),
        underlay_reason: node.underlay.load().reason.clone(),
        mtu: now.mtu,
        peers: peers.map(|peer| peer_info(peer, view, &now, &tunnel)).collect(),
    }
}

fn peer_info(peer: NodeFacts, view: &View, now: &OverlayNow, tunnel: &TunnelState) -> PeerInfo {
    let choice = now.plan.peers.get(&peer.uuid);
    let path = choice.and_then(|choice| choice.path);
    let record = view.nodes.get(&peer.uuid).and_then(|record| record.wireguard.as_ref());
    let kind = record.map(|record| record.kind.clone()).unwrap_or_default();
    let mtu = overlay::peer_mtu(view, now, &peer, path).map_or(now.mtu, |mtu| mtu.min(now.mtu));
    let link = |link: &PeerLink| PeerTunnel {
        generation: link.generation,
        device: netd_plan::wireguard_device(link.generation).to_owned(),
        peer_kind: kind.clone(),
        endpoint: link.endpoint,
        handshake_secs: link.handshake_ms.map(|at| now_ms().saturating_sub(at) / 1_000),
        rx_bytes: link.rx_bytes,
        tx_bytes: link.tx_bytes,
        rx_bits_per_sec: link.rx_bits_per_sec,
        tx_bits_per_sec: link.tx_bits_per_sec,
    };
    PeerInfo {
        uuid: peer.uuid,
        tunnels: tunnel.peers.get(&peer.uuid).into_iter().flatten().map(link).collect(),
        name: peer.name,
        underlay: peer.underlay,
        overlay: peer.overlays.first().copied(),
        blocks: peer.blocks,
        path: path.map(|path| match path {
            Path::Native => "native".to_owned(),
            Path::Vxlan => "vxlan".to_owned(),
            Path::Wireguard { .. } => "wireguard".to_owned(),
        }),
        problem: choice.and_then(|choice| choice.problem.as_ref()).map(ToString::to_string),
        mtu: path.map(|_| mtu),
    }
}

/// `GET /v1/nodes`.
pub(crate) fn nodes(node: &Node) -> Vec<NodeInfo> {
    let view = node.view.load();
    let info = |record: &netd_store::records::NodeRecord| NodeInfo {
        uuid: record.uuid,
        name: record.name.clone(),
        underlay: Some(record.underlay),
        overlay: record.overlay,
        alive: view.alive.contains(&record.uuid),
        removing: view.tombstones.contains_key(&record.uuid),
        blocks: view.blocks_of(record.uuid).map(|block| block.cidr).collect(),
        version: record.version.clone(),
    };
    let mut nodes: Vec<NodeInfo> = view.nodes.values().map(info).collect();
    nodes.sort_by(|a, b| (&a.name, a.uuid).cmp(&(&b.name, b.uuid)));
    nodes
}

/// `GET /v1/pods`: of the whole cluster; this node's own from its own table.
pub(crate) fn pods(node: &Node) -> Vec<PodInfo> {
    let view = node.view.load();
    let mut pods: Vec<PodInfo> = lock(&node.attachments)
        .iter()
        .map(|a| PodInfo {
            namespace: a.namespace.clone(),
            name: a.name.clone(),
            node: node.config.node_name.clone(),
            node_uuid: node.uuid,
            network: a.key.network.clone(),
            container_id: a.key.container_id.clone(),
            ifname: a.key.ifname.clone(),
            ips: a.ips.clone(),
            host_ifname: a.host_ifname.clone(),
            labels: a.labels.clone(),
            aliases: a.aliases.clone(),
            cgroup_path: a.cgroup_path.clone(),
            sticky: a.sticky.clone(),
            port_mappings: a.port_mappings.clone(),
            bandwidth: a.bandwidth,
            mac: (a.phase == Phase::Committed).then(|| a.container_mac.to_string()),
            local: true,
        })
        .collect();
    pods.extend(view.pods.iter().filter(|(uuid, _)| *uuid != node.uuid).map(|(uuid, record)| PodInfo {
        namespace: record.namespace.clone(),
        name: record.name.clone(),
        node: view.nodes.get(uuid).map_or_else(|| uuid.to_string(), |n| n.name.clone()),
        node_uuid: *uuid,
        network: record.attachment.network.clone(),
        container_id: record.attachment.container_id.clone(),
        ifname: record.attachment.ifname.clone(),
        ips: record.ips.clone(),
        host_ifname: record.host_ifname.clone(),
        labels: record.labels.clone(),
        aliases: record.aliases.clone(),
        cgroup_path: None,
        sticky: None,
        port_mappings: Vec::new(),
        bandwidth: None,
        mac: None,
        local: false,
    }));
    pods.sort_by(|a, b| (&a.namespace, &a.name, &a.ifname).cmp(&(&b.namespace, &b.name, &b.ifname)));
    pods
}
