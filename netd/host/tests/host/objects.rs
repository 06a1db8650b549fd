// SPDX-License-Identifier: Apache-2.0

//! Links, addresses, routes, neighbours and FDB entries: apply, read back, repair, remove, leave others alone.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use ipnet::IpNet;
use netd_host::{Class, Host, HostError};
use netd_plan::{
    AddressSpec, FdbKey, FdbSpec, HostObject, HostObjects, HostOp, LinkSpec, Mac, NeighbourKey,
    NeighbourSpec, RouteKey, RouteKind, RouteSpec, plan,
};

use crate::ground::{converge, in_fresh_netns, ip, uplink};

const DEVICE: &str = "weft.vxlan";
const OWN_MAC: Mac = Mac([2, 0x57, 0, 0, 0, 1]);
const PEER_MAC: Mac = Mac([2, 0x57, 0, 0, 0, 2]);

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn vxlan(vni: u32, mtu: u32) -> LinkSpec {
    LinkSpec::Vxlan { vni, port: 4789, local: address("172.30.0.1"), mac: OWN_MAC, mtu }
}

fn barrier() -> (RouteKey, RouteSpec) {
    let key = RouteKey { metric: 4_278_198_272, ..RouteKey::main("10.244.0.0/16".parse().unwrap()) };
    (key, RouteSpec { kind: RouteKind::Unreachable, ..RouteSpec::default() })
}

/// The peer's IPv6 block.
fn block_v6() -> (RouteKey, RouteSpec) {
    let through_peer = RouteSpec {
        device: Some(DEVICE.to_owned()),
        gateway: Some(address("fd00:10:244::40")),
        onlink: true,
        source: Some(address("fd00:10:244::")),
        ..RouteSpec::default()
    };
    (RouteKey::main("fd00:10:244::40/122".parse().unwrap()), through_peer)
}

/// A node with one peer, as the plan writes it down.
fn node() -> HostObjects {
    let mut desired = HostObjects::new();
    desired.links.insert(DEVICE.to_owned(), vxlan(4242, 1400));
    for (device, net, scope_host) in [
        (DEVICE, "10.244.0.0/32", false),
        (DEVICE, "fd00:10:244::/128", false),
        ("lo", "169.254.53.53/32", true),
        ("lo", "fd00:53::53/128", true),
    ] {
        let device = device.to_owned();
        desired.addresses.insert(AddressSpec { device, address: net.parse().unwrap(), scope_host });
    }
    let (key, spec) = barrier();
    desired.routes.insert(key, spec);
    let through_peer = RouteSpec {
        device: Some(DEVICE.to_owned()),
        gateway: Some(address("10.244.0.64")),
        onlink: true,
        source: Some(address("10.244.0.0")),
        ..RouteSpec::default()
    };
    desired.routes.insert(RouteKey::main("10.244.0.64/26".parse().unwrap()), through_peer.clone());
    let elsewhere = RouteKey { table: 1000, metric: 7, ..RouteKey::main("10.9.0.0/24".parse().unwrap()) };
    desired.routes.insert(elsewhere, RouteSpec { mtu: Some(1300), ..through_peer });
    let dark = RouteSpec { kind: RouteKind::Blackhole, ..RouteSpec::default() };
    for net in ["10.8.0.0/24", "fd00:8::/64"] {
        desired.routes.insert(RouteKey::main(net.parse().unwrap()), dark.clone());
    }
    let (key, spec) = barrier();
    desired.routes.insert(RouteKey { dst: "fd00:10:244::/56".parse().unwrap(), ..key }, spec);
    let (key, spec) = block_v6();
    desired.routes.insert(key, spec);
    for ip in ["10.244.0.64", "fd00:10:244::40"] {
        let neighbour = NeighbourKey { device: DEVICE.to_owned(), ip: address(ip) };
        desired.neighbours.insert(neighbour, NeighbourSpec { mac: PEER_MAC });
    }
    let fdb = FdbKey { device: DEVICE.to_owned(), mac: PEER_MAC };
    desired.fdb.insert(fdb, FdbSpec { dst: address("172.30.0.2") });
    desired
}

#[test]
fn what_is_applied_is_read_back_and_applied_again_is_a_no_op() {
    in_fresh_netns(|| async {
        uplink("up0", "172.30.0.1/24");
        let host = Host::open().unwrap();
        assert_eq!(host.observe().await.unwrap(), HostObjects::new(), "nothing of ours on a fresh host");
        let desired = node();
        converge(&host, &desired).await;
        assert_eq!(host.observe().await.unwrap(), desired);
        let index = host.link_index(DEVICE).await.unwrap();
        for object in desired.objects() {
            for op in [HostOp::Add(object.clone()), HostOp::Replace(object.clone())] {
                host.apply(&op).await.unwrap_or_else(|error| panic!("{op}: {error}"));
            }
        }
        assert_eq!(host.observe().await.unwrap(), desired);
        assert_eq!(host.link_index(DEVICE).await.unwrap(), index, "the device was not made anew");
        assert_eq!(host.link_mtu(DEVICE).await.unwrap(), 1400);
        let details = ip(&format!("-d link show {DEVICE}"));
        assert!(details.contains("nolearning"), "{details}");
        let addresses = ip(&format!("-6 address show {DEVICE}"));
        assert_eq!(
            addresses.matches("inet6").count(),
            1,
            "no link-local address of the kernel's: {addresses}"
        );
        assert!(!addresses.contains("tentative"), "there at once: {addresses}");
        let loopback = ip("-6 address show lo");
        assert!(loopback.contains("fd00:53::53/128") && loopback.contains("deprecated"), "{loopback}");
    });
}

#[test]
fn everything_is_removed_and_removing_what_is_absent_is_fine() {
    in_fresh_netns(|| async {
        uplink("up0", "172.30.0.1/24");
        let host = Host::open().unwrap();
        converge(&host, &node()).await;
        for op in plan(&HostObjects::new(), &host.observe().await.unwrap()) {
            host.apply(&op).await.unwrap_or_else(|error| panic!("{op}: {error}"));
            host.apply(&op).await.unwrap_or_else(|error| panic!("{op} again: {error}"));
        }
        assert_eq!(host.observe().await.unwrap(), HostObjects::new());
        for object in node().objects() {
            let op = HostOp::Remove(object);
            host.apply(&op).await.unwrap_or_else(|error| panic!("{op} of what never was: {error}"));
        }
    });
}

#[test]
fn objects_with_other_values_are_replaced() {
    in_fresh_netns(|| async {
        uplink("up0", "172.30.0.1/24");
        let host = Host::open().unwrap();
        converge(&host, &node()).await;
        let mut moved = node();
        for spec in moved.fdb.values_mut() {
            spec.dst = address("172.30.0.3");
        }
        for spec in moved.neighbours.values_mut() {
            spec.mac = Mac([2, 0x57, 0, 0, 0, 3]);
        }
        for spec in moved.routes.values_mut() {
            spec.mtu = spec.device.as_ref().map(|_| 1200);
        }
        for dark in ["10.8.0.0/24", "fd00:8::/64"].map(|net| RouteKey::main(net.parse().unwrap())) {
            moved.routes.insert(dark, RouteSpec { kind: RouteKind::Unreachable, ..RouteSpec::default() });
        }
        moved.addresses =
            moved.addresses.into_iter().map(|spec| AddressSpec { scope_host: false, ..spec }).collect();
        // The peer's MAC is a key of the FDB: the old entry stays until it is removed.
        converge(&host, &moved).await;
        assert_eq!(host.observe().await.unwrap(), moved);
    });
}

#[test]
fn mtu_and_mac_change_in_place_and_the_rest_by_a_new_device() {
    in_fresh_netns(|| async {
        uplink("up0", "172.30.0.1/24");
        let host = Host::open().unwrap();
        let set = async |spec: LinkSpec| {
            host.apply(&HostOp::Replace(HostObject::Link(DEVICE.to_owned(), spec.clone()))).await.unwrap();
            assert_eq!(host.observe().await.unwrap().links[DEVICE], spec);
            host.link_index(DEVICE).await.unwrap()
        };
        let first = set(vxlan(4242, 1400)).await;
        assert_eq!(set(vxlan(4242, 1350)).await, first, "another MTU");
        let LinkSpec::Vxlan { vni, port, local, mtu, .. } = vxlan(4242, 1350) else { unreachable!() };
        let other_mac = LinkSpec::Vxlan { vni, port, local, mtu, mac: Mac([2, 0x57, 0, 0, 0, 9]) };
        assert_eq!(set(other_mac).await, first, "another MAC");
        let second = set(vxlan(4243, 1350)).await;
        assert_ne!(second, first, "another VNI");

        ip(&format!("link set {DEVICE} down"));
        assert!(host.observe().await.unwrap().links.is_empty(), "a device that is down is not in order");
        assert_eq!(set(vxlan(4243, 1350)).await, second, "repaired in place");

        ip(&format!("link del {DEVICE}"));
        ip(&format!("link add {DEVICE} type vxlan id 4243 dstport 4789 local 172.30.0.1 learning"));
        ip(&format!("link set {DEVICE} up"));
        assert!(host.observe().await.unwrap().links.is_empty(), "a device that learns is not in order");
        set(vxlan(4243, 1350)).await;
    });
}

#[test]
fn an_external_vxlan_device_stands_beside_the_overlay_s() {
    in_fresh_netns(|| async {
        uplink("up0", "172.30.0.1/24");
        let host = Host::open().unwrap();
        let set = async |name: &str, spec: LinkSpec| {
            host.apply(&HostOp::Replace(HostObject::Link(name.to_owned(), spec.clone()))).await.unwrap();
            assert_eq!(host.observe().await.unwrap().links[name], spec);
            host.link_index(name).await.unwrap()
        };
        let external = |port, mtu| LinkSpec::VxlanExternal { port, mtu };
        set(DEVICE, vxlan(4242, 1400)).await;
        let first = set("weft.dsr", external(51_823, 65_000)).await;
        assert!(ip("-d link show weft.dsr").contains("external"));
        assert_eq!(set("weft.dsr", external(51_823, 9_000)).await, first, "another MTU");
        assert_ne!(set("weft.dsr", external(51_824, 9_000)).await, first, "another port");
        assert_eq!(host.observe().await.unwrap().links.len(), 2);
    });
}

#[test]
fn a_block_goes_over_another_backend_in_place() {
    in_fresh_netns(|| async {
        uplink("up0", "172.30.0.1/24");
        ip("address add fd00:30::1/64 dev up0 nodad");
        let host = Host::open().unwrap();
        // Plain routes first: the next hop on the tunnel is then an address that another device leads to.
        let (key, spec) = block_v6();
        let mut native = node();
        native
            .routes
            .insert(key.clone(), RouteSpec { gateway: Some(address("fd00:30::2")), ..RouteSpec::default() });
        converge(&host, &native).await;
        converge(&host, &node()).await;
        assert_eq!(host.observe().await.unwrap().routes[&key], spec);
    });
}

#[test]
fn a_device_that_an_earlier_version_made_without_ipv6_gets_it() {
    in_fresh_netns(|| async {
        uplink("up0", "172.30.0.1/24");
        let host = Host::open().unwrap();
        converge(&host, &node()).await;
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{DEVICE}/disable_ipv6"), "1").unwrap();
        assert!(!ip(&format!("-6 address show {DEVICE}")).contains("inet6"));
        converge(&host, &node()).await;
        assert_eq!(host.observe().await.unwrap(), node());
    });
}

#[test]
fn objects_of_others_are_left_alone() {
    in_fresh_netns(|| async {
        uplink("up0", "172.30.0.1/24");
        let host = Host::open().unwrap();
        ip("route add 10.244.0.64/26 via 172.30.0.9 proto static");
        ip("route add unreachable 10.244.0.0/16 metric 4278198272 proto static");
        ip("address add 169.254.53.53/32 dev lo");
        ip("neigh add 172.30.0.7 lladdr 02:00:00:00:00:07 dev up0 nud permanent");
        let kernel = || (ip("-4 route show table all"), ip("-4 -br address"), ip("neigh show nud permanent"));
        let before = kernel();
        assert_eq!(host.observe().await.unwrap(), HostObjects::new());
        let in_the_way = |object: &HostObject| !matches!(object.device(), Some(DEVICE));
        let (key, spec) = barrier();
        let dns = node().objects().find(|object| object.device() == Some("lo")).unwrap();
        assert!(dns.key().to_string().contains("169.254.53.53"), "{}", dns.key());
        for object in [HostObject::Route(key, spec), dns] {
            let error = host.apply(&HostOp::Add(object)).await.unwrap_err();
            assert!(matches!(error, HostError::Foreign { .. }), "{error}");
            assert_eq!(error.class(), Class::Conflict);
        }
        for object in node().objects().filter(in_the_way) {
            host.apply(&HostOp::Remove(object)).await.expect("what is not ours counts as absent");
        }
        let over_uplink = RouteSpec { device: Some("up0".to_owned()), ..RouteSpec::default() };
        let block = RouteKey::main("10.244.0.64/26".parse().unwrap());
        let error = host.apply(&HostOp::Replace(HostObject::Route(block, over_uplink))).await.unwrap_err();
        assert!(matches!(error, HostError::Foreign { .. }), "{error}");
        assert_eq!(kernel(), before);

        ip("link add weft.vxlan type veth peer name foreignp");
        let link = HostObject::Link(DEVICE.to_owned(), vxlan(4242, 1400));
        for op in [HostOp::Add(link.clone()), HostOp::Remove(link)] {
            let error = host.apply(&op).await.unwrap_err();
            assert!(matches!(error, HostError::Foreign { .. }), "{op}: {error}");
        }
        assert!(ip("link show weft.vxlan").contains("foreignp"));
    });
}

#[test]
fn a_table_that_changes_while_it_is_read_is_read_again() {
    in_fresh_netns(|| async {
        uplink("up0", "172.30.0.1/24");
        let host = Host::open().unwrap();
        let route = |last: u8| {
            let key = RouteKey::main(IpNet::new(IpAddr::from([10, 7, 0, last]), 32).unwrap());
            HostObject::Route(key, RouteSpec { device: Some("up0".to_owned()), ..RouteSpec::default() })
        };
        for last in 0..200 {
            host.apply(&HostOp::Add(route(last))).await.unwrap();
        }
        let is_done = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&is_done);
        let churn = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let host = Host::open().unwrap();
                while !until.load(Ordering::Relaxed) {
                    host.apply(&HostOp::Add(route(250))).await.unwrap();
                    host.apply(&HostOp::Remove(route(250))).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
        });
        for _ in 0..100 {
            let observed = host.observe().await.unwrap();
            assert!(matches!(observed.routes.len(), 200 | 201), "{}", observed.routes.len());
        }
        is_done.store(true, Ordering::Relaxed);
        churn.join().unwrap();
    });
}

#[test]
fn a_missing_device_and_a_refusal_are_named() {
    in_fresh_netns(|| async {
        let host = Host::open().unwrap();
        for object in node().objects().filter(|object| object.device() == Some(DEVICE)) {
            let error = host.apply(&HostOp::Add(object)).await.unwrap_err();
            assert!(matches!(error, HostError::NoDevice { .. }), "{error}");
            assert_eq!(error.class(), Class::Retry);
        }
        let bad = HostOp::Add(HostObject::Link(DEVICE.to_owned(), vxlan(1 << 24, 1400)));
        let error = host.apply(&bad).await.unwrap_err();
        assert!(error.to_string().contains("create VXLAN device weft.vxlan (VNI 16777216"), "{error}");
        let unmarked = HostOp::Add(HostObject::Link("vxlan0".to_owned(), vxlan(1, 1400)));
        assert_eq!(host.apply(&unmarked).await.unwrap_err().class(), Class::Invalid);
    });
}

#[test]
fn somebody_who_deletes_our_route_is_noticed() {
    in_fresh_netns(|| async {
        uplink("up0", "172.30.0.1/24");
        let host = Host::open().unwrap();
        converge(&host, &node()).await;
        let mut events = host.events().await.unwrap();
        let quiet = Duration::from_millis(300);
        // The kernel tells of an IPv6 address a little after it is there; once that is over, nothing happens.
        let mut late = 0;
        while tokio::time::timeout(quiet, events.next()).await.is_ok() {
            late += 1;
            assert!(late < 10, "something happens all the time");
        }

        ip("route add 192.0.2.0/24 dev up0 proto static");
        ip("neigh add 172.30.0.7 lladdr 02:00:00:00:00:07 dev up0 nud permanent");
        assert!(tokio::time::timeout(quiet, events.next()).await.is_err(), "other people's objects");

        for command in [
            "address add 172.30.0.9/24 dev up0",
            "link set up0 mtu 1400",
            "link set up0 mtu 1500",
            "route add default via 172.30.0.254 dev up0 proto static",
            "route del 10.244.0.64/26",
            "neigh del 10.244.0.64 dev weft.vxlan",
            "address del 169.254.53.53/32 dev lo",
            "link set weft.vxlan down",
            "link del weft.vxlan",
            "link add weft.vxlan type veth peer name weftpeer",
        ] {
            ip(command);
            let noticed = tokio::time::timeout(Duration::from_secs(5), events.next()).await;
            assert_eq!(noticed.ok().flatten(), Some(()), "{command}");
            // What else the same command causes.
            while tokio::time::timeout(quiet, events.next()).await.is_ok() {}
        }
    });
}

#[test]
fn part_11_the_underlay_is_configured_or_towards_the_store_or_on_the_default_route() {
    in_fresh_netns(|| async {
        let host = Host::open().unwrap();
        let error = host.underlay(None, None).await.unwrap_err();
        assert!(
            matches!(error, HostError::NoUnderlay { .. }) && error.to_string().contains("0 links"),
            "{error}"
        );

        uplink("up0", "172.30.0.1/24");
        let only = host.underlay(None, None).await.unwrap();
        assert_eq!((only.address, only.device.as_str(), only.mtu), (address("172.30.0.1"), "up0", 1500));
        assert!(only.reason.contains("the only one"), "{}", only.reason);

        uplink("up1", "172.31.0.1/24");
        uplink("weftff", "172.29.0.1/24");
        assert!(
            host.underlay(None, None).await.unwrap_err().to_string().contains("2 links"),
            "two, and one of ours"
        );

        ip("link set up1 mtu 1400");
        ip("route add default via 172.29.0.2 metric 1");
        ip("route add default via 172.31.0.2 metric 10");
        ip("route add default via 172.30.0.2 metric 20");
        let default = host.underlay(None, None).await.unwrap();
        assert_eq!((default.device.as_str(), default.mtu), ("up1", 1400), "never over a link of ours");
        assert!(default.reason.contains("default route"), "{}", default.reason);

        let store = |ip| host.underlay(None, Some(address(ip)));
        let chosen = store("172.30.0.50").await.unwrap();
        assert_eq!(chosen.device, "up0");
        assert!(chosen.reason.contains("172.30.0.50"), "{}", chosen.reason);
        assert_eq!(store("172.30.0.1").await.unwrap().device, "up0", "the store is on this node");
        assert_eq!(store("127.0.0.1").await.unwrap().device, "up1", "a store on loopback says nothing");
        assert_eq!(store("172.29.0.9").await.unwrap().device, "up1", "nor one behind the overlay");

        let configured =
            host.underlay(Some(address("172.31.0.1")), Some(address("172.30.0.50"))).await.unwrap();
        assert_eq!((configured.device.as_str(), configured.reason.as_str()), ("up1", "it is configured"));
        let error = host.underlay(Some(address("172.16.0.1")), None).await.unwrap_err();
        assert!(error.to_string().contains("172.16.0.1 is configured"), "{error}");
    });
}

#[test]
fn an_underlay_that_lost_its_address_is_chosen_anew() {
    in_fresh_netns(|| async {
        let host = Host::open().unwrap();
        uplink("up0", "172.30.0.1/24");
        let former = host.underlay(None, None).await.unwrap();
        let now = host.underlay_now(&former).await.unwrap();
        assert!(now.has_address && now.is_up && now.mtu == 1500, "{now:?}");

        ip("address del 172.30.0.1/24 dev up0");
        ip("link set up0 mtu 1400");
        let now = host.underlay_now(&former).await.unwrap();
        assert!(!now.has_address && now.mtu == 1400, "{now:?}");
        // Whoever is the only one for a moment is not what the peers know.
        uplink("up1", "172.31.0.1/24");
        let error = host.underlay_again(&former, None, None).await.unwrap_err();
        assert!(error.to_string().contains("no global IPv4 address on up0"), "{error}");

        ip("address add 172.30.0.9/24 dev up0");
        let again = host.underlay_again(&former, None, None).await.unwrap();
        assert_eq!((again.address, again.device.as_str()), (address("172.30.0.9"), "up0"));
        let configured = host.underlay_again(&former, Some(former.address), None).await.unwrap_err();
        assert!(configured.to_string().contains("172.30.0.1 is configured"), "{configured}");

        ip("address del 172.30.0.9/24 dev up0");
        ip("route add default via 172.31.0.2");
        let other = host.underlay_again(&former, None, None).await.unwrap();
        assert_eq!(other.device, "up1", "a failover");
        ip("link del up0");
        assert!(host.underlay_now(&former).await.is_err());
    });
}
