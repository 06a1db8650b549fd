// SPDX-License-Identifier: Apache-2.0

//! Ports of the host that lead to pods, with real traffic, and what conntrack remembers of them.

use std::{
    fs,
    net::{IpAddr, TcpListener},
};

use netd_host::{
    Netns,
    conntrack::{forget_udp, forget_udp_to},
    netns,
    nft::Nft,
    veth,
};
use netd_plan::{HostPort, NftConfig, PortProtocol, render_nft};

use crate::{
    ground::{dual_pod, in_fresh_netns, ip_in, outside, pod_netns, skip},
    talk::{IMPATIENCE, PATIENCE, Server, Transport, ask, exchange, udp_client},
};

const POD_V4: &str = "10.244.0.5";
const POD_V6: &str = "fd00:10:244::5";
const NODE_V4: &str = "172.30.0.1";
const NODE_V6: &str = "2001:db8:30::1";

fn host_port(host: Option<&str>, host_port: u16, protocol: PortProtocol, pod: &str) -> HostPort {
    let host_ip = host.map(|ip| ip.parse().unwrap());
    HostPort { host_ip, host_port, protocol, pod: pod.parse().unwrap(), pod_port: 80 }
}

fn rules(host_ports: Vec<HostPort>) -> String {
    render_nft(&NftConfig {
        pod_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()],
        host_ports,
        ..NftConfig::default()
    })
}

/// Any address at 8080, 172.30.0.9 alone at 8081.
fn mapped() -> Vec<HostPort> {
    [PortProtocol::Tcp, PortProtocol::Udp]
        .into_iter()
        .flat_map(|protocol| {
            [
                host_port(None, 8080, protocol, POD_V4),
                host_port(None, 8080, protocol, POD_V6),
                host_port(Some("172.30.0.9"), 8081, protocol, POD_V4),
            ]
        })
        .collect()
}

#[test]
fn mapped_ports_are_reached_from_everywhere_and_clients_keep_their_address() {
    in_fresh_netns(|| async {
        let Ok(nft) = Nft::find() else { return skip("no nft (package nftables)") };
        let outside = outside();
        let (pod, other) = (pod_netns(), pod_netns());
        let (spec, _) = (dual_pod(&pod, 5).await, dual_pod(&other, 6).await);
        let node = Netns::current().unwrap();
        nft.apply(&rules(mapped())).await.unwrap();
        veth::open_for_loopback(&spec.host_ifname).unwrap();
        let _servers =
            [Server::start(&pod, &format!("{POD_V4}:80")), Server::start(&pod, &format!("[{POD_V6}]:80"))];

        let answered: [(&str, &Netns, &str, &str); 13] = [
            ("from outside", &outside, "172.30.0.1:8080", "172.30.0.2"),
            ("from outside", &outside, "[2001:db8:30::1]:8080", "2001:db8:30::2"),
            ("from outside at hostIP", &outside, "172.30.0.9:8081", "172.30.0.2"),
            ("another pod", &other, "172.30.0.1:8080", "10.244.0.6"),
            ("another pod", &other, "[2001:db8:30::1]:8080", "fd00:10:244::6"),
            ("another pod at hostIP", &other, "172.30.0.9:8081", "10.244.0.6"),
            ("the pod itself", &pod, "172.30.0.1:8080", NODE_V4),
            ("the pod itself", &pod, "[2001:db8:30::1]:8080", NODE_V6),
            ("the pod itself at hostIP", &pod, "172.30.0.9:8081", NODE_V4),
            ("the node", &node, "172.30.0.1:8080", NODE_V4),
            ("the node", &node, "[2001:db8:30::1]:8080", NODE_V6),
            ("the node at loopback", &node, "127.0.0.1:8080", NODE_V4),
            ("the node at loopback", &node, "127.0.0.5:8080", NODE_V4),
        ];
        for (who, netns, target, seen) in answered {
            for transport in [Transport::Tcp, Transport::Udp] {
                let answer = ask(netns, transport, target, PATIENCE);
                assert_eq!(answer, Some(seen.parse().unwrap()), "{who}, {transport:?} to {target}");
            }
        }
        let unanswered = [
            ("another address of the host", &outside, "172.30.0.1:8081"),
            ("a port that is not mapped", &outside, "172.30.0.1:8082"),
            ("the other family", &outside, "[2001:db8:30::1]:8081"),
            ("somebody else's address", &other, "172.30.0.2:8080"),
            ("loopback of IPv6", &node, "[::1]:8080"),
            ("loopback, of hostIP's port", &node, "127.0.0.1:8081"),
        ];
        for (what, netns, target) in unanswered {
            for transport in [Transport::Tcp, Transport::Udp] {
                assert_eq!(
                    ask(netns, transport, target, IMPATIENCE),
                    None,
                    "{what}: {transport:?} to {target}"
                );
            }
        }
        // Direct connections to the pod from outside are still not let in.
        assert_eq!(ask(&outside, Transport::Tcp, "10.244.0.5:80", IMPATIENCE), None);

        nft.apply(&rules(Vec::new())).await.unwrap();
        assert_eq!(ask(&outside, Transport::Tcp, "172.30.0.1:8080", IMPATIENCE), None, "unmapped");
    });
}

#[test]
fn a_port_on_an_address_that_is_not_the_host_s_takes_nothing_until_it_is() {
    in_fresh_netns(|| async {
        let Ok(nft) = Nft::find() else { return skip("no nft (package nftables)") };
        let outside = outside();
        let pod = pod_netns();
        dual_pod(&pod, 5).await;
        let _server = Server::start(&pod, &format!("{POD_V4}:80"));
        let on_vip = host_port(Some("192.0.2.7"), 80, PortProtocol::Tcp, POD_V4);
        nft.apply(&rules(vec![on_vip])).await.unwrap();
        assert_eq!(ask(&outside, Transport::Tcp, "192.0.2.7:80", IMPATIENCE), None, "somebody else's");
        crate::ground::ip("address add 192.0.2.7/32 dev lo");
        let answer = ask(&outside, Transport::Tcp, "192.0.2.7:80", PATIENCE);
        assert_eq!(answer, Some("172.30.0.2".parse().unwrap()), "a floating address that came here");
    });
}

#[test]
fn a_veth_that_is_open_for_loopback_does_not_open_the_hosts() {
    in_fresh_netns(|| async {
        let Ok(nft) = Nft::find() else { return skip("no nft (package nftables)") };
        let pod = pod_netns();
        let spec = dual_pod(&pod, 5).await;
        veth::open_for_loopback(&spec.host_ifname).unwrap();
        let _listener = TcpListener::bind("127.0.0.1:9000").unwrap();
        // The pod sends what is meant for its own loopback to its gateway.
        ip_in(&pod, "address del 127.0.0.1/8 dev lo");
        ip_in(&pod, "route add 127.0.0.1/32 via 169.254.1.1 dev eth0 onlink src 10.244.0.5");
        netns::run_in(&pod, || fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").unwrap())
            .unwrap();
        let target = "127.0.0.1:9000".parse().unwrap();
        let reaches = || {
            netns::run_in(&pod, || std::net::TcpStream::connect_timeout(&target, IMPATIENCE).is_ok()).unwrap()
        };
        assert!(reaches(), "without our table the kernel lets it in");
        nft.apply(&rules(mapped())).await.unwrap();
        assert!(!reaches(), "with it, no");
        nft.apply(&rules(Vec::new())).await.unwrap();
        assert!(!reaches(), "nor after the last mapping went");
    });
}

#[test]
fn flows_from_before_a_mapping_and_after_it_are_forgotten() {
    in_fresh_netns(|| async {
        let Ok(nft) = Nft::find() else { return skip("no nft (package nftables)") };
        let outside = outside();
        let pod = pod_netns();
        dual_pod(&pod, 5).await;
        let _servers = [
            Server::start(&pod, &format!("{POD_V4}:80")),
            Server::start(&pod, &format!("[{POD_V6}]:80")),
            Server::start(&outside, "172.30.0.2:8080"),
        ];
        nft.apply(&rules(Vec::new())).await.unwrap();
        assert_eq!(forget_udp(None, 8080).await.unwrap(), 0);
        // A flow of the pod's own to that port of somebody else: not one to the host.
        let to_world = netns::run_in(&pod, || udp_client("172.30.0.2:8080".parse().unwrap())).unwrap();
        let masqueraded = exchange(&to_world, PATIENCE).expect("an answer from outside");
        assert_eq!(masqueraded.ip(), NODE_V4.parse::<IpAddr>().unwrap());

        for (host, ips) in [(NODE_V4, POD_V4), (NODE_V6, POD_V6)] {
            let target = (host.parse::<IpAddr>().unwrap(), 8080).into();
            let client = netns::run_in(&outside, || udp_client(target)).unwrap();
            let pod_ip: IpAddr = ips.parse().unwrap();
            assert_eq!(exchange(&client, IMPATIENCE), None, "not mapped yet");
            nft.apply(&rules(mapped())).await.unwrap();
            assert_eq!(exchange(&client, IMPATIENCE), None, "conntrack knows the flow from before");
            assert_eq!(forget_udp(None, 8080).await.unwrap(), 1);
            assert!(exchange(&client, PATIENCE).is_some(), "mapped");

            nft.apply(&rules(Vec::new())).await.unwrap();
            assert!(exchange(&client, PATIENCE).is_some(), "conntrack knows the flow from before");
            let elsewhere = if pod_ip.is_ipv4() { "172.30.0.9" } else { "2001:db8:30::9" };
            assert_eq!(forget_udp(Some(elsewhere.parse().unwrap()), 8080).await.unwrap(), 0);
            assert_eq!(forget_udp(Some(target.ip()), 8081).await.unwrap(), 0);
            assert_eq!(forget_udp(Some(target.ip()), 8080).await.unwrap(), 1);
            assert_eq!(exchange(&client, IMPATIENCE), None, "unmapped");

            nft.apply(&rules(mapped())).await.unwrap();
            forget_udp(None, 8080).await.unwrap();
            assert!(exchange(&client, PATIENCE).is_some(), "mapped again");
            nft.apply(&rules(Vec::new())).await.unwrap();
            assert_eq!(forget_udp_to(pod_ip).await.unwrap(), 1, "by the pod");
            assert_eq!(exchange(&client, IMPATIENCE), None, "the pod is gone for it");
            forget_udp(None, 8080).await.unwrap();
        }
        let still = exchange(&to_world, PATIENCE).expect("an answer from outside");
        assert_eq!(still, masqueraded, "under the same port as before");
    });
}
