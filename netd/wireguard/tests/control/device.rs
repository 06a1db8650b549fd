// SPDX-License-Identifier: Apache-2.0
//! netd's side: `UserDevice` against a served device.

use std::{
    io,
    io::{Read, Write},
    os::unix::net::UnixListener,
    thread,
};

use netd_wireguard::{
    Device, DeviceChange, DeviceConfig, DeviceError, DeviceKind, PeerConfig, PresharedKey, PrivateKey,
    UserDevice,
};

use crate::fake::Served;

fn wish() -> DeviceConfig {
    let mut config = DeviceConfig {
        private_key: Some(PrivateKey::generate().unwrap()),
        listen_port: Some(51_820),
        fwmark: 9,
        ..DeviceConfig::default()
    };
    for number in 0..3_u8 {
        let peer = PeerConfig {
            preshared_key: (number == 1).then(|| PresharedKey::generate().unwrap()),
            endpoint: Some(([192, 0, 2, number], 51_820).into()),
            persistent_keepalive: u16::from(number),
            allowed_ips: [
                format!("10.244.{number}.0/26").parse().unwrap(),
                format!("fd00:{number}::/64").parse().unwrap(),
            ]
            .into(),
        };
        config.peers.insert(PrivateKey::generate().unwrap().public(), peer);
    }
    config
}

#[tokio::test]
async fn a_device_becomes_as_wished_and_then_stays() {
    let served = Served::start();
    let device = UserDevice::new(served.socket_dir(), "weft.wg0");
    let wish = wish();
    let change = DeviceChange::between(&wish, None, &device.read().await.unwrap()).unwrap();
    device.apply(&change).await.unwrap();
    assert_eq!(*served.device.config(), wish);

    let state = device.read().await.unwrap();
    assert_eq!(state.kind, DeviceKind::User);
    assert_eq!(state.public_key, wish.private_key.as_ref().map(PrivateKey::public));
    let peer = state.peers.values().next().unwrap();
    assert_eq!((peer.rx_bytes, peer.tx_bytes), (1_234, 5_678));
    assert_eq!(peer.last_handshake.unwrap().as_secs(), 1_700_000_000);
    assert_eq!(DeviceChange::between(&wish, Some(&wish), &state), None);
}

#[tokio::test]
async fn one_prefix_moves_and_one_goes() {
    let served = Served::start();
    let device = UserDevice::new(served.socket_dir(), "weft.wg0");
    let wish = wish();
    let change = DeviceChange::between(&wish, None, &device.read().await.unwrap()).unwrap();
    device.apply(&change).await.unwrap();

    let mut next = wish.clone();
    let keys: Vec<_> = wish.peers.keys().copied().collect();
    let mut prefixes = std::mem::take(&mut next.peers.get_mut(&keys[0]).unwrap().allowed_ips).into_iter();
    let moving = prefixes.next().unwrap();
    next.peers.get_mut(&keys[1]).unwrap().allowed_ips.insert(moving);
    next.peers.remove(&keys[2]);
    let change = DeviceChange::between(&next, Some(&wish), &device.read().await.unwrap()).unwrap();
    device.apply(&change).await.unwrap();
    assert_eq!(*served.device.config(), next);
}

#[tokio::test]
async fn a_thousand_peers_go_and_come_back() {
    let served = Served::start();
    let device = UserDevice::new(served.socket_dir(), "weft.wg0");
    let mut wish = DeviceConfig::default();
    for number in 0..1_000_u16 {
        let mut key = [9; 32];
        key[..2].copy_from_slice(&number.to_be_bytes());
        let [high, low] = number.to_be_bytes();
        let prefixes = [0, 64, 128, 192].map(|host| format!("10.{high}.{low}.{host}/26").parse().unwrap());
        let peer = PeerConfig { allowed_ips: prefixes.into(), ..PeerConfig::default() };
        wish.peers.insert(key.into(), peer);
    }
    let change = DeviceChange::between(&wish, None, &device.read().await.unwrap()).unwrap();
    device.apply(&change).await.unwrap();
    let state = device.read().await.unwrap();
    assert_eq!(state.peers.len(), 1_000);
    assert_eq!(DeviceChange::between(&wish, Some(&wish), &state), None);
}

#[tokio::test]
async fn who_does_not_run_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let device = UserDevice::new(dir.path(), "weft.wg0");
    let error = device.read().await.unwrap_err();
    assert!(error.is_absent());
    let path = dir.path().join("weft.wg0.sock");
    assert_eq!(
        error.to_string(),
        format!(
            "weft-wireguard does not answer on {}: is the service weft-wireguard running?",
            path.display()
        )
    );
    // Neither one that died.
    drop(UnixListener::bind(&path).unwrap());
    assert!(device.read().await.unwrap_err().is_absent());
    let error = UserDevice::new(dir.path(), "../etc/x").read().await.unwrap_err();
    assert!(matches!(error, DeviceError::Name { .. }), "{error}");
}

#[tokio::test]
async fn a_refusal_is_told_in_words() {
    let served = Served::start();
    *served.device.before_set.lock().unwrap() =
        Box::new(|| Err(io::Error::from_raw_os_error(libc::EADDRINUSE)));
    let device = UserDevice::new(served.socket_dir(), "weft.wg0");
    let change = DeviceChange { listen_port: Some(51_820), ..DeviceChange::default() };
    let error = device.apply(&change).await.unwrap_err();
    assert!(!error.is_absent());
    let expected = format!(
        "the device at {} refuses to be configured (listen port 51820): Address already in use (os error 98)",
        served.path().display()
    );
    assert_eq!(error.to_string(), expected);
}

#[tokio::test]
async fn an_answer_that_is_none_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("weft.wg0.sock")).unwrap();
    let server = thread::spawn(move || {
        for answer in [&b""[..], b"listen_port=51820\n", b"\xff\n\n", b"HTTP/1.1 400 Bad Request\n\n"] {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 7]).unwrap();
            stream.write_all(answer).unwrap();
        }
    });
    let device = UserDevice::new(dir.path(), "weft.wg0");
    for _ in 0..4 {
        let error = device.read().await.unwrap_err();
        assert!(matches!(error, DeviceError::Answer { .. }), "{error}");
    }
    server.join().unwrap();
}
