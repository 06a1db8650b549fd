// SPDX-License-Identifier: Apache-2.0
//! Faults that are injected into a service, as sockets meet them.

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    time::Duration,
};

use aya::maps::{HashMap, Map, MapData};
use ebpf_abi::{
    DropReason, FlowKey, FlowValue, NetnsValue, PROTO_UDP, Protocol, ServiceValue,
    address::address,
    names,
    service::{SERVICE_FAULT_CLIENTS, SERVICE_FAULT_DROP, SERVICE_FAULT_RESET},
};
use ebpf_loader::AttachMode;

use super::{
    agent::{Agent, REFUSED, answer},
    world::{World, key, netns_cookie, serve},
};
use crate::{
    lab::{Lab, in_lab},
    pod::{Pod, count, forward, v4},
};

const VIP: &str = "10.96.0.1:80";
const BACKEND: &str = "10.244.0.1:8080";
/// ETIMEDOUT.
const TIMED_OUT: super::agent::Outcome = Err(110);

fn flows(lab: &Lab) -> HashMap<MapData, FlowKey, FlowValue> {
    let data = MapData::from_pin(lab.pin_dir("node").join(names::FLOWS)).unwrap();
    HashMap::try_from(Map::LruHashMap(data)).unwrap()
}

#[test]
fn a_fault_refuses_or_lets_time_out_what_begins() {
    in_lab(|lab| {
        serve(BACKEND, "one");
        let world = World::new(lab);
        let mut agent = Agent::start(&lab.cgroup);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let (service, backends) = world.serves(VIP, protocol, &[BACKEND]);
            let with = |flags, fault_percent| {
                let changed = ServiceValue { flags, fault_percent, ..service };
                world.change(key(VIP, protocol), changed, &backends);
            };
            let mut ask = || match protocol {
                Protocol::Tcp => agent.tcp_once(VIP),
                _ => agent.send("datagrams", VIP),
            };
            assert_eq!(ask(), answer(VIP, "one"));
            with(SERVICE_FAULT_RESET, 100);
            assert_eq!(ask(), REFUSED, "{protocol:?}");
            // No program on a veth sees what the host sends.
            with(SERVICE_FAULT_DROP, 100);
            assert_eq!(ask(), TIMED_OUT, "{protocol:?}");
            with(SERVICE_FAULT_DROP | SERVICE_FAULT_RESET, 0);
            assert_eq!(ask(), answer(VIP, "one"));
            assert_eq!((world.known_sockets().len(), world.load(backends[0])), (0, 0), "{protocol:?}");
            assert_eq!(world.counters(&service), (2, 2), "{protocol:?}");
        }
    });
}

#[test]
fn a_fault_of_some_clients_spares_the_others() {
    in_lab(|lab| {
        serve(BACKEND, "one");
        let world = World::new(lab);
        let mut agent = Agent::start(&lab.cgroup);
        for (protocol, client) in [(Protocol::Tcp, v4(1)), (Protocol::Udp, v4(2))] {
            world.set_netns(netns_cookie(), NetnsValue::pod(Some(client), None, 7, false));
            let (service, backends) = world.serves(VIP, protocol, &[BACKEND]);
            let flags = SERVICE_FAULT_RESET | SERVICE_FAULT_CLIENTS;
            world.change(
                key(VIP, protocol),
                ServiceValue { flags, fault_percent: 100, ..service },
                &backends,
            );
            let mut ask = || match protocol {
                Protocol::Tcp => agent.tcp_once(VIP),
                _ => agent.send("datagrams", VIP),
            };
            assert_eq!(ask(), answer(VIP, "one"), "{protocol:?}: it befalls nobody");
            world.allow_source(service.service_id, &v4(9).to_string(), 32);
            assert_eq!(ask(), answer(VIP, "one"), "{protocol:?}: it befalls somebody else");
            world.allow_source(service.service_id, &client.to_string(), 32);
            assert_eq!(ask(), REFUSED, "{protocol:?}");
        }
    });
}

#[test]
fn a_fault_befalls_its_share_of_connections() {
    in_lab(|lab| {
        serve(BACKEND, "one");
        let world = World::new(lab);
        let (service, backends) = world.serves(VIP, Protocol::Tcp, &[BACKEND]);
        let faulty = ServiceValue { flags: SERVICE_FAULT_RESET, fault_percent: 25, ..service };
        world.change(key(VIP, Protocol::Tcp), faulty, &backends);
        let mut agent = Agent::start(&lab.cgroup);
        let refused = (0..400).filter(|_| agent.tcp_once(VIP) == REFUSED).count();
        // 100 are expected; five standard deviations are 44.
        assert!(refused.abs_diff(100) < 44, "{refused}");
    });
}

#[test]
fn what_a_pod_sends_in_vain_keeps_the_frontends_address() {
    in_lab(|lab| {
        serve(BACKEND, "one");
        let world = World::new(lab);
        world.set_netns(netns_cookie(), NetnsValue::pod(Some(v4(1)), None, 7, false));
        let (service, backends) = world.serves(VIP, Protocol::Udp, &[BACKEND]);
        let faulty = ServiceValue { flags: SERVICE_FAULT_DROP, fault_percent: 100, ..service };
        world.change(key(VIP, Protocol::Udp), faulty, &backends);
        let mut agent = Agent::start(&lab.cgroup);
        assert!(agent.send("vain", VIP).is_err(), "no such route here");
        let at: SocketAddr = VIP.parse().unwrap();
        let known: Vec<_> = flows(lab).iter().map(Result::unwrap).collect();
        let [(flow, itself)] = known.as_slice() else { panic!("{known:?}") };
        assert_eq!((flow.addr, flow.port, flow.proto), (address(at.ip()), [0, 80], PROTO_UDP));
        assert_eq!((itself.addr, itself.port), (flow.addr, flow.port), "it names nothing else");
        assert_eq!(world.counters(&service), (0, 1));
    });
}

#[test]
fn the_program_on_the_veth_drops_what_its_socket_was_told_to_lose() {
    in_lab(|lab| {
        let (one, two) = (Pod::new(1), Pod::new(2));
        let mut datapath = lab.open(AttachMode::Auto);
        for pod in [&one, &two] {
            datapath.attach_pod(&pod.attachment).unwrap();
        }
        let backend = SocketAddr::new(v4(2), 8_080);
        two.netns.run(move || crate::packets::client::serve_line(backend, "two"));
        datapath.write_config(&crate::packets::service::config(v4(250), v4(250))).unwrap();
        forward(&[&one, &two]);
        let at: SocketAddr = VIP.parse().unwrap();
        let mut frontend = crate::packets::service::Frontend::new(at, &[backend]);
        // The packets' own share is none: only what the sockets' program has decided is dropped.
        frontend.flags = SERVICE_FAULT_DROP;
        crate::packets::service::serve(&mut datapath, &[frontend]);
        one.netns.run(|| {
            let doomed = UdpSocket::bind("0.0.0.0:0").unwrap();
            let spared = UdpSocket::bind("0.0.0.0:0").unwrap();
            let itself = FlowValue { addr: address(at.ip()), port: [0, 80], ..FlowValue::default() };
            let flow = FlowKey {
                cookie: cookie(&doomed),
                addr: itself.addr,
                port: itself.port,
                proto: PROTO_UDP,
                pad: [0; 5],
            };
            flows(lab).insert(flow, itself, 0).unwrap();
            for socket in [&doomed, &spared] {
                socket.send_to(b"?", at).unwrap();
            }
            spared.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            doomed.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            assert!(spared.recv(&mut [0; 64]).unwrap() > 0);
            assert_eq!(doomed.recv(&mut [0; 64]).unwrap_err().kind(), ErrorKind::WouldBlock);
        });
        assert_eq!(count(&datapath, DropReason::Fault), 1);
    });
}

/// SO_COOKIE.
fn cookie(socket: &UdpSocket) -> u64 {
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: an open socket, and room for the eight bytes that this option has.
    #[allow(unsafe_code, reason = "nix has no such option")]
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    assert_eq!(outcome, 0);
    cookie
}
