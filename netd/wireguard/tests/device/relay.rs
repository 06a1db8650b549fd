// SPDX-License-Identifier: Apache-2.0
//! A hostile middle: what passes comes doubled, broken and out of order, and its address changes.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::bulk::{Raised, tcp};
use crate::ground::{must_skip, two_nodes, wait};

const FRONT: &str = "10.77.0.2:7000";

/// Between the nodes: `front` is where A thinks that B is, `back` where B sees A come from.
struct Relay {
    front: UdpSocket,
    back: Mutex<UdpSocket>,
    a: Mutex<Option<SocketAddr>>,
    b: SocketAddr,
    stop: AtomicBool,
}

impl Relay {
    fn back(&self) -> UdpSocket {
        self.back.lock().unwrap().try_clone().unwrap()
    }

    fn forward(&self) {
        let (mut buffer, mut count, mut held) = ([0; 65_536], 0_u64, Vec::new());
        while !self.stop.load(Ordering::Relaxed) {
            let Ok((len, from)) = self.front.recv_from(&mut buffer) else { continue };
            *self.a.lock().unwrap() = Some(from);
            let back = self.back();
            let datagram = &mut buffer[..len];
            count += 1;
            if count.is_multiple_of(5) {
                // A broken copy first: it must not use up the good one's counter.
                datagram[len - 1] ^= 1;
                back.send_to(datagram, self.b).unwrap();
                datagram[len - 1] ^= 1;
            }
            if count.is_multiple_of(7) {
                held = datagram.to_vec();
                continue;
            }
            back.send_to(datagram, self.b).unwrap();
            if count.is_multiple_of(3) {
                back.send_to(datagram, self.b).unwrap();
            }
            if !held.is_empty() {
                back.send_to(&held, self.b).unwrap();
                held.clear();
            }
        }
    }

    fn answer(&self) {
        let mut buffer = [0; 65_536];
        while !self.stop.load(Ordering::Relaxed) {
            let Ok(len) = self.back().recv(&mut buffer) else { continue };
            let a = *self.a.lock().unwrap();
            if let Some(a) = a {
                self.front.send_to(&buffer[..len], a).unwrap();
            }
        }
    }
}

#[test]
fn doubled_broken_and_reordered_datagrams_cost_nothing_but_themselves_and_a_roaming_peer_is_followed() {
    if must_skip() {
        return;
    }
    let [mut a, mut b] = two_nodes();
    a.process = Some(a.start(&[]));
    b.process = Some(b.start(&[]));
    let bind = |address: &str| {
        let socket = b.netns.run(|| UdpSocket::bind(address).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        socket
    };
    let relay = Relay {
        front: bind(FRONT),
        back: Mutex::new(bind("10.77.0.2:0")),
        a: Mutex::default(),
        b: b.outer(false),
        stop: AtomicBool::new(false),
    };
    a.configure(&a.facing(&b, Some(FRONT.parse().unwrap())));
    // B does not know where A is: it learns.
    b.configure(&b.facing(&a, None));
    a.plumb();
    b.plumb();
    thread::scope(|scope| {
        scope.spawn(|| relay.forward());
        scope.spawn(|| relay.answer());
        let _end = Raised(&relay.stop);
        tcp(&a, &b, b.inner()[0], 1 << 20);
        let endpoint = || b.state().peers[&a.key.public()].config.endpoint;
        assert_eq!(endpoint(), relay.back().local_addr().ok());
        // A moves: the next authentic packet says where it is now.
        *relay.back.lock().unwrap() = bind("10.77.0.2:0");
        let now = relay.back().local_addr().ok();
        wait("the new endpoint", || a.ping(b.inner()[1]) && endpoint() == now);
        tcp(&a, &b, b.inner()[1], 1 << 20);
    });
    let status = b.process.as_mut().unwrap().terminate();
    assert!(status.success());
    let counted = ["dropped=refused=", " refused="].iter().any(|text| b.log().contains(text));
    assert!(counted, "copies are counted as refused:\n{}", b.log());
}
