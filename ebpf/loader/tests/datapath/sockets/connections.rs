// SPDX-License-Identifier: Apache-2.0
//! TCP: connected once, named back, remembered until it is closed.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use ebpf_abi::{
    Counter, FrontendKey, NetnsValue, PROTO_TCP, Protocol, SCOPE_EXTERNAL, SCOPE_INTERNAL, SocketValue,
    address::address,
    service::{SERVICE_DROP_EMPTY, SERVICE_SOURCE_RANGES},
    socket::SOCKET_COUNTED,
};

use super::{
    agent::{Agent, REFUSED, answer},
    world::{World, key, netns_cookie, serve},
};
use crate::lab::in_lab;

/// A frontend as a client writes it, the frontend in the maps, and a backend: IPv4, IPv6, and IPv4 of an IPv6 socket.
const FAMILIES: [(&str, &str, &str); 3] = [
    ("10.96.0.1:80", "10.96.0.1:80", "10.244.0.1:8080"),
    ("[fd00:10:96::1]:80", "[fd00:10:96::1]:80", "[fd00:10:244::1]:8080"),
    ("[::ffff:10.96.0.2]:80", "10.96.0.2:80", "10.244.0.2:8080"),
];

#[test]
fn a_connection_of_each_family_reaches_a_backend_and_names_the_frontend() {
    in_lab(|lab| {
        let world = World::new(lab);
        let mut agent = Agent::start(&lab.cgroup);
        for (asked, frontend, backend) in FAMILIES {
            serve(backend, "one");
            let (service, backends) = world.serves(frontend, Protocol::Tcp, &[backend]);
            assert_eq!(agent.tcp("held", asked), answer(asked, "one"), "{asked}");

            let frontend = key(frontend, Protocol::Tcp);
            let expected = SocketValue {
                addr: frontend.addr,
                port: frontend.port,
                proto: PROTO_TCP,
                flags: SOCKET_COUNTED,
                service_id: service.service_id,
                backend_id: backends[0],
                since_secs: 0,
                netns: netns_cookie(),
            };
            assert_eq!(world.known_sockets(), [expected], "{asked}");
            assert_eq!((world.load(backends[0]), world.counters(&service)), (1, (1, 0)), "{asked}");

            agent.close("held");
            assert_eq!((world.known_sockets(), world.load(backends[0])), (Vec::new(), 0), "{asked}");
            assert_eq!(agent.tcp_once(backend), answer(backend, "one"), "past the frontend");
            assert_eq!(world.counters(&service), (1, 0), "{asked}");
        }
    });
}

#[test]
fn nobody_behind_a_frontend_and_a_port_it_does_not_have_are_refused() {
    in_lab(|lab| {
        let world = World::new(lab);
        let mut agent = Agent::start(&lab.cgroup);
        for (asked, frontend, _) in FAMILIES {
            let (tcp, _) = world.serves(frontend, Protocol::Tcp, &[]);
            let (udp, _) = world.serves(frontend, Protocol::Udp, &[]);
            let at = key(frontend, Protocol::Tcp).address();
            let wildcard = world.service(FrontendKey::wildcard(at, SCOPE_INTERNAL), &[]);
            let other_port = asked.replace(":80", ":81");
            for asked in [asked, &other_port] {
                assert_eq!(agent.tcp_once(asked), REFUSED, "tcp {asked}");
                assert_eq!(agent.send(asked, asked), REFUSED, "udp {asked}");
                assert_eq!(agent.udp_connect(asked, asked), REFUSED, "connected udp {asked}");
            }
            assert_eq!(
                [tcp, udp, wildcard].map(|service| world.counters(&service)),
                [(0, 1), (0, 2), (0, 3)]
            );
        }
        assert_eq!(world.known_sockets(), []);
        // Not an address of ours: the network's own answer, here that there is no route.
        assert_eq!(agent.tcp_once("10.97.0.1:80"), Err(libc::ENETUNREACH));
    });
}

#[test]
fn what_packets_would_wait_for_sockets_are_told_at_once() {
    in_lab(|lab| {
        let world = World::new(lab);
        let mut agent = Agent::start(&lab.cgroup);
        let at = key("10.96.0.1:80", Protocol::Tcp);
        let local_only = world.service(at, &[]);
        let local_only =
            world.change(at, ebpf_abi::ServiceValue { flags: SERVICE_DROP_EMPTY, ..local_only }, &[]);
        assert_eq!(agent.tcp_once("10.96.0.1:80"), Err(libc::EHOSTUNREACH));
        assert_eq!(world.counters(&local_only), (0, 1));
    });
}

#[test]
fn source_ranges_hold_for_sockets_too() {
    in_lab(|lab| {
        serve("10.244.0.1:8080", "one");
        let world = World::new(lab);
        let mut agent = Agent::start(&lab.cgroup);
        let (service, backends) = world.serves("192.0.2.80:80", Protocol::Tcp, &["10.244.0.1:8080"]);
        let flags = SERVICE_SOURCE_RANGES;
        world.change(
            key("192.0.2.80:80", Protocol::Tcp),
            ebpf_abi::ServiceValue { flags, ..service },
            &backends,
        );
        world.set_netns(netns_cookie(), NetnsValue::pod(Some("10.244.7.7".parse().unwrap()), None, 0, false));

        assert_eq!(agent.tcp_once("192.0.2.80:80"), Err(libc::EHOSTUNREACH));
        world.allow_source(service.service_id, "10.244.8.0", 24);
        assert_eq!(agent.tcp_once("192.0.2.80:80"), Err(libc::EHOSTUNREACH));
        world.allow_source(service.service_id + 1, "10.244.7.0", 24);
        assert_eq!(agent.tcp_once("192.0.2.80:80"), Err(libc::EHOSTUNREACH), "another frontend's range");
        world.allow_source(service.service_id, "10.244.7.0", 24);
        assert_eq!(agent.tcp_once("192.0.2.80:80"), answer("192.0.2.80:80", "one"));
    });
}

#[test]
fn who_asks_from_outside_has_another_entry() {
    in_lab(|lab| {
        serve("10.244.0.1:8080", "one");
        let world = World::new(lab);
        let mut agent = Agent::start(&lab.cgroup);
        let backend = world.backend("10.244.0.1:8080", Protocol::Tcp);
        let address = "192.0.2.80".parse().unwrap();
        world.service(FrontendKey::new(address, 80, Protocol::Tcp, SCOPE_EXTERNAL), &[backend]);
        assert_eq!(agent.tcp_once("192.0.2.80:80"), Err(libc::ENETUNREACH));
        world.service(FrontendKey::new(address, 80, Protocol::Tcp, SCOPE_INTERNAL), &[backend]);
        assert_eq!(agent.tcp_once("192.0.2.80:80"), answer("192.0.2.80:80", "one"));
    });
}

#[test]
fn connections_spread_as_the_slots_say() {
    in_lab(|lab| {
        serve("10.244.0.1:8080", "one");
        serve("10.244.0.2:8080", "two");
        let world = World::new(lab);
        let mut agent = Agent::start(&lab.cgroup);
        let [one, two] = ["10.244.0.1:8080", "10.244.0.2:8080"].map(|to| world.backend(to, Protocol::Tcp));
        world.service(key("10.96.0.1:80", Protocol::Tcp), &[one, one, one, two]);

        let said: Vec<_> = (0..400).map(|_| agent.tcp_once("10.96.0.1:80").unwrap().said).collect();
        let to_two = said.iter().filter(|said| *said == "two").count();
        // 100 are expected; seven standard deviations are 61.
        assert!((39..161).contains(&to_two), "{to_two}");
    });
}

#[test]
fn services_that_come_and_go_beside_it_disturb_no_connection() {
    in_lab(|lab| {
        serve("10.244.0.1:8080", "one");
        serve("10.244.0.2:8080", "two");
        let world = World::new(lab);
        let mut agent = Agent::start(&lab.cgroup);
        let at = key("10.96.0.1:80", Protocol::Tcp);
        let (first, ids) = world.serves("10.96.0.1:80", Protocol::Tcp, &["10.244.0.1:8080"]);
        let second = world.change(at, first, &ids);
        let (other, _) = world.serves("10.96.0.2:80", Protocol::Tcp, &["10.244.0.2:8080"]);

        let mut services = world.services();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let churn = scope.spawn(|| {
                // Longer than the connections take, and not for ever should they fail.
                for round in (0..5_000_000_u32).take_while(|_| !stop.load(Ordering::Relaxed)) {
                    let beside = key(&format!("10.96.1.{}:80", round % 256), Protocol::Tcp);
                    services.insert(beside, other, 0).unwrap();
                    services.insert(at, if round % 2 == 0 { first } else { second }, 0).unwrap();
                    services.remove(&beside).unwrap();
                }
            });
            let wrong: Vec<_> = (0..1_000)
                .map(|_| agent.tcp_once("10.96.0.1:80"))
                .filter(|seen| *seen != answer("10.96.0.1:80", "one"))
                .collect();
            stop.store(true, Ordering::Relaxed);
            churn.join().unwrap();
            assert_eq!(wrong, []);
        });
    });
}

#[test]
fn a_full_map_of_sockets_costs_the_peers_name_and_nothing_else() {
    in_lab(|lab| {
        serve("10.244.0.1:8080", "one");
        let world = World::new(lab);
        let mut agent = Agent::start(&lab.cgroup);
        let (service, backends) = world.serves("10.96.0.1:80", Protocol::Tcp, &["10.244.0.1:8080"]);
        // Cookies that no socket has had yet, with an end: the map is full before it.
        let mut sockets = world.sockets();
        let strangers = (1 << 60..).take(1 << 22);
        for cookie in strangers {
            if sockets.insert(cookie, SocketValue::default(), 0).is_err() {
                break;
            }
        }
        assert_eq!(agent.tcp_once("10.96.0.1:80"), answer("10.244.0.1:8080", "one"));
        assert_eq!((world.count(Counter::SocketsFull), world.load(backends[0])), (1, 0));
        assert_eq!(world.counters(&service), (1, 0));
        sockets.remove(&(1 << 60)).unwrap();
        assert_eq!(agent.tcp_once("10.96.0.1:80"), answer("10.96.0.1:80", "one"));
    });
}

#[test]
fn a_socket_that_goes_elsewhere_is_forgotten() {
    in_lab(|lab| {
        serve("10.244.0.1:8080", "one");
        serve("10.244.0.2:8080", "two");
        let world = World::new(lab);
        let mut agent = Agent::start(&lab.cgroup);
        let (_, first) = world.serves("10.96.0.1:80", Protocol::Udp, &["10.244.0.1:8080"]);
        let (_, second) = world.serves("10.96.0.2:80", Protocol::Udp, &["10.244.0.2:8080"]);

        assert_eq!(agent.udp_connect("one", "10.96.0.1:80"), answer("10.96.0.1:80", ""));
        assert_eq!((world.load(first[0]), world.known_sockets().len()), (1, 1));
        assert_eq!(agent.udp_connect("one", "10.96.0.2:80"), answer("10.96.0.2:80", ""));
        assert_eq!((world.load(first[0]), world.load(second[0])), (0, 1));
        assert_eq!(world.known_sockets()[0].addr, address("10.96.0.2".parse().unwrap()));
        assert_eq!(agent.udp_connect("one", "10.244.0.2:8080"), answer("10.244.0.2:8080", ""));
        assert_eq!(agent.talk("one"), answer("10.244.0.2:8080", "two"));
        assert_eq!((world.load(second[0]), world.known_sockets()), (0, Vec::new()));
    });
}
