// SPDX-License-Identifier: Apache-2.0

//! A pod's link, from creation to removal, and everything that can go wrong between.

use std::fs::{self, File};

use netd_host::{
    Class, Host, HostError, Netns, netns,
    veth::{PodLinkSpec, check_pod_link, container_link, create_pod_link, delete_host_link},
};
use netd_plan::{Mac, PodWiring, host_veth_name, pod_objects, pods};

use crate::ground::{converge, dual_pod, in_fresh_netns, ip, ip_in, ping, pod_netns, uplink};

const MAC: Mac = Mac([2, 0x57, 1, 0, 0, 5]);

fn spec<'a>(netns: &'a Netns, ifname: &str, ip: &str) -> PodLinkSpec<'a> {
    PodLinkSpec {
        netns,
        ifname: ifname.to_owned(),
        host_ifname: host_veth_name("weft", "c0ffee", ifname),
        mac: Some(MAC),
        mtu: 1400,
        gso_max_segs: None,
        addresses: vec![format!("{ip}/32").parse().unwrap()],
        gateways: vec![pods::POD_GATEWAY_V4.into()],
    }
}

/// What stands in the way of a fresh start: links other than `lo`.
fn links() -> Vec<String> {
    ip("-br link")
        .lines()
        .map(|line| line.split(['@', ' ']).next().unwrap().to_owned())
        .filter(|l| l != "lo")
        .collect()
}

#[test]
fn a_pod_and_its_host_reach_each_other() {
    in_fresh_netns(|| async {
        uplink("up0", "172.30.0.1/24");
        let pod = pod_netns();
        let spec = spec(&pod, "eth0", "10.244.0.5");
        let made = create_pod_link(&spec).await.unwrap();
        assert!(ping("10.244.0.5"), "host to pod");
        assert!(netns::run_in(&pod, || ping("172.30.0.1")).unwrap(), "pod to host");
        assert!(netns::run_in(&pod, || ping("127.0.0.1")).unwrap(), "lo is up");
        check_pod_link(&spec).await.unwrap();

        assert_eq!(made.container_mac, MAC);
        let host = Host::open().unwrap();
        let outer = host.link(&spec.host_ifname).await.unwrap().unwrap();
        assert_eq!((outer.index, outer.mac, outer.mtu), (made.host_index, Some(made.host_mac), 1400));
        let inner = container_link(&pod, "eth0").await.unwrap().unwrap();
        assert_eq!((inner.link.index, inner.link.mtu), (made.container_index, 1400));
        assert_eq!(inner.addresses, spec.addresses);
        assert_eq!(container_link(&pod, "eth1").await.unwrap(), None);

        let observed = host.observe().await.unwrap();
        assert_eq!((observed.routes.len(), observed.neighbours.len()), (1, 1), "{observed:?}");
        let routes = ip_in(&pod, "route");
        assert!(routes.contains("default via 169.254.1.1 dev eth0") && routes.contains("onlink"), "{routes}");
        assert!(routes.contains("169.254.1.1 dev eth0") && routes.contains("scope link"), "{routes}");
        let rp_filter = netd_host::sysctl::read(&format!("net/ipv4/conf/{}/rp_filter", spec.host_ifname));
        assert_eq!(rp_filter.unwrap(), "0");
        assert!(
            !ip(&format!("address show {}", spec.host_ifname)).contains("inet"),
            "the host end has no address"
        );

        delete_host_link(&spec.host_ifname).await.unwrap();
        delete_host_link(&spec.host_ifname).await.unwrap();
        assert_eq!(container_link(&pod, "eth0").await.unwrap(), None, "the container end went with it");
        assert!(host.observe().await.unwrap().is_empty());
        create_pod_link(&spec).await.unwrap();
        assert!(ping("10.244.0.5"), "made again under the same names");
    });
}

#[test]
fn a_pod_has_both_families_or_only_the_new_one() {
    in_fresh_netns(|| async {
        uplink("up0", "172.30.0.1/24");
        ip("address add fd00:30::1/64 dev up0 nodad");
        let pod = pod_netns();
        // As some runtimes leave it.
        let off = |name: &str| fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
        netns::run_in(&pod, || ["all", "default"].map(|name| off(name).unwrap())).unwrap();
        let spec = dual_pod(&pod, 5).await;
        check_pod_link(&spec).await.unwrap();
        for target in ["10.244.0.5", "fd00:10:244::5"] {
            assert!(ping(target), "host to pod at {target}");
        }
        for target in ["172.30.0.1", "fd00:30::1", "fe80::1%eth0", "::1"] {
            assert!(netns::run_in(&pod, || ping(target)).unwrap(), "pod to {target}");
        }
        let inner = container_link(&pod, "eth0").await.unwrap().unwrap();
        assert_eq!(inner.addresses, spec.addresses);
        let host_ifname = &spec.host_ifname;
        let outer = ip(&format!("-6 address show dev {host_ifname}"));
        assert_eq!(outer.matches("inet6").count(), 1, "none but the gateway: {outer}");
        assert!(outer.contains("fe80::1/64") && !outer.contains("tentative"), "{outer}");
        let addresses = ip_in(&pod, "-6 address show dev eth0");
        assert!(addresses.contains("fd00:10:244::5/128") && !addresses.contains("tentative"), "{addresses}");
        let routes = ip_in(&pod, "-6 route");
        assert!(routes.contains("default via fe80::1 dev eth0"), "{routes}");
        let accept_ra = |netns: &Netns, name: &str| {
            let path = format!("/proc/sys/net/ipv6/conf/{name}/accept_ra");
            netns::run_in(netns, || fs::read_to_string(path).unwrap()).unwrap()
        };
        assert_eq!(accept_ra(&pod, "eth0").trim(), "0", "a pod takes no advertisement");
        assert_eq!(
            accept_ra(&Netns::current().unwrap(), host_ifname).trim(),
            "0",
            "nor does the node from it"
        );

        // What the plan wants of this pod stands already, but for the source of its routes.
        let host = Host::open().unwrap();
        let wiring = ["10.244.0.5", "fd00:10:244::5"].map(|ip| PodWiring {
            ip: ip.parse().unwrap(),
            host_ifname: host_ifname.clone(),
            container_mac: inner.link.mac.unwrap(),
        });
        assert_eq!(host.observe().await.unwrap(), pod_objects(&wiring, &[]));
        let sources = ["172.30.0.1", "fd00:30::1"].map(|ip| ip.parse().unwrap());
        let desired = pod_objects(&wiring, &sources);
        converge(&host, &desired).await;
        assert_eq!(host.observe().await.unwrap(), desired);

        ip(&format!("address del fe80::1/64 dev {host_ifname}"));
        ip(&format!("-6 neigh del fd00:10:244::5 dev {host_ifname}"));
        ip_in(&pod, "-6 route del default");
        ip_in(&pod, "-6 neigh del fe80::1 dev eth0");
        let found: Vec<String> =
            check_pod_link(&spec).await.unwrap_err().iter().map(ToString::to_string).collect();
        for part in ["neighbour fd00:10:244::5 of weft", "address fe80::1/64 of weft", "route ::/0 of eth0"] {
            assert!(found.iter().any(|line| line.contains(part)), "{part:?} in {found:#?}");
        }
        assert!(found.iter().any(|line| line.contains("neighbour fe80::1 of eth0")), "{found:#?}");
        assert_eq!(found.len(), 4, "{found:#?}");
        converge(&host, &desired).await;
        assert!(ip(&format!("-6 address show dev {host_ifname}")).contains("fe80::1/64"), "repaired");
        delete_host_link(host_ifname).await.unwrap();

        let v6 = PodLinkSpec {
            addresses: spec.addresses[1..].to_vec(),
            gateways: spec.gateways[1..].to_vec(),
            ..spec.clone()
        };
        create_pod_link(&v6).await.unwrap();
        check_pod_link(&v6).await.unwrap();
        assert!(ping("fd00:10:244::5"), "host to pod");
        assert_eq!(ip_in(&pod, "-4 route"), "", "nothing of IPv4");
    });
}

#[test]
fn a_second_interface_leaves_the_first_as_it_is() {
    in_fresh_netns(|| async {
        uplink("up0", "172.30.0.1/24");
        let pod = pod_netns();
        let (first, second) = (spec(&pod, "eth0", "10.244.0.5"), spec(&pod, "net1", "10.250.0.5"));
        create_pod_link(&first).await.unwrap();
        let before = ip_in(&pod, "route get 172.30.0.1");
        create_pod_link(&PodLinkSpec { mac: None, ..second.clone() }).await.unwrap();
        assert_eq!(ip_in(&pod, "route get 172.30.0.1"), before, "the default route stays with eth0");
        for spec in [&first, &second] {
            check_pod_link(&PodLinkSpec { mac: None, ..spec.clone() }).await.unwrap();
        }
        delete_host_link(&second.host_ifname).await.unwrap();
        check_pod_link(&first).await.unwrap();
    });
}

#[test]
fn a_further_interface_of_both_families_has_the_higher_metrics() {
    in_fresh_netns(|| async {
        uplink("up0", "172.30.0.1/24");
        let pod = pod_netns();
        let first = dual_pod(&pod, 5).await;
        let second = PodLinkSpec {
            ifname: "net1".to_owned(),
            host_ifname: host_veth_name("other", "c0ffee", "net1"),
            addresses: ["10.250.0.5/32", "fd00:10:250::5/128"].map(|net| net.parse().unwrap()).into(),
            ..first.clone()
        };
        let made = create_pod_link(&second).await.unwrap();
        for spec in [&first, &second] {
            check_pod_link(spec).await.unwrap();
        }
        let routes = ip_in(&pod, "-6 route show default");
        let metric = 1024 + made.container_index;
        assert!(routes.contains(&format!("via fe80::1 dev net1 proto 157 metric {metric}")), "{routes}");
        assert!(ip_in(&pod, "-6 route get 2001:db8::1").contains("dev eth0"));
        assert!(ping("10.250.0.5") && ping("fd00:10:250::5"), "host to the second");
    });
}

#[test]
fn what_cannot_be_made_is_refused_before_anything_is() {
    in_fresh_netns(|| async {
        let pod = pod_netns();
        let good = spec(&pod, "eth0", "10.244.0.5");
        let own = Netns::current().unwrap();
        let same = create_pod_link(&PodLinkSpec { netns: &own, ..good.clone() }).await.unwrap_err();
        assert!(matches!(same, HostError::SameNetns { .. }), "{same}");
        let taken = create_pod_link(&spec(&pod, "lo", "10.244.0.5")).await.unwrap_err();
        assert!(matches!(taken, HostError::AlreadyExists { .. }), "{taken}");
        assert_eq!(taken.class(), Class::Conflict);
        let bad = [
            PodLinkSpec { ifname: "a/b".to_owned(), ..good.clone() },
            PodLinkSpec { ifname: "sixteen-bytes-xx".to_owned(), ..good.clone() },
            PodLinkSpec { ifname: String::new(), ..good.clone() },
            PodLinkSpec { host_ifname: "eth7".to_owned(), ..good.clone() },
            PodLinkSpec { addresses: Vec::new(), ..good.clone() },
            PodLinkSpec { addresses: vec!["10.244.0.5/24".parse().unwrap()], ..good.clone() },
            PodLinkSpec { addresses: vec!["fd00::5/128".parse().unwrap()], ..good.clone() },
            PodLinkSpec { gateways: Vec::new(), ..good.clone() },
            PodLinkSpec { gateways: vec!["10.0.0.1".parse().unwrap()], ..good.clone() },
            PodLinkSpec { gateways: vec![pods::POD_GATEWAY_V4.into(); 2], ..good.clone() },
            PodLinkSpec { mac: Some(Mac([0xff; 6])), ..good.clone() },
        ];
        for spec in bad {
            let error = create_pod_link(&spec).await.unwrap_err();
            assert_eq!(error.class(), Class::Invalid, "{spec:?}: {error}");
        }
        create_pod_link(&PodLinkSpec { mtu: 10, ..good.clone() }).await.unwrap_err();
        assert_eq!(links(), Vec::<String>::new());

        create_pod_link(&good).await.unwrap();
        let again = create_pod_link(&good).await.unwrap_err();
        assert!(matches!(again, HostError::AlreadyExists { .. }), "{again}");
        check_pod_link(&good).await.expect("the first one is as it was");
    });
}

#[test]
fn a_netns_that_is_gone_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pod");
    let gone = netns::open(&path).unwrap_err();
    assert!(
        matches!(gone, HostError::NetnsGone { .. }) && gone.to_string().contains("does not exist"),
        "{gone}"
    );
    File::create(&path).unwrap();
    let left = netns::open(&path).unwrap_err();
    assert!(
        matches!(left, HostError::NetnsGone { .. }) && left.to_string().contains("not a namespace"),
        "{left}"
    );
    assert!(netns::open("/proc/thread-self/ns/net").unwrap().same_as_current().unwrap());
}

#[test]
fn a_failure_half_way_leaves_nothing() {
    in_fresh_netns(|| async {
        uplink("up0", "172.30.0.1/24");
        // The last step fails: somebody else has a route to the pod's address.
        ip("route add 10.244.0.5/32 dev up0 proto static");
        let before = (ip("-br link"), ip("route"));
        let pod = pod_netns();
        let error = create_pod_link(&spec(&pod, "eth0", "10.244.0.5")).await.unwrap_err();
        assert!(matches!(error, HostError::Foreign { .. }), "{error}");
        assert_eq!((ip("-br link"), ip("route")), before);
        assert_eq!(container_link(&pod, "eth0").await.unwrap(), None);
        create_pod_link(&spec(&pod, "eth0", "10.244.0.6")).await.expect("the names are free again");
    });
}

#[test]
fn check_names_each_difference() {
    in_fresh_netns(|| async {
        let pod = pod_netns();
        let spec = spec(&pod, "eth0", "10.244.0.5");
        create_pod_link(&spec).await.unwrap();
        let tell = async || match check_pod_link(&spec).await {
            Ok(()) => String::new(),
            Err(all) => all.iter().map(|difference| format!("{difference}\n")).collect(),
        };
        assert_eq!(tell().await, "");
        ip_in(&pod, "neigh del 169.254.1.1 dev eth0");
        ip_in(&pod, "route del default");
        ip_in(&pod, "link set eth0 mtu 1300");
        ip(&format!("route del 10.244.0.5 dev {}", spec.host_ifname));
        let found = tell().await;
        for part in [
            "neighbour 169.254.1.1 of eth0 (pod side): absent",
            "route 0.0.0.0/0 of eth0",
            "MTU of eth0 (pod side): 1300 instead of 1400",
            "route 10.244.0.5/32 of weft",
        ] {
            assert!(found.contains(part), "{part:?} in\n{found}");
        }
        assert_eq!(found.lines().count(), 4, "{found}");
        delete_host_link(&spec.host_ifname).await.unwrap();
        let found = tell().await;
        assert!(found.contains("link of eth0 (pod side): absent instead of present"), "{found}");
    });
}

#[test]
fn links_of_others_are_not_deleted() {
    in_fresh_netns(|| async {
        uplink("up0", "172.30.0.1/24");
        ip("link add weft0 type bridge");
        for name in ["up0", "weft0"] {
            let error = delete_host_link(name).await.unwrap_err();
            assert!(matches!(error, HostError::Foreign { .. }), "{error}");
        }
        assert_eq!(links().len(), 3);
    });
}
