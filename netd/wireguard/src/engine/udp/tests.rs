// SPDX-License-Identifier: Apache-2.0
//! Sender and receiver against the kernel, over loopback.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::*;
use crate::engine::counters::Counters;
use crate::engine::options::EngineOptions;

/// Sizes of datagrams in the order they are sent: equal ones in a row, more than one send takes, short ones between.
const SIZES: [(usize, usize); 6] = [(100, 1_000), (1, 300), (3, 300), (1, 1_452), (60, 1_452), (2, 1)];

#[test]
fn what_is_sent_arrives_in_order_with_and_without_each_offload() {
    for (udp_gso, udp_gro) in [(true, true), (true, false), (false, true), (false, false)] {
        let options = EngineOptions { udp_gso, udp_gro, ..EngineOptions::default() };
        let (from, to) = (Sockets::bind(0, 0, &options).unwrap(), Sockets::bind(0, 0, &options).unwrap());
        let mut targets = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, to.port))];
        if to.v6.is_some() {
            targets.push(SocketAddr::from((Ipv6Addr::LOCALHOST, to.port)));
        }
        for target in targets {
            let sent = send(&from, target);
            let got = receive(&to, target.is_ipv4(), sent.len());
            assert!(
                got == sent,
                "gso {udp_gso}, gro {udp_gro}, {target}: {} of {} arrived",
                got.len(),
                sent.len()
            );
        }
    }
}

#[test]
fn an_answer_leaves_from_the_address_that_was_asked() {
    let options = EngineOptions::default();
    let (a, b) = (Sockets::bind(0, 0, &options).unwrap(), Sockets::bind(0, 0, &options).unwrap());
    // Loopback has a whole network of addresses: b is asked at one that the kernel would not choose.
    let asked = SocketAddr::from(([127, 0, 0, 9], b.port));
    let counters = Counters::default();
    let mut sender = Sender::new();
    sender.push(b"question", &Endpoint::new(asked), &a, &counters);
    assert_eq!(sender.flush(&a, &counters), Flushed::Done);
    let mut receiver = Receiver::new();
    wait_for(&mut receiver, &b.v4);
    let asker = receiver.message(0).unwrap().from;
    sender.push(b"answer", &asker, &b, &counters);
    assert_eq!(sender.flush(&b, &counters), Flushed::Done);
    wait_for(&mut receiver, &a.v4);
    let answer = receiver.message(0).unwrap();
    assert_eq!((answer.bytes, answer.from.remote), (&b"answer"[..], asked));
}

#[test]
fn a_datagram_that_is_too_long_is_counted_and_the_others_go() {
    let options = EngineOptions::default();
    let (from, to) = (Sockets::bind(0, 0, &options).unwrap(), Sockets::bind(0, 0, &options).unwrap());
    let target = Endpoint::new(SocketAddr::from((Ipv4Addr::LOCALHOST, to.port)));
    let counters = Counters::default();
    let mut sender = Sender::new();
    for len in [10, 65_530, 10] {
        sender.push(&vec![7; len], &target, &from, &counters);
    }
    assert_eq!(sender.flush(&from, &counters), Flushed::Done);
    assert_eq!(receive(&to, true, 2), [vec![7; 10], vec![7; 10]]);
    assert_eq!(counters.path_mtu_errors.load(std::sync::atomic::Ordering::Relaxed), 1);
}

fn send(from: &Sockets, target: SocketAddr) -> Vec<Vec<u8>> {
    let (mut sender, counters, mut sent) = (Sender::new(), Counters::default(), Vec::new());
    for (count, size) in SIZES {
        for i in 0..count {
            let datagram: Vec<u8> = (0..size).map(|at| (at * 7 + i) as u8).collect();
            sender.push(&datagram, &Endpoint::new(target), from, &counters);
            sent.push(datagram);
        }
    }
    assert_eq!(sender.flush(from, &counters), Flushed::Done);
    assert!(sender.is_empty());
    assert_eq!(counters.to_string(), "nothing");
    sent
}

fn receive(to: &Sockets, v4: bool, count: usize) -> Vec<Vec<u8>> {
    let socket = to.of_family(v4).unwrap();
    let (mut receiver, mut got) = (Receiver::new(), Vec::new());
    while got.len() < count {
        let received = wait_for(&mut receiver, socket);
        if received == 0 {
            break;
        }
        for i in 0..received {
            let message = receiver.message(i).unwrap();
            got.extend(message.bytes.chunks(message.segment).map(<[u8]>::to_vec));
        }
    }
    got
}

/// How many messages came; 0 when none came for a long time.
fn wait_for(receiver: &mut Receiver, socket: &socket::Socket) -> usize {
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        if let Ok(received) = receiver.receive(socket) {
            return received.count;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    0
}
