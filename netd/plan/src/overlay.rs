// SPDX-License-Identifier: Apache-2.0
//! The overlay: from facts about nodes to this node's links, addresses, routes, neighbours and FDB.
//!
//! Nothing is learnt from packets and nothing is flooded: each peer's overlay address has a permanent neighbour, and
//! that Ethernet address a forwarding entry. An unreachable route stands under every pool, so that traffic to a
//! block without a peer is refused instead of leaving by the default route in the clear.

use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::host::{
    AddressSpec, FdbKey, FdbSpec, HostObjects, LinkSpec, NeighbourKey, NeighbourSpec, RouteKey, RouteKind,
    RouteSpec, TABLE_MAIN,
};
use crate::mac::Mac;

/// Metric of the unreachable routes. High, so that a pool of one single block does not hide that block's own route.
pub const BARRIER_METRIC: u32 = 1_000_000;

/// Bytes that VXLAN adds over IPv4: inner Ethernet 14, VXLAN 8, UDP 8, IPv4 20 (RFC 7348).
const VXLAN_OVERHEAD_V4: u32 = 50;

/// The same over IPv6, whose header is 20 bytes longer.
const VXLAN_OVERHEAD_V6: u32 = 70;

/// What the overlay needs to know about a node, this one or a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// Identity of the node.
    pub uuid: Uuid,
    /// Its name, for people.
    pub name: String,
    /// Its address on the underlay.
    pub underlay: IpAddr,
    /// Its address inside the overlay; `None` until it owns a block.
    pub overlay: Option<IpAddr>,
    /// Ethernet address of its VXLAN device, see [`vtep_mac`].
    pub vtep_mac: Mac,
    /// Blocks that it owns.
    pub blocks: Vec<IpNet>,
}

/// How pod traffic travels between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Plain routes between nodes on one layer 2 network.
    Native,
    /// VXLAN over UDP.
    Vxlan(VxlanConfig),
}

/// Settings of the VXLAN device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanConfig {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// MTU of the device in bytes, see [`vxlan_mtu`].
    pub mtu: u32,
    /// Name of the device.
    pub device: String,
}

/// MTU of a VXLAN device over an underlay with that MTU, both in bytes.
pub fn vxlan_mtu(underlay_mtu: u32, underlay: IpAddr) -> u32 {
    let overhead = if underlay.is_ipv4() { VXLAN_OVERHEAD_V4 } else { VXLAN_OVERHEAD_V6 };
    underlay_mtu.saturating_sub(overhead)
}

/// The Ethernet address of a node's VXLAN device: locally administered, from the node's identity, so that it survives
/// a restart and peers need not relearn it.
pub fn vtep_mac(node: Uuid) -> Mac {
    let mut hash = Sha256::new();
    hash.update(b"weft vtep ");
    hash.update(node.as_bytes());
    let digest = hash.finalize();
    let mut mac = [0; 6];
    mac.copy_from_slice(&digest[..6]);
    // Bit 1 of the first byte: locally administered. Bit 0: group; must be clear (IEEE 802).
    mac[0] = (mac[0] | 0x02) & 0xfe;
    Mac(mac)
}

/// Everything of the overlay on this node.
///
/// `pools` are the pod CIDRs and `service_cidrs` the CIDRs of virtual addresses; both get an unreachable route.
/// A peer's block outside all pools is passed over, so that a bad record cannot draw other traffic into the overlay;
/// so is a block that this node owns. Where two peers name one block, the lower UUID has it.
pub fn overlay_objects(
    backend: &Backend,
    own: &NodeFacts,
    peers: &[NodeFacts],
    pools: &[IpNet],
    service_cidrs: &[IpNet],
) -> HostObjects {
    let mut objects = HostObjects::new();
    for cidr in pools.iter().chain(service_cidrs) {
        let key = RouteKey { dst: cidr.trunc(), table: TABLE_MAIN, metric: BARRIER_METRIC };
        objects.routes.insert(key, RouteSpec { kind: RouteKind::Unreachable, ..RouteSpec::default() });
    }
    if let Backend::Vxlan(config) = backend {
        let link = LinkSpec::Vxlan {
            vni: config.vni,
            port: config.port,
            local: own.underlay,
            mac: own.vtep_mac,
            mtu: config.mtu,
        };
        objects.links.insert(config.device.clone(), link);
    }
    if let Some(overlay) = own.overlay {
        let device = match backend {
            Backend::Native => "lo".to_owned(),
            Backend::Vxlan(config) => config.device.clone(),
        };
        let address = AddressSpec { device, address: IpNet::from(overlay), scope_host: false };
        objects.addresses.insert(address);
    }
    let mut peers: Vec<&NodeFacts> = peers.iter().filter(|peer| is_other_node(own, peer)).collect();
    peers.sort_by_key(|peer| peer.uuid);
    for peer in peers {
        match backend {
            Backend::Native => native_peer(&mut objects, own, peer, pools),
            Backend::Vxlan(config) => vxlan_peer(&mut objects, config, own, peer, pools),
        }
    }
    objects
}

fn is_other_node(own: &NodeFacts, peer: &NodeFacts) -> bool {
    let same_overlay = own.overlay.is_some() && own.overlay == peer.overlay;
    peer.uuid != own.uuid && peer.underlay != own.underlay && !same_overlay
}

fn native_peer(objects: &mut HostObjects, own: &NodeFacts, peer: &NodeFacts, pools: &[IpNet]) {
    for dst in destinations(own, peer, pools) {
        let route = RouteSpec {
            gateway: Some(peer.underlay),
            source: own.overlay.filter(|source| source.is_ipv4() == dst.addr().is_ipv4()),
            ..RouteSpec::default()
        };
        objects.routes.entry(RouteKey::main(dst)).or_insert(route);
    }
}

fn vxlan_peer(
    objects: &mut HostObjects,
    config: &VxlanConfig,
    own: &NodeFacts,
    peer: &NodeFacts,
    pools: &[IpNet],
) {
    // Without an overlay address there is no next hop; the pool's unreachable route answers until there is one.
    let Some(overlay) = peer.overlay.filter(|overlay| pools.iter().any(|pool| pool.contains(overlay))) else {
        return;
    };
    let fdb = FdbKey { device: config.device.clone(), mac: peer.vtep_mac };
    if !peer.vtep_mac.is_station() || peer.vtep_mac == own.vtep_mac || objects.fdb.contains_key(&fdb) {
        return;
    }
    let neighbour = NeighbourKey { device: config.device.clone(), ip: overlay };
    if objects.neighbours.contains_key(&neighbour) {
        return;
    }
    objects.fdb.insert(fdb, FdbSpec { dst: peer.underlay });
    objects.neighbours.insert(neighbour, NeighbourSpec { mac: peer.vtep_mac });
    for dst in destinations(own, peer, pools) {
        if dst.addr().is_ipv4() != overlay.is_ipv4() {
            continue;
        }
        let route = RouteSpec {
            device: Some(config.device.clone()),
            gateway: Some(overlay),
            onlink: true,
            source: own.overlay.filter(|source| source.is_ipv4() == dst.addr().is_ipv4()),
            ..RouteSpec::default()
        };
        objects.routes.entry(RouteKey::main(dst)).or_insert(route);
    }
}

/// The peer's blocks inside the pools, and its overlay address where no block covers it.
fn destinations(own: &NodeFacts, peer: &NodeFacts, pools: &[IpNet]) -> Vec<IpNet> {
    let mut destinations: Vec<IpNet> = peer
        .blocks
        .iter()
        .map(IpNet::trunc)
        .filter(|block| pools.iter().any(|pool| pool.contains(block)))
        .filter(|block| !own.blocks.iter().any(|mine| mine.contains(block) || block.contains(mine)))
        .collect();
    if let Some(overlay) = peer.overlay {
        let covered = destinations.iter().any(|block| block.contains(&overlay));
        let foreign = own.blocks.iter().any(|mine| mine.contains(&overlay));
        if !covered && !foreign && pools.iter().any(|pool| pool.contains(&overlay)) {
            destinations.push(IpNet::from(overlay));
        }
    }
    destinations
}
