// SPDX-License-Identifier: Apache-2.0
//! The overlay: from facts about nodes to this node's links, addresses, routes, neighbours and FDB.
//!
//! Several backends can be up at once, as while a cluster changes from one to another; each peer is reached by one path,
//! which [`crate::Paths`] chooses. This node's overlay addresses are on `lo`, so that they stay when devices come and go;
//! tunnels' devices have the IPv4 one, too, or they would not take packets whose answers go by another.
//!
//! Nothing is learnt from packets and nothing is flooded: with VXLAN each peer's overlay address has a permanent neighbour,
//! and that Ethernet address a forwarding entry; WireGuard goes by allowed IPs, which are the same claims as the routes
//! ([`allowed_ips`]). An unreachable route stands under every pool, whatever is up, so that traffic to a block without a
//! path is refused instead of leaving by the default route in the clear.
//!
//! IPv4 and IPv6 are alike and apart: a block goes by an overlay address of its own family. What a node is reached by on
//! the underlay may be of either family for tunnels; plain routes (`native`) want the block's own, because no IPv6 route has
//! an IPv4 next hop.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::host::{
    AddressSpec, FdbKey, FdbSpec, HostObjects, LinkSpec, NeighbourKey, NeighbourSpec, RouteKey, RouteKind,
    RouteSpec, TABLE_MAIN,
};
use crate::links::wireguard_device;
use crate::mac::Mac;

/// Metric of the unreachable routes. High, so that a pool of one single block does not hide that block's own route.
pub const BARRIER_METRIC: u32 = 1_000_000;

/// Bytes that VXLAN adds over IPv4: inner Ethernet 14, VXLAN 8, UDP 8, IPv4 20 (RFC 7348).
const VXLAN_OVERHEAD_V4: u32 = 50;

/// The same over IPv6, whose header is 20 bytes longer.
const VXLAN_OVERHEAD_V6: u32 = 70;

/// Bytes that WireGuard adds over IPv4: message header 16, authentication tag 16, UDP 8, IPv4 20 (WireGuard paper,
/// section 5.4.6).
const WIREGUARD_OVERHEAD_V4: u32 = 60;

/// The same over IPv6, whose header is 20 bytes longer.
const WIREGUARD_OVERHEAD_V6: u32 = 80;

/// What the overlay needs to know about a node, this one or a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// Identity of the node.
    pub uuid: Uuid,
    /// Its name, for people.
    pub name: String,
    /// Its address on the underlay; unspecified where it has none that others reach.
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
    pub(crate) fn overlay_like(&self, ip: IpAddr) -> Option<IpAddr> {
        self.overlays.iter().copied().find(|overlay| overlay.is_ipv4() == ip.is_ipv4())
    }
}

/// By what packets go to one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Path {
    /// By a plain route over the link that both are on, in the clear.
    Native,
    /// Through VXLAN.
    Vxlan,
    /// Through WireGuard with the keys of a generation.
    Wireguard {
        /// The generation; it says which device.
        generation: u64,
    },
}

/// A peer and how it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerPath {
    /// The peer.
    pub facts: NodeFacts,
    /// The path; `None` where there is none: what goes there is refused.
    pub path: Option<Path>,
    /// Largest packet in bytes, without the tunnel's headers, that gets there, where that is known. It stands on the
    /// routes where it is less than the device's.
    pub mtu: Option<u32>,
}

/// How pod traffic travels between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Plain routes between nodes on one layer 2 network.
    Native,
    /// VXLAN over UDP.
    Vxlan(VxlanConfig),
    /// WireGuard.
    Wireguard(WireguardConfig),
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

/// Settings of the WireGuard devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireguardConfig {
    /// Who does the work.
    pub kind: WireguardKind,
    /// MTU of the devices in bytes, see [`wireguard_mtu`].
    pub mtu: u32,
    /// Generations of which this node holds keys: they say which of the devices are in use.
    pub generations: BTreeSet<u64>,
}

/// Who does WireGuard's work on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireguardKind {
    /// The kernel's module.
    Kernel,
    /// The program `weft-wireguard`.
    User,
}

/// MTU of a VXLAN device over an underlay with that MTU, both in bytes.
pub fn vxlan_mtu(underlay_mtu: u32, underlay: IpAddr) -> u32 {
    let overhead = if underlay.is_ipv4() { VXLAN_OVERHEAD_V4 } else { VXLAN_OVERHEAD_V6 };
    underlay_mtu.saturating_sub(overhead)
}

/// MTU of a WireGuard device over an underlay with that MTU, both in bytes.
pub fn wireguard_mtu(underlay_mtu: u32, underlay: IpAddr) -> u32 {
    let overhead = if underlay.is_ipv4() { WIREGUARD_OVERHEAD_V4 } else { WIREGUARD_OVERHEAD_V6 };
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
/// `up` are the backends that this node has up, each at most once. `pools` are the pod CIDRs and `service_cidrs` the CIDRs
/// of virtual addresses; both get an unreachable route. A peer whose path is not up here has no routes.
///
/// What is routed to a peer: see [`allowed_ips`]. Merge [`crate::pod_objects`] over the result: an address that a local pod
/// has stays local whatever a record says.
pub fn overlay_objects(
    up: &[Backend],
    own: &NodeFacts,
    peers: &[PeerPath],
    pools: &[IpNet],
    service_cidrs: &[IpNet],
) -> HostObjects {
    let mut objects = HostObjects::new();
    for cidr in pools.iter().chain(service_cidrs) {
        let key = RouteKey { dst: cidr.trunc(), table: TABLE_MAIN, metric: BARRIER_METRIC };
        objects.routes.insert(key, RouteSpec { kind: RouteKind::Unreachable, ..RouteSpec::default() });
    }
    for backend in up {
        let links = links(backend, own);
        objects.addresses.extend(links.keys().filter_map(|device| loose_check(device, own)));
        objects.links.extend(links);
    }
    for overlay in own.overlays.iter().filter(|ip| own.overlay_like(**ip) == Some(**ip)) {
        let address =
            AddressSpec { device: "lo".to_owned(), address: IpNet::from(*overlay), scope_host: false };
        objects.addresses.insert(address);
    }
    let mut claims = claims(own, peers.iter().map(|peer| &peer.facts), pools);
    let mut peers: Vec<&PeerPath> = peers.iter().collect();
    peers.sort_by_key(|peer| peer.facts.uuid);
    for peer in peers {
        // Taken out: of two records with one UUID the first counts.
        let Some(claimed) = claims.remove(&peer.facts.uuid) else { continue };
        for backend in up {
            match (backend, peer.path) {
                (Backend::Native, Some(Path::Native)) => native_peer(&mut objects, own, peer, &claimed),
                (Backend::Vxlan(config), Some(Path::Vxlan)) => {
                    vxlan_peer(&mut objects, config, own, peer, pools, &claimed);
                }
                (Backend::Wireguard(config), Some(Path::Wireguard { generation })) => {
                    wireguard_peer(&mut objects, config, generation, own, peer, &claimed);
                }
                (Backend::Native | Backend::Vxlan(_) | Backend::Wireguard(_), _) => {}
            }
        }
    }
    objects
}

/// What each peer has a claim to: where packets to it go, and what packets from it may have as a source. A prefix is one
/// peer's only; where two name it, the lower UUID has it.
///
/// A block outside all pools is passed over, so that a bad record cannot draw other traffic into the overlay; so is a
/// block that this node owns. A single address is another matter: it moved to the peer out of a block, and wins over that
/// block, also where the block is this node's own.
pub fn allowed_ips(own: &NodeFacts, peers: &[NodeFacts], pools: &[IpNet]) -> BTreeMap<Uuid, BTreeSet<IpNet>> {
    claims(own, peers.iter(), pools)
}

pub(crate) fn claims<'a>(
    own: &NodeFacts,
    peers: impl Iterator<Item = &'a NodeFacts>,
    pools: &[IpNet],
) -> BTreeMap<Uuid, BTreeSet<IpNet>> {
    let mut peers: Vec<&NodeFacts> = peers.filter(|peer| is_other_node(own, peer)).collect();
    peers.sort_by_key(|peer| peer.uuid);
    let mut claimed = BTreeSet::new();
    let mut claims = BTreeMap::new();
    for peer in peers {
        claims.entry(peer.uuid).or_insert_with(|| {
            let free = destinations(own, peer, pools).into_iter().filter(|net| claimed.insert(*net));
            free.collect::<BTreeSet<IpNet>>()
        });
    }
    claims
}

pub(crate) fn is_other_node(own: &NodeFacts, peer: &NodeFacts) -> bool {
    let same_overlay = own.overlays.iter().any(|overlay| peer.overlays.contains(overlay));
    peer.uuid != own.uuid && !same_overlay
}

/// Whether the peer's underlay address leads to the peer. WireGuard does not ask: behind two address translators two nodes
/// may have the same one.
fn is_elsewhere(own: &NodeFacts, peer: &NodeFacts) -> bool {
    peer.underlay != own.underlay && !peer.underlay.is_unspecified()
}

fn links(backend: &Backend, own: &NodeFacts) -> BTreeMap<String, LinkSpec> {
    match backend {
        Backend::Native => BTreeMap::new(),
        Backend::Vxlan(config) => {
            let VxlanConfig { vni, port, mtu, .. } = *config;
            let link = LinkSpec::Vxlan { vni, port, local: own.underlay, mac: own.vtep_mac, mtu };
            BTreeMap::from([(config.device.clone(), link)])
        }
        Backend::Wireguard(config) => {
            let link = match config.kind {
                WireguardKind::Kernel => LinkSpec::Wireguard { mtu: config.mtu },
                WireguardKind::User => LinkSpec::Tun { mtu: config.mtu },
            };
            let device = |generation: &u64| (wireguard_device(*generation).to_owned(), link.clone());
            config.generations.iter().map(device).collect()
        }
    }
}

/// This node's IPv4 overlay address, on a tunnel's device. On `lo` it is already; but while each end moves for itself, packets
/// come in by one device whose answers go by another, and what has no IPv4 address fails even the loose reverse path check
/// then (`no_addr` in __fib_validate_source of net/ipv4/fib_frontend.c). IPv6 has no such check.
fn loose_check(device: &str, own: &NodeFacts) -> Option<AddressSpec> {
    let overlay = own.overlays.iter().copied().find(IpAddr::is_ipv4)?;
    Some(AddressSpec { device: device.to_owned(), address: IpNet::from(overlay), scope_host: true })
}

fn native_peer(objects: &mut HostObjects, own: &NodeFacts, peer: &PeerPath, claimed: &BTreeSet<IpNet>) {
    let underlay = peer.facts.underlay;
    if !is_elsewhere(own, &peer.facts) {
        return;
    }
    for dst in claimed.iter().filter(|dst| dst.addr().is_ipv4() == underlay.is_ipv4()) {
        let route = RouteSpec {
            gateway: Some(underlay),
            source: own.overlay_like(dst.addr()),
            mtu: peer.mtu,
            ..RouteSpec::default()
        };
        objects.routes.insert(RouteKey::main(*dst), route);
    }
}

fn vxlan_peer(
    objects: &mut HostObjects,
    config: &VxlanConfig,
    own: &NodeFacts,
    peer: &PeerPath,
    pools: &[IpNet],
    claimed: &BTreeSet<IpNet>,
) {
    let facts = &peer.facts;
    let fdb = FdbKey { device: config.device.clone(), mac: facts.vtep_mac };
    let usable_mac = facts.vtep_mac.is_station() && facts.vtep_mac != own.vtep_mac;
    if !is_elsewhere(own, facts) || !usable_mac || objects.fdb.contains_key(&fdb) {
        return;
    }
    let mut hops = Vec::new();
    for overlay in facts.overlays.iter().filter(|ip| facts.overlay_like(**ip) == Some(**ip)) {
        let neighbour = NeighbourKey { device: config.device.clone(), ip: *overlay };
        if contains(pools, overlay) && !objects.neighbours.contains_key(&neighbour) {
            objects.neighbours.insert(neighbour, NeighbourSpec { mac: facts.vtep_mac });
            hops.push(*overlay);
        }
    }
    // Without an overlay address there is no next hop; the pool's unreachable route answers until there is one.
    if hops.is_empty() {
        return;
    }
    objects.fdb.insert(fdb, FdbSpec { dst: facts.underlay });
    for dst in claimed {
        let Some(hop) = hops.iter().copied().find(|hop| hop.is_ipv4() == dst.addr().is_ipv4()) else {
            continue;
        };
        let route = RouteSpec {
            device: Some(config.device.clone()),
            gateway: Some(hop),
            onlink: true,
            source: own.overlay_like(dst.addr()),
            mtu: smaller_mtu(peer.mtu, config.mtu),
            ..RouteSpec::default()
        };
        objects.routes.insert(RouteKey::main(*dst), route);
    }
}

/// The device knows its peers by their allowed IPs: a route needs no next hop.
fn wireguard_peer(
    objects: &mut HostObjects,
    config: &WireguardConfig,
    generation: u64,
    own: &NodeFacts,
    peer: &PeerPath,
    claimed: &BTreeSet<IpNet>,
) {
    if !config.generations.contains(&generation) {
        return;
    }
    for dst in claimed {
        let route = RouteSpec {
            device: Some(wireguard_device(generation).to_owned()),
            source: own.overlay_like(dst.addr()),
            // IPv6 routes have no scope.
            scope_link: dst.addr().is_ipv4(),
            mtu: smaller_mtu(peer.mtu, config.mtu),
            ..RouteSpec::default()
        };
        objects.routes.insert(RouteKey::main(*dst), route);
    }
}

/// The path's MTU where it is less than the device's, which counts without being said.
pub(crate) fn smaller_mtu(path: Option<u32>, device: u32) -> Option<u32> {
    path.filter(|path| *path < device)
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
