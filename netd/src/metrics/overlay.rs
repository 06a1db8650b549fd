// SPDX-License-Identifier: Apache-2.0
//! How the other nodes are reached, and the tunnels to them.

use std::collections::BTreeMap;

use netd_plan::Path;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::node::{Node, now_ms};

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct PathLabels {
    path: &'static str,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct PeerLabels {
    peer: String,
    generation: String,
}

/// Everything of this kind as of now.
pub(super) fn register(node: &Node, registry: &mut Registry) {
    let (now, tunnel, view) = (node.overlay.load(), node.tunnel.state.load(), node.view.load());
    let mut paths = BTreeMap::from(["native", "vxlan", "wireguard", "none"].map(|path| (path, 0)));
    for choice in now.plan.peers.values() {
        let path = match choice.path {
            Some(Path::Native) => "native",
            Some(Path::Vxlan) => "vxlan",
            Some(Path::Wireguard { .. }) => "wireguard",
            None => "none",
        };
        *paths.entry(path).or_default() += 1;
    }
    let peers = Family::<PathLabels, Gauge>::default();
    for (path, count) in paths {
        peers.get_or_create(&PathLabels { path }).set(count);
    }
    registry.register("overlay_peers", "Other nodes, by how packets to them travel", peers);
    let mtu: Gauge = Gauge::default();
    mtu.set(i64::from(now.mtu));
    registry.register_with_unit("pod_mtu", "MTU of pods", Unit::Bytes, mtu);
    if tunnel.generations.is_empty() {
        return;
    }
    let ages = Family::<PeerLabels, Gauge>::default();
    let (received, sent) = (Family::<PeerLabels, Gauge>::default(), Family::<PeerLabels, Gauge>::default());
    for (uuid, links) in &tunnel.peers {
        let peer = view.nodes.get(uuid).map_or_else(|| uuid.to_string(), |record| record.name.clone());
        for link in links {
            let labels = PeerLabels { peer: peer.clone(), generation: link.generation.to_string() };
            let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
            if let Some(at) = link.handshake_ms {
                ages.get_or_create(&labels).set(signed(now_ms().saturating_sub(at) / 1_000));
            }
            received.get_or_create(&labels).set(signed(link.rx_bytes));
            sent.get_or_create(&labels).set(signed(link.tx_bytes));
        }
    }
    registry.register_with_unit("wireguard_handshake_age", "Since the last handshake", Unit::Seconds, ages);
    registry.register_with_unit(
        "wireguard_received",
        "Received from a peer since its device was made",
        Unit::Bytes,
        received,
    );
    registry.register_with_unit(
        "wireguard_sent",
        "Sent to a peer since its device was made",
        Unit::Bytes,
        sent,
    );
    let generation: Gauge = Gauge::default();
    generation.set(tunnel.generations.last().map_or(0, |newest| i64::try_from(*newest).unwrap_or(i64::MAX)));
    registry.register("wireguard_key_generation", "Newest generation of this node's keys", generation);
}
