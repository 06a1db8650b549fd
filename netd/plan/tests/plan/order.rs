// SPDX-License-Identifier: Apache-2.0
//! Changes between cluster states, carried out one by one on a model of the kernel that checks what each needs.

use std::net::IpAddr;

use netd_plan::{
    Backend, Bandwidth, HostObject, HostObjects, HostOp, LinkSpec, NodeFacts, Path, PodWiring, RouteKind,
    RouteSpec, VxlanConfig, WireguardKind, node_dns_objects, ordered, plan, pod_objects, shape_objects,
};
use proptest::prelude::*;

use super::gate::gated;
use super::overlay::{by, changing, dual, dual_objects, node, objects, vxlan, wireguard};

/// A kernel that refuses what the real one would refuse, and drops what the real one would drop.
#[derive(Clone, Default)]
struct Kernel {
    objects: HostObjects,
}

impl Kernel {
    fn apply(&mut self, op: &HostOp) {
        match op {
            HostOp::Add(object) | HostOp::Replace(object) => self.add(object),
            HostOp::Remove(object) => self.remove(object),
        }
    }

    fn add(&mut self, object: &HostObject) {
        if let Some(device) = object.device() {
            let ours = device == "lo" || is_veth(device) || self.objects.links.contains_key(device);
            assert!(ours, "{} before its device", object.key());
        }
        match object {
            HostObject::Link(name, spec) => self.add_link(name, spec),
            HostObject::Route(_, route) => {
                if let Some(source) = route.source {
                    assert!(self.is_local(source), "{} before its source address", object.key());
                }
                if let (Some(gateway), true) = (route.gateway, route.onlink) {
                    let mut neighbours = self.objects.neighbours.iter();
                    let (_, peer) = neighbours.find(|(key, _)| key.ip == gateway).expect("a neighbour first");
                    assert!(
                        self.objects.fdb.keys().any(|key| key.mac == peer.mac),
                        "a forwarding entry first"
                    );
                }
                if let Some(IpAddr::V6(gateway)) = route.gateway.filter(|_| !route.onlink)
                    && gateway.is_unicast_link_local()
                {
                    let known = self.objects.neighbours.keys().any(|key| key.ip == IpAddr::V6(gateway));
                    assert!(known, "{} before its neighbour", object.key());
                }
            }
            HostObject::Redirect(_, to) => {
                assert!(self.objects.queues.contains_key(to), "{} before its queue", object.key());
            }
            HostObject::Rule(spec) => {
                let full = self.objects.routes.keys().any(|key| key.table == spec.table);
                assert!(full, "{} before the table has routes", object.key());
            }
            HostObject::Address(_)
            | HostObject::Fdb(..)
            | HostObject::Neighbour(..)
            | HostObject::Queue(..) => {}
        }
        self.objects.insert(object.clone());
    }

    fn add_link(&mut self, name: &str, spec: &LinkSpec) {
        if self.objects.links.get(name).is_some_and(|known| !known.changes_in_place(spec)) {
            self.drop_device(name);
        }
        let LinkSpec::Vxlan { vni, port, .. } = spec else { return };
        let twin = self.objects.links.iter().any(|(other, known)| match known {
            LinkSpec::Ifb
            | LinkSpec::Tun { .. }
            | LinkSpec::VxlanExternal { .. }
            | LinkSpec::Wireguard { .. } => false,
            LinkSpec::Vxlan { vni: known_vni, port: known_port, .. } => {
                other != name && (known_vni, known_port) == (vni, port)
            }
        });
        assert!(!twin, "a second VXLAN device for VNI {vni}");
    }

    fn remove(&mut self, object: &HostObject) {
        if let HostObject::Fdb(fdb, _) = object {
            for (neighbour, spec) in &self.objects.neighbours {
                let behind = spec.mac == fdb.mac && neighbour.device == fdb.device;
                let mut routes = self.objects.routes.values();
                let used = routes.any(|route| {
                    route.gateway == Some(neighbour.ip) && route.device.as_ref() == Some(&neighbour.device)
                });
                assert!(!(behind && used), "{} while routes lead to it", object.key());
            }
        }
        if let HostObject::Link(name, _) | HostObject::Queue(name, _) = object {
            let used = self.objects.redirects.values().any(|to| to == name);
            assert!(!used, "{} while packets are sent through it", object.key());
        }
        if let HostObject::Route(key, _) = object {
            // One of a table that goes: what it led elsewhere is not led astray meanwhile.
            let led = self.objects.rules.iter().any(|rule| rule.table == key.table);
            let others = self.objects.routes.keys().filter(|other| other.table == key.table).count();
            assert!(!led || others > 1, "{} while a rule leads there", object.key());
        }
        self.lose(object);
    }

    /// Somebody else removes the object, in no order.
    fn lose(&mut self, object: &HostObject) {
        if let HostObject::Link(name, _) = object {
            self.drop_device(name);
        }
        self.objects.remove(&object.key());
        self.drop_routes_without_source();
    }

    fn drop_device(&mut self, name: &str) {
        let all: Vec<HostObject> = self.objects.objects().collect();
        for object in all.iter().filter(|object| object.device() == Some(name)) {
            self.objects.remove(&object.key());
        }
        self.objects.links.remove(name);
        self.drop_routes_without_source();
    }

    /// As `fib_sync_down_addr` of the kernel, once an address is on no device any more.
    fn drop_routes_without_source(&mut self) {
        let mut routes = std::mem::take(&mut self.objects.routes);
        routes.retain(|_, route| route.source.is_none_or(|source| self.is_local(source)));
        self.objects.routes = routes;
    }

    fn is_local(&self, address: IpAddr) -> bool {
        self.objects.addresses.iter().any(|spec| spec.address.addr() == address)
    }

    /// Whether pod addresses without a route are refused.
    fn is_closed(&self) -> bool {
        let mut barriers = self.objects.routes.iter().filter(|(_, r)| r.kind == RouteKind::Unreachable);
        barriers.any(|(key, _)| key.dst.to_string() == "10.244.0.0/16")
    }
}

fn is_veth(device: &str) -> bool {
    device.starts_with("weftpod")
}

fn move_to(kernel: &mut Kernel, desired: &HostObjects) {
    let closed_before = kernel.is_closed();
    for op in plan(desired, &kernel.objects) {
        kernel.apply(&op);
        let leads_away = |route: &RouteSpec| {
            route.gateway.is_some()
                || route.device.as_ref().is_some_and(|device| device.starts_with("weft.wg"))
        };
        let has_overlay_routes = kernel.objects.routes.values().any(leads_away);
        assert!(kernel.is_closed() || !has_overlay_routes, "{op}: forwarding without a barrier");
        assert!(kernel.is_closed() || !closed_before || desired.is_empty(), "{op}: open in between");
    }
    assert_eq!(&kernel.objects, desired);
    assert_eq!(plan(desired, &kernel.objects), [], "nothing is left to do");
}

/// How many [`states`] there are.
const STATES: usize = 34;

/// Cluster states in a sensible order of a node's life.
fn states() -> Vec<HostObjects> {
    let renamed =
        Backend::Vxlan(VxlanConfig { vni: 4242, port: 4789, mtu: 1450, device: "weft.vx2".to_owned() });
    let small =
        Backend::Vxlan(VxlanConfig { vni: 4242, port: 4789, mtu: 1350, device: "weft.vxlan".to_owned() });
    let other_vni =
        Backend::Vxlan(VxlanConfig { vni: 7, port: 4789, mtu: 1450, device: "weft.vxlan".to_owned() });
    let no_block = NodeFacts { overlays: Vec::new(), blocks: Vec::new(), ..node(1) };
    let moved = NodeFacts { overlays: vec!["10.244.1.7".parse().unwrap()], ..node(1) };
    let new_machine = NodeFacts { underlay: "192.0.2.200".parse().unwrap(), ..node(1) };
    let taken_over = NodeFacts { blocks: [node(2).blocks, node(3).blocks].concat(), ..node(2) };
    let pod = PodWiring {
        ip: "10.244.1.5".parse().unwrap(),
        host_ifname: "weftpod1".to_owned(),
        container_mac: netd_plan::Mac([2, 0, 0, 0, 0, 5]),
    };
    let (one, two) = (Path::Wireguard { generation: 1 }, Path::Wireguard { generation: 2 });
    let user = |generations: &[u64]| [wireguard(WireguardKind::User, generations)];
    let both = |generations: &[u64]| [vxlan(), wireguard(WireguardKind::User, generations)];
    let with_pods = |mut objects: HostObjects| {
        objects.merge(pod_objects(std::slice::from_ref(&pod), &node(1).overlays));
        objects.merge(node_dns_objects(&["169.254.53.53".parse().unwrap(), "fd00:53::53".parse().unwrap()]));
        objects
    };
    // An address of each one's block is at the other's.
    let guest =
        NodeFacts { blocks: [dual(3).blocks, vec!["10.244.1.9/32".parse().unwrap()]].concat(), ..dual(3) };
    let host =
        NodeFacts { blocks: [dual(1).blocks, vec!["10.244.2.9/32".parse().unwrap()]].concat(), ..dual(1) };
    let dual_moved = NodeFacts {
        overlays: vec!["10.244.1.7".parse().unwrap(), "fd00:10:244:1::".parse().unwrap()],
        ..dual(1)
    };
    let limited = |mut objects: HostObjects, to_pod: u64, from_pod: u64| {
        let bandwidth = Bandwidth::checked((to_pod, 0), (from_pod, 0)).unwrap();
        objects.merge(shape_objects("weftpod1", &bandwidth));
        objects
    };
    vec![
        objects(&vxlan(), &no_block, &[]),
        objects(&vxlan(), &node(1), &[]),
        objects(&vxlan(), &node(1), &[node(2), node(3)]),
        with_pods(objects(&vxlan(), &node(1), &[node(2)])),
        with_pods(objects(&other_vni, &node(1), &[node(2)])),
        with_pods(objects(&renamed, &node(1), &[node(2)])),
        with_pods(objects(&Backend::Native, &node(1), &[node(2)])),
        objects(&vxlan(), &moved, &[node(2)]),
        objects(&vxlan(), &node(1), &[taken_over]),
        objects(&small, &node(1), &[node(2), node(3)]),
        objects(&other_vni, &node(1), &[node(2), node(3)]),
        objects(&renamed, &node(1), &[node(2), node(3)]),
        objects(&vxlan(), &new_machine, &[node(2)]),
        objects(&Backend::Native, &node(1), &[node(2), node(3)]),
        dual_objects(&vxlan(), &dual(1), &[dual(2), node(3)]),
        dual_objects(&other_vni, &dual(1), &[dual(2), dual(3)]),
        with_pods(dual_objects(&Backend::Native, &dual(1), &[dual(2)])),
        limited(with_pods(objects(&vxlan(), &node(1), &[node(2)])), 8_000_000, 0),
        limited(with_pods(objects(&other_vni, &node(1), &[node(2)])), 4_000_000, 8_000_000),
        limited(with_pods(objects(&vxlan(), &node(1), &[node(2)])), 0, 4_000_000),
        // To WireGuard pair by pair, through a rotation of keys, into the kernel, and back.
        with_pods(dual_objects(&vxlan(), &dual(1), &[dual(2), dual(3)])),
        with_pods(changing(&both(&[1]), &[by(dual(2), Path::Vxlan), by(dual(3), Path::Vxlan)])),
        with_pods(changing(&both(&[1]), &[by(dual(2), one), by(dual(3), Path::Vxlan)])),
        with_pods(changing(&both(&[1]), &[by(dual(2), one), by(dual(3), one)])),
        with_pods(changing(&user(&[1]), &[by(dual(2), one), by(dual(3), one)])),
        with_pods(changing(&user(&[1, 2]), &[by(dual(2), one), by(dual(3), two)])),
        with_pods(changing(&user(&[2]), &[by(dual(2), two), by(dual(3), two)])),
        with_pods(changing(&[wireguard(WireguardKind::Kernel, &[2])], &[by(dual(2), two)])),
        changing(&[Backend::Native, vxlan()], &[by(dual(2), Path::Native), by(dual(3), Path::Vxlan)]),
        changing(&both(&[2, 3]), &[by(dual(2), two), by(dual(3), Path::Vxlan)]),
        // With a gate for trusted hosts: peer by peer, with a moved address, for others, and with another end.
        with_pods(gated(
            &both(&[1]),
            &dual(1),
            &[by(dual(2), one), by(dual(3), Path::Vxlan)],
            "192.0.2.0/24",
        )),
        with_pods(gated(&user(&[1]), &dual(1), &[by(dual(2), one), by(guest.clone(), one)], "2001:db8::/32")),
        gated(&user(&[2]), &host, &[by(dual(2), two)], "0.0.0.0/0"),
        gated(&user(&[2]), &dual_moved, &[by(dual(2), two), by(guest, two)], "192.0.2.0/24"),
    ]
}

#[test]
fn life_of_a_node_forwards_backwards_and_with_restarts() {
    let empty = HostObjects::new();
    let mut kernel = Kernel::default();
    let forwards = states();
    assert_eq!(forwards.len(), STATES);
    for state in forwards.iter().chain(forwards.iter().rev()) {
        move_to(&mut kernel, state);
    }
    for state in &forwards {
        move_to(&mut kernel, &empty);
        move_to(&mut kernel, state);
    }
}

#[test]
fn every_state_follows_every_other() {
    for from in states() {
        for to in states() {
            let mut kernel = Kernel { objects: from.clone() };
            move_to(&mut kernel, &to);
        }
    }
}

#[test]
fn device_found_by_the_kernel_is_no_difference() {
    let desired = objects(&Backend::Native, &node(1), &[node(2)]);
    let mut observed = desired.clone();
    for route in observed.routes.values_mut().filter(|route| route.gateway.is_some()) {
        route.device = Some("eth0".to_owned());
    }
    assert_eq!(plan(&desired, &observed), []);
}

#[test]
fn operations_read_well() {
    let ops = plan(&objects(&vxlan(), &node(1), &[node(2)]), &HostObjects::new());
    let text: Vec<String> = ops.iter().map(HostOp::to_string).collect();
    let mac = node(2).vtep_mac;
    assert_eq!(
        text,
        [
            "add link weft.vxlan".to_owned(),
            "add address 10.244.1.0/32 on lo".to_owned(),
            "add address 10.244.1.0/32 on weft.vxlan".to_owned(),
            "add route 10.96.0.0/16 metric 1000000".to_owned(),
            "add route 10.244.0.0/16 metric 1000000".to_owned(),
            "add neighbour 10.244.2.0 on weft.vxlan".to_owned(),
            format!("add FDB entry {mac} on weft.vxlan"),
            "add route 10.244.2.0/26 metric 0".to_owned(),
        ]
    );
}

proptest! {
    #[test]
    fn order_does_not_depend_on_the_input(seed in any::<prop::sample::Index>(), from in 0..STATES, to in 0..STATES) {
        let states = states();
        let ops = plan(&states[to], &states[from]);
        let mut turned = ops.clone();
        if !turned.is_empty() {
            turned.rotate_left(seed.index(ops.len()));
            turned.reverse();
        }
        prop_assert_eq!(ordered(turned), ops);
    }

    #[test]
    fn damage_is_repaired(state in 0..STATES, lost in prop::collection::vec(any::<prop::sample::Index>(), 1..6)) {
        let desired = states()[state].clone();
        let mut kernel = Kernel { objects: desired.clone() };
        for index in lost {
            let all: Vec<HostObject> = kernel.objects.objects().filter(|o| !is_barrier(o)).collect();
            if !all.is_empty() {
                kernel.lose(&all[index.index(all.len())]);
            }
        }
        move_to(&mut kernel, &desired);
    }
}

fn is_barrier(object: &HostObject) -> bool {
    matches!(object, HostObject::Route(_, route) if route.kind == RouteKind::Unreachable)
}
