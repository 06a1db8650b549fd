// SPDX-License-Identifier: Apache-2.0
//! The other nodes as WireGuard peers, from their records.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use netd_plan::PeerGenerations;
use netd_plan::generation::KEEPALIVE_MOVING_SECS;
use netd_wireguard::{PeerConfig, PresharedKey, PublicKey};
use uuid::Uuid;

use crate::node::Node;
use crate::view::View;

/// A node with the keys that it published.
pub(super) struct Peer {
    pub uuid: Uuid,
    pub keys: BTreeMap<u64, PeerKey>,
    underlay: IpAddr,
    live: bool,
    sends: Option<u64>,
    allowed_ips: BTreeSet<IpNet>,
}

/// A public key and where its device listens.
pub(super) struct PeerKey {
    pub public: PublicKey,
    port: u16,
}

/// All peers of this node. A key that does not parse is passed over: the peer is reached over its other one, or not.
pub(super) fn peers(node: &Node, view: &View) -> Vec<Peer> {
    let facts = view.peers(node.uuid);
    let mut allowed = netd_plan::allowed_ips(&node.facts(), &facts, &view.pod_cidrs());
    facts
        .iter()
        .filter_map(|peer| {
            let record = view.nodes.get(&peer.uuid)?.wireguard.as_ref()?;
            let key = |key: &netd_store::records::WireguardKeyRecord| {
                let public = key.public_key.parse().ok()?;
                Some((key.generation, PeerKey { public, port: key.port }))
            };
            Some(Peer {
                uuid: peer.uuid,
                keys: record.keys.iter().filter_map(key).collect(),
                underlay: peer.underlay,
                live: view.alive.contains(&peer.uuid),
                sends: record.sends,
                allowed_ips: allowed.remove(&peer.uuid).unwrap_or_default(),
            })
        })
        .collect()
}

impl Peer {
    pub(super) fn generations(&self, handshakes: BTreeMap<u64, u64>) -> PeerGenerations {
        PeerGenerations {
            uuid: self.uuid,
            live: self.live,
            published: self.keys.keys().copied().collect(),
            sends: self.sends,
            handshakes,
        }
    }

    /// The peer as it stands in the device of a generation. `keepalive_secs`: neither node knows whether the other can
    /// reach it first (a router may stand before it, and it may move), so both speak, always. `moving`: a handshake is
    /// waited for, and nothing else may happen to be sent.
    pub(super) fn wish(
        &self,
        generation: u64,
        psk: Option<&PresharedKey>,
        keepalive_secs: u16,
        moving: bool,
    ) -> Option<(PublicKey, PeerConfig)> {
        let key = self.keys.get(&generation)?;
        let config = PeerConfig {
            preshared_key: psk.cloned(),
            endpoint: (!self.underlay.is_unspecified()).then(|| SocketAddr::new(self.underlay, key.port)),
            persistent_keepalive: if moving { KEEPALIVE_MOVING_SECS } else { keepalive_secs },
            allowed_ips: self.allowed_ips.clone(),
        };
        Some((key.public, config))
    }
}
