// SPDX-License-Identifier: Apache-2.0
//! Clusters and the objects that one node makes of them.

use std::net::IpAddr;

use ipnet::IpNet;
use netd_plan::overlay::BARRIER_METRIC;
use netd_plan::{
    Backend, FdbKey, HostObjects, LinkSpec, Mac, NeighbourKey, NodeFacts, Path, PeerPath, PodWiring,
    RouteKey, RouteKind, VxlanConfig, WireguardConfig, WireguardKind, allowed_ips, overlay_objects,
    pod_objects, vtep_mac, vxlan_mtu, wireguard_mtu,
};
use proptest::prelude::*;
use uuid::Uuid;

const DEVICE: &str = "weft.vxlan";

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Node `n` has the underlay address 192.0.2.n and the block 10.244.n.0/26.
pub(crate) fn node(n: u8) -> NodeFacts {
    let uuid = Uuid::from_u128(n.into());
    NodeFacts {
        uuid,
        name: format!("n{n}"),
        underlay: ip(&format!("192.0.2.{n}")),
        overlays: vec![ip(&format!("10.244.{n}.0"))],
        vtep_mac: vtep_mac(uuid),
        blocks: vec![net(&format!("10.244.{n}.0/26"))],
    }
}

/// The same with IPv6 too: the block fd00:10:244:n::/122.
pub(crate) fn dual(n: u8) -> NodeFacts {
    let mut facts = node(n);
    facts.overlays.push(ip(&format!("fd00:10:244:{n}::")));
    facts.blocks.push(net(&format!("fd00:10:244:{n}::/122")));
    facts
}

pub(crate) fn vxlan() -> Backend {
    Backend::Vxlan(VxlanConfig { vni: 4242, port: 4789, mtu: 1450, device: DEVICE.to_owned() })
}

pub(crate) fn wireguard(kind: WireguardKind, generations: &[u64]) -> Backend {
    Backend::Wireguard(WireguardConfig {
        kind,
        mtu: 1440,
        generations: generations.iter().copied().collect(),
    })
}

/// A peer that is reached so.
pub(crate) fn by(facts: NodeFacts, path: Path) -> PeerPath {
    PeerPath { facts, path: Some(path), mtu: None }
}

/// All peers by the one backend that there is.
fn all_by(backend: &Backend, peers: &[NodeFacts]) -> Vec<PeerPath> {
    let path = match backend {
        Backend::Native => Path::Native,
        Backend::Vxlan(_) => Path::Vxlan,
        Backend::Wireguard(config) => Path::Wireguard { generation: *config.generations.last().unwrap() },
    };
    peers.iter().map(|peer| by(peer.clone(), path)).collect()
}

/// Node 1 with both families while several backends are up.
pub(crate) fn changing(up: &[Backend], peers: &[PeerPath]) -> HostObjects {
    overlay_objects(up, &dual(1), peers, &dual_pools(), &[net("10.96.0.0/16")])
}

pub(crate) fn dual_pools() -> [IpNet; 2] {
    [net("10.244.0.0/16"), net("fd00:10:244::/56")]
}

pub(crate) fn objects(backend: &Backend, own: &NodeFacts, peers: &[NodeFacts]) -> HostObjects {
    let peers = all_by(backend, peers);
    overlay_objects(
        std::slice::from_ref(backend),
        own,
        &peers,
        &[net("10.244.0.0/16")],
        &[net("10.96.0.0/16")],
    )
}

/// With pools of both families.
pub(crate) fn dual_objects(backend: &Backend, own: &NodeFacts, peers: &[NodeFacts]) -> HostObjects {
    let peers = all_by(backend, peers);
    overlay_objects(std::slice::from_ref(backend), own, &peers, &dual_pools(), &[net("10.96.0.0/16")])
}

fn unicast(objects: &HostObjects) -> Vec<String> {
    let forwarding = objects.routes.iter().filter(|(_, route)| route.kind == RouteKind::Unicast);
    let way = |gateway: Option<IpAddr>, device: &Option<String>| match gateway {
        Some(gateway) => format!("via {gateway}"),
        None => format!("dev {}", device.as_ref().unwrap()),
    };
    forwarding.map(|(key, route)| format!("{} {}", key.dst, way(route.gateway, &route.device))).collect()
}

fn addresses(objects: &HostObjects) -> Vec<String> {
    let no_source = |scope_host| if scope_host { ", no source" } else { "" };
    let shown = objects.addresses.iter();
    shown.map(|spec| format!("{} on {}{}", spec.address, spec.device, no_source(spec.scope_host))).collect()
}

#[test]
fn two_nodes_over_vxlan() {
    let objects = objects(&vxlan(), &node(1), &[node(2)]);
    let LinkSpec::Vxlan { vni, port, local, mac, mtu } = objects.links[DEVICE].clone() else {
        panic!("no VXLAN device")
    };
    assert_eq!((vni, port, local, mtu), (4242, 4789, ip("192.0.2.1"), 1450));
    assert_eq!(mac, vtep_mac(Uuid::from_u128(1)));
    assert_eq!(addresses(&objects), ["10.244.1.0/32 on lo", "10.244.1.0/32 on weft.vxlan, no source"]);

    let neighbour = NeighbourKey { device: DEVICE.to_owned(), ip: ip("10.244.2.0") };
    assert_eq!(objects.neighbours[&neighbour].mac, vtep_mac(Uuid::from_u128(2)));
    let fdb = FdbKey { device: DEVICE.to_owned(), mac: vtep_mac(Uuid::from_u128(2)) };
    assert_eq!(objects.fdb[&fdb].dst, ip("192.0.2.2"));

    let route = &objects.routes[&RouteKey::main(net("10.244.2.0/26"))];
    assert_eq!((route.gateway, route.onlink), (Some(ip("10.244.2.0")), true));
    assert_eq!((route.source, route.device.as_deref()), (Some(ip("10.244.1.0")), Some(DEVICE)));
    assert_eq!(objects.len(), 8, "and two barriers, nothing else: {objects:#?}");
}

#[test]
fn barriers_stand_under_pools_and_services_also_without_peers() {
    for backend in [vxlan(), Backend::Native, wireguard(WireguardKind::User, &[1])] {
        let own = NodeFacts { overlays: Vec::new(), blocks: Vec::new(), ..node(1) };
        let objects = objects(&backend, &own, &[]);
        for cidr in ["10.244.0.0/16", "10.96.0.0/16"] {
            let key = RouteKey { metric: BARRIER_METRIC, ..RouteKey::main(net(cidr)) };
            assert_eq!(objects.routes[&key].kind, RouteKind::Unreachable);
        }
        assert!(objects.addresses.is_empty());
    }
}

#[test]
fn pool_of_one_block_keeps_both_routes() {
    let peer = by(node(2), Path::Vxlan);
    let objects = overlay_objects(&[vxlan()], &node(1), &[peer], &[net("10.244.2.0/26")], &[]);
    assert_eq!(objects.routes.len(), 2, "{:?}", objects.routes);
}

#[test]
fn native_goes_by_the_underlay() {
    let objects = objects(&Backend::Native, &node(1), &[node(2), node(3)]);
    assert_eq!(unicast(&objects), ["10.244.2.0/26 via 192.0.2.2", "10.244.3.0/26 via 192.0.2.3"]);
    assert!(objects.links.is_empty() && objects.fdb.is_empty() && objects.neighbours.is_empty());
    assert_eq!(objects.addresses.first().unwrap().device, "lo");
}

#[test]
fn overlay_address_outside_the_own_blocks_has_a_route_of_its_own() {
    let peer = NodeFacts { overlays: vec![ip("10.244.9.9")], ..node(2) };
    let objects = objects(&vxlan(), &node(1), &[peer]);
    assert_eq!(unicast(&objects), ["10.244.2.0/26 via 10.244.9.9", "10.244.9.9/32 via 10.244.9.9"]);
}

#[test]
fn both_families_go_by_their_own_next_hop_to_one_tunnel_end() {
    let objects = dual_objects(&vxlan(), &dual(1), &[dual(2)]);
    assert_eq!(
        unicast(&objects),
        ["10.244.2.0/26 via 10.244.2.0", "fd00:10:244:2::/122 via fd00:10:244:2::"]
    );
    let key = RouteKey::main(net("fd00:10:244:2::/122"));
    assert_eq!(key.metric, 1024, "the kernel's own default");
    let route = &objects.routes[&key];
    assert_eq!((route.source, route.onlink), (Some(ip("fd00:10:244:1::")), true));
    for overlay in ["10.244.2.0", "fd00:10:244:2::"] {
        let neighbour = NeighbourKey { device: DEVICE.to_owned(), ip: ip(overlay) };
        assert_eq!(objects.neighbours[&neighbour].mac, node(2).vtep_mac);
    }
    assert_eq!(objects.fdb.len(), 1);
    let barrier = RouteKey { metric: BARRIER_METRIC, ..RouteKey::main(net("fd00:10:244::/56")) };
    assert_eq!(objects.routes[&barrier].kind, RouteKind::Unreachable);
    let on_lo = ["10.244.1.0/32 on lo", "fd00:10:244:1::/128 on lo"];
    assert_eq!(addresses(&objects), [&on_lo[..], &["10.244.1.0/32 on weft.vxlan, no source"]].concat());
}

#[test]
fn a_family_without_an_overlay_address_waits_behind_the_barrier() {
    let half = NodeFacts { overlays: node(2).overlays, ..dual(2) };
    assert_eq!(unicast(&dual_objects(&vxlan(), &dual(1), &[half])), ["10.244.2.0/26 via 10.244.2.0"]);
    let other = NodeFacts { overlays: vec![ip("fd00:10:244:2::")], ..dual(2) };
    let objects = dual_objects(&vxlan(), &dual(1), &[other]);
    assert_eq!(unicast(&objects), ["fd00:10:244:2::/122 via fd00:10:244:2::"]);
    assert_eq!((objects.fdb.len(), objects.neighbours.len()), (1, 1));
    let two = NodeFacts { overlays: vec![ip("10.244.2.0"), ip("10.244.2.9")], ..node(2) };
    let objects = dual_objects(&vxlan(), &two.clone(), &[NodeFacts { overlays: two.overlays, ..node(3) }]);
    let first = ["10.244.2.0/32 on lo", "10.244.2.0/32 on weft.vxlan, no source"];
    assert_eq!(addresses(&objects), first, "of several of a family the first");
}

#[test]
fn native_goes_by_the_family_that_the_underlay_has() {
    let objects = dual_objects(&Backend::Native, &dual(1), &[dual(2)]);
    assert_eq!(unicast(&objects), ["10.244.2.0/26 via 192.0.2.2"], "no IPv6 route by an IPv4 next hop");
    let v6 = |n: u8| NodeFacts { underlay: ip(&format!("2001:db8::{n}")), ..dual(n) };
    let objects = dual_objects(&Backend::Native, &v6(1), &[v6(2)]);
    assert_eq!(unicast(&objects), ["fd00:10:244:2::/122 via 2001:db8::2"]);
    assert!(objects.addresses.iter().all(|spec| spec.device == "lo") && objects.addresses.len() == 2);
}

#[test]
fn an_address_that_moved_wins_over_the_block_that_it_left() {
    let moved = |node: NodeFacts, addresses: &[&str]| {
        let addresses = addresses.iter().map(|text| net(text));
        NodeFacts { blocks: node.blocks.iter().copied().chain(addresses).collect(), ..node }
    };
    // One of ours, one of node 3's, our own overlay address and one of no pool.
    let peer = moved(dual(2), &["10.244.1.9/32", "fd00:10:244:3::9/128", "10.244.1.0/32", "192.0.2.9/32"]);
    let objects = dual_objects(&vxlan(), &dual(1), &[peer.clone(), dual(3)]);
    assert_eq!(
        unicast(&objects),
        [
            "10.244.1.9/32 via 10.244.2.0",
            "10.244.2.0/26 via 10.244.2.0",
            "10.244.3.0/26 via 10.244.3.0",
            "fd00:10:244:2::/122 via fd00:10:244:2::",
            "fd00:10:244:3::/122 via fd00:10:244:3::",
            "fd00:10:244:3::9/128 via fd00:10:244:2::",
        ]
    );
    // One that moved here does not hide the rest of its block, and nobody else has it.
    let own = moved(dual(1), &["10.244.2.7/32"]);
    let objects = dual_objects(&vxlan(), &own, &[moved(dual(2), &["10.244.2.7/32"])]);
    assert_eq!(
        unicast(&objects),
        ["10.244.2.0/26 via 10.244.2.0", "fd00:10:244:2::/122 via fd00:10:244:2::"]
    );
    // An address that a local pod has stays here, whatever a record says.
    let pod = PodWiring {
        ip: ip("10.244.1.9"),
        host_ifname: "weftpod1".to_owned(),
        container_mac: Mac([2, 0, 0, 0, 0, 9]),
    };
    let mut objects = dual_objects(&vxlan(), &dual(1), &[peer]);
    objects.merge(pod_objects(&[pod], &dual(1).overlays));
    let route = &objects.routes[&RouteKey::main(net("10.244.1.9/32"))];
    assert_eq!(route.device.as_deref(), Some("weftpod1"));
}

#[test]
fn bad_records_draw_no_traffic() {
    let outside = NodeFacts { blocks: vec![net("0.0.0.0/0"), net("10.244.2.0/26")], ..node(2) };
    let ours = NodeFacts { blocks: vec![net("10.244.1.0/27"), net("10.244.0.0/17")], ..node(3) };
    let no_address = NodeFacts { overlays: Vec::new(), ..node(4) };
    let foreign_address = NodeFacts { overlays: vec![ip("8.8.8.8")], ..node(5) };
    let group_mac = NodeFacts { vtep_mac: Mac([0xff; 6]), ..node(6) };
    let our_mac = NodeFacts { vtep_mac: node(1).vtep_mac, ..node(7) };
    let our_underlay = NodeFacts { underlay: node(1).underlay, ..node(8) };
    let peers = [outside, ours, no_address, foreign_address, group_mac, our_mac, our_underlay, node(1)];
    let objects = objects(&vxlan(), &node(1), &peers);
    assert_eq!(unicast(&objects), ["10.244.2.0/26 via 10.244.2.0", "10.244.3.0/32 via 10.244.3.0"]);
    assert_eq!(objects.fdb.len(), 2);
    assert!(objects.fdb.keys().all(|key| key.mac.is_station()), "no flooding");
}

#[test]
fn order_of_peers_does_not_matter_even_when_they_quarrel() {
    let claims_too_much = NodeFacts { blocks: vec![net("10.244.2.0/26")], ..node(3) };
    let same_overlay = NodeFacts { overlays: node(2).overlays, ..node(4) };
    let mut peers = vec![node(2), claims_too_much, same_overlay, node(5)];
    let forwards = objects(&vxlan(), &node(1), &peers);
    peers.reverse();
    assert_eq!(forwards, objects(&vxlan(), &node(1), &peers));
    assert!(unicast(&forwards).contains(&"10.244.2.0/26 via 10.244.2.0".to_owned()));
}

#[test]
fn wireguard_needs_no_next_hop() {
    for (kind, link) in [
        (WireguardKind::User, LinkSpec::Tun { mtu: 1440 }),
        (WireguardKind::Kernel, LinkSpec::Wireguard { mtu: 1440 }),
    ] {
        let objects = dual_objects(&wireguard(kind, &[1]), &dual(1), &[dual(2), node(3)]);
        assert_eq!(objects.links.iter().collect::<Vec<_>>(), [(&"weft.wg1".to_owned(), &link)]);
        assert_eq!(
            unicast(&objects),
            ["10.244.2.0/26 dev weft.wg1", "10.244.3.0/26 dev weft.wg1", "fd00:10:244:2::/122 dev weft.wg1"]
        );
        assert!(objects.neighbours.is_empty() && objects.fdb.is_empty());
        let v4 = &objects.routes[&RouteKey::main(net("10.244.2.0/26"))];
        assert_eq!((v4.source, v4.scope_link, v4.mtu), (Some(ip("10.244.1.0")), true, None));
        let v6 = &objects.routes[&RouteKey::main(net("fd00:10:244:2::/122"))];
        assert_eq!((v6.source, v6.scope_link), (Some(ip("fd00:10:244:1::")), false), "IPv6 has no scope");
        let on_lo = ["10.244.1.0/32 on lo", "fd00:10:244:1::/128 on lo"];
        assert_eq!(addresses(&objects), [&on_lo[..], &["10.244.1.0/32 on weft.wg1, no source"]].concat());
    }
}

#[test]
fn each_peer_goes_by_its_own_path_while_several_are_up() {
    let up = [Backend::Native, vxlan(), wireguard(WireguardKind::User, &[4, 5])];
    let nowhere = PeerPath { facts: dual(6), path: None, mtu: None };
    let not_up = by(dual(7), Path::Wireguard { generation: 6 });
    let peers = [
        by(node(2), Path::Native),
        by(node(3), Path::Vxlan),
        by(node(4), Path::Wireguard { generation: 4 }),
        by(node(5), Path::Wireguard { generation: 5 }),
        nowhere,
        not_up,
    ];
    let objects = changing(&up, &peers);
    assert_eq!(
        unicast(&objects),
        [
            "10.244.2.0/26 via 192.0.2.2",
            "10.244.3.0/26 via 10.244.3.0",
            "10.244.4.0/26 dev weft.wg0",
            "10.244.5.0/26 dev weft.wg1",
        ]
    );
    assert_eq!(objects.links.keys().collect::<Vec<_>>(), ["weft.vxlan", "weft.wg0", "weft.wg1"]);
    // Each takes packets from a peer that has not moved yet, or has before us.
    for device in objects.links.keys() {
        let address = format!("10.244.1.0/32 on {device}, no source");
        assert!(addresses(&objects).contains(&address), "{address}");
    }
    assert_eq!((objects.fdb.len(), objects.neighbours.len()), (1, 1), "the one that is sent to by VXLAN");
    assert_eq!(unicast(&changing(&[], &peers)), [""; 0], "nothing is up: the barriers answer");
}

#[test]
fn a_narrow_path_stands_on_the_routes() {
    let narrow = |path, mtu| PeerPath { mtu: Some(mtu), ..by(node(2), path) };
    let mtu = |up: Backend, peer: PeerPath| {
        changing(&[up], &[peer]).routes[&RouteKey::main(net("10.244.2.0/26"))].mtu
    };
    let tunnel = || wireguard(WireguardKind::User, &[1]);
    let one = Path::Wireguard { generation: 1 };
    assert_eq!(mtu(tunnel(), narrow(one, 1400)), Some(1400));
    assert_eq!(mtu(tunnel(), narrow(one, 1440)), None, "the device's own");
    assert_eq!(mtu(vxlan(), narrow(Path::Vxlan, 1400)), Some(1400));
    assert_eq!(mtu(Backend::Native, narrow(Path::Native, 1400)), Some(1400));
}

#[test]
fn wireguard_reaches_those_who_have_no_address_of_their_own_on_the_underlay() {
    let hidden = NodeFacts { underlay: ip("0.0.0.0"), ..node(2) };
    let same = NodeFacts { underlay: node(1).underlay, ..node(3) };
    for peer in [hidden, same] {
        let tunnel = wireguard(WireguardKind::User, &[1]);
        assert_eq!(unicast(&objects(&tunnel, &node(1), std::slice::from_ref(&peer))).len(), 1);
        for backend in [vxlan(), Backend::Native] {
            let objects = objects(&backend, &node(1), std::slice::from_ref(&peer));
            assert!(unicast(&objects).is_empty() && objects.fdb.is_empty(), "{objects:?}");
        }
    }
}

#[test]
fn allowed_ips_are_what_is_routed() {
    let moved = NodeFacts { blocks: [node(2).blocks, vec![net("10.244.1.9/32")]].concat(), ..node(2) };
    let quarrel = NodeFacts { blocks: vec![net("10.244.2.0/26"), net("0.0.0.0/0")], ..node(3) };
    let allowed = allowed_ips(&node(1), &[quarrel, moved, node(1)], &[net("10.244.0.0/16")]);
    let text =
        |n: u128| -> Vec<String> { allowed[&Uuid::from_u128(n)].iter().map(IpNet::to_string).collect() };
    assert_eq!(allowed.len(), 2, "not for this node itself");
    assert_eq!(text(2), ["10.244.1.9/32", "10.244.2.0/26"]);
    assert_eq!(text(3), ["10.244.3.0/32"], "what is left: its overlay address");
}

proptest! {
    /// Whatever records say: the routes over WireGuard are the devices' allowed IPs, each prefix is one peer's, and nothing
    /// outside the pools is drawn in.
    #[test]
    fn routes_and_allowed_ips_agree(claims in prop::collection::vec((1..8_u8, 0..10_u8, 20..=32_u8), 0..20)) {
        let mut peers: Vec<NodeFacts> = (2..8).map(node).collect();
        for (peer, block, prefix_len) in claims {
            let block = IpNet::new(ip(&format!("10.{}.{block}.0", 240 + peer)), prefix_len).unwrap();
            if let Some(peer) = peers.get_mut(usize::from(block.prefix_len() % 6)) {
                peer.blocks.push(block);
            }
        }
        let pools = [net("10.244.0.0/16")];
        let allowed = allowed_ips(&node(1), &peers, &pools);
        let all: Vec<IpNet> = allowed.values().flatten().copied().collect();
        let distinct: std::collections::BTreeSet<IpNet> = all.iter().copied().collect();
        prop_assert_eq!(all.len(), distinct.len());
        prop_assert!(distinct.iter().all(|net| pools[0].contains(net)));
        let objects = objects(&wireguard(WireguardKind::User, &[1]), &node(1), &peers);
        let routed = objects.routes.iter().filter(|(_, route)| route.kind == RouteKind::Unicast);
        prop_assert_eq!(routed.map(|(key, _)| key.dst).collect::<std::collections::BTreeSet<_>>(), distinct);
    }
}

#[test]
fn vtep_addresses_are_local_and_differ() {
    let macs: std::collections::BTreeSet<Mac> = (0..500).map(|n| vtep_mac(Uuid::from_u128(n))).collect();
    assert_eq!(macs.len(), 500);
    assert!(macs.iter().all(|mac| mac.0[0] & 0x03 == 0x02), "locally administered, no group");
}

#[test]
fn vxlan_costs_fifty_bytes_over_v4_and_seventy_over_v6() {
    assert_eq!(vxlan_mtu(1500, ip("192.0.2.1")), 1450);
    assert_eq!(vxlan_mtu(1500, ip("2001:db8::1")), 1430);
}

#[test]
fn wireguard_costs_sixty_bytes_over_v4_and_eighty_over_v6() {
    assert_eq!(wireguard_mtu(1500, ip("192.0.2.1")), 1440);
    assert_eq!(wireguard_mtu(1500, ip("2001:db8::1")), 1420);
    assert_eq!(wireguard_mtu(50, ip("192.0.2.1")), 0);
}
