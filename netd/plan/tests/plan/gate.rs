// SPDX-License-Identifier: Apache-2.0
//! How trusted hosts' packets get from any node to the pods of all, where nodes are connected by WireGuard.

use std::net::IpAddr;

use netd_plan::gate::{GateConfig, gate_objects, gate_sources};
use netd_plan::host::TABLE_TRUSTED;
use netd_plan::links::GATE_DEVICE;
use netd_plan::{
    Backend, FdbKey, HostObject, HostObjects, LinkSpec, NeighbourKey, NodeFacts, Path, PeerPath, RouteKind,
    plan, vtep_mac,
};
use proptest::prelude::*;
use uuid::Uuid;

use super::overlay::{by, dual, dual_pools, node};

const ONE: Path = Path::Wireguard { generation: 1 };

fn config(trusted: &[&str]) -> GateConfig {
    let trusted = trusted.iter().map(|net| net.parse().unwrap()).collect();
    GateConfig { vni: 4242, port: 51822, wireguard_mtu: 1440, trusted }
}

fn gate(trusted: &[&str], own: &NodeFacts, peers: &[PeerPath], pods: &[&str]) -> HostObjects {
    let pods: Vec<IpAddr> = pods.iter().map(|ip| ip.parse().unwrap()).collect();
    gate_objects(&config(trusted), own, peers, &dual_pools(), &pods)
}

/// A node's overlay and its gate.
pub(crate) fn gated(up: &[Backend], own: &NodeFacts, peers: &[PeerPath], trusted: &str) -> HostObjects {
    let services = ["10.96.0.0/16".parse().unwrap()];
    let mut objects = netd_plan::overlay_objects(up, own, peers, &dual_pools(), &services);
    objects.merge(gate(&[trusted], own, peers, &[]));
    objects
}

/// Destination and next hop of each route of the table.
fn routes(objects: &HostObjects) -> Vec<String> {
    let shown = |(key, route): (&netd_plan::RouteKey, &netd_plan::RouteSpec)| {
        assert_eq!(key.table, TABLE_TRUSTED);
        match (route.kind, route.gateway) {
            (RouteKind::Throw, None) => format!("throw {}", key.dst),
            (RouteKind::Unicast, Some(hop)) => {
                assert_eq!(route.device.as_deref(), Some(GATE_DEVICE));
                assert_eq!(route.onlink, hop.is_ipv4(), "IPv6 takes a link-local one as it is");
                format!("{} via {hop}", key.dst)
            }
            other => panic!("{other:?}"),
        }
    };
    objects.routes.iter().map(shown).collect()
}

fn sources(objects: &HostObjects) -> Vec<String> {
    objects.rules.iter().map(|rule| rule.source.to_string()).collect()
}

#[test]
fn a_peer_behind_wireguard_is_reached_through_vxlan_between_overlay_addresses() {
    let objects = gate(&["198.51.100.0/24", "2001:db8::/32"], &dual(1), &[by(dual(2), ONE)], &[]);
    let LinkSpec::Vxlan { vni, port, local, mac, mtu } = objects.links[GATE_DEVICE].clone() else {
        panic!("no VXLAN device")
    };
    assert_eq!((vni, port, local, mtu), (4242, 51822, "10.244.1.0".parse().unwrap(), 1390));
    assert_eq!(mac, vtep_mac(Uuid::from_u128(1)));
    let theirs = vtep_mac(Uuid::from_u128(2));
    let fdb = FdbKey { device: GATE_DEVICE.to_owned(), mac: theirs };
    assert_eq!(objects.fdb[&fdb].dst, "10.244.2.0".parse::<IpAddr>().unwrap(), "inside WireGuard");
    let routes = routes(&objects);
    assert_eq!(routes[0], "10.244.2.0/26 via 10.244.2.0");
    let hop = routes[1].strip_prefix("fd00:10:244:2::/122 via ").unwrap().parse().unwrap();
    let IpAddr::V6(link_local) = hop else { panic!("{hop}") };
    assert!(link_local.is_unicast_link_local(), "{hop}");
    for ip in ["10.244.2.0".parse().unwrap(), hop] {
        let neighbour = NeighbourKey { device: GATE_DEVICE.to_owned(), ip };
        assert_eq!(objects.neighbours[&neighbour].mac, theirs);
    }
    assert_eq!(sources(&objects), ["198.51.100.0/24", "2001:db8::/32"]);
    // Without one the kernel drops what a trusted host sends, because answers go another way.
    let addresses: Vec<String> = objects.addresses.iter().map(|spec| spec.address.to_string()).collect();
    assert_eq!(addresses, ["10.244.1.0/32"]);
    assert!(objects.addresses.iter().all(|spec| spec.device == GATE_DEVICE && spec.scope_host));
}

#[test]
fn there_is_none_without_trusted_hosts_peers_or_an_address() {
    let peers = [by(dual(2), ONE)];
    let homeless = NodeFacts { overlays: Vec::new(), ..dual(1) };
    let itself = [by(dual(1), ONE)];
    for objects in [
        gate(&[], &dual(1), &peers, &[]),
        gate(&["192.0.2.0/24"], &dual(1), &[], &[]),
        gate(&["192.0.2.0/24"], &dual(1), &itself, &[]),
        gate(&["192.0.2.0/24"], &homeless, &peers, &[]),
    ] {
        assert_eq!(objects, HostObjects::new());
    }
}

#[test]
fn peers_that_are_reached_otherwise_have_no_part_in_it() {
    for path in [Some(Path::Vxlan), Some(Path::Native), None] {
        let peer = PeerPath { facts: dual(2), path, mtu: None };
        let objects = gate(&["192.0.2.0/24"], &dual(1), &[peer], &[]);
        // They may send by it already.
        assert!(objects.links.contains_key(GATE_DEVICE) && objects.len() == 2, "{path:?}: {objects:#?}");
    }
}

#[test]
fn addresses_away_from_their_block_are_found() {
    let lent = |n: u8, ip: &str| NodeFacts {
        blocks: [dual(n).blocks, vec![ip.parse().unwrap()]].concat(),
        ..dual(n)
    };
    // 10.244.2.9 is this node's, 10.244.2.8 a pod of this node's, 10.244.1.9 node 2's, 10.244.2.7 node 3's.
    let peers = [by(lent(2, "10.244.1.9/32"), ONE), by(lent(3, "10.244.2.7/32"), Path::Vxlan)];
    let own = lent(1, "10.244.2.9/32");
    let objects = gate(&["192.0.2.0/24"], &own, &peers, &["10.244.1.5", "10.244.2.8", "10.244.2.9"]);
    let v4: Vec<String> = routes(&objects).into_iter().filter(|route| !route.contains("fd00")).collect();
    assert_eq!(
        v4,
        [
            "10.244.1.9/32 via 10.244.2.0",
            "10.244.2.0/26 via 10.244.2.0",
            "throw 10.244.2.7/32",
            "throw 10.244.2.8/32",
            "throw 10.244.2.9/32"
        ]
    );
}

#[test]
fn pods_never_take_the_rule_however_much_is_trusted() {
    let peers = [by(node(2), ONE)];
    let objects = gate(&["0.0.0.0/0", "192.0.2.0/24"], &dual(1), &peers, &[]);
    let rules: Vec<ipnet::IpNet> = objects.rules.iter().map(|rule| rule.source).collect();
    assert!(rules.len() < 8 + 16, "no more than the prefixes of what is left out are long: {rules:?}");
    let asked = |ip: &str| rules.iter().filter(|net| net.contains(&ip.parse::<IpAddr>().unwrap())).count();
    assert_eq!((asked("10.244.0.0"), asked("10.244.255.255")), (0, 0));
    assert_eq!((asked("0.0.0.0"), asked("1.0.0.0")), (0, 1), "a socket of the node that has no address yet");
    assert_eq!((asked("10.243.255.255"), asked("10.245.0.0"), asked("192.0.2.7")), (1, 1, 1));
    // No route of that family, no rule.
    assert_eq!(sources(&gate(&["::/0", "192.0.2.0/25"], &dual(1), &peers, &[])), ["192.0.2.0/25"]);
    assert!(sources(&gate(&["10.244.7.0/24"], &dual(1), &peers, &[])).is_empty(), "inside a pool");
}

#[test]
fn what_fits_through_wireguard_fits_through_the_gate() {
    let narrow = PeerPath { mtu: Some(1380), ..by(dual(2), ONE) };
    let objects = gate(&["192.0.2.0/24"], &dual(1), &[narrow, by(dual(3), ONE)], &[]);
    let mtus: Vec<Option<u32>> = objects.routes.values().map(|route| route.mtu).collect();
    assert_eq!(mtus, [Some(1330), None, Some(1330), None]);
    // Only IPv6 inside: its header is longer, and a device with too little carries none of it.
    let v6 =
        |n: u8| NodeFacts { overlays: vec![dual(n).overlays[1]], blocks: vec![dual(n).blocks[1]], ..dual(n) };
    for (wireguard_mtu, mtu, count) in [(1440, 1370, 1), (1340, 1270, 0)] {
        let config = GateConfig { wireguard_mtu, ..config(&["2001:db8::/32"]) };
        let objects = gate_objects(&config, &v6(1), &[by(v6(2), ONE)], &dual_pools(), &[]);
        assert!(matches!(objects.links[GATE_DEVICE], LinkSpec::Vxlan { mtu: is, .. } if is == mtu));
        assert_eq!((objects.routes.len(), objects.rules.len()), (count, count));
    }
}

#[test]
fn the_firewall_knows_the_nodes_by_what_wireguard_lets_them_send() {
    let stranger = NodeFacts { overlays: vec!["192.0.2.77".parse().unwrap()], ..dual(4) };
    let peers = [dual(3), dual(2), stranger, dual(1)];
    let sources = gate_sources(&dual(1), &peers, &dual_pools());
    assert_eq!(sources, ["10.244.2.0", "10.244.3.0"].map(|ip| ip.parse::<IpAddr>().unwrap()));
}

#[test]
fn the_rule_comes_last_and_goes_first() {
    let desired = gate(&["192.0.2.0/24"], &dual(1), &[by(dual(2), ONE)], &["10.244.2.8"]);
    let text = |ops: Vec<netd_plan::HostOp>| ops.iter().map(ToString::to_string).collect::<Vec<_>>();
    let added = text(plan(&desired, &HostObjects::new()));
    assert_eq!(added.first().unwrap(), "add link weft.gate");
    assert_eq!(added.last().unwrap(), "add rule 1570: from 192.0.2.0/24 table 157");
    let exception = added.iter().position(|op| op.contains("10.244.2.8/32")).unwrap();
    let block = added.iter().position(|op| op.contains("10.244.2.0/26")).unwrap();
    assert!(exception < block, "{added:#?}");
    let removed = text(plan(&HostObjects::new(), &desired));
    assert_eq!(removed.first().unwrap(), "remove rule 1570: from 192.0.2.0/24 table 157");
    assert_eq!(removed.last().unwrap(), "remove link weft.gate");
}

#[test]
fn a_set_with_rules_is_the_sum_of_its_objects() {
    let objects = gate(&["192.0.2.0/24"], &dual(1), &[by(dual(2), ONE)], &[]);
    assert_eq!((objects.len(), objects.to_map().len()), (objects.objects().count(), objects.len()));
    let mut copy = HostObjects::new();
    objects.objects().for_each(|object| copy.insert(object));
    assert_eq!(copy, objects);
    for object in objects.objects().filter(|object| matches!(object, HostObject::Rule(_))) {
        assert_eq!(object.device(), None);
        copy.remove(&object.key());
    }
    assert!(copy.rules.is_empty() && copy.len() < objects.len());
}

proptest! {
    #[test]
    fn a_source_is_led_exactly_where_it_is_trusted_and_no_pod(
        trusted in prop::collection::vec((any::<u32>(), 0u8..=32), 1..4),
        pool in (any::<u32>(), 8u8..=26),
        near in any::<prop::sample::Index>(),
        far in any::<u32>(),
    ) {
        let net = |(bits, length): (u32, u8)| ipnet::IpNet::V4(ipnet::Ipv4Net::new(bits.into(), length).unwrap().trunc());
        let trusted: Vec<ipnet::IpNet> = trusted.into_iter().map(net).collect();
        let pool = net(pool);
        // Two blocks of the pool.
        let mut hosts = pool.subnets(30).unwrap();
        let facts = |n: u8, block: ipnet::IpNet| NodeFacts { overlays: vec![block.addr()], blocks: vec![block], ..node(n) };
        let (own, peer) = (facts(1, hosts.next().unwrap()), facts(2, hosts.next().unwrap()));
        let config = GateConfig { trusted: trusted.clone(), ..config(&[]) };
        let objects = gate_objects(&config, &own, &[by(peer, ONE)], &[pool], &[]);
        let close = trusted[near.index(trusted.len())].addr();
        for source in [IpAddr::from(std::net::Ipv4Addr::from(far)), close, pool.addr(), pool.broadcast()] {
            let nowhere = matches!(source, IpAddr::V4(source) if source.octets()[0] == 0);
            let wanted = trusted.iter().any(|net| net.contains(&source)) && !pool.contains(&source) && !nowhere;
            let led = objects.rules.iter().filter(|rule| rule.source.contains(&source)).count();
            prop_assert_eq!(led, usize::from(wanted), "{}", source);
        }
    }
}
