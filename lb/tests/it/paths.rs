// SPDX-License-Identifier: Apache-2.0
//! Sockets and packets ask the same maps in two ways, as the programs do it: what they are told agrees, also with `explain`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ebpf_abi::hash::{below, hash_client, hash_flow};
use ebpf_abi::service::{SERVICE_AFFINITY, SERVICE_DROP_EMPTY};
use ebpf_abi::{Address, BackendValue, FrontendKey, PROTO_WILDCARD, SCOPE_INTERNAL, ServiceValue, address};
use lb::{Compiler, Image, Limits, explain};
use proptest::prelude::*;

use crate::fixtures::world;

const SEED: u32 = 7;
/// An address of the node in each family.
const NODE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(172, 31, 77, 11)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 0x11)),
];
const CLIENTS: u8 = 5;
/// Source ports of a client: enough that a backend with a fortieth of the slots is missed once in 10^16.
const FLOWS: std::ops::Range<u16> = 32_768..33_068;

/// What becomes of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    /// It is nobody's business.
    Nothing,
    Refused,
    Dropped,
    /// One of these; of a packet just one.
    Sent(BTreeSet<BackendValue>),
}

/// Which backend a client stays with: the map AFFINITY.
type Memory = BTreeMap<(Address, u32), BackendValue>;

/// The frontend that answers: itself, a node port, or the wildcard of its address.
fn find(image: &Image, key: &FrontendKey) -> Option<ServiceValue> {
    if address::is_unspecified(&key.addr) {
        return None;
    }
    let at = |key: FrontendKey| image.services.get(&key).copied();
    let port = u16::from_be_bytes(key.port);
    let node_port = || {
        let is_one = (30_000..=32_767).contains(&port) && NODE.contains(&key.address());
        is_one.then(|| at(FrontendKey { addr: address::any(&key.addr), ..*key })).flatten()
    };
    let wildcard = || at(FrontendKey { port: [0; 2], proto: PROTO_WILDCARD, ..*key });
    at(*key).or_else(node_port).or_else(wildcard)
}

fn slot(image: &Image, service: &ServiceValue, number: u32) -> BackendValue {
    let slot = service.slot_offset + below(number, service.slot_count);
    image.backends[&image.slots[&slot]]
}

/// What both paths do before they choose, and what they do for those who stay.
fn ask(
    image: &Image,
    key: &FrontendKey,
    client: &Address,
    memory: &mut Memory,
    choose: impl FnOnce(&ServiceValue) -> BTreeSet<BackendValue>,
) -> Told {
    let Some(service) = find(image, key) else { return Told::Nothing };
    if service.slot_count == 0 {
        let drops = service.flags & SERVICE_DROP_EMPTY != 0;
        return if drops { Told::Dropped } else { Told::Refused };
    }
    if service.flags & SERVICE_AFFINITY == 0 {
        return Told::Sent(choose(&service));
    }
    let first = || slot(image, &service, hash_client(client, SEED));
    let backend = memory.entry((*client, service.affinity_id)).or_insert_with(first);
    Told::Sent(BTreeSet::from([*backend]))
}

/// A socket: any slot, whatever the algorithm.
fn socket(image: &Image, key: &FrontendKey, client: &Address, memory: &mut Memory) -> Told {
    ask(image, key, client, memory, |service| {
        let slots = service.slot_offset..service.slot_offset + service.slot_count;
        slots.map(|slot| image.backends[&image.slots[&slot]]).collect()
    })
}

/// A packet: the slot that its flow's hash says.
fn packet(image: &Image, key: &FrontendKey, client: &Address, sport: u16, memory: &mut Memory) -> Told {
    ask(image, key, client, memory, |service| {
        let hash = hash_flow(client, &key.addr, sport.to_be_bytes(), key.port, key.proto, SEED);
        BTreeSet::from([slot(image, service, hash)])
    })
}

/// What a pod may ask: each frontend, node ports at the node's address, and beside each a port that is not there.
fn destinations(image: &Image) -> BTreeSet<FrontendKey> {
    let mut found = BTreeSet::new();
    for key in image.services.keys().filter(|key| key.scope == SCOPE_INTERNAL && !key.is_wildcard()) {
        let mut key = *key;
        if address::is_unspecified(&key.addr) || key.is_node_port() {
            key.addr = address::address(NODE[usize::from(key.address().is_ipv6())]);
        }
        let beside = u16::from_be_bytes(key.port) + 7;
        found.extend([key, FrontendKey { port: beside.to_be_bytes(), ..key }]);
    }
    found
}

fn clients(v6: bool) -> impl Iterator<Item = Address> {
    (1..=CLIENTS).map(move |host| {
        address::address(match v6 {
            false => Ipv4Addr::new(10, 244, 200, host).into(),
            true => Ipv6Addr::new(0xfd00, 0x10, 0x244, 200, 0, 0, 0, host.into()).into(),
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn packet_path_and_socket_path_give_the_same_verdict_for_the_same_table(world in world()) {
        let (table, view) = (world.table(), world.node_view());
        let (mut compiler, mut image) = (Compiler::new(Limits::default()), Image::default());
        image.apply(&compiler.update(&table, &view, None, 0));
        for key in destinations(&image) {
            let mut reached = BTreeSet::new();
            let mut whole = None;
            for (number, client) in clients(key.address().is_ipv6()).enumerate() {
                let mut memory = Memory::new();
                // Whoever comes first: the other one is told the same.
                let (by_socket, first) = if number % 2 == 0 {
                    let by_socket = socket(&image, &key, &client, &mut memory);
                    let by_packet = packet(&image, &key, &client, FLOWS.start, &mut memory);
                    (by_socket, by_packet)
                } else {
                    let by_packet = packet(&image, &key, &client, FLOWS.start, &mut memory);
                    (socket(&image, &key, &client, &mut memory), by_packet)
                };
                let stays = find(&image, &key).is_some_and(|service| service.flags & SERVICE_AFFINITY != 0);
                if stays {
                    prop_assert_eq!(&by_socket, &first, "{}: a client with affinity", key);
                }
                for sport in FLOWS {
                    match (&by_socket, packet(&image, &key, &client, sport, &mut memory)) {
                        (Told::Sent(any), Told::Sent(one)) => {
                            prop_assert!(one.is_subset(any), "{}: {:?} is not of {:?}", key, one, any);
                            reached.extend(one);
                        }
                        (by_socket, by_packet) => prop_assert_eq!(by_socket, &by_packet, "{}", key),
                    }
                }
                if !stays {
                    whole = Some(by_socket);
                }
            }
            if let Some(Told::Sent(whole)) = whole {
                prop_assert_eq!(reached, whole, "{}: packets do not reach all that sockets do", key);
            }
        }
    }

    #[test]
    fn what_the_operator_is_told_is_what_sockets_are_told(world in world()) {
        let (table, view) = (world.table(), world.node_view());
        let (mut compiler, mut image) = (Compiler::new(Limits::default()), Image::default());
        image.apply(&compiler.update(&table, &view, None, 0));
        for (key, value) in &image.services {
            if key.scope != SCOPE_INTERNAL || value.flags & SERVICE_AFFINITY != 0 {
                continue;
            }
            let Some((owner, _)) = compiler.frontend(value.service_id) else { continue };
            let explained = explain(&table, &view, owner, None);
            let one = explained.iter().find(|one| one.frontend == key.to_string() && one.asked_by == "cluster");
            let one = one.expect("a frontend that nobody explains");
            let mut asked = *key;
            if address::is_unspecified(&asked.addr) {
                asked.addr = address::address(NODE[usize::from(key.address().is_ipv6())]);
            }
            let client = address::address(NODE[0]);
            match socket(&image, &asked, &client, &mut Memory::new()) {
                Told::Sent(backends) => {
                    let told: BTreeSet<String> = backends.iter().map(ToString::to_string).collect();
                    let said: BTreeSet<String> = one.backends.iter().map(|one| one.backend.clone()).collect();
                    prop_assert_eq!((one.verdict, said), ("forward", told), "{}", key);
                }
                Told::Refused => prop_assert_eq!(one.verdict, "refuse", "{}", key),
                Told::Dropped => prop_assert_eq!(one.verdict, "drop", "{}", key),
                Told::Nothing => prop_assert!(false, "{} leads nowhere", key),
            }
        }
    }
}
