// SPDX-License-Identifier: Apache-2.0
//! Connections past the services, beside those through them.

use std::net::{IpAddr, SocketAddr};

use aya::maps::HashMap;
use ebpf_abi::{
    CtKey, CtState, CtValue, DatapathConfig, EndpointKey, address, conntrack::CT_FIN, names,
    node::CONFIG_BLIND_UPLINK,
};

use super::{
    bytes::{
        ACK, Bench, FIN, HOST_MAC, NEXT, POD_MAC, Packet, REDIRECT, RST, SYN, UPLINK_MAC, backend, client,
        node, of_world,
    },
    service::config,
};
use crate::{
    lab::{in_lab, ip},
    pod::{text, v4, v6},
};

/// Says that there is a backend, as the writer of services does.
fn is_a_backend(bench: &mut Bench, like: IpAddr) {
    let at = backend(like);
    let addr = address::address(at.ip());
    bench.put(
        names::BACKEND_ENDPOINTS,
        EndpointKey { addr, port: at.port().to_be_bytes(), proto: 6, pad: 0 },
        1_u32,
    );
}

/// What the answers of a connection to the backend are found by.
fn answers(like: IpAddr, to: SocketAddr) -> CtKey {
    let from = backend(like);
    CtKey {
        src: address::address(from.ip()),
        dst: address::address(to.ip()),
        sport: from.port().to_be_bytes(),
        dport: to.port().to_be_bytes(),
        proto: 6,
        pad: [0; 3],
    }
}

fn known(bench: &Bench, key: &CtKey) -> Option<CtValue> {
    let map = HashMap::<_, CtKey, CtValue>::try_from(bench.ebpf.map(names::CT_NEW).unwrap()).unwrap();
    map.get(key, 0).ok()
}

#[test]
fn a_direct_connection_from_outside_whose_port_is_taken_goes_by_the_stack_both_ways() {
    in_lab(|_| {
        let mut bench = Bench::new();
        for like in [v4(0), v6(0)] {
            is_a_backend(&mut bench, like);
            let through = of_world(client(like), node(like), Some(SYN));
            assert_eq!(bench.arrives_at_uplink(&through.bytes()).0, REDIRECT, "{like}");

            let direct = of_world(client(like), backend(like), Some(SYN));
            let (verdict, out) = bench.arrives_at_uplink(&direct.bytes());
            assert_eq!(verdict, NEXT, "{like}: rules of the stack see it");
            let at = if like.is_ipv4() { 34 } else { 54 };
            let port = u16::from_be_bytes([out[at], out[at + 1]]);
            assert_ne!(port, client(like).port(), "{like}");
            let moved = SocketAddr::new(client(like).ip(), port);
            assert_eq!(out, of_world(moved, backend(like), Some(SYN)).bytes(), "{like}");

            let answer =
                Packet { macs: (HOST_MAC, POD_MAC), ..of_world(backend(like), moved, Some(SYN | ACK)) };
            assert_eq!(bench.leaves_pod(&answer.bytes()), (NEXT, answer.bytes()), "{like}");
            let (verdict, out) = bench.leaves_by_uplink(&answer.bytes());
            assert_eq!((verdict, out), (NEXT, Packet { to: client(like), ..answer }.bytes()), "{like}");
        }
    });
}

#[test]
fn a_direct_connection_whose_answers_nobody_would_translate_keeps_its_port() {
    in_lab(|_| {
        let mut bench = Bench::new();
        ip(&format!("link set up1 address {}", text(UPLINK_MAC)));
        let other = nix::net::if_::if_nametoindex("up1").unwrap();
        let usual = config(v4(250), v6(250));
        for like in [v4(0), v6(0)] {
            is_a_backend(&mut bench, like);
            let through = of_world(client(like), node(like), Some(SYN));
            assert_eq!(bench.arrives_at_uplink(&through.bytes()).0, REDIRECT, "{like}");
            let direct = of_world(client(like), backend(like), Some(SYN)).bytes();
            // Answers leave by another interface than this one.
            let (verdict, out, _) = bench.run(names::UPLINK_INGRESS, other, &direct, 0);
            assert_eq!((verdict, out), (NEXT, direct.clone()), "{like}");
            // No program is at the egress.
            bench.set(names::CONFIG, 0, DatapathConfig { flags: CONFIG_BLIND_UPLINK, ..usual });
            assert_eq!(bench.arrives_at_uplink(&direct), (NEXT, direct.clone()), "{like}");
            bench.set(names::CONFIG, 0, usual);
            assert_ne!(bench.arrives_at_uplink(&direct).1, direct, "{like}");
        }
    });
}

#[test]
fn a_direct_connection_begins_again_where_an_rst_was_seen() {
    in_lab(|_| {
        let mut bench = Bench::new();
        for like in [v4(0), v6(0)] {
            is_a_backend(&mut bench, like);
            bench.arrives_at_uplink(&of_world(client(like), node(like), Some(SYN)).bytes());
            let asks = |flags| {
                let (_, out) =
                    bench.arrives_at_uplink(&of_world(client(like), backend(like), Some(flags)).bytes());
                let at = if like.is_ipv4() { 34 } else { 54 };
                u16::from_be_bytes([out[at], out[at + 1]])
            };
            let port = asks(SYN);
            let moved = SocketAddr::new(client(like).ip(), port);
            let keys = [answers(like, client(like)).reversed(), answers(like, moved)];
            let live = || {
                let map = HashMap::<_, CtKey, CtValue>::try_from(bench.ebpf.map(names::CT_LIVE).unwrap());
                let map = map.unwrap();
                keys.map(|key| map.get(&key, 0).ok().map(|value| (value.state, value.flags & CT_FIN)))
            };
            let answer = of_world(backend(like), moved, Some(SYN | ACK));
            bench.leaves_by_uplink(&Packet { macs: (HOST_MAC, POD_MAC), ..answer }.bytes());
            for flags in [ACK, FIN | ACK, RST] {
                assert_eq!(asks(flags), port, "{like}");
            }
            let doubtful = CtState::Doubtful.number();
            assert_eq!(live(), [Some((doubtful, CT_FIN)), Some((doubtful, 0))], "{like}");
            assert_eq!(asks(SYN), port, "{like}");
            assert_eq!(live(), [Some((CtState::Established.number(), 0)); 2], "{like}");
        }
    });
}

#[test]
fn who_does_not_speak_from_outside_gets_no_flow_at_the_uplink() {
    in_lab(|_| {
        let mut bench = Bench::new();
        for like in [v4(0), v6(0)] {
            is_a_backend(&mut bench, like);
            // A pod's address.
            let liar = SocketAddr::new(backend(like).ip(), 2_000);
            let direct = of_world(liar, backend(like), Some(SYN));
            assert_eq!(bench.arrives_at_uplink(&direct.bytes()), (NEXT, direct.bytes()), "{like}");
            assert_eq!(known(&bench, &answers(like, liar)), None, "{like}");
            let honest = of_world(client(like), backend(like), Some(SYN));
            assert_eq!(bench.arrives_at_uplink(&honest.bytes()), (NEXT, honest.bytes()), "{like}");
            assert!(known(&bench, &answers(like, client(like))).is_some(), "{like}");
        }
    });
}

#[test]
fn the_marker_of_a_connection_that_is_over_becomes_that_of_the_next_one() {
    in_lab(|_| {
        let mut bench = Bench::new();
        for like in [v4(0), v6(0)] {
            is_a_backend(&mut bench, like);
            let direct = of_world(client(like), backend(like), Some(SYN)).bytes();
            bench.arrives_at_uplink(&direct);
            let key = answers(like, client(like));
            let marker = known(&bench, &key).unwrap();
            for (state, next) in [
                (CtState::Closed, CtState::New),
                (CtState::Doubtful, CtState::New),
                (CtState::Established, CtState::Established),
            ] {
                bench.put(names::CT_NEW, key, CtValue { state: state.number(), ..marker });
                bench.arrives_at_uplink(&direct);
                assert_eq!(known(&bench, &key).unwrap().state, next.number(), "{like} {state:?}");
            }
        }
    });
}
