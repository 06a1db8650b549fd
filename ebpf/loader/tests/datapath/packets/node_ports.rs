// SPDX-License-Identifier: Apache-2.0
//! Clients from outside ask node ports.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
};

use ebpf_abi::{
    Counter, DatapathConfig, DropReason, NodeValue, SCOPE_DSR, SCOPE_EXTERNAL, SourceRangeKey,
    node::{ADDRESS_NODE_PORT, ADDRESS_OWN},
    service::{
        SERVICE_DROP_EMPTY, SERVICE_DSR, SERVICE_KEEP_SOURCE, SERVICE_NODE_PORT, SERVICE_SOURCE_RANGES,
    },
};
use ebpf_loader::{AttachMode, Hook};
use lb::Writes;

use super::{
    client::{BULK_BYTES, Line, SILENCE, ask, datagrams, serve_line},
    service::{Frontend, config, serve},
};
use crate::{
    lab::{Lab, Netns, in_lab, ip},
    nodes::{FAMILIES, Family, Node, OVERLAY_MTU, fast_nodes, in_each_mode, nodad, overlay},
    pod::{count, waits_for},
};

/// Where the pods serve.
const PORT: u16 = 8_090;
const NODE_PORT: u16 = 30_080;
const CLIENT: u8 = 9;
/// VXLAN over IPv4 (RFC 7348) takes 50 bytes, also of the overlay's MTU.
const DSR_MTU: u32 = OVERLAY_MTU - 50;
/// IP and UDP headers.
const fn headers(family: Family) -> usize {
    match family {
        Family::V4 => 28,
        Family::V6 => 48,
    }
}

/// Two nodes, a server in each one's pod, and a host outside with a link to each.
struct World {
    one: Node,
    two: Node,
    outside: Netns,
}

/// An address on the link between a node and the host outside.
fn world(node: u8, family: Family, last: u8) -> IpAddr {
    match family {
        Family::V4 => format!("198.51.{node}.{last}").parse().unwrap(),
        Family::V6 => format!("2001:db8:{node}::{last}").parse().unwrap(),
    }
}

/// The node port at the first node.
fn node_port(family: Family) -> SocketAddr {
    SocketAddr::new(world(1, family, 1), NODE_PORT)
}

fn client(family: Family) -> IpAddr {
    world(1, family, CLIENT)
}

impl World {
    fn new(lab: &Lab, mode: AttachMode) -> Self {
        let (mut one, mut two) = fast_nodes(lab, mode);
        let outside = Netns::new();
        for (node, number) in [(&mut one, 1_u8), (&mut two, 2)] {
            let to = outside.path();
            node.netns.run(|| {
                ip(&format!("link add world type veth peer name w{number} netns {}", to.display()));
                ip("link set world up");
            });
            outside.run(|| ip(&format!("link set w{number} up")));
            for family in FAMILIES {
                let prefix = if family == Family::V4 { 24 } else { 64 };
                let (own, peer) = (world(number, family, 1), world(number, family, CLIENT));
                node.netns.run(|| ip(&format!("address add {own}/{prefix} dev world {}", nodad(family))));
                outside.run(|| ip(&format!("address add {peer}/{prefix} dev w{number} {}", nodad(family))));
                if number == 2 {
                    // The second node's own way to the client.
                    node.netns.run(|| ip(&format!("route add {} via {peer}", client(family))));
                }
            }
            let Node { netns, pod, datapath, attachment, .. } = node;
            let name = if number == 1 { "one" } else { "two" };
            for address in attachment.addresses.clone() {
                pod.run(move || serve_line(SocketAddr::new(address, PORT), name));
            }
            netns.run(|| datapath.attach_devices(Hook::Uplink, &["world"]).unwrap());
            let [v4, v6] = FAMILIES.map(|family| overlay(number, family));
            datapath.write_config(&config(v4, v6)).unwrap();
            let own = FAMILIES.map(|family| (world(number, family, 1), ADDRESS_OWN | ADDRESS_NODE_PORT));
            datapath.write_node_addresses(&BTreeMap::from(own)).unwrap();
            let nodes = [1, 2].map(|number| {
                let [v4, v6] = FAMILIES.map(|family| overlay(number, family));
                (u32::from(number), NodeValue::new(Some(v4), Some(v6)))
            });
            datapath.write_nodes(&BTreeMap::from(nodes)).unwrap();
        }
        Self { one, two, outside }
    }

    /// The node port of both families with a backend at the node with this number, as the first node has it.
    fn frontends(&self, at: u8, flags: u32) -> Vec<Frontend> {
        let node = if at == 1 { &self.one } else { &self.two };
        FAMILIES
            .map(|family| Frontend {
                at: SocketAddr::new(any(family), NODE_PORT),
                scope: SCOPE_EXTERNAL,
                flags: flags | SERVICE_NODE_PORT,
                backends: vec![(SocketAddr::new(node.address(family), PORT), at.into(), at == 1)],
            })
            .to_vec()
    }
}

fn any(family: Family) -> IpAddr {
    match family {
        Family::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Talks and sends much over both protocols; what the server says about who it is and who asks.
fn talks(to: SocketAddr) -> (String, IpAddr) {
    let mut line = Line::open(0, to).unwrap();
    assert!(line.says("hello") && line.says("again"), "{to}");
    assert_eq!(Line::open(0, to).unwrap().bulk(), (BULK_BYTES, BULK_BYTES), "{to}");
    let socket = datagrams(0, to);
    for bytes in [1, 1_000] {
        let (name, seen, there, _) = ask(&socket, bytes).unwrap();
        assert_eq!((name.as_str(), seen.ip(), there), (line.name.as_str(), line.seen.ip(), bytes), "{to}");
    }
    (line.name, line.seen.ip())
}

#[test]
fn a_node_port_leads_to_a_pod_of_the_node_which_sees_the_client_or_elsewhere_from_the_overlay_address() {
    in_each_mode(|lab, mode| {
        let mut world = World::new(lab, mode);
        for (at, name) in [(1, "one"), (2, "two")] {
            let frontends = world.frontends(at, 0);
            serve(&mut world.one.datapath, &frontends);
            for family in FAMILIES {
                let (who, seen) = world.outside.run(|| talks(node_port(family)));
                let expected = if at == 1 { client(family) } else { overlay(1, family) };
                assert_eq!((who.as_str(), seen), (name, expected), "{family:?}");
            }
        }
        assert_eq!((world.one.stray(), world.two.stray()), (0, 0), "all in the tunnel");
        // Large datagrams, in fragments, to and fro.
        world.outside.run(|| {
            for family in FAMILIES {
                let socket = datagrams(0, node_port(family));
                socket.set_read_timeout(Some(SILENCE)).unwrap();
                // Fragments as long as the client's link allows do not fit the overlay: it is told, and the next ones do.
                let (name, _, there, here) = (0..5).find_map(|_| ask(&socket, 5_000).ok()).unwrap();
                assert_eq!((name.as_str(), there), ("two", 5_000), "{family:?}");
                assert!(here >= 5_000);
            }
        });
    });
}

#[test]
fn with_policy_local_the_source_is_kept_and_a_node_without_a_backend_says_nothing() {
    in_lab(|lab| {
        let mut world = World::new(lab, AttachMode::Auto);
        let local = world.frontends(1, SERVICE_KEEP_SOURCE);
        serve(&mut world.one.datapath, &local);
        let mut none = world.frontends(1, SERVICE_KEEP_SOURCE | SERVICE_DROP_EMPTY);
        for frontend in &mut none {
            frontend.backends.clear();
        }
        serve(&mut world.two.datapath, &none);
        world.outside.run(|| {
            for family in FAMILIES {
                let mut line = Line::open(40_000, node_port(family)).unwrap();
                assert_eq!(line.seen, SocketAddr::new(client(family), 40_000));
                assert!(line.says("hello"));
                let silent = datagrams(0, SocketAddr::new(super::node_ports::world(2, family, 1), NODE_PORT));
                silent.set_read_timeout(Some(SILENCE)).unwrap();
                assert_eq!(ask(&silent, 1).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            }
        });
        assert_eq!(count(&world.two.datapath, DropReason::ServiceEmpty), 2);
    });
}

#[test]
fn only_clients_in_the_source_ranges_may_ask() {
    in_lab(|lab| {
        let mut world = World::new(lab, AttachMode::Auto);
        let frontends = world.frontends(1, SERVICE_SOURCE_RANGES);
        serve(&mut world.one.datapath, &frontends);
        world.outside.run(|| {
            let socket = datagrams(0, node_port(Family::V4));
            socket.set_read_timeout(Some(SILENCE)).unwrap();
            assert_eq!(ask(&socket, 1).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        });
        assert_eq!(count(&world.one.datapath, DropReason::SourceRange), 1);
        let ranges = [1, 2].map(|id| SourceRangeKey::new(id, client(Family::V4), 24));
        world.one.datapath.write(&Writes { ranges_put: ranges.into(), ..Writes::default() }).unwrap();
        world.outside.run(|| assert_eq!(talks(node_port(Family::V4)).0, "one"));
    });
}

#[test]
fn a_process_of_the_host_may_be_the_backend() {
    in_lab(|lab| {
        let mut world = World::new(lab, AttachMode::Auto);
        let mut frontends = world.frontends(1, 0);
        for (frontend, family) in frontends.iter_mut().zip(FAMILIES) {
            let at = SocketAddr::new(super::node_ports::world(1, family, 1), 7_000);
            world.one.netns.run(move || serve_line(at, "host"));
            frontend.backends = vec![(at, 1, false)];
        }
        serve(&mut world.one.datapath, &frontends);
        for family in FAMILIES {
            let (who, seen) = world.outside.run(|| talks(node_port(family)));
            assert_eq!((who.as_str(), seen), ("host", client(family)));
            // And directly, from the port that a translated flow has.
            world.outside.run(|| {
                let mut through = Line::open(41_000, node_port(family)).unwrap();
                let mut direct = Line::open(41_000, frontends_at(family)).unwrap();
                assert!(through.says("a") && direct.says("b") && through.says("c") && direct.says("d"));
                assert_ne!(through.seen.port(), direct.seen.port());
            });
        }
    });
}

fn frontends_at(family: Family) -> SocketAddr {
    SocketAddr::new(world(1, family, 1), 7_000)
}

#[test]
fn a_sender_is_told_what_fits_the_overlay_and_a_backend_what_fits_the_uplink() {
    in_lab(|lab| {
        let mut world = World::new(lab, AttachMode::Auto);
        let frontends = world.frontends(2, 0);
        serve(&mut world.one.datapath, &frontends);
        world.outside.run(|| {
            for family in FAMILIES {
                learns(node_port(family), OVERLAY_MTU as usize - headers(family));
            }
        });
        assert!(count(&world.one.datapath, DropReason::TooBig) >= 2);
        // A link to the client that is narrower than it says: the backends' segments do not fit it.
        world.one.netns.run(|| ip("link set world mtu 1300"));
        for at in [1, 2] {
            let frontends = world.frontends(at, 0);
            serve(&mut world.one.datapath, &frontends);
            let before = count(&world.one.datapath, DropReason::TooBig);
            for family in FAMILIES {
                world.outside.run(|| {
                    let line = Line::open(0, node_port(family)).unwrap();
                    assert_eq!(line.bulk(), (BULK_BYTES, BULK_BYTES), "{family:?} at {at}");
                });
            }
            assert!(count(&world.one.datapath, DropReason::TooBig) > before, "at {at}");
        }
    });
}

/// Sends a datagram as long as the own link allows, and learns that only `fits` bytes arrive.
fn learns(to: SocketAddr, fits: usize) {
    let socket = datagrams(0, to);
    forbid_fragments(&socket);
    let own = 1_500 - headers(if to.is_ipv4() { Family::V4 } else { Family::V6 });
    socket.send(&vec![b'?'; own]).unwrap();
    let refused = || socket.send(&vec![b'?'; own]).err().and_then(|error| error.raw_os_error());
    waits_for(|| refused() == Some(libc::EMSGSIZE), || format!("{to}: no word of what is too long"));
    assert_eq!(socket.send(&vec![b'?'; fits + 1]).unwrap_err().raw_os_error(), Some(libc::EMSGSIZE), "{to}");
    // Another socket has no error to report. The answer says how long the question was.
    let socket = datagrams(0, to);
    forbid_fragments(&socket);
    let (_, _, there, _) = ask(&socket, fits - 100).unwrap();
    assert_eq!(there, fits - 100, "{to}");
    socket.send(&vec![b'?'; fits]).unwrap();
}

fn forbid_fragments(socket: &UdpSocket) {
    let (level, option) = if socket.local_addr().unwrap().is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)
    };
    let value: libc::c_int = libc::IP_PMTUDISC_DO;
    // SAFETY: an option of an int, and a pointer to one.
    #[allow(unsafe_code, reason = "nix has no such option")]
    let failed = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert_eq!(failed, 0);
}

#[test]
fn with_direct_server_return_the_backends_node_answers_the_client_itself() {
    in_each_mode(|lab, mode| {
        let mut world = World::new(lab, mode);
        for (node, number) in [(&mut world.one, 1_u8), (&mut world.two, 2)] {
            let Node { netns, datapath, .. } = node;
            let index = netns.run(|| {
                ip("link add weft.dsr type vxlan external dstport 4790");
                ip(&format!("link set weft.dsr mtu {DSR_MTU} up"));
                datapath.attach_devices(Hook::Dsr, &["weft.dsr"]).unwrap();
                nix::net::if_::if_nametoindex("weft.dsr").unwrap()
            });
            let [v4, v6] = FAMILIES.map(|family| overlay(number, family));
            let mtu = DSR_MTU as u16;
            let config =
                DatapathConfig { dsr_ifindex: index, dsr_mtu4: mtu, dsr_mtu6: mtu, ..config(v4, v6) };
            datapath.write_config(&config).unwrap();
        }
        let asked = world.frontends(2, SERVICE_DSR);
        serve(&mut world.one.datapath, &asked);
        let mut own = world.frontends(2, SERVICE_DSR);
        for (frontend, family) in own.iter_mut().zip(FAMILIES) {
            frontend.scope = SCOPE_DSR;
            frontend.at = node_port(family);
            frontend.backends[0].2 = true;
        }
        serve(&mut world.two.datapath, &own);
        for family in FAMILIES {
            let (who, seen) = world.outside.run(|| talks(node_port(family)));
            assert_eq!((who.as_str(), seen), ("two", client(family)), "{family:?}");
            world.outside.run(|| learns(node_port(family), DSR_MTU as usize - headers(family)));
        }
        let [one, two] = [&world.one, &world.two].map(|node| node.datapath.packet_counters().unwrap());
        assert!(one[&Counter::DsrWrapped] > 0 && one[&Counter::DsrTooBig] >= 2, "{one:?}");
        assert!(two[&Counter::DsrUnwrapped] > 0, "{two:?}");
        // The answers did not come by the first node: it saw as much as went out wrapped, and nothing else.
        assert_eq!(one[&Counter::DsrWrapped], two[&Counter::DsrUnwrapped]);
    });
}
