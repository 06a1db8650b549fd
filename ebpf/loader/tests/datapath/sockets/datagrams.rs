// SPDX-License-Identifier: Apache-2.0
//! UDP: each datagram by itself, or connected.

use std::collections::BTreeSet;

use ebpf_abi::{NetnsValue, Protocol};

use super::{
    agent::{Agent, REFUSED, answer},
    world::{World, key, netns_cookie, serve},
};
use crate::lab::in_lab;

/// A frontend as a client writes it, the frontend in the maps, and two backends.
const FAMILIES: [(&str, &str, [&str; 2]); 3] = [
    ("10.96.0.1:53", "10.96.0.1:53", ["10.244.0.1:8053", "10.244.0.2:8053"]),
    ("[fd00:10:96::1]:53", "[fd00:10:96::1]:53", ["[fd00:10:244::1]:8053", "[fd00:10:244::2]:8053"]),
    ("[::ffff:10.96.0.2]:53", "10.96.0.2:53", ["10.244.0.3:8053", "10.244.0.4:8053"]),
];

#[test]
fn a_sockets_datagrams_stay_with_one_backend_and_come_back_from_the_frontend() {
    in_lab(|lab| {
        let world = World::new(lab);
        let mut agent = Agent::start(&lab.cgroup);
        for (asked, frontend, backends) in FAMILIES {
            serve(backends[0], "one");
            serve(backends[1], "two");
            let (service, _) = world.serves(frontend, Protocol::Udp, &backends);
            let mut said = BTreeSet::new();
            // One of two is missed by 24 sockets once in eight million runs.
            for socket in 0..24 {
                let name = format!("{asked}-{socket}");
                let first = agent.send(&name, asked).unwrap();
                assert_eq!(first.from, asked);
                assert_eq!(agent.send(&name, asked), Ok(first.clone()), "{asked} once more");
                said.insert(first.said);
                agent.close(&name);
            }
            assert_eq!(said.len(), 2, "{asked}");
            assert_eq!(world.counters(&service), (48, 0));
        }
        assert_eq!(world.known_sockets(), []);
    });
}

#[test]
fn the_next_datagram_after_a_backend_is_gone_reaches_another() {
    in_lab(|lab| {
        let world = World::new(lab);
        let mut agent = Agent::start(&lab.cgroup);
        for (asked, frontend, backends) in FAMILIES {
            serve(backends[0], "one");
            serve(backends[1], "two");
            let (service, ids) = world.serves(frontend, Protocol::Udp, &backends);
            let first = agent.send(asked, asked).unwrap();
            let (left, says) = if first.said == "one" { (ids[1], "two") } else { (ids[0], "one") };
            world.change(key(frontend, Protocol::Udp), service, &[left]);
            assert_eq!(agent.send(asked, asked), answer(asked, says));
            world.change(key(frontend, Protocol::Udp), service, &[]);
            assert_eq!(agent.send(asked, asked), REFUSED);
        }
    });
}

#[test]
fn one_socket_tells_two_frontends_and_others_apart() {
    in_lab(|lab| {
        serve("10.244.0.1:8053", "one");
        serve("10.244.0.2:8053", "two");
        serve("10.244.0.3:8053", "three");
        let world = World::new(lab);
        let mut agent = Agent::start(&lab.cgroup);
        world.serves("10.96.0.1:53", Protocol::Udp, &["10.244.0.1:8053"]);
        world.serves("10.96.0.2:53", Protocol::Udp, &["10.244.0.2:8053"]);
        for _ in 0..2 {
            assert_eq!(agent.send("one", "10.96.0.1:53"), answer("10.96.0.1:53", "one"));
            assert_eq!(agent.send("one", "10.96.0.2:53"), answer("10.96.0.2:53", "two"));
            assert_eq!(agent.send("one", "10.244.0.3:8053"), answer("10.244.0.3:8053", "three"));
        }
    });
}

#[test]
fn a_connected_socket_is_translated_once_where_no_packet_program_does_it() {
    in_lab(|lab| {
        let world = World::new(lab);
        let mut agent = Agent::start(&lab.cgroup);
        for (asked, frontend, backends) in FAMILIES {
            serve(backends[0], "one");
            let (service, ids) = world.serves(frontend, Protocol::Udp, &backends[..1]);
            assert_eq!(agent.udp_connect(asked, asked), answer(asked, ""));
            assert_eq!(agent.talk(asked), answer(asked, "one"));
            assert_eq!(agent.talk(asked), answer(asked, "one"));
            assert_eq!((world.load(ids[0]), world.counters(&service)), (1, (1, 0)));
            agent.close(asked);
            assert_eq!((world.load(ids[0]), world.known_sockets()), (0, Vec::new()));
        }
    });
}

#[test]
fn a_connected_socket_that_names_its_peer_stays_with_its_backend() {
    in_lab(|lab| {
        let world = World::new(lab);
        let mut agent = Agent::start(&lab.cgroup);
        for (asked, frontend, backends) in FAMILIES {
            serve(backends[0], "one");
            serve(backends[1], "two");
            world.serves(frontend, Protocol::Udp, &backends);
            // Were each datagram to choose anew, half of these sockets would wait for an answer in vain.
            for socket in 0..8 {
                let name = format!("{asked}-{socket}");
                agent.udp_connect(&name, asked).unwrap();
                let first = agent.talk(&name);
                assert_eq!(agent.send(&name, asked), first);
                agent.close(&name);
            }
        }
    });
}

#[test]
fn a_connected_socket_keeps_the_frontend_where_the_packet_program_translates() {
    in_lab(|lab| {
        let world = World::new(lab);
        let mut agent = Agent::start(&lab.cgroup);
        world.set_netns(netns_cookie(), NetnsValue::pod(None, None, 7, true));
        for (asked, frontend, backends) in FAMILIES {
            // Here no program translates: the frontend itself answers, and is the one that the packets reach.
            serve(frontend, "frontend");
            serve(backends[0], "one");
            let (service, _) = world.serves(frontend, Protocol::Udp, &backends[..1]);
            assert_eq!(agent.udp_connect(asked, asked), answer(asked, ""));
            assert_eq!(agent.talk(asked), answer(asked, "frontend"));
            assert_eq!(world.counters(&service), (0, 0));
            // Unconnected ones are translated here as everywhere, and TCP, too.
            assert_eq!(agent.send("unconnected", asked).unwrap().said, "one");
            agent.close("unconnected");
            // Nobody behind it: connect says so, no packet need be sent.
            world.change(key(frontend, Protocol::Udp), service, &[]);
            assert_eq!(agent.udp_connect("none", asked), REFUSED);
            agent.close("none");
        }
        assert_eq!(world.known_sockets(), []);
    });
}
