// SPDX-License-Identifier: Apache-2.0
//! How a node is doing, and who is in the cluster.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// GET [`crate::paths::STATUS`]. Answered from the first moment on, also before netd is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// netd's version.
    pub version: String,
    /// The eBPF ABI version of its maps.
    pub abi: u32,
    /// The cluster's name.
    pub cluster: String,
    /// This node.
    pub node: NodeInfo,
    /// Whether ADD can work now.
    pub ready: bool,
    /// Why not, one line each; empty when ready.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// Whether running pods may lack connectivity (STATUS answers 51 instead of 50).
    #[serde(default)]
    pub limited_connectivity: bool,
    /// The store as this node sees it.
    pub store: StoreStatus,
    /// The store revision whose services are in the maps.
    pub programmed_revision: u64,
    /// The store revision whose names DNS answers: a moment later than the maps.
    #[serde(default)]
    pub named_revision: u64,
    /// Highest store revision for which everything this node owes the store (its node, pods, endpoints, block
    /// mirrors) is written. When all nodes have published a revision, the endpoints that follow from it exist.
    #[serde(default)]
    pub published_revision: u64,
    /// The overlay.
    pub overlay: OverlayStatus,
    /// Pods on this node.
    pub pods: usize,
    /// Services in the table.
    pub services: usize,
    /// Machines outside the cluster that may join by WireGuard.
    #[serde(default)]
    pub members: usize,
    /// Kernel objects that could not be applied yet.
    #[serde(default)]
    pub pending: Vec<PendingItem>,
    /// Values in the store that were skipped.
    #[serde(default)]
    pub bad_values: Vec<BadValue>,
    /// Since netd started, in seconds.
    pub uptime_secs: u64,
}

/// The store as a node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// URLs from the configuration.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// Whether the last request succeeded.
    pub connected: bool,
    /// Whether a full snapshot was read and the watch goes on from it.
    pub in_sync: bool,
    /// The newest revision seen.
    pub revision: u64,
    /// The last failure, if the connection is not well.
    #[serde(default)]
    pub last_error: Option<String>,
}

/// The overlay as a node has programmed it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayStatus {
    /// What the cluster wants: `wireguard`, `vxlan`, `native` or `auto`.
    pub backend: String,
    /// The overlay device; none for `native`.
    #[serde(default)]
    pub device: Option<String>,
    /// `kernel` or `user`: where this node's WireGuard devices run; none without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wireguard: Option<String>,
    /// Why the underlay address is what it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub underlay_reason: String,
    /// MTU for pods, in bytes.
    pub mtu: u32,
    /// The other nodes.
    #[serde(default)]
    pub peers: Vec<PeerInfo>,
}

/// Another node, as a peer of the overlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerInfo {
    /// The node's UUID.
    pub uuid: Uuid,
    /// The node's name.
    pub name: String,
    /// Where packets to it are sent.
    pub underlay: IpAddr,
    /// Its address in the pod network, once it has a block.
    #[serde(default)]
    pub overlay: Option<IpAddr>,
    /// What is routed to it.
    #[serde(default)]
    pub blocks: Vec<IpNet>,
    /// How packets to it travel now: `wireguard`, `vxlan` or `native`; none while there is no way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Why there is no way to it, or why it is not the wanted one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Bytes of a pod's packet that reach it, with its IP header; none while unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The tunnel to it, of each key generation that both have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tunnels: Vec<PeerTunnel>,
}

/// A WireGuard tunnel to a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerTunnel {
    /// The generation of both keys.
    pub generation: u64,
    /// This node's device.
    pub device: String,
    /// `kernel` or `user`: where the peer's device runs.
    #[serde(default)]
    pub peer_kind: String,
    /// Where packets to it are sent: as it was published, or as it was learnt from its packets.
    #[serde(default)]
    pub endpoint: Option<std::net::SocketAddr>,
    /// Since the last handshake, in seconds; none before the first.
    #[serde(default)]
    pub handshake_secs: Option<u64>,
    /// Received, in bytes.
    pub rx_bytes: u64,
    /// Sent, in bytes.
    pub tx_bytes: u64,
    /// Received in the last interval, in bits/s.
    #[serde(default)]
    pub rx_bits_per_sec: u64,
    /// Sent in the last interval, in bits/s.
    #[serde(default)]
    pub tx_bits_per_sec: u64,
}

/// A kernel object that could not be applied yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingItem {
    /// The object, such as `route 10.244.1.0/26`.
    pub object: String,
    /// The last error.
    pub error: String,
    /// How often it was tried.
    pub retries: u32,
}

/// A value in the store that does not decode and was skipped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadValue {
    /// Its key.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
}

/// One entry of GET [`crate::paths::NODES`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// The node's identity, kept on its disk.
    pub uuid: Uuid,
    /// The node's name.
    pub name: String,
    /// Where other nodes reach it; unknown before its first registration.
    #[serde(default)]
    pub underlay: Option<IpAddr>,
    /// Its address in the pod network, once it has a block.
    #[serde(default)]
    pub overlay: Option<IpAddr>,
    /// Whether its lease is alive. False means suspect, never gone.
    pub alive: bool,
    /// An operator is removing it; it is on this list until every other node has let go of it.
    #[serde(default)]
    pub removing: bool,
    /// The blocks it owns.
    #[serde(default)]
    pub blocks: Vec<IpNet>,
    /// netd's version there.
    #[serde(default)]
    pub version: String,
}
