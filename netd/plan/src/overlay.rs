// SPDX-License-Identifier: Apache-2.0
//! The overlay: from facts about nodes to this node's links, addresses, routes, neighbours and FDB.
//!
//! Nothing is learnt from packets and nothing is flooded: each peer's overlay address has a permanent neighbour, and
//! that Ethernet address a forwarding entry. An unreachable route stands under every pool, so that traffic to a
//! block without a peer is refused instead of leaving by the default route in the clear.
//!
//! IPv4 and IPv6 are alike and apart: a block goes by an overlay address of its own family. What a node is reached by on
//! the underlay may be of either family for VXLAN; plain routes (`native`) want the block's own, because no IPv6 route has
//! an IPv4 next hop.

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
    /// Its addresses inside the overlay, one of a family at most; none of a family until it owns a block there.
    pub overlays: Vec<IpAddr>,
    /// Ethernet address of its VXLAN device, see [`vtep_mac`].
    pub vtep_mac: Mac,
    /// Blocks that it owns, and single addresses out of others' blocks that moved to it.
    pub blocks: Vec<IpNet>,
}

impl NodeFacts {
    /// Its overlay address of the family of `ip`; of several the first.
    fn overlay_like(&self, ip: IpAddr) -> Option<IpAddr> {
        self.overlays.iter().copied().find(|overlay| overlay.is_ipv4() == ip.is_ipv4())
    }
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
/// so is a block that this node owns. A single address is another matter: it moved to the peer out of a block, and wins
/// over that block, also where the block is this node's own. Where two peers name one block, the lower UUID has it.
///
/// Merge [`crate::pod_objects`] over the result: an address that a local pod has stays local whatever a record says.
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
    let device = match backend {
        Backend::Native => "lo",
        Backend::Vxlan(config) => &config.device,
    };
    for overlay in own.overlays.iter().filter(|ip| own.overlay_like(**ip) == Some(**ip)) {
        let address =
            AddressSpec { device: device.to_owned(), address: IpNet::from(*overlay), scope_host: false };
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
    let same_overlay = own.overlays.iter().any(|overlay| peer.overlays.contains(overlay));
    peer.uuid != own.uuid && peer.underlay != own.underlay && !same_overlay
}

fn native_peer(objects: &mut HostObjects, own: &NodeFacts, peer: &NodeFacts, pools: &[IpNet]) {
    let reachable = |dst: &IpNet| dst.addr().is_ipv4() == peer.underlay.is_ipv4();
    for dst in destinations(own, peer, pools).into_iter().filter(reachable) {
        let route = RouteSpec {
            gateway: Some(peer.underlay),
            source: own.overlay_like(dst.addr()),
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
    let fdb = FdbKey { device: config.device.clone(), mac: peer.vtep_mac };
    if !peer.vtep_mac.is_station() || peer.vtep_mac == own.vtep_mac || objects.fdb.contains_key(&fdb) {
        return;
    }
    let mut hops = Vec::new();
    for overlay in peer.overlays.iter().filter(|ip| peer.overlay_like(**ip) == Some(**ip)) {
        let neighbour = NeighbourKey { device: config.device.clone(), ip: *overlay };
        if contains(pools, overlay) && !objects.neighbours.contains_key(&neighbour) {
            objects.neighbours.insert(neighbour, NeighbourSpec { mac: peer.vtep_mac });
            hops.push(*overlay);
        }
    }
    // Without an overlay address there is no next hop; the pool's unreachable route answers until there is one.
    if hops.is_empty() {
        return;
    }
    objects.fdb.insert(fdb, FdbSpec { dst: peer.underlay });
    for dst in destinations(own, peer, pools) {
        let Some(hop) = hops.iter().copied().find(|hop| hop.is_ipv4() == dst.addr().is_ipv4()) else {
            continue;
        };
        let route = RouteSpec {
            device: Some(config.device.clone()),
            gateway: Some(hop),
            onlink: true,
            source: own.overlay_like(dst.addr()),
            ..RouteSpec::default()
        };
        objects.routes.entry(RouteKey::main(dst)).or_insert(route);
    }
}

/// The peer's blocks and single addresses inside the pools, and its overlay addresses where no block covers them.
fn destinations(own: &NodeFacts, peer: &NodeFacts, pools: &[IpNet]) -> Vec<IpNet> {
    let mut destinations: Vec<IpNet> = peer
        .blocks
        .iter()
        .map(IpNet::trunc)
        .filter(|block| pools.iter().any(|pool| pool.contains(block)))
        .filter(|block| !own.overlays.iter().any(|ip| IpNet::from(*ip) == *block))
        .filter(|block| !own.blocks.iter().any(|mine| is_same_claim(mine, block)))
        .collect();
    for overlay in &peer.overlays {
        let covered = destinations.iter().any(|block| block.contains(overlay));
        if !covered && !contains(&own.blocks, overlay) && contains(pools, overlay) {
            destinations.push(IpNet::from(*overlay));
        }
    }
    destinations
}

/// Whether both cannot be true. A single address and a block around it can: the address moved.
fn is_same_claim(mine: &IpNet, theirs: &IpNet) -> bool {
    match is_single(mine) || is_single(theirs) {
        true => mine == theirs,
        false => mine.contains(theirs) || theirs.contains(mine),
    }
}

fn is_single(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

fn contains(nets: &[IpNet], ip: &IpAddr) -> bool {
    nets.iter().any(|net| net.contains(ip))
}
