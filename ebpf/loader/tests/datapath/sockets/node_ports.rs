// SPDX-License-Identifier: Apache-2.0
//! Node ports asked from the node itself and from its pods.

use ebpf_abi::{
    FrontendKey, Protocol, SCOPE_INTERNAL,
    node::{ADDRESS_NODE_PORT, ADDRESS_OWN},
};

use super::{
    agent::{Agent, answer},
    world::{World, add_address, key, serve},
};
use crate::lab::{Netns, in_lab};

/// A world with the node port 30080 of both families, TCP and UDP.
fn world(lab: &crate::lab::Lab) -> World<'_> {
    let world = World::new(lab);
    for (ipv6, to) in [(false, "10.244.0.1:8080"), (true, "[fd00:10:244::1]:8080")] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let backend = world.backend(to, protocol);
            world.service(FrontendKey::node_port(ipv6, 30_080, protocol, SCOPE_INTERNAL), &[backend]);
        }
    }
    world
}

fn serve_both() {
    serve("10.244.0.1:8080", "four");
    serve("[fd00:10:244::1]:8080", "six");
}

#[test]
fn the_host_reaches_a_node_port_at_each_address_that_answers() {
    in_lab(|lab| {
        serve_both();
        let world = world(lab);
        let mut agent = Agent::start(&lab.cgroup);
        for (address, name) in [("192.0.2.1", "four"), ("2001:db8::1", "six"), ("192.0.2.2", "four")] {
            add_address(address);
            world.set_node_address(address, ADDRESS_NODE_PORT | ADDRESS_OWN);
            let to = std::net::SocketAddr::new(address.parse().unwrap(), 30_080).to_string();
            assert_eq!(agent.tcp_once(&to), answer(&to, name));
            assert_eq!(agent.send(&to, &to), answer(&to, name));
        }
        for (to, name) in [
            ("127.0.0.1:30080", "four"),
            ("127.1.2.3:30080", "four"),
            ("[::1]:30080", "six"),
            ("[::ffff:127.0.0.1]:30080", "four"),
            ("0.0.0.0:30080", "four"),
            ("[::]:30080", "six"),
        ] {
            assert_eq!(agent.tcp_once(to), answer(to, name));
            assert_eq!(agent.send(to, to), answer(to, name));
        }
    });
}

#[test]
fn addresses_that_do_not_answer_and_ports_outside_the_range_are_left_alone() {
    in_lab(|lab| {
        serve_both();
        let world = world(lab);
        let mut agent = Agent::start(&lab.cgroup);
        add_address("192.0.2.1");
        world.set_node_address("192.0.2.1", ADDRESS_OWN);
        let refused_by_the_stack = Err(libc::ECONNREFUSED);
        assert_eq!(agent.tcp_once("192.0.2.1:30080"), refused_by_the_stack, "not one for node ports");
        add_address("192.0.2.2");
        assert_eq!(agent.tcp_once("192.0.2.2:30080"), refused_by_the_stack, "not a node's");
        assert_eq!(agent.tcp_once("127.0.0.1:30081"), refused_by_the_stack, "no such node port");
        // An entry outside of the range is not looked for.
        let backend = world.backend("10.244.0.1:8080", Protocol::Tcp);
        world.service(FrontendKey::node_port(false, 8_080, Protocol::Tcp, SCOPE_INTERNAL), &[backend]);
        assert_eq!(agent.tcp_once("127.0.0.1:8080"), refused_by_the_stack);
    });
}

#[test]
fn a_pod_reaches_node_ports_at_the_nodes_address_and_has_its_loopback_for_itself() {
    in_lab(|lab| {
        let world = world(lab);
        world.set_node_address("192.0.2.1", ADDRESS_NODE_PORT | ADDRESS_OWN);
        let pod = Netns::new();
        let mut agent = pod.run(|| {
            serve_both();
            serve("127.0.0.1:30080", "own");
            Agent::start(&lab.cgroup)
        });
        assert_eq!(agent.tcp_once("192.0.2.1:30080"), answer("192.0.2.1:30080", "four"));
        assert_eq!(agent.tcp_once("127.0.0.1:30080"), answer("127.0.0.1:30080", "own"));
        // The stack takes this for loopback, and names it so.
        assert_eq!(agent.tcp_once("0.0.0.0:30080"), answer("127.0.0.1:30080", "own"));
    });
}

#[test]
fn a_frontend_of_the_very_address_comes_before_the_node_port() {
    in_lab(|lab| {
        serve_both();
        serve("10.244.0.2:8080", "exact");
        let world = world(lab);
        let mut agent = Agent::start(&lab.cgroup);
        world.set_node_address("192.0.2.1", ADDRESS_NODE_PORT);
        let backend = world.backend("10.244.0.2:8080", Protocol::Tcp);
        world.service(key("192.0.2.1:30080", Protocol::Tcp), &[backend]);
        assert_eq!(agent.tcp_once("192.0.2.1:30080"), answer("192.0.2.1:30080", "exact"));
    });
}
