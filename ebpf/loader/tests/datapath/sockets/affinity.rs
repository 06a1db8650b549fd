// SPDX-License-Identifier: Apache-2.0
//! Clients that stay with a backend.

use ebpf_abi::{
    AffinityKey, AffinityValue, BackendValue, NetnsValue, Protocol, ServiceValue,
    address::address,
    hash::{below, hash_client},
    service::{SERVICE_AFFINITY, SERVICE_KEEP_SOURCE},
};

use super::{
    agent::{Agent, answer},
    world::{SEED, World, key, netns_cookie, serve},
};
use crate::lab::{Lab, in_lab};

const VIP: &str = "10.96.0.1:80";
const BACKENDS: [(&str, &str); 3] =
    [("10.244.0.1:8080", "one"), ("10.244.0.2:8080", "two"), ("10.244.0.3:8080", "three")];
const CLIENT: &str = "10.244.7.7";
const AFFINITY_ID: u32 = 9;
const TIMEOUT_SECS: u32 = 10_800;

/// A world with one service of three backends and affinity; the calling thread's netns is a pod's.
fn world(lab: &Lab) -> (World<'_>, ServiceValue, Vec<u32>) {
    let world = World::new(lab);
    for (at, name) in BACKENDS {
        serve(at, name);
    }
    let (service, backends) = world.serves(VIP, Protocol::Tcp, &BACKENDS.map(|(at, _)| at));
    let service = ServiceValue {
        flags: SERVICE_AFFINITY,
        affinity_secs: TIMEOUT_SECS,
        affinity_id: AFFINITY_ID,
        ..service
    };
    let service = world.change(key(VIP, Protocol::Tcp), service, &backends);
    for backend in &backends {
        world.set_affine(AFFINITY_ID, *backend, true);
    }
    world.set_netns(netns_cookie(), NetnsValue::pod(Some(CLIENT.parse().unwrap()), None, 0, false));
    (world, service, backends)
}

fn client() -> AffinityKey {
    AffinityKey { client: address(CLIENT.parse().unwrap()), affinity_id: AFFINITY_ID }
}

/// Which of the backends the client's hash means.
fn hashed() -> usize {
    below(hash_client(&client().client, SEED), BACKENDS.len() as u32) as usize
}

fn now_secs() -> u32 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap().tv_sec() as u32
}

#[test]
fn a_client_stays_with_its_backend_across_sockets_processes_and_frontends() {
    in_lab(|lab| {
        let (world, service, backends) = world(lab);
        let name = BACKENDS[hashed()].1;
        for _ in 0..2 {
            let mut agent = Agent::start(&lab.cgroup);
            for _ in 0..20 {
                assert_eq!(agent.tcp_once(VIP), answer(VIP, name));
            }
        }
        let known = world.affinity().get(&client(), 0).unwrap();
        assert_eq!(known.backend_id, backends[hashed()]);
        assert!(now_secs() - known.used_secs <= 60, "{} of {}", known.used_secs, now_secs());

        // The slots turn around; the client does not. Nor at another address of the same port.
        let turned: Vec<_> = backends.iter().rev().chain(&backends).copied().collect();
        world.change(key(VIP, Protocol::Tcp), service, &turned);
        world.change(key("192.0.2.80:80", Protocol::Tcp), service, &turned);
        let mut agent = Agent::start(&lab.cgroup);
        assert_eq!(agent.tcp_once(VIP), answer(VIP, name));
        assert_eq!(agent.tcp_once("192.0.2.80:80"), answer("192.0.2.80:80", name));
    });
}

#[test]
fn affinity_ends_after_its_timeout_and_with_its_backend() {
    in_lab(|lab| {
        let (world, service, backends) = world(lab);
        let mut agent = Agent::start(&lab.cgroup);
        // Another backend than the hash would give.
        let other = (hashed() + 1) % BACKENDS.len();
        let stuck_for = |secs: u32| {
            let value = AffinityValue { backend_id: backends[other], used_secs: now_secs() - secs };
            world.affinity().insert(client(), value, 0).unwrap();
        };
        let (stays, moves) = (answer(VIP, BACKENDS[other].1), answer(VIP, BACKENDS[hashed()].1));
        let soon = ServiceValue { affinity_secs: 30, ..service };
        world.change(key(VIP, Protocol::Tcp), soon, &backends);

        stuck_for(10);
        assert_eq!(agent.tcp_once(VIP), stays);
        let used = world.affinity().get(&client(), 0).unwrap().used_secs;
        assert!(now_secs() - used < 10, "a connection begins the time anew: {used}");
        stuck_for(30);
        assert_eq!(agent.tcp_once(VIP), moves);
        assert_eq!(world.affinity().get(&client(), 0).unwrap().backend_id, backends[hashed()]);

        stuck_for(0);
        assert_eq!(agent.tcp_once(VIP), stays);
        // The timeout changes in place: what was within it is not any more.
        stuck_for(20);
        world.change(key(VIP, Protocol::Tcp), ServiceValue { affinity_secs: 10, ..service }, &backends);
        assert_eq!(agent.tcp_once(VIP), moves);

        // A backend that is gone, and one that is no longer the service's.
        stuck_for(0);
        world.set_affine(AFFINITY_ID, backends[other], false);
        assert_eq!(agent.tcp_once(VIP), moves);
        world.set_affine(AFFINITY_ID, backends[other], true);
        stuck_for(0);
        world.set_backend(backends[other], BackendValue::default());
        assert_eq!(agent.tcp_once(VIP), moves);
    });
}

#[test]
fn a_policy_that_becomes_local_takes_clients_off_backends_elsewhere() {
    in_lab(|lab| {
        let (world, service, backends) = world(lab);
        let mut agent = Agent::start(&lab.cgroup);
        let (at, name) = BACKENDS[hashed()];
        assert_eq!(agent.tcp_once(VIP), answer(VIP, name));
        let at: std::net::SocketAddr = at.parse().unwrap();
        let elsewhere = BackendValue::new(at.ip(), at.port(), Protocol::Tcp).on_node(2, false);
        world.set_backend(backends[hashed()], elsewhere);
        assert_eq!(agent.tcp_once(VIP), answer(VIP, name));
        let flags = service.flags | SERVICE_KEEP_SOURCE;
        let local = (hashed() + 1) % BACKENDS.len();
        world.change(key(VIP, Protocol::Tcp), ServiceValue { flags, ..service }, &[backends[local]]);
        assert_eq!(agent.tcp_once(VIP), answer(VIP, BACKENDS[local].1));
    });
}

#[test]
fn affinity_begins_and_ends_without_a_new_service() {
    in_lab(|lab| {
        let (world, service, backends) = world(lab);
        let mut agent = Agent::start(&lab.cgroup);
        let without = ServiceValue { flags: 0, affinity_secs: 0, affinity_id: 0, ..service };
        world.change(key(VIP, Protocol::Tcp), without, &backends);
        let mut seen: Vec<_> = (0..60).map(|_| agent.tcp_once(VIP).unwrap().said).collect();
        seen.sort();
        seen.dedup();
        // One of three is missed 60 times in a row once in ten billion runs.
        assert_eq!(seen.len(), 3);
        world.change(key(VIP, Protocol::Tcp), service, &backends);
        let first = agent.tcp_once(VIP);
        for _ in 0..20 {
            assert_eq!(agent.tcp_once(VIP), first);
        }
    });
}

#[test]
fn a_netns_that_is_not_known_yet_is_a_client_of_its_own() {
    in_lab(|lab| {
        let (world, _, _) = world(lab);
        world.set_netns(netns_cookie(), NetnsValue::default());
        let mut agent = Agent::start(&lab.cgroup);
        let first = agent.tcp_once(VIP);
        assert!(first.is_ok(), "{first:?}");
        for _ in 0..20 {
            assert_eq!(agent.tcp_once(VIP), first);
        }
        let clients: Vec<_> = world.affinity().keys().map(|key| key.unwrap().client).collect();
        assert_eq!((clients.len(), clients[0][0]), (1, 0xff));
        assert_eq!(clients[0][8..], netns_cookie().to_be_bytes());
    });
}
