// SPDX-License-Identifier: Apache-2.0
//! From the start to the end of the process, and many peers.

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use netd_wireguard::{DeviceChange, PrivateKey, PublicKey};

use crate::ground::{DEVICE, PORT, Process, must_skip, peer, tunnel, two_nodes, wait};

/// As the product promises; a build without optimisation takes some ten times as long for its key agreements.
const THOUSAND_PEERS: Duration =
    if cfg!(debug_assertions) { Duration::from_secs(15) } else { Duration::from_secs(1) };

#[test]
fn a_thousand_peers_are_configured_at_once_and_the_tunnel_works_beside_them() {
    if must_skip() {
        return;
    }
    let [a, b] = tunnel([&[], &[]], false);
    let keys: Vec<PublicKey> = (0..1_000_u32).map(strange_key).collect();
    let nets = |i: usize| [format!("10.{}.{}.0/24", 100 + i / 250, i % 250), format!("fd10:{i:x}::/64")];
    let endpoint = Some(b.outer(false));
    let change = DeviceChange {
        peers: keys.iter().enumerate().map(|(i, key)| peer(*key, endpoint, &nets(i))).collect(),
        ..DeviceChange::default()
    };
    let start = Instant::now();
    a.configure(&change);
    let took = start.elapsed();
    println!("1,000 peers in {} ms", took.as_millis());
    assert!(took < THOUSAND_PEERS, "{took:?}");
    assert_eq!(a.state().peers.len(), 1_001);
    assert!(a.ping(b.inner()[0]));
    // And they go as fast.
    a.configure(&a.facing(&b, endpoint));
    assert_eq!(a.state().peers.len(), 1);
    assert!(a.ping(b.inner()[1]));
}

/// Keys that nobody has the other half of: making real ones would take longer than the test.
fn strange_key(i: u32) -> PublicKey {
    let mut bytes = [9; 32];
    bytes[..4].copy_from_slice(&i.to_le_bytes());
    PublicKey::from(bytes)
}

#[test]
fn keys_ports_and_peers_change_while_it_runs() {
    if must_skip() {
        return;
    }
    let [a, b] = tunnel([&[], &[]], false);
    assert!(a.ping(b.inner()[0]));
    // Another port: the peer follows the packets from there.
    let moved = DeviceChange { listen_port: Some(PORT + 7), ..DeviceChange::default() };
    a.configure(&moved);
    assert!(a.ping(b.inner()[0]));
    wait("the endpoint", || {
        b.state().peers[&a.key.public()].config.endpoint.map(|e| e.port()) == Some(PORT + 7)
    });
    // A port that is taken is refused, and everything stays as it was.
    let _taken = a.netns.run(|| std::net::UdpSocket::bind(("0.0.0.0", PORT + 8)).unwrap());
    let device = netd_wireguard::UserDevice::new(a.dir.path(), DEVICE);
    let refused = DeviceChange { listen_port: Some(PORT + 8), ..DeviceChange::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert!(runtime.block_on(netd_wireguard::Device::apply(&device, &refused)).is_err());
    assert_eq!(a.state().listen_port, PORT + 7);
    assert!(a.ping(b.inner()[0]));
    // Another key at one end: nothing passes, until the other end knows it.
    let key = PrivateKey::generate().unwrap();
    a.configure(&DeviceChange { private_key: Some(Some(key.clone())), ..DeviceChange::default() });
    assert!(!a.ping(b.inner()[0]));
    let mut change = b.facing(&a, Some(a.outer(false)));
    change.peers[0].public_key = key.public();
    change.peers[0].endpoint = Some(std::net::SocketAddr::new(a.outer(false).ip(), PORT + 7));
    b.configure(&change);
    wait("a new session", || b.ping(a.inner()[0]));
}

#[test]
fn a_keepalive_brings_the_handshake_by_itself_and_ends_without_ending_the_session() {
    if must_skip() {
        return;
    }
    let [a, b] = tunnel([&[], &[]], false);
    let handshake = || a.state().peers[&b.key.public()].last_handshake;
    assert_eq!(handshake(), None);
    let keepalive = |secs| {
        let mut change = a.facing(&b, None);
        change.replace_peers = false;
        change.peers[0].persistent_keepalive = Some(secs);
        a.configure(&change);
    };
    keepalive(1);
    wait("a handshake", || handshake().is_some());
    wait("a second keepalive", || b.state().peers[&a.key.public()].rx_bytes >= 148 + 3 * 32);
    let first = handshake();
    keepalive(0);
    assert!(a.ping(b.inner()[0]));
    assert_eq!(handshake(), first);
}

#[test]
fn it_tells_its_supervisor_and_leaves_the_device_when_asked_to_end() {
    if must_skip() {
        return;
    }
    let [a, b] = two_nodes();
    let notify = a.dir.path().join("notify");
    let supervisor = UnixDatagram::bind(&notify).unwrap();
    supervisor.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    let spawn = || {
        Command::new(env!("CARGO_BIN_EXE_weft-wireguard"))
            .args([
                "--run-dir",
                a.dir.path().to_str().unwrap(),
                "--socket-dir",
                a.dir.path().to_str().unwrap(),
            ])
            .args(["weft.wg0", "weft.wg1"])
            .env("NOTIFY_SOCKET", &notify)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("weft-wireguard")
    };
    let mut process = Process::new(a.netns.run(spawn));
    let mut buffer = [0; 64];
    let len = supervisor.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"READY=1");
    assert!(a.dir.path().join("weft.wg1.sock").exists());
    assert!(process.terminate().success());
    assert!(!a.dir.path().join("weft.wg1.sock").exists());
    for device in ["weft.wg0", "weft.wg1"] {
        a.netns.ip(&format!("link show {device}"));
    }
    // A device that goes under it is an error that the supervisor sees.
    let mut process = b.start(&[]);
    b.netns.ip(&format!("link del {DEVICE}"));
    wait("its end", || process.exited().is_some());
    assert!(!process.exited().unwrap().success());
    assert!(b.log().contains("is gone"), "{}", b.log());
}

#[test]
fn a_link_that_is_the_kernels_is_left_to_it_and_taken_when_it_is_gone() {
    if must_skip() {
        return;
    }
    let [a, _b] = two_nodes();
    let add = || Command::new("ip").args(["link", "add", DEVICE, "type", "wireguard"]).output().expect("ip");
    if !a.netns.run(add).status.success() {
        // Not a SKIP: `make vm` proves it on two kernels that have it.
        println!("left to `make vm`: this kernel has no WireGuard of its own");
        return;
    }
    let mut process = a.spawn(&[]);
    wait("its word about the kernel's link", || a.log().contains("the kernel has a WireGuard link"));
    assert!(!a.dir.path().join(format!("{DEVICE}.sock")).exists(), "nobody serves it");
    a.netns.ip(&format!("link show {DEVICE}"));
    a.netns.ip(&format!("link del {DEVICE}"));
    a.wait_for_socket();
    assert!(a.netns.ip(&format!("-d link show {DEVICE}")).contains("tun"));
    assert!(process.terminate().success());
    assert_eq!(a.log().matches("the kernel has a WireGuard link").count(), 1, "said once");
}
