// SPDX-License-Identifier: Apache-2.0

//! WireGuard's devices of both kinds, and routes that go from one backend's device to another's.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    net::IpAddr,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use netd_host::{Class, Host, HostError};
use netd_plan::{
    Backend, HostObject, HostObjects, HostOp, LinkSpec, NodeFacts, Path, PeerPath, VxlanConfig,
    WireguardConfig, WireguardKind, overlay_objects, vtep_mac,
};
use uuid::Uuid;

use crate::ground::{converge, in_fresh_netns, ip, uplink};

const TUN: &str = "weft.wg1";
const VXLAN: &str = "weft.vxlan";

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn node(n: u8) -> NodeFacts {
    let uuid = Uuid::from_u128(n.into());
    NodeFacts {
        uuid,
        name: format!("n{n}"),
        underlay: address(&format!("172.30.0.{n}")),
        overlays: vec![address(&format!("10.244.{n}.0")), address(&format!("fd00:10:244:{n}::"))],
        vtep_mac: vtep_mac(uuid),
        blocks: vec![
            format!("10.244.{n}.0/26").parse().unwrap(),
            format!("fd00:10:244:{n}::/122").parse().unwrap(),
        ],
    }
}

/// What node 1 makes of one peer that is reached so.
fn reached_by(path: Path, kind: WireguardKind) -> HostObjects {
    let vxlan = VxlanConfig { vni: 4242, port: 4789, mtu: 1400, device: VXLAN.to_owned() };
    let wireguard = WireguardConfig { kind, mtu: 1380, generations: BTreeSet::from([1]) };
    let up = [Backend::Vxlan(vxlan), Backend::Wireguard(wireguard)];
    let peer = PeerPath { facts: node(2), path: Some(path), mtu: Some(1300) };
    let pools = ["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()];
    overlay_objects(&up, &node(1), &[peer], &pools, &[])
}

/// As `weft-wireguard` leaves it, and as it stays when that dies.
fn make_tun(name: &str) {
    ip(&format!("tuntap add dev {name} mode tun"));
}

/// What happens to IPv6 routes while it lives.
struct Monitor {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Monitor {
    fn start() -> Self {
        let mut child =
            Command::new("ip").args(["-6", "monitor", "route"]).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = mpsc::channel();
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        let monitor = Monitor { child, lines };
        // It listens once it tells of something.
        for metric in 1.. {
            ip(&format!("-6 route add unreachable 2001:db8:ffff::/64 metric {metric}"));
            if monitor.lines.recv_timeout(Duration::from_millis(50)).is_ok() {
                return monitor;
            }
            assert!(metric < 100, "ip monitor does not listen");
        }
        unreachable!()
    }

    /// All that it told until now.
    fn told(&self) -> Vec<String> {
        ip("-6 route add unreachable 2001:db8:eeee::/64");
        let mut told = Vec::new();
        loop {
            let line = self.lines.recv_timeout(Duration::from_secs(5)).expect("the last route within 5 s");
            if line.contains("2001:db8:eeee::/64") {
                return told;
            }
            told.push(line);
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_tun_is_brought_up_and_taken_down_but_neither_made_nor_deleted() {
    in_fresh_netns(|| async {
        let host = Host::open().unwrap();
        let wanted = |mtu| HostOp::Add(HostObject::Link(TUN.to_owned(), LinkSpec::Tun { mtu }));
        let error = host.apply(&wanted(1380)).await.unwrap_err();
        assert!(matches!(error, HostError::NotMade { .. }), "{error}");
        assert_eq!(error.class(), Class::Retry);
        assert_eq!(
            error.to_string(),
            "weft-wireguard has not made weft.wg1: is the service weft-wireguard running?"
        );

        make_tun(TUN);
        let index = host.link_index(TUN).await.unwrap();
        assert_eq!(host.observe().await.unwrap(), HostObjects::new(), "one that is down is not in use");
        for mtu in [1380, 1380, 8920, 1280] {
            host.apply(&wanted(mtu)).await.unwrap();
            assert_eq!(host.observe().await.unwrap().links[TUN], LinkSpec::Tun { mtu });
        }
        let addresses = ip(&format!("-6 address show {TUN}"));
        assert!(!addresses.contains("inet6"), "no link-local address of the kernel's: {addresses}");
        let rp_filter = netd_host::read_sysctl(&format!("net/ipv4/conf/{TUN}/rp_filter")).unwrap();
        assert_eq!(rp_filter, "2", "answers may go by another backend");

        let gone = HostOp::Remove(HostObject::Link(TUN.to_owned(), LinkSpec::Tun { mtu: 1280 }));
        for _ in 0..2 {
            host.apply(&gone).await.unwrap();
            assert_eq!(host.observe().await.unwrap(), HostObjects::new());
        }
        assert_eq!(host.link_index(TUN).await.unwrap(), index, "it is still weft-wireguard's");
        host.apply(&wanted(1380)).await.unwrap();
        assert!(host.link(TUN).await.unwrap().unwrap().is_up);
    });
}

#[test]
fn a_device_of_another_kind_is_in_the_way_only_where_it_is_not_ours() {
    in_fresh_netns(|| async {
        uplink("up0", "172.30.0.1/24");
        let host = Host::open().unwrap();
        let wanted = HostOp::Add(HostObject::Link(TUN.to_owned(), LinkSpec::Tun { mtu: 1380 }));
        ip(&format!("link add {TUN} type veth peer name foreignp"));
        let error = host.apply(&wanted).await.unwrap_err();
        assert!(matches!(error, HostError::Foreign { .. }), "{error}");
        ip(&format!("link del {TUN}"));

        // One of ours makes room, so that weft-wireguard can make its own.
        ip(&format!("link add {TUN} type vxlan id 7 dstport 4789 local 172.30.0.1 nolearning"));
        let error = host.apply(&wanted).await.unwrap_err();
        assert!(matches!(error, HostError::NotMade { .. }), "{error}");
        assert!(host.link(TUN).await.unwrap().is_none());
    });
}

#[test]
fn routes_over_a_tun_stay_when_nobody_serves_it() {
    in_fresh_netns(|| async {
        uplink("up0", "172.30.0.1/24");
        ip("route add default via 172.30.0.254");
        make_tun(TUN);
        let host = Host::open().unwrap();
        let desired = reached_by(Path::Wireguard { generation: 1 }, WireguardKind::User);
        converge(&host, &desired).await;
        assert_eq!(host.observe().await.unwrap(), desired);
        assert!(!host.link(TUN).await.unwrap().unwrap().is_running, "no program has it open");
        for (family, peer) in [("-4", "10.244.2.7"), ("-6", "fd00:10:244:2::7")] {
            let route = ip(&format!("{family} route get {peer}"));
            assert!(route.contains(&format!("dev {TUN}")) && route.contains("mtu 1300"), "{route}");
        }
        let source = ip("route get 10.244.2.7");
        assert!(source.contains("src 10.244.1.0"), "the node speaks with its overlay address: {source}");
    });
}

#[test]
fn a_block_moves_between_tunnels_without_a_moment_of_refusal() {
    in_fresh_netns(|| async {
        uplink("up0", "172.30.0.1/24");
        make_tun(TUN);
        let host = Host::open().unwrap();
        let by = |path| reached_by(path, WireguardKind::User);
        converge(&host, &by(Path::Vxlan)).await;
        let monitor = Monitor::start();
        for path in [Path::Wireguard { generation: 1 }, Path::Vxlan, Path::Wireguard { generation: 1 }] {
            converge(&host, &by(path)).await;
            assert_eq!(host.observe().await.unwrap(), by(path));
        }
        let told = monitor.told();
        let of_block: Vec<&String> =
            told.iter().filter(|line| line.contains("fd00:10:244:2::/122")).collect();
        assert!(of_block.len() >= 3, "{told:#?}");
        assert!(!of_block.iter().any(|line| line.contains("Deleted")), "{told:#?}");
    });
}

#[test]
fn packets_come_in_by_any_tunnel_whichever_their_answers_take() {
    in_fresh_netns(|| async {
        uplink("up0", "172.30.0.1/24");
        make_tun(TUN);
        let host = Host::open().unwrap();
        // The command fails where the kernel would drop the packet.
        let taken = |device: &str| {
            let shown = ip(&format!("route get 10.244.1.0 from 10.244.2.7 iif {device}"));
            assert!(shown.contains("local"), "{device}: {shown}");
        };
        for of_all in ["0", "1", "2"] {
            std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", of_all).unwrap();
            for path in [Path::Vxlan, Path::Wireguard { generation: 1 }] {
                converge(&host, &reached_by(path, WireguardKind::User)).await;
                for device in [VXLAN, TUN] {
                    taken(device);
                }
            }
        }
        // A TUN only goes down; what is on it must not stay.
        let mut without = reached_by(Path::Vxlan, WireguardKind::User);
        without.links.remove(TUN);
        without.addresses.retain(|spec| spec.device != TUN);
        converge(&host, &without).await;
        assert_eq!(
            host.observe().await.unwrap(),
            without,
            "lo has the address still, and routes their source"
        );
        assert!(!ip(&format!("address show {TUN}")).contains("10.244.1.0"));
    });
}

#[test]
fn overlay_addresses_that_an_earlier_version_had_on_the_vxlan_device_move_to_lo() {
    in_fresh_netns(|| async {
        uplink("up0", "172.30.0.1/24");
        make_tun(TUN);
        let host = Host::open().unwrap();
        let desired = reached_by(Path::Vxlan, WireguardKind::User);
        let mut earlier = desired.clone();
        earlier.addresses = desired
            .addresses
            .iter()
            .filter(|spec| spec.device == "lo")
            .map(|spec| netd_plan::AddressSpec { device: VXLAN.to_owned(), ..spec.clone() })
            .collect();
        converge(&host, &earlier).await;
        assert_eq!(host.observe().await.unwrap(), earlier);
        // The kernel drops or changes routes whose source goes; a second look finds what it did to them.
        for _ in 0..2 {
            converge(&host, &desired).await;
        }
        assert_eq!(host.observe().await.unwrap(), desired);
    });
}

#[test]
fn the_kernels_wireguard_device_is_made_changed_and_deleted() {
    in_fresh_netns(|| async {
        let probe = Command::new("ip").args(["link", "add", "probe", "type", "wireguard"]).output().unwrap();
        if !probe.status.success() {
            // Not on the list of what must run: make vm has kernels with it.
            // Not a SKIP: no machine of CI has it, and `make vm` proves the kernel's devices on two that do.
            println!(
                "left to `make vm`: the kernel has no WireGuard: {}",
                String::from_utf8_lossy(&probe.stderr)
            );
            return;
        }
        uplink("up0", "172.30.0.1/24");
        let host = Host::open().unwrap();
        let desired = reached_by(Path::Wireguard { generation: 1 }, WireguardKind::Kernel);
        converge(&host, &desired).await;
        assert_eq!(host.observe().await.unwrap(), desired);
        let index = host.link_index(TUN).await.unwrap();
        let other = HostObject::Link(TUN.to_owned(), LinkSpec::Wireguard { mtu: 1300 });
        host.apply(&HostOp::Replace(other.clone())).await.unwrap();
        assert_eq!((host.link_mtu(TUN).await.unwrap(), host.link_index(TUN).await.unwrap()), (1300, index));
        host.apply(&HostOp::Remove(other)).await.unwrap();
        assert!(host.link(TUN).await.unwrap().is_none());
    });
}

#[test]
fn what_is_on_the_link_of_the_underlay() {
    in_fresh_netns(|| async {
        uplink("up0", "172.30.0.1/24");
        ip("address add 172.30.0.9/24 dev up0");
        ip("address add 2001:db8:30::1/64 dev up0 nodad");
        let host = Host::open().unwrap();
        let subnets = host.subnets("up0").await.unwrap();
        let text: Vec<String> = subnets.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["172.30.0.0/24", "2001:db8:30::/64"]);
        assert!(netd_plan::is_on_link(address("172.30.0.200"), &subnets));
        assert!(!netd_plan::is_on_link(address("172.31.0.1"), &subnets));
        let error = host.subnets("up7").await.unwrap_err();
        assert!(matches!(error, HostError::NoDevice { .. }), "{error}");
    });
}
