// SPDX-License-Identifier: Apache-2.0
//! Faults that are injected into a service, as packets meet them; and what is not known while maps are made anew.

use std::net::SocketAddr;

use aya::maps::lpm_trie::{Key, LpmTrie};
use ebpf_abi::{
    DatapathConfig, EndpointKey, FrontendKey, Protocol, SCOPE_EXTERNAL, ServiceValue, SourceRangeKey,
    address, names,
    node::CONFIG_MIGRATING,
    service::{SERVICE_FAULT_CLIENTS, SERVICE_FAULT_DROP, SERVICE_FAULT_RESET},
};

use super::{
    bytes::{
        ACK, Bench, DROP, HOST_MAC, MARK, NEXT, POD_MAC, Packet, REDIRECT, REFUSED, RST, SYN, backend,
        client, node, of_world,
    },
    service::config,
};
use crate::{
    lab::in_lab,
    pod::{v4, v6},
};

/// The frontends of the bench, with these flags.
fn inject(bench: &mut Bench, flags: u32, fault_percent: u8) {
    let mut id = 0;
    for like in [v4(0), v6(0)] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            id += 1;
            let key = FrontendKey::new(node(like).ip(), node(like).port(), protocol, SCOPE_EXTERNAL);
            let service =
                ServiceValue { service_id: id, slot_offset: id, slot_count: 1, ..ServiceValue::default() };
            bench.put(names::SERVICES, key, ServiceValue { flags, fault_percent, ..service });
        }
    }
}

/// Verdict and mark.
fn outcome(bench: &Bench, packet: &Packet) -> (u32, u32) {
    let (verdict, _, context) = bench.run(names::UPLINK_INGRESS, bench.uplink, &packet.bytes(), 0);
    (verdict, context[MARK])
}

#[test]
fn a_fault_befalls_what_begins_and_nothing_that_goes_on() {
    in_lab(|_| {
        let mut bench = Bench::new();
        for (flags, expected) in [(SERVICE_FAULT_RESET, (NEXT, REFUSED)), (SERVICE_FAULT_DROP, (DROP, 0))] {
            for like in [v4(0), v6(0)] {
                let of = |port: u16, tcp| of_world(SocketAddr::new(client(like).ip(), port), node(like), tcp);
                let first = 40_000 + 100 * flags as u16;
                inject(&mut bench, 0, 100);
                for tcp in [Some(SYN), None] {
                    assert_eq!(
                        outcome(&bench, &of(first, tcp)).0,
                        REDIRECT,
                        "a percentage alone is no fault"
                    );
                }
                inject(&mut bench, flags, 100);
                for tcp in [Some(SYN), None] {
                    assert_eq!(outcome(&bench, &of(first + 1, tcp)), expected, "{like} {tcp:?}");
                }
                assert_eq!(outcome(&bench, &of(first, Some(ACK))).0, REDIRECT, "begun before");
                assert_eq!(outcome(&bench, &of(first, None)).0, REDIRECT, "begun before");
                inject(&mut bench, flags, 0);
                assert_eq!(outcome(&bench, &of(first + 1, Some(SYN))).0, REDIRECT, "0 of a hundred");
            }
        }
    });
}

#[test]
fn a_fault_of_some_clients_spares_the_others() {
    in_lab(|_| {
        let mut bench = Bench::new();
        inject(&mut bench, SERVICE_FAULT_DROP | SERVICE_FAULT_CLIENTS, 100);
        // As `inject` numbers them: TCP of IPv4, TCP of IPv6.
        for (like, id) in [(v4(0), 1), (v6(0), 3)] {
            let of = |port| of_world(SocketAddr::new(client(like).ip(), port), node(like), Some(SYN));
            assert_eq!(outcome(&bench, &of(41_000)).0, REDIRECT, "{like}: it befalls nobody");
            let SourceRangeKey { prefix_len, service_id, addr } =
                SourceRangeKey::new(id, client(like).ip(), 128);
            let mut data = [0; 20];
            data[..4].copy_from_slice(&service_id);
            data[4..].copy_from_slice(&addr);
            let ranges = bench.ebpf.map_mut(names::SOURCE_RANGES).unwrap();
            let mut ranges: LpmTrie<_, [u8; 20], u32> = LpmTrie::try_from(ranges).unwrap();
            ranges.insert(&Key::new(prefix_len, data), 0, 0).unwrap();
            assert_eq!(outcome(&bench, &of(41_001)), (DROP, 0), "{like}");
        }
    });
}

#[test]
fn a_fault_befalls_its_share_and_the_same_flow_each_time() {
    in_lab(|_| {
        let mut bench = Bench::new();
        inject(&mut bench, SERVICE_FAULT_DROP, 30);
        let ports = 10_000..11_000_u16;
        let dropped = |bench: &Bench| -> Vec<u16> {
            let of = |port| of_world(SocketAddr::new(client(v4(0)).ip(), port), node(v4(0)), Some(SYN));
            ports.clone().filter(|port| outcome(bench, &of(*port)).0 == DROP).collect()
        };
        let first = dropped(&bench);
        // 300 are expected; five standard deviations are 73.
        assert!(first.len().abs_diff(300) < 73, "{}", first.len());
        assert_eq!(dropped(&bench), first, "a SYN that comes again");
    });
}

#[test]
fn what_is_not_known_yet_is_dropped_while_maps_are_made_anew() {
    in_lab(|_| {
        let mut bench = Bench::new();
        let with = |flags| DatapathConfig { flags, ..config(v4(250), v6(250)) };
        for like in [v4(0), v6(0)] {
            let endpoint = EndpointKey {
                addr: address::address(backend(like).ip()),
                port: backend(like).port().to_be_bytes(),
                proto: 6,
                pad: 0,
            };
            bench.put(names::BACKEND_ENDPOINTS, endpoint, 1_u32);
            let asked = |flags| of_world(client(like), node(like), Some(flags));
            let answer = |port| Packet {
                macs: (HOST_MAC, POD_MAC),
                ..of_world(backend(like), SocketAddr::new(client(like).ip(), port), Some(ACK))
            };
            bench.set(names::CONFIG, 0, with(CONFIG_MIGRATING));
            for flags in [ACK, RST, RST | ACK] {
                assert_eq!(outcome(&bench, &asked(flags)), (DROP, 0), "{like} {flags}");
            }
            assert_eq!(
                bench.leaves_pod(&answer(2_000).bytes()).0,
                DROP,
                "{like}: to a port that we give out"
            );
            assert_ne!(bench.leaves_pod(&answer(40_001).bytes()).0, DROP, "{like}: to another one");
            assert_eq!(outcome(&bench, &asked(SYN)).0, REDIRECT, "{like}: what begins is known");
            // Out of the stack, and of a backend that is no pod.
            let late = answer(2_000).bytes();
            assert_eq!(bench.comes_to_pod(&late).0, DROP, "{like}");
            assert_eq!(bench.leaves_by_uplink(&late).0, DROP, "{like}");
            let outside = of_world(backend(like), SocketAddr::new(node(like).ip(), 2_000), Some(ACK));
            assert_eq!(bench.arrives_at_uplink(&outside.bytes()).0, DROP, "{like}");
            assert_eq!(outcome(&bench, &asked(SYN)).0, REDIRECT, "{like}: what begins is known");
            assert_eq!(outcome(&bench, &asked(ACK)).0, REDIRECT, "{like}");

            bench.set(names::CONFIG, 0, with(0));
            let other = |flags| of_world(SocketAddr::new(client(like).ip(), 40_002), node(like), Some(flags));
            assert_eq!(outcome(&bench, &other(ACK)), (NEXT, REFUSED), "{like}");
            for (verdict, _) in
                [bench.leaves_pod(&late), bench.comes_to_pod(&late), bench.leaves_by_uplink(&late)]
            {
                assert_ne!(verdict, DROP, "{like}");
            }
            assert_ne!(bench.arrives_at_uplink(&outside.bytes()).0, DROP, "{like}");
        }
    });
}
