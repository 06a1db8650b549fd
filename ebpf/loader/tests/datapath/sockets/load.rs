// SPDX-License-Identifier: Apache-2.0
//! Open connections of a backend, counted by the programs, and least-connections that goes by them.

use ebpf_abi::{Protocol, ServiceValue, service::ALGORITHM_LEAST_CONNECTIONS};

use super::{
    agent::{Agent, REFUSED},
    world::{World, add_address, key, serve},
};
use crate::lab::{Lab, in_lab};

const VIP: &str = "10.96.0.1:80";

fn world(lab: &Lab) -> (World<'_>, [u32; 2]) {
    serve("10.244.0.1:8080", "one");
    serve("10.244.0.2:8080", "two");
    let world = World::new(lab);
    let (service, backends) = world.serves(VIP, Protocol::Tcp, &["10.244.0.1:8080", "10.244.0.2:8080"]);
    let service = ServiceValue { algorithm: ALGORITHM_LEAST_CONNECTIONS, ..service };
    world.change(key(VIP, Protocol::Tcp), service, &backends);
    (world, [backends[0], backends[1]])
}

#[test]
fn the_less_loaded_of_two_random_backends_is_taken() {
    in_lab(|lab| {
        let (world, [one, two]) = world(lab);
        let mut agent = Agent::start(&lab.cgroup);
        let mut hits = || (0..400).filter(|_| agent.tcp_once(VIP).unwrap().said == "two").count();
        world.set_load(one, 1_000);
        // Three of four draws have the second: 300 are expected, against 200 at random; both are five standard deviations away.
        let to_two = hits();
        assert!(to_two > 250, "{to_two}");
        world.set_load(one, 0);
        world.set_load(two, 1_000);
        let to_two = hits();
        assert!(to_two < 150, "{to_two}");
        assert_eq!((world.load(one), world.load(two)), (0, 1_000));
    });
}

#[test]
fn held_connections_balance_and_counts_come_back_to_zero() {
    in_lab(|lab| {
        let (world, [one, two]) = world(lab);
        let mut agent = Agent::start(&lab.cgroup);
        let mut killed = Agent::start(&lab.cgroup);
        for number in 0..40 {
            agent.tcp(&number.to_string(), VIP).unwrap();
            killed.tcp(&number.to_string(), VIP).unwrap();
        }
        let (first, second) = (world.load(one), world.load(two));
        assert_eq!(first + second, 80);
        // Two choices keep the difference small; at random 20 would be more than two standard deviations.
        assert!(first.abs_diff(second) <= 20, "{first} and {second}");
        assert_eq!(world.known_sockets().len(), 80);

        for number in 0..40 {
            agent.close(&number.to_string());
        }
        assert_eq!(world.load(one) + world.load(two), 40);
        killed.kill();
        assert_eq!((world.load(one), world.load(two)), (0, 0));
        assert_eq!(world.known_sockets(), []);
    });
}

#[test]
fn a_connection_that_fails_is_no_connection() {
    in_lab(|lab| {
        let world = World::new(lab);
        let mut agent = Agent::start(&lab.cgroup);
        add_address("10.244.0.9");
        let (service, backends) = world.serves(VIP, Protocol::Tcp, &["10.244.0.9:8080"]);
        assert_eq!(agent.tcp_once(VIP), REFUSED, "nobody listens there");
        assert_eq!((world.load(backends[0]), world.counters(&service)), (0, (1, 0)));
        assert_eq!(world.known_sockets(), []);
    });
}
