// SPDX-License-Identifier: Apache-2.0
//! What packets do to the state of their flow: handshakes, resets, flows of which one side is seen, fragments.

use std::net::{IpAddr, SocketAddr};

use aya::maps::HashMap;
use ebpf_abi::{
    BackendValue, CtKey, CtState, CtValue, DatapathConfig, FragmentKey, FragmentValue, FrontendKey,
    NodeValue, Protocol, SCOPE_EXTERNAL, ServiceValue, address,
    conntrack::{FRAGMENT_SECS, TCP_RESET_SECS},
    names,
    service::SERVICE_DSR,
};
use ebpf_loader::monotonic_secs;

use super::{
    bytes::{
        ACK, Bench, FIN, HOST_MAC, NEXT, POD_MAC, PSH, Packet, REDIRECT, RST, SYN, backend, client,
        complement, node, of_world,
    },
    service::config,
};
use crate::{
    lab::in_lab,
    pod::{v4, v6},
};

fn key(from: SocketAddr, to: SocketAddr, proto: u8) -> CtKey {
    CtKey {
        src: address::address(from.ip()),
        dst: address::address(to.ip()),
        sport: from.port().to_be_bytes(),
        dport: to.port().to_be_bytes(),
        proto,
        pad: [0; 3],
    }
}

fn entry(bench: &Bench, map: &str, key: &CtKey) -> Option<CtValue> {
    HashMap::<_, CtKey, CtValue>::try_from(bench.ebpf.map(map).unwrap()).unwrap().get(key, 0).ok()
}

fn state(bench: &Bench, map: &str, key: &CtKey) -> Option<CtState> {
    CtState::from_number(entry(bench, map, key)?.state)
}

/// A connection's packets, from the client and from the pod that it went to.
struct Connection {
    like: IpAddr,
    from: SocketAddr,
    to: SocketAddr,
}

impl Connection {
    fn new(like: IpAddr) -> Self {
        Self { like, from: client(like), to: node(like) }
    }

    fn asks(&self, bench: &Bench, flags: u8) -> u32 {
        bench.arrives_at_uplink(&of_world(self.from, self.to, Some(flags)).bytes()).0
    }

    fn answers(&self, bench: &Bench, flags: u8) -> u32 {
        let answer = of_world(backend(self.like), self.from, Some(flags));
        bench.leaves_pod(&Packet { macs: (HOST_MAC, POD_MAC), ..answer }.bytes()).0
    }

    fn is_established(&self, bench: &Bench) {
        for verdict in [self.asks(bench, SYN), self.answers(bench, SYN | ACK), self.asks(bench, ACK)] {
            assert_eq!(verdict, REDIRECT);
        }
    }

    /// Keys of both directions.
    fn keys(&self) -> [CtKey; 2] {
        [key(self.from, self.to, 6), key(backend(self.like), self.from, 6)]
    }

    fn states(&self, bench: &Bench) -> [Option<CtState>; 2] {
        self.keys().map(|key| state(bench, names::CT_LIVE, &key))
    }

    /// The last packet came so many seconds ago.
    fn was_seen(&self, bench: &mut Bench, secs: u32) {
        let seen_secs = monotonic_secs().unwrap() - secs;
        for key in self.keys() {
            let known = entry(bench, names::CT_LIVE, &key).unwrap();
            bench.put(names::CT_LIVE, key, CtValue { seen_secs, ..known });
        }
    }
}

#[test]
fn an_ack_that_an_rst_overtook_does_not_bring_its_connection_back() {
    in_lab(|_| {
        let mut bench = Bench::new();
        for like in [v4(0), v6(0)] {
            let one = Connection::new(like);
            // Within one second; the clock may turn while it is tried.
            let stays = (0..5).any(|_| {
                let began = monotonic_secs().unwrap();
                one.asks(&bench, SYN);
                one.answers(&bench, SYN | ACK);
                one.asks(&bench, ACK);
                one.asks(&bench, RST);
                assert_eq!(one.asks(&bench, ACK), REDIRECT);
                let states = one.states(&bench);
                if monotonic_secs().unwrap() != began {
                    return false;
                }
                assert_eq!(states, [Some(CtState::Doubtful); 2], "{like}");
                true
            });
            assert!(stays, "{like}: each time more than a second passed");
            // The port's next connection is none of the old one's: it goes to whoever is a backend now.
            let other = SocketAddr::new(backend(like).ip(), 9_999);
            let (slot, id) = if like.is_ipv4() { (1, 40) } else { (3, 41) };
            let value = BackendValue::new(other.ip(), other.port(), Protocol::Tcp).on_node(1, true);
            bench.set(names::BACKENDS, id, value);
            bench.set(names::SLOTS, slot, id);
            one.asks(&bench, SYN);
            let begun = entry(&bench, names::CT_NEW, &one.keys()[0]);
            assert_eq!(begun.map(|entry| entry.backend_id), Some(id), "{like}");
        }
    });
}

#[test]
fn a_syn_after_an_rst_ends_no_connection_that_goes_on_either() {
    in_lab(|_| {
        let mut bench = Bench::new();
        for like in [v4(0), v6(0)] {
            let one = Connection::new(like);
            one.is_established(&bench);
            // Both may be anybody's. The backend is the one that would be chosen again.
            for flags in [RST, SYN] {
                assert_eq!(one.asks(&bench, flags), REDIRECT, "{like}");
            }
            assert_eq!(one.states(&bench), [Some(CtState::Established); 2], "{like}");
            assert_eq!(entry(&bench, names::CT_NEW, &one.keys()[0]), None, "{like}: nothing began");
            assert_eq!(one.answers(&bench, ACK), REDIRECT, "{like}");

            // However long nobody spoke.
            one.asks(&bench, RST);
            one.was_seen(&mut bench, TCP_RESET_SECS + 2);
            one.asks(&bench, SYN);
            assert_eq!(one.states(&bench), [Some(CtState::Established); 2], "{like}");

            // Unless its ports are another's by now.
            one.asks(&bench, RST);
            let [asked, answers] = one.keys();
            let known = entry(&bench, names::CT_LIVE, &answers).unwrap();
            bench.put(names::CT_LIVE, answers, CtValue { dport: [0, 1], ..known });
            one.asks(&bench, SYN);
            assert_eq!(state(&bench, names::CT_LIVE, &asked), None, "{like}");
            assert_eq!(
                state(&bench, names::CT_LIVE, &answers),
                Some(CtState::Doubtful),
                "{like}: the other's"
            );
            assert_eq!(state(&bench, names::CT_NEW, &asked), Some(CtState::New), "{like}");
        }
    });
}

#[test]
fn what_is_no_syn_alone_begins_nothing_where_a_connection_is_over() {
    in_lab(|_| {
        let bench = Bench::new();
        for like in [v4(0), v6(0)] {
            let one = Connection::new(like);
            one.is_established(&bench);
            one.asks(&bench, FIN | ACK);
            one.answers(&bench, FIN | ACK);
            for flags in [SYN | FIN, SYN | RST] {
                one.asks(&bench, flags);
                assert_eq!(one.states(&bench), [Some(CtState::Closed); 2], "{like} {flags}");
            }
        }
    });
}

#[test]
fn what_another_cpu_saw_end_does_not_go_on() {
    in_lab(|_| {
        let mut bench = Bench::new();
        for like in [v4(0), v6(0)] {
            let one = Connection::new(like);
            one.is_established(&bench);
            one.was_seen(&mut bench, 2);
            // As if it had been written after this packet's entry was read.
            let [_, answers] = one.keys();
            let known = entry(&bench, names::CT_LIVE, &answers).unwrap();
            bench.put(names::CT_LIVE, answers, CtValue { state: CtState::Closed.number(), ..known });
            for flags in [ACK, FIN | ACK] {
                one.asks(&bench, flags);
                assert_eq!(one.states(&bench)[1], Some(CtState::Closed), "{like} {flags}");
            }
        }
    });
}

#[test]
fn who_has_not_heard_the_backend_establishes_nothing() {
    in_lab(|_| {
        let bench = Bench::new();
        for like in [v4(0), v6(0)] {
            let one = Connection::new(like);
            one.asks(&bench, SYN);
            one.answers(&bench, SYN | ACK);
            let at = if like.is_ipv4() { 42 } else { 62 };
            let acknowledges = |number: u32| {
                let mut bytes = of_world(one.from, one.to, Some(ACK)).bytes();
                bytes[at..at + 4].copy_from_slice(&number.to_be_bytes());
                assert_eq!(bench.arrives_at_uplink(&bytes).0, REDIRECT, "{like}: the backend will say so");
                one.states(&bench)
            };
            // The SYN-ACK was number 1.
            for number in [0, 1, 2 + (1 << 16), 1 << 31] {
                assert_eq!(acknowledges(number), [None; 2], "{like} {number}");
            }
            assert_eq!(one.answers(&bench, ACK), REDIRECT);
            assert_eq!(one.states(&bench), [None; 2], "{like}: of a segment that it does not like");
            assert_eq!(
                acknowledges(2 + 1_000),
                [Some(CtState::Established); 2],
                "{like}: its first one was lost"
            );
        }
    });
}

#[test]
fn a_client_may_have_heard_another_syn_ack_than_the_last_one() {
    in_lab(|_| {
        let bench = Bench::new();
        for like in [v4(0), v6(0)] {
            let one = Connection::new(like);
            let at = if like.is_ipv4() { 38 } else { 58 };
            let answers = |flags, number: u32| {
                let answer = of_world(backend(like), one.from, Some(flags));
                let mut bytes = Packet { macs: (HOST_MAC, POD_MAC), ..answer }.bytes();
                bytes[at..at + 4].copy_from_slice(&number.to_be_bytes());
                assert_eq!(bench.leaves_pod(&bytes).0, REDIRECT, "{like}");
            };
            // A SYN cookie for each SYN; the client acknowledges the first one, number 1.
            for number in [1, 5 << 20] {
                one.asks(&bench, SYN);
                answers(SYN | ACK, number);
            }
            one.asks(&bench, ACK);
            assert_eq!(one.states(&bench), [None; 2], "{like}");
            answers(ACK, 2);
            one.asks(&bench, ACK);
            assert_eq!(one.states(&bench), [Some(CtState::Established); 2], "{like}");
        }
    });
}

#[test]
fn a_backend_that_says_something_has_heard_its_client() {
    in_lab(|_| {
        let bench = Bench::new();
        for like in [v4(0), v6(0)] {
            let one = Connection::new(like);
            one.asks(&bench, SYN);
            one.answers(&bench, SYN | ACK | PSH);
            assert_eq!(one.states(&bench), [None; 2], "{like}: data of its SYN-ACK");
            one.answers(&bench, ACK | PSH);
            assert_eq!(one.states(&bench), [Some(CtState::Established); 2], "{like}");
        }
    });
}

#[test]
fn an_answer_does_not_bring_back_what_was_taken_away_from_the_client() {
    in_lab(|_| {
        let mut bench = Bench::new();
        for like in [v4(0), v6(0)] {
            let (from, to) = (client(like), node(like));
            let asks = |bench: &Bench| bench.arrives_at_uplink(&of_world(from, to, None).bytes()).0;
            let answers = |bench: &Bench| {
                let answer = of_world(backend(like), from, None);
                bench.leaves_pod(&Packet { macs: (HOST_MAC, POD_MAC), ..answer }.bytes()).0
            };
            let keys = [key(from, to, 17), key(backend(like), from, 17)];
            let take_away = |bench: &mut Bench, map: &str| {
                let mut known =
                    HashMap::<_, CtKey, CtValue>::try_from(bench.ebpf.map_mut(map).unwrap()).unwrap();
                known.remove(&keys[0]).unwrap();
                // An answer a while later, in a flow that goes on.
                let now = monotonic_secs().unwrap();
                let value = known.get(&keys[1], 0).unwrap();
                known
                    .insert(keys[1], CtValue { seen_secs: now - 5, began_secs: now - 20, ..value }, 0)
                    .unwrap();
            };
            let is_forgotten = |bench: &Bench| {
                [names::CT_LIVE, names::CT_NEW].iter().all(|map| entry(bench, map, &keys[0]).is_none())
            };
            // Of one question, and of a conversation.
            for (questions, map) in [(1, names::CT_NEW), (2, names::CT_LIVE)] {
                for _ in 0..questions {
                    assert_eq!([asks(&bench), answers(&bench)], [REDIRECT; 2], "{like}");
                }
                take_away(&mut bench, map);
                for _ in 0..2 {
                    assert_eq!(answers(&bench), REDIRECT, "{like}: those on their way still arrive");
                    assert!(is_forgotten(&bench), "{like} {map}");
                }
            }
        }
    });
}

#[test]
fn an_rst_ends_no_connection_that_goes_on() {
    in_lab(|_| {
        let mut bench = Bench::new();
        for like in [v4(0), v6(0)] {
            let one = Connection::new(like);
            one.is_established(&bench);
            let all = |state| [Some(state); 2];
            assert_eq!(one.states(&bench), all(CtState::Established));
            assert_eq!(one.asks(&bench, RST), REDIRECT, "its end may be");
            assert_eq!(one.states(&bench), all(CtState::Doubtful));
            one.was_seen(&mut bench, 1);
            assert_eq!(one.answers(&bench, ACK), REDIRECT);
            assert_eq!(one.states(&bench), all(CtState::Established));
            one.answers(&bench, FIN | ACK);
            one.answers(&bench, RST);
            assert_eq!(one.states(&bench), all(CtState::Doubtful));
            one.was_seen(&mut bench, 1);
            one.asks(&bench, ACK);
            assert_eq!(one.states(&bench), all(CtState::Closing), "as before");
            one.asks(&bench, FIN | ACK);
            one.asks(&bench, RST);
            assert_eq!(one.states(&bench), all(CtState::Closed), "and no longer than that");
        }
    });
}

#[test]
fn the_ports_of_a_flow_that_ends_go_to_another_after_a_while() {
    in_lab(|_| {
        let mut bench = Bench::new();
        let ends = [(20, v4(0), RST), (21, v6(0), RST), (22, v4(0), FIN), (23, v6(0), FIN)];
        for (id, like, end) in ends {
            // A second frontend of the same backend.
            let second = SocketAddr::new(node(like).ip(), 8_443);
            let frontend = FrontendKey::new(second.ip(), second.port(), Protocol::Tcp, SCOPE_EXTERNAL);
            let slot_offset = if like.is_ipv4() { 1 } else { 3 };
            let service =
                ServiceValue { service_id: id, slot_offset, slot_count: 1, ..ServiceValue::default() };
            bench.put(names::SERVICES, frontend, service);

            let from = SocketAddr::new(client(like).ip(), 40_000 + id as u16);
            let one = Connection { from, ..Connection::new(like) };
            one.is_established(&bench);
            one.asks(&bench, end | ACK);
            one.answers(&bench, end | ACK);
            let asked = of_world(one.from, second, Some(SYN));
            let source = |packet: &[u8]| {
                let at = if like.is_ipv4() { 34 } else { 54 };
                u16::from_be_bytes([packet[at], packet[at + 1]])
            };
            let (_, out) = bench.arrives_at_uplink(&asked.bytes());
            assert_ne!(source(&out), one.from.port(), "{like}: still its own");

            one.was_seen(&mut bench, TCP_RESET_SECS + 2);
            let begins_anew = |bench: &mut Bench| {
                let ports =
                    HashMap::<_, CtKey, CtValue>::try_from(bench.ebpf.map_mut(names::CT_NEW).unwrap());
                ports.unwrap().remove(&key(one.from, second, 6)).unwrap();
                source(&bench.arrives_at_uplink(&asked.bytes()).1)
            };
            assert_ne!(begins_anew(&mut bench), one.from.port(), "{like}: others are longer unused");
            // There are no others.
            let usual = config(v4(250), v6(250));
            bench.set(names::CONFIG, 0, DatapathConfig { snat_port_min: 0, snat_port_max: 0, ..usual });
            assert_eq!(begins_anew(&mut bench), one.from.port(), "{like}: it may have them now");
            bench.set(names::CONFIG, 0, usual);
            // Should the first one go on after all, it does so under other ports or not at all, never as the second one.
            let (_, out) = bench.arrives_at_uplink(&of_world(one.from, one.to, Some(ACK)).bytes());
            assert_eq!(out, of_world(one.from, one.to, Some(ACK)).bytes(), "{like}");
        }
    });
}

#[test]
fn who_takes_the_answer_back_establishes_nothing() {
    in_lab(|_| {
        let bench = Bench::new();
        for like in [v4(0), v6(0)] {
            let one = Connection::new(like);
            one.asks(&bench, SYN);
            one.answers(&bench, SYN | ACK);
            assert_eq!(one.asks(&bench, RST), REDIRECT, "{like}");
            assert_eq!(one.states(&bench), [None; 2], "{like}");
            for key in one.keys() {
                assert_eq!(state(&bench, names::CT_NEW, &key), Some(CtState::Reset), "{like}");
            }
        }
    });
}

#[test]
fn a_flow_that_is_wrapped_stays_where_a_flood_may_take_it() {
    in_lab(|_| {
        let mut bench = Bench::new();
        let dsr_ifindex = bench.uplink;
        bench.set(names::CONFIG, 0, DatapathConfig { dsr_ifindex, ..config(v4(250), v6(250)) });
        bench.set(names::NODES, 2, NodeValue::new(Some(v4(251)), Some(v6(251))));
        for (id, like) in [(30, v4(0)), (31, v6(0))] {
            let at = SocketAddr::new(node(like).ip(), 9_443);
            let frontend = FrontendKey::new(at.ip(), at.port(), Protocol::Tcp, SCOPE_EXTERNAL);
            let service = ServiceValue {
                service_id: id,
                slot_offset: id,
                slot_count: 1,
                flags: SERVICE_DSR,
                ..ServiceValue::default()
            };
            bench.put(names::SERVICES, frontend, service);
            bench.set(names::SLOTS, id, id);
            let to = if like.is_ipv4() { v4(9) } else { v6(9) };
            bench.set(names::BACKENDS, id, BackendValue::new(to, 8_080, Protocol::Tcp).on_node(2, false));

            let after = |bench: &Bench, port: u16, flags: &[u8]| {
                let from = SocketAddr::new(client(like).ip(), port);
                for flags in flags {
                    let packet = of_world(from, at, Some(*flags)).bytes();
                    assert_eq!(bench.arrives_at_uplink(&packet).0, REDIRECT, "{like} {port} {flags}");
                }
                let key = key(from, at, 6);
                assert_eq!(entry(bench, names::CT_LIVE, &key), None, "{like} {port}");
                state(bench, names::CT_NEW, &key)
            };
            assert_eq!(after(&bench, 1, &[SYN, SYN]), Some(CtState::New), "{like}");
            assert_eq!(after(&bench, 2, &[SYN, ACK]), Some(CtState::Established), "{like}");
            assert_eq!(
                after(&bench, 3, &[ACK, ACK, ACK]),
                Some(CtState::Joined),
                "{like}: another node has seen its SYN"
            );
            assert_eq!(after(&bench, 4, &[ACK, SYN, ACK]), Some(CtState::Established), "{like}");
            assert_eq!(after(&bench, 5, &[SYN, ACK, RST]), Some(CtState::Doubtful), "{like}");
            let key = key(SocketAddr::new(client(like).ip(), 5), at, 6);
            let known = entry(&bench, names::CT_NEW, &key).unwrap();
            bench.put(names::CT_NEW, key, CtValue { seen_secs: known.seen_secs - 1, ..known });
            assert_eq!(after(&bench, 5, &[ACK]), Some(CtState::Established), "{like}");
            assert_eq!(after(&bench, 7, &[SYN, ACK, FIN | ACK, ACK]), Some(CtState::Closed), "{like}");
            assert_eq!(after(&bench, 6, &[SYN, RST]), Some(CtState::Reset), "{like}");
        }
    });
}

/// A part of a datagram of 64 bytes behind its header, with this identification.
fn fragment(to: SocketAddr, id: u16, is_first: bool) -> Vec<u8> {
    let mut datagram = of_world(client(v4(0)), to, None);
    datagram.payload = vec![7; 64];
    let whole = datagram.bytes();
    // The UDP header and 32 bytes; the rest.
    let (head, rest) = whole.split_at(34);
    let (part, position) = if is_first { (&rest[..40], 0x2000_u16) } else { (&rest[40..], 5) };
    let mut bytes = [head, part].concat();
    let total = (bytes.len() - 14) as u16;
    bytes[16..18].copy_from_slice(&total.to_be_bytes());
    bytes[18..20].copy_from_slice(&id.to_be_bytes());
    bytes[20..22].copy_from_slice(&position.to_be_bytes());
    bytes[24..26].fill(0);
    let sum = complement(&bytes[14..34]);
    bytes[24..26].copy_from_slice(&sum);
    bytes
}

#[test]
fn the_rest_of_a_packet_goes_where_its_first_fragment_went() {
    in_lab(|_| {
        let mut bench = Bench::new();
        let IpAddr::V4(pod) = backend(v4(0)).ip() else { unreachable!() };
        let is_translated = |bench: &Bench, bytes: &[u8]| {
            let (verdict, out) = bench.arrives_at_uplink(bytes);
            let is_translated = out[30..34] == pod.octets();
            assert_eq!(verdict, if is_translated { REDIRECT } else { NEXT });
            is_translated
        };
        let (ours, other) = (node(v4(0)), SocketAddr::new(node(v4(0)).ip(), 444));
        assert!(!is_translated(&bench, &fragment(ours, 1, false)), "its first one was not seen");
        assert!(
            is_translated(&bench, &fragment(ours, 1, true))
                && is_translated(&bench, &fragment(ours, 1, false))
        );
        assert!(!is_translated(&bench, &fragment(ours, 2, false)), "another packet's");

        // The same identification once more, of a packet that is none of ours.
        assert!(!is_translated(&bench, &fragment(other, 1, true)));
        assert!(!is_translated(&bench, &fragment(other, 1, false)));

        assert!(is_translated(&bench, &fragment(ours, 3, true)));
        let [from, to] = [client(v4(0)), ours].map(|at| address::address(at.ip()));
        let key = FragmentKey { src: from, dst: to, id: [0, 3, 0, 0], proto: 17, pad: [0; 3] };
        let now = monotonic_secs().unwrap();
        let value = |age| FragmentValue {
            sport: client(v4(0)).port().to_be_bytes(),
            dport: ours.port().to_be_bytes(),
            seen_secs: now - age,
        };
        bench.put(names::FRAGMENTS, key, value(FRAGMENT_SECS - 5));
        assert!(is_translated(&bench, &fragment(ours, 3, false)));
        bench.put(names::FRAGMENTS, key, value(FRAGMENT_SECS + 1));
        assert!(!is_translated(&bench, &fragment(ours, 3, false)), "too old");
    });
}
