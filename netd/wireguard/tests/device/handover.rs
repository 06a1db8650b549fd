// SPDX-License-Identifier: Apache-2.0
//! A new version takes over from the running one.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::bulk::{Raised, pass, stream_until};
use crate::ground::{must_skip, tunnel, wait};

#[test]
fn a_running_stream_survives_a_takeover_at_either_end() {
    if must_skip() {
        return;
    }
    let [mut a, mut b] = tunnel([&[], &[]], false);
    let (stop, moved) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut old = [a.process.take().unwrap(), b.process.take().unwrap()];
    let mut new = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| stream_until(&a, &b, &stop, &moved));
        let _end = Raised(&stop);
        for (node, old) in [&a, &b].into_iter().zip(&mut old) {
            let further = |what: &str| {
                let before = moved.load(Ordering::Relaxed);
                wait(what, || moved.load(Ordering::Relaxed) > before + (1 << 20));
            };
            further("the stream before the takeover");
            new.push(node.spawn(&[]));
            wait("the end of the old one", || old.exited().is_some());
            assert!(old.exited().unwrap().success(), "{}", node.log());
            further("the stream after the takeover");
            wait("the count of losses", || node.log().contains("packets_lost="));
        }
    });
    // Configuration and counters came along, and the new ones are configured as the old ones were.
    let known = &a.state().peers[&b.key.public()];
    assert_eq!(known.config.endpoint, Some(b.outer(false)));
    assert_eq!(known.config.allowed_ips.len(), 2);
    assert!(known.tx_bytes > 2 << 20);
    a.configure(&a.facing(&b, Some(b.outer(false))));
    pass(&a, &b, 1 << 18);
}

#[test]
fn a_successor_that_fails_leaves_the_running_one_in_charge() {
    if must_skip() {
        return;
    }
    let [mut a, b] = tunnel([&[], &[]], false);
    assert!(a.ping(b.inner()[0]));
    for word in ["", "nonsense that is no frame"] {
        let mut stream = UnixStream::connect(a.dir.path().join("weft-wireguard.sock")).unwrap();
        std::io::Write::write_all(&mut stream, word.as_bytes()).unwrap();
    }
    wait("both refusals", || a.log().matches("handover failed").count() == 2);
    assert!(a.ping(b.inner()[0]));
    // One that asks for the devices and dies with them in its hands.
    let mut stream = UnixStream::connect(a.dir.path().join("weft-wireguard.sock")).unwrap();
    let hello = b"hello weft-wireguard 1";
    let mut frame = b"WWG1".to_vec();
    frame.extend((hello.len() as u32).to_be_bytes());
    frame.extend(hello);
    std::io::Write::write_all(&mut stream, &frame).unwrap();
    std::io::Read::read_exact(&mut stream, &mut [0; 8]).unwrap();
    drop(stream);
    wait("the third refusal", || a.log().matches("handover failed").count() == 3);
    a.wait_for_socket();
    assert!(a.ping(b.inner()[0]));
    assert!(a.process.as_mut().unwrap().exited().is_none());
}
