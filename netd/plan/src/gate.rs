// SPDX-License-Identifier: Apache-2.0
//! The gate: any node leads trusted hosts to the pods of all, also where nodes are connected by WireGuard.
//!
//! WireGuard takes from a node only what has one of that node's addresses as its source, and a trusted host's packets have
//! the host's. So they travel in VXLAN from overlay address to overlay address, inside WireGuard: a device of its own
//! ([`GATE_DEVICE`]), with routes to peers' blocks in a table of its own ([`TABLE_TRUSTED`]) that only packets from trusted
//! sources look up. No pod sends from such a source: that is checked at its veth, and what of a trusted prefix lies in a pool
//! is left out of the rules. Answers do not come this way: the pod's node sends them by its own uplink. So the device lets
//! sources in that are reached by others (a loose reverse path check), which the kernel does for IPv4 only where it has an
//! address.
//!
//! Peers that are reached otherwise (VXLAN, plain routes) need no gate: the main table leads to them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use uuid::Uuid;

use crate::host::{
    AddressSpec, FdbKey, FdbSpec, HostObjects, LinkSpec, METRIC_V6, NeighbourKey, NeighbourSpec,
    RULE_PRIORITY, RouteKey, RouteKind, RouteSpec, RuleSpec, TABLE_TRUSTED,
};
use crate::links::GATE_DEVICE;
use crate::mac::Mac;
use crate::overlay::{NodeFacts, Path, PeerPath, claims, is_other_node, smaller_mtu, vxlan_mtu};

/// Devices with less carry no IPv6 (RFC 8200, section 5).
const IPV6_MTU_MIN: u32 = 1280;

/// No packet's source (RFC 1122, section 3.2.1.3; RFC 4291, sections 2.5.2 and 2.5.5), but what the kernel asks its rules
/// with for a socket of the node that has no address yet: such a one does not come from outside.
const NO_SOURCE: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 8)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 16)),
];

/// Settings of the gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateConfig {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP port, see [`crate::gate_port`]: no other VXLAN device's, so that the firewall tells them apart.
    pub port: u16,
    /// MTU of the WireGuard devices in bytes.
    pub wireguard_mtu: u32,
    /// Sources that may use it. None: there is no gate.
    pub trusted: Vec<IpNet>,
}

/// Device, its address, neighbours, routes and rules of the gate; nothing without trusted sources, overlay address or peers.
///
/// The device is there for every peer, because a peer may send by it before this node does. `pods` are the addresses of this
/// node's pods: one out of a peer's block stays here.
pub fn gate_objects(
    config: &GateConfig,
    own: &NodeFacts,
    peers: &[PeerPath],
    pools: &[IpNet],
    pods: &[IpAddr],
) -> HostObjects {
    let mut objects = HostObjects::new();
    let alone = !peers.iter().any(|peer| is_other_node(own, &peer.facts));
    let Some(local) = tunnel_end(own).filter(|_| !alone && !config.trusted.is_empty()) else {
        return objects;
    };
    let (vni, port, mac) = (config.vni, config.port, own.vtep_mac);
    let mtu = vxlan_mtu(config.wireguard_mtu, local);
    objects.links.insert(GATE_DEVICE.to_owned(), LinkSpec::Vxlan { vni, port, local, mac, mtu });
    // On `lo` it is already. But what comes in by a device without any IPv4 address passes the loose check only by the way
    // of its answers (`no_addr` in __fib_validate_source of net/ipv4/fib_frontend.c).
    if local.is_ipv4() {
        let (device, address) = (GATE_DEVICE.to_owned(), IpNet::from(local));
        objects.addresses.insert(AddressSpec { device, address, scope_host: true });
    }

    let mut claims = claims(own, peers.iter().map(|peer| &peer.facts), pools);
    let mut sorted: Vec<&PeerPath> = peers.iter().collect();
    sorted.sort_by_key(|peer| peer.facts.uuid);
    let mut elsewhere: BTreeSet<IpNet> =
        own.blocks.iter().map(IpNet::trunc).chain(pods.iter().copied().map(IpNet::from)).collect();
    for peer in sorted {
        let Some(claimed) = claims.remove(&peer.facts.uuid) else { continue };
        if !peer_objects(&mut objects, own, peer, &claimed, local, mtu) {
            elsewhere.extend(claimed);
        }
    }
    exceptions(&mut objects, &elsewhere);
    objects.rules = rules(&objects, &config.trusted, pools);
    objects
}

/// Where the gate's packets come from, as the firewall has to know it: the other nodes' overlay addresses.
pub fn gate_sources(own: &NodeFacts, peers: &[NodeFacts], pools: &[IpNet]) -> Vec<IpAddr> {
    let Some(local) = tunnel_end(own) else { return Vec::new() };
    let claims: BTreeMap<Uuid, BTreeSet<IpNet>> = claims(own, peers.iter(), pools);
    let mut sources: Vec<IpAddr> = peers
        .iter()
        .filter_map(|peer| Some((peer.overlay_like(local)?, claims.get(&peer.uuid)?)))
        .filter(|(end, claimed)| covers(claimed, *end))
        .map(|(end, _)| end)
        .collect();
    sources.sort();
    sources.dedup();
    sources
}

/// The overlay address that a node's gate has: the IPv4 one where there is one. A VXLAN device has one family.
fn tunnel_end(node: &NodeFacts) -> Option<IpAddr> {
    node.overlays.iter().copied().find(IpAddr::is_ipv4).or(node.overlays.first().copied())
}

/// Whether the peer's pods are reached through the gate.
fn peer_objects(
    objects: &mut HostObjects,
    own: &NodeFacts,
    peer: &PeerPath,
    claimed: &BTreeSet<IpNet>,
    local: IpAddr,
    mtu: u32,
) -> bool {
    let facts = &peer.facts;
    let fdb = FdbKey { device: GATE_DEVICE.to_owned(), mac: facts.vtep_mac };
    let usable_mac = facts.vtep_mac.is_station() && facts.vtep_mac != own.vtep_mac;
    let sealed = matches!(peer.path, Some(Path::Wireguard { .. }));
    // Its end has to be the peer's for WireGuard, too.
    let end = facts.overlay_like(local).filter(|end| covers(claimed, *end));
    let Some(end) = end.filter(|_| sealed && usable_mac && !objects.fdb.contains_key(&fdb)) else {
        return false;
    };
    objects.fdb.insert(fdb, FdbSpec { dst: end });
    for dst in claimed {
        let Some((hop, onlink)) = next_hop(facts, dst).filter(|_| carries(mtu, dst)) else { continue };
        let neighbour = NeighbourKey { device: GATE_DEVICE.to_owned(), ip: hop };
        objects.neighbours.insert(neighbour, NeighbourSpec { mac: facts.vtep_mac });
        let route = RouteSpec {
            device: Some(GATE_DEVICE.to_owned()),
            gateway: Some(hop),
            onlink,
            mtu: smaller_mtu(peer.mtu.map(|path| vxlan_mtu(path, local)), mtu)
                .filter(|mtu| carries(*mtu, dst)),
            ..RouteSpec::default()
        };
        objects.routes.insert(key(*dst), route);
    }
    true
}

/// The peer's VTEP as a next hop. For IPv6 a link-local address that follows from its Ethernet address: the kernel refuses
/// the overlay address, to which the main table leads over WireGuard (ip6_route_check_nh_onlink of net/ipv6/route.c).
fn next_hop(peer: &NodeFacts, dst: &IpNet) -> Option<(IpAddr, bool)> {
    match dst {
        IpNet::V4(_) => peer.overlay_like(dst.addr()).map(|hop| (hop, true)),
        IpNet::V6(_) => Some((link_local(peer.vtep_mac).into(), false)),
    }
}

/// fe80::/64 with the interface identifier that RFC 4291, appendix A makes of an Ethernet address.
fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 0x02, b, c, 0xff, 0xfe, d, e, f])
}

fn carries(mtu: u32, dst: &IpNet) -> bool {
    dst.addr().is_ipv4() || mtu >= IPV6_MTU_MIN
}

fn covers(claimed: &BTreeSet<IpNet>, ip: IpAddr) -> bool {
    claimed.iter().any(|net| net.contains(&ip))
}

fn key(dst: IpNet) -> RouteKey {
    let metric = if dst.addr().is_ipv4() { 0 } else { METRIC_V6 };
    RouteKey { dst, table: TABLE_TRUSTED, metric }
}

/// What lies in a peer's block and is not there (it moved here, or to a peer that needs no gate) is for the main table.
fn exceptions(objects: &mut HostObjects, elsewhere: &BTreeSet<IpNet>) {
    let inside = |net: &&IpNet| {
        let wider = |key: &RouteKey| key.dst.contains(*net) && key.dst != **net;
        objects.routes.keys().any(wider)
    };
    let inside: Vec<IpNet> = elsewhere.iter().filter(inside).copied().collect();
    for net in inside {
        let throw = RouteSpec { kind: RouteKind::Throw, ..RouteSpec::default() };
        objects.routes.entry(key(net)).or_insert(throw);
    }
}

/// A rule for each trusted prefix of a family of which the table has routes.
fn rules(objects: &HostObjects, trusted: &[IpNet], pools: &[IpNet]) -> BTreeSet<RuleSpec> {
    let trusted: Vec<IpNet> = trusted.iter().map(IpNet::trunc).collect();
    let joined = IpNet::aggregate(&trusted);
    let holes = [pools, &NO_SOURCE].concat();
    let outside = joined.into_iter().flat_map(|net| without(net, &holes));
    let led = |net: &IpNet| objects.routes.keys().any(|key| key.dst.addr().is_ipv4() == net.addr().is_ipv4());
    let rule = |source| RuleSpec { source, table: TABLE_TRUSTED, priority: RULE_PRIORITY };
    outside.filter(led).map(rule).collect()
}

/// What is left of `net`, in as few prefixes as possible.
fn without(net: IpNet, holes: &[IpNet]) -> Vec<IpNet> {
    if holes.iter().any(|hole| hole.contains(&net)) {
        return Vec::new();
    }
    if !holes.iter().any(|hole| net.contains(hole)) {
        return vec![net];
    }
    // A single address that holds a hole is one: there are halves.
    let halves = net.subnets(net.prefix_len() + 1).into_iter().flatten();
    halves.flat_map(|half| without(half, holes)).collect()
}
