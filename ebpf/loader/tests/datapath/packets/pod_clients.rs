// SPDX-License-Identifier: Apache-2.0
//! Pods outside of the cgroup ask a ClusterIP.

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr},
    process::{Command, Stdio},
};

use ebpf_abi::{Counter, DatapathConfig, DropReason, service::SERVICE_DROP_EMPTY};
use ebpf_loader::{AttachMode, Datapath};

use super::{
    client::{BULK_BYTES, Line, SILENCE, ask, datagrams, serve_line},
    service::{Frontend, config, serve},
};
use crate::{
    lab::{Lab, in_lab},
    nodes::in_each_mode,
    pod::{Pod, count, forward, forwarded, v4, v6},
};

const PORT: u16 = 8080;

/// The ClusterIP in the family of an address.
fn vip(like: IpAddr) -> SocketAddr {
    let ip: &str = if like.is_ipv4() { "10.96.0.1" } else { "fd00:10:96::1" };
    SocketAddr::new(ip.parse().unwrap(), 80)
}

/// Both families of a pod.
fn both(number: u8) -> [IpAddr; 2] {
    [v4(number), v6(number)]
}

/// Two pods, of which the second one serves; its packets and those of the first may pass by the stack or not.
fn two_pods(lab: &Lab, mode: AttachMode, redirect: bool) -> (Pod, Pod, Datapath) {
    let (mut one, mut two) = (Pod::dual(1), Pod::dual(2));
    let mut datapath = lab.open(mode);
    for pod in [&mut one, &mut two] {
        pod.attachment.redirect = redirect;
        datapath.attach_pod(&pod.attachment).unwrap();
    }
    for address in both(2) {
        two.netns.run(move || serve_line(SocketAddr::new(address, PORT), "two"));
    }
    datapath.write_config(&config(v4(250), v6(250))).unwrap();
    forward(&[&one, &two]);
    (one, two, datapath)
}

fn frontends(backend: u8) -> Vec<Frontend> {
    both(backend).map(|ip| Frontend::new(vip(ip), &[SocketAddr::new(ip, PORT)])).to_vec()
}

#[test]
fn a_pod_outside_of_the_cgroup_reaches_a_service_on_its_node_past_the_stack_and_through_it() {
    in_each_mode(|lab, mode| {
        for redirect in [true, false] {
            let (one, _two, mut datapath) = two_pods(lab, mode, redirect);
            serve(&mut datapath, &frontends(2));
            let before = forwarded();
            for ip in both(1) {
                one.netns.run(|| {
                    let mut line = Line::open(0, vip(ip)).unwrap();
                    assert_eq!((line.name.as_str(), line.seen.ip()), ("two", ip));
                    assert!(line.says("hello") && line.says("again"));
                    assert_eq!(Line::open(0, vip(ip)).unwrap().bulk(), (BULK_BYTES, BULK_BYTES));

                    let socket = datagrams(0, vip(ip));
                    for bytes in [1, 100, 1_400] {
                        let (name, seen, there, here) = ask(&socket, bytes).unwrap();
                        assert_eq!((name.as_str(), seen.ip(), there), ("two", ip, bytes));
                        assert!(here >= bytes);
                    }
                });
            }
            assert_eq!(forwarded() == before, redirect, "the stack forwards: {}", forwarded() - before);
            let counters = datapath.counters().unwrap();
            assert_eq!(
                counters.values().map(|counters| counters.connections).collect::<Vec<_>>(),
                [2, 1, 2, 1]
            );
            // The lab is shared by both rounds.
            for pod in [&one, &_two] {
                datapath.detach_pod(pod.attachment.host_index, &[]).unwrap();
                crate::lab::ip(&format!("link delete {}", pod.attachment.host_ifname));
            }
            drop(datapath);
            let _ = ebpf_loader::remove_all(&lab.pin_dir("node"));
        }
    });
}

#[test]
fn large_datagrams_come_and_go_in_fragments() {
    in_lab(|lab| {
        for redirect in [true, false] {
            let (one, two, mut datapath) = two_pods(lab, AttachMode::Auto, redirect);
            serve(&mut datapath, &frontends(2));
            for ip in both(1) {
                one.netns.run(|| {
                    let socket = datagrams(0, vip(ip));
                    for bytes in [2_000, 9_000, 60_000] {
                        let (name, _, there, here) = ask(&socket, bytes).unwrap();
                        assert_eq!((name.as_str(), there), ("two", bytes), "{ip}, redirect {redirect}");
                        assert!(here >= bytes);
                    }
                });
            }
            assert_eq!(datapath.packet_counters().unwrap()[&Counter::FragmentUnknown], 0);
            for pod in [&one, &two] {
                datapath.detach_pod(pod.attachment.host_index, &[]).unwrap();
                crate::lab::ip(&format!("link delete {}", pod.attachment.host_ifname));
            }
            drop(datapath);
            let _ = ebpf_loader::remove_all(&lab.pin_dir("node"));
        }
    });
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    in_lab(|lab| {
        let (one, two, mut datapath) = two_pods(lab, AttachMode::Auto, true);
        serve(&mut datapath, &frontends(2));
        drop(one);
        for redirect in [true, false] {
            let attachment = ebpf_loader::PodAttachment { redirect, ..two.attachment.clone() };
            datapath.attach_pod(&attachment).unwrap();
            for (ip, overlay) in both(2).into_iter().zip(both(250)) {
                two.netns.run(|| {
                    let mut line = Line::open(0, vip(ip)).unwrap();
                    assert_eq!((line.name.as_str(), line.seen.ip()), ("two", overlay));
                    assert!(line.says("hello"));
                    assert_eq!(Line::open(0, vip(ip)).unwrap().bulk(), (BULK_BYTES, BULK_BYTES));
                    let socket = datagrams(0, vip(ip));
                    let (name, seen, ..) = ask(&socket, 10).unwrap();
                    assert_eq!((name.as_str(), seen.ip()), ("two", overlay));
                });
            }
        }
    });
}

#[test]
fn a_direct_flow_and_one_through_the_service_may_have_one_source_port() {
    in_lab(|lab| {
        let (one, _two, mut datapath) = two_pods(lab, AttachMode::Auto, true);
        // A range of a few ports: what is given out is one of those that the pod itself uses.
        let narrow =
            DatapathConfig { snat_port_min: 2_000, snat_port_max: 2_003, ..config(v4(250), v6(250)) };
        datapath.write_config(&narrow).unwrap();
        serve(&mut datapath, &frontends(2));
        for ip in both(1) {
            let direct = SocketAddr::new(both(2)[usize::from(ip.is_ipv6())], PORT);
            one.netns.run(|| {
                // The direct one first: the other must not take its port.
                let mut first = Line::open(2_000, direct).unwrap();
                let mut second = Line::open(2_000, vip(ip)).unwrap();
                assert_eq!(first.seen.port(), 2_000);
                assert_ne!(second.seen.port(), 2_000);
                assert!(first.says("a") && second.says("b") && first.says("c") && second.says("d"));
                // Now the one through the service has a port that a direct one would like to have.
                let mut third = Line::open(second.seen.port(), direct).unwrap();
                assert!(third.seen.port() != 2_000 && third.seen.port() != second.seen.port());
                assert!(second.says("e") && third.says("f") && first.says("g") && second.says("h"));
            });
            one.netns.run(|| {
                let first = datagrams(2_000, direct);
                assert_eq!(ask(&first, 5).unwrap().1.port(), 2_000);
                let second = datagrams(2_001, vip(ip));
                let given = ask(&second, 5).unwrap().1.port();
                assert_ne!(given, 2_000);
                for socket in [&first, &second, &first, &second] {
                    assert_eq!(ask(socket, 7).unwrap().0, "two");
                }
                // Two are left, at most.
                let more = [2_004, 2_005, 2_006].map(|port| datagrams(port, vip(ip)));
                let answered = more.iter().filter(|socket| {
                    socket.set_read_timeout(Some(SILENCE)).unwrap();
                    ask(socket, 5).is_ok()
                });
                assert!(answered.count() < 3);
            });
        }
        let counters = datapath.packet_counters().unwrap();
        assert!(
            counters[&Counter::SnatPortExhausted] >= 2 && counters[&Counter::PortMoved] >= 2,
            "{counters:?}"
        );
        assert!(count(&datapath, DropReason::SnatPorts) >= 2);
    });
}

#[test]
fn a_service_without_backends_is_refused_by_the_stack_or_says_nothing() {
    in_lab(|lab| {
        if !crate::nodes::nft_is_there() {
            eprintln!("SKIP: nft is not installed, or the kernel has no nf_tables");
            return;
        }
        let (one, _two, mut datapath) = two_pods(lab, AttachMode::Auto, true);
        let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        let table = "table inet refuse {
            chain prerouting { type filter hook prerouting priority -300
                meta mark & 0x1040 == 0x1040 meta l4proto tcp reject with tcp reset
                meta mark & 0x1040 == 0x1040 reject with icmpx port-unreachable
            }
        }";
        nft.stdin.take().unwrap().write_all(table.as_bytes()).unwrap();
        assert!(nft.wait().unwrap().success());
        let mut empty = frontends(2);
        for frontend in &mut empty {
            frontend.backends.clear();
        }
        serve(&mut datapath, &empty);
        for ip in both(1) {
            one.netns.run(|| {
                let refused = Line::open(0, vip(ip)).err().map(|error| error.raw_os_error());
                assert_eq!(refused, Some(Some(libc::ECONNREFUSED)), "tcp {ip}");
                let socket = datagrams(0, vip(ip));
                let refused = ask(&socket, 3).err().and_then(|error| error.raw_os_error());
                assert_eq!(refused, Some(libc::ECONNREFUSED), "udp {ip}");
            });
        }
        let refused: Vec<_> =
            datapath.counters().unwrap().values().map(|counters| counters.refused).collect();
        assert!(refused.iter().all(|refused| *refused == 1), "{refused:?}");
        for frontend in &mut empty {
            frontend.flags = SERVICE_DROP_EMPTY;
        }
        serve(&mut datapath, &empty);
        one.netns.run(|| {
            let socket = datagrams(0, vip(v4(1)));
            socket.set_read_timeout(Some(SILENCE)).unwrap();
            let silent = ask(&socket, 3).unwrap_err();
            assert_eq!(silent.kind(), std::io::ErrorKind::WouldBlock, "{silent}");
        });
        assert_eq!(count(&datapath, DropReason::ServiceEmpty), 1);
    });
}

#[test]
fn an_icmp_error_of_the_backend_reaches_the_client_as_one_of_the_service() {
    in_lab(|lab| {
        for redirect in [true, false] {
            let (one, two, mut datapath) = two_pods(lab, AttachMode::Auto, redirect);
            // Nobody listens there.
            let closed: Vec<_> = both(2).map(|ip| Frontend::new(vip(ip), &[SocketAddr::new(ip, 9)])).to_vec();
            serve(&mut datapath, &closed);
            for ip in both(1) {
                one.netns.run(|| {
                    let socket = datagrams(0, vip(ip));
                    let refused = ask(&socket, 3).err().and_then(|error| error.raw_os_error());
                    assert_eq!(refused, Some(libc::ECONNREFUSED), "udp {ip}, redirect {redirect}");
                    let refused = Line::open(0, vip(ip)).err().and_then(|error| error.raw_os_error());
                    assert_eq!(refused, Some(libc::ECONNREFUSED), "tcp {ip}, redirect {redirect}");
                });
            }
            assert!(datapath.packet_counters().unwrap()[&Counter::IcmpMapped] >= 2);
            for pod in [&one, &two] {
                datapath.detach_pod(pod.attachment.host_index, &[]).unwrap();
                crate::lab::ip(&format!("link delete {}", pod.attachment.host_ifname));
            }
            drop(datapath);
            let _ = ebpf_loader::remove_all(&lab.pin_dir("node"));
        }
    });
}

#[test]
fn datagrams_of_one_socket_reach_a_live_backend_after_theirs_is_gone() {
    in_lab(|lab| {
        let (one, _two, mut datapath) = two_pods(lab, AttachMode::Auto, true);
        for ip in both(2) {
            _two.netns.run(move || serve_line(SocketAddr::new(ip, 8_081), "three"));
        }
        serve(&mut datapath, &frontends(2));
        let sockets = one.netns.run(|| {
            both(1).map(|ip| {
                let socket = datagrams(0, vip(ip));
                assert_eq!(ask(&socket, 3).unwrap().0, "two");
                (socket, Line::open(0, vip(ip)).unwrap())
            })
        });
        let others: Vec<_> = both(2).map(|ip| Frontend::new(vip(ip), &[SocketAddr::new(ip, 8_081)])).to_vec();
        serve(&mut datapath, &others);
        for (socket, _) in &sockets {
            assert_eq!(ask(socket, 3).unwrap().0, "three");
        }
    });
}
