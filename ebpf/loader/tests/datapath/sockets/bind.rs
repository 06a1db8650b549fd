// SPDX-License-Identifier: Apache-2.0
//! Ports that a process of the host cannot have, because a service has them.

use ebpf_abi::{
    Counter, FrontendKey, Protocol, SCOPE_INTERNAL,
    node::{ADDRESS_NODE_PORT, ADDRESS_OWN},
};

use super::world::add_address;
use super::{agent::Agent, world::World};
use crate::lab::{Netns, in_lab};

const TAKEN: i32 = libc::EADDRINUSE;

#[test]
fn a_node_port_is_in_use_where_it_answers_and_nowhere_else() {
    in_lab(|lab| {
        let world = World::new(lab);
        let mut agent = Agent::start(&lab.cgroup);
        world.service(FrontendKey::node_port(false, 30_080, Protocol::Tcp, SCOPE_INTERNAL), &[]);
        for (address, flags) in [("192.0.2.1", ADDRESS_NODE_PORT | ADDRESS_OWN), ("192.0.2.2", ADDRESS_OWN)] {
            add_address(address);
            world.set_node_address(address, flags);
        }

        for at in ["0.0.0.0:30080", "127.0.0.1:30080", "192.0.2.1:30080", "[::]:30080"] {
            assert_eq!(agent.bind("tcp", at).unwrap_err(), TAKEN, "{at}");
        }
        assert_eq!(world.count(Counter::BindConflict), 4);
        for at in ["192.0.2.2:30080", "[::1]:30080", "0.0.0.0:30081", "0.0.0.0:0"] {
            assert!(agent.bind("tcp", at).is_ok(), "{at}");
        }
        assert!(agent.bind("udp", "0.0.0.0:30080").is_ok(), "TCP only");

        world.service(FrontendKey::node_port(true, 30_081, Protocol::Udp, SCOPE_INTERNAL), &[]);
        for at in ["[::]:30081", "[::1]:30081"] {
            assert_eq!(agent.bind("udp", at).unwrap_err(), TAKEN, "{at}");
        }
        assert!(agent.bind("udp", "0.0.0.0:30081").is_ok(), "IPv6 only");

        let mut pod = Netns::new().run(|| Agent::start(&lab.cgroup));
        assert!(pod.bind("tcp", "0.0.0.0:30080").is_ok(), "a pod's ports are its own");
    });
}
