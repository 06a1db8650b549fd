// SPDX-License-Identifier: Apache-2.0
//! Servers of netd itself: while it is silent, others answer for them.

use ebpf_abi::{
    BackendValue, Protocol, ServiceValue,
    service::{AGENT_SILENT_NS, ALGORITHM_AGENT_FIRST, SERVICE_AGENT_SILENT},
};

use super::{
    agent::{Agent, answer},
    world::{World, key, serve},
};
use crate::lab::in_lab;

/// The frontend, netd's own server, and two others.
const FAMILIES: [(&str, &str, [&str; 2]); 2] = [
    ("10.96.0.10:53", "169.254.53.53:8053", ["10.244.0.1:8053", "10.244.0.2:8053"]),
    ("[fd00:10:96::a]:53", "[fd00:53::53]:8053", ["[fd00:10:244::1]:8053", "[fd00:10:244::2]:8053"]),
];

#[test]
fn netds_own_server_comes_first_while_netd_speaks_and_others_while_it_is_silent() {
    in_lab(|lab| {
        let world = World::new(lab);
        let mut agent = Agent::start(&lab.cgroup);
        for (asked, own, others) in FAMILIES {
            serve(own, "own");
            for other in others {
                serve(other, "other");
            }
            for protocol in [Protocol::Udp, Protocol::Tcp] {
                let at: std::net::SocketAddr = own.parse().unwrap();
                let first = world.backend(own, protocol);
                world.set_backend(first, BackendValue::new(at.ip(), at.port(), protocol).of_agent());
                let mut backends = vec![first];
                backends.extend(others.map(|other| world.backend(other, protocol)));
                let agent_first =
                    |value: ServiceValue| ServiceValue { algorithm: ALGORITHM_AGENT_FIRST, ..value };
                let vip = world.service(key(asked, protocol), &backends);
                world.change(key(asked, protocol), agent_first(vip), &backends);
                let address = world.service(key(own, protocol), &backends);
                let asleep = ServiceValue { flags: SERVICE_AGENT_SILENT, ..agent_first(address) };
                world.change(key(own, protocol), asleep, &backends);
            }
            for (is_there, said) in [(true, "own"), (false, "other"), (true, "own")] {
                world.set_agent(is_there);
                // One of two slots is missed by 16 sockets once in 65,536 runs; netd's own would be met by chance, too.
                for _ in 0..16 {
                    for at in [asked, own] {
                        assert_eq!(agent.send("one", at), answer(at, said), "netd is there: {is_there}");
                        agent.close("one");
                    }
                }
                for at in [asked, own] {
                    assert_eq!(agent.tcp_once(at), answer(at, said), "netd is there: {is_there}");
                }
            }
            // Of one socket the next datagram goes elsewhere.
            assert_eq!(agent.send("kept", asked), answer(asked, "own"));
            world.set_agent(false);
            assert_eq!(agent.send("kept", asked), answer(asked, "other"));
            agent.close("kept");
        }
        let before = world.beat();
        std::thread::sleep(std::time::Duration::from_millis(5));
        let after = world.beat();
        assert!(before > 0 && after > before + 4_000_000 && after < before + 100 * AGENT_SILENT_NS);
        assert_eq!(world.end(), 0, "away at once");
    });
}
