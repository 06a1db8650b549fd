// SPDX-License-Identifier: Apache-2.0
//! A new version takes over from the running one.

use std::io::{Read as _, Write as _};
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
        stream.write_all(word.as_bytes()).unwrap();
    }
    wait("both refusals", || a.log().matches("handover failed").count() == 2);
    assert!(a.ping(b.inner()[0]));
    // One that asks for the devices and dies with them in its hands.
    let mut stream = UnixStream::connect(a.dir.path().join("weft-wireguard.sock")).unwrap();
    say(&mut stream, "hello weft-wireguard 1");
    hear(&mut stream);
    drop(stream);
    wait("the third refusal", || a.log().matches("handover failed").count() == 3);
    a.wait_for_socket();
    assert!(a.ping(b.inner()[0]));
    assert!(a.process.as_mut().unwrap().exited().is_none());
}

#[test]
fn a_successor_that_dies_before_it_runs_leaves_the_way_open_for_the_next_one() {
    if must_skip() {
        return;
    }
    let [mut a, b] = tunnel([&[], &[]], false);
    assert!(a.ping(b.inner()[0]));
    let mut stream = UnixStream::connect(a.dir.path().join("weft-wireguard.sock")).unwrap();
    say(&mut stream, "hello weft-wireguard 1");
    let count = hear(&mut stream);
    let count: usize = count.strip_prefix("devices ").unwrap().parse().unwrap();
    for _ in 0..count {
        hear(&mut stream);
    }
    say(&mut stream, "ready");
    assert_eq!(hear(&mut stream), "stopped");
    assert!(!a.ping(b.inner()[0]), "nobody runs the device now");
    drop(stream);
    wait("the refusal", || a.log().contains("handover failed"));
    a.wait_for_socket();
    assert!(a.ping(b.inner()[0]));
    let mut old = a.process.take().unwrap();
    a.process = Some(a.spawn(&[]));
    wait("the end of the old one", || old.exited().is_some());
    assert!(old.exited().unwrap().success(), "{}", a.log());
    assert!(a.ping(b.inner()[0]));
}

/// One word to the running process.
fn say(stream: &mut UnixStream, word: &str) {
    let mut frame = b"WWG1".to_vec();
    frame.extend((word.len() as u32).to_be_bytes());
    frame.extend(word.as_bytes());
    stream.write_all(&frame).unwrap();
}

/// Its next one; descriptors that come with it are closed.
fn hear(stream: &mut UnixStream) -> String {
    let mut header = [0; 8];
    stream.read_exact(&mut header).unwrap();
    let len = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    let mut word = vec![0; len as usize];
    stream.read_exact(&mut word).unwrap();
    String::from_utf8(word).unwrap()
}
