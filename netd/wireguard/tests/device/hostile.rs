// SPDX-License-Identifier: Apache-2.0
//! What anybody may send to the UDP port.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use netd_wireguard::PrivateKey;

use crate::bulk::{Raised, stream_until, tcp};
use crate::ground::{Node, must_skip, peer, tunnel, wait};

/// Of each measurement: many times the limiter's second would take longer, and say no more.
const WINDOW: Duration = Duration::from_millis(2_500);

#[test]
fn garbage_costs_a_drop_and_a_counter() {
    if must_skip() {
        return;
    }
    let [a, mut b] = tunnel([&[], &[]], false);
    tcp(&a, &b, b.inner()[0], 1 << 16);
    let socket = a.netns.run(|| UdpSocket::bind("10.77.0.1:0").unwrap());
    socket.connect(b.outer(false)).unwrap();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for size in 0..1_400_usize {
        let mut message: Vec<u8> = Vec::new();
        while message.len() < size {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            message.extend(random.to_le_bytes());
        }
        message.truncate(size);
        // Half of them look like a message of WireGuard.
        if size >= 4 && size.is_multiple_of(2) {
            message[..4].copy_from_slice(&(1 + (size as u32 / 2) % 4).to_le_bytes());
        }
        socket.send(&message).unwrap();
    }
    for (kind, size) in [(1_u32, 148), (2, 92), (3, 64), (4, 32)] {
        let mut message = vec![0; size];
        message[..4].copy_from_slice(&kind.to_le_bytes());
        socket.send(&message).unwrap();
    }
    tcp(&a, &b, b.inner()[1], 1 << 20);
    assert!(b.process.as_mut().unwrap().terminate().success());
    for counter in ["malformed=", "unknown_session=", "handshake_refused="] {
        assert!(b.log().contains(counter), "{counter}:\n{}", b.log());
    }
}

#[test]
fn a_flood_of_handshakes_from_strangers_gets_cookies_and_leaves_a_stream_half_its_rate() {
    if must_skip() {
        return;
    }
    let [a, mut b] = tunnel([&[], &[]], false);
    let initiations = strangers(&b, 40);
    let (stop, moved) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| stream_until(&a, &b, &stop, &moved));
        let _end = Raised(&stop);
        wait("the stream", || moved.load(Ordering::Relaxed) > 0);
        b.process.as_ref().unwrap().pin();
        // First into a socket that nobody reads: what the flood and the stream cost the rest of the machine.
        let deaf = b.netns.run(|| UdpSocket::bind("10.77.0.2:0").unwrap());
        let usual = beside_flood(&a, deaf.local_addr().unwrap(), &initiations, &moved);
        let flooded = beside_flood(&a, b.outer(false), &initiations, &moved);
        println!("{} MiB in {WINDOW:?}, {} beside a flood of handshakes", usual >> 20, flooded >> 20);
        assert!(flooded * 2 >= usual, "a stream of {usual} bytes in {WINDOW:?} became one of {flooded}");
    });
    assert!(b.process.as_mut().unwrap().terminate().success());
    assert!(b.log().contains("cookies_sent="), "more than the limit per second:\n{}", b.log());
}

/// What the stream moves in [`WINDOW`] while these messages go to an address, up to 40,000 a second.
fn beside_flood(a: &Node, to: SocketAddr, messages: &[Vec<u8>], moved: &AtomicU64) -> u64 {
    let socket = a.netns.run(|| UdpSocket::bind("10.77.0.1:0").unwrap());
    socket.connect(to).unwrap();
    let (before, start) = (moved.load(Ordering::Relaxed), Instant::now());
    while start.elapsed() < WINDOW {
        // A send may be refused while the link's queue is full: that is the flood's loss.
        messages.iter().for_each(|message| drop(socket.send(message)));
        thread::sleep(Duration::from_millis(1));
    }
    moved.load(Ordering::Relaxed) - before
}

/// Handshake initiations that pass the first check (they name B's key) and come from nobody B knows.
fn strangers(b: &Node, count: usize) -> Vec<Vec<u8>> {
    let public = PublicKey::from(*b.key.public().as_bytes());
    let one = |index: usize| {
        let secret = StaticSecret::from(*PrivateKey::generate().unwrap().as_bytes());
        let mut tunn = Tunn::new(secret, public, None, None, index as u32, None);
        match tunn.format_handshake_initiation(&mut [0; 148], false) {
            TunnResult::WriteToNetwork(message) => message.to_vec(),
            other => panic!("no initiation: {other:?}"),
        }
    };
    (0..count).map(one).collect()
}

#[test]
fn forged_cookies_and_answers_do_not_keep_a_peer_from_its_handshake() {
    if must_skip() {
        return;
    }
    let [a, mut b] = tunnel([&[], &[]], false);
    let forged: Vec<Vec<u8>> = [(2_u32, 92), (3, 64)]
        .into_iter()
        .flat_map(|(kind, size)| (0..50_u32).map(move |index| (kind, size, index)))
        .map(|(kind, size, index)| {
            let mut message = vec![0; size];
            message[..4].copy_from_slice(&kind.to_le_bytes());
            // Where either kind has our index: one that nobody has.
            message[4..8].copy_from_slice(&(0xffff_0000 | index).to_le_bytes());
            message[8..12].copy_from_slice(&(0xffff_0000 | index).to_le_bytes());
            message
        })
        .collect();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let socket = a.netns.run(|| UdpSocket::bind("10.77.0.1:0").unwrap());
        socket.connect(b.outer(false)).unwrap();
        scope.spawn(|| {
            let socket = socket;
            while !stop.load(Ordering::Relaxed) {
                // More than a queue holds in each go, with a rest: the flood is of messages, not of the machine.
                (0..5).for_each(|_| forged.iter().for_each(|message| drop(socket.send(message))));
                thread::sleep(Duration::from_millis(2));
            }
        });
        let _end = Raised(&stop);
        // The first packet needs a handshake, which must get through.
        assert!(a.ping(b.inner()[0]), "{}", b.log());
        tcp(&a, &b, b.inner()[0], 1 << 20);
    });
    assert!(b.process.as_mut().unwrap().terminate().success());
    assert!(b.log().contains("handshake_refused="), "{}", b.log());
}

#[test]
fn a_peer_may_send_from_its_own_addresses_only() {
    if must_skip() {
        return;
    }
    let [a, mut b] = tunnel([&[], &[]], false);
    assert!(a.ping(b.inner()[0]));
    // Now A is another address's owner as far as B knows.
    let mut change = b.facing(&a, None);
    change.replace_peers = false;
    change.peers = vec![peer(a.key.public(), None, &["10.99.0.77/32".into()])];
    b.configure(&change);
    assert!(!a.ping(b.inner()[0]));
    assert!(b.process.as_mut().unwrap().terminate().success());
    assert!(b.log().contains("source_not_allowed="), "{}", b.log());
}
