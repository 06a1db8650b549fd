// SPDX-License-Identifier: Apache-2.0
//! Messages, against bytes written down from the header, and against a model of the kernel.

use std::collections::BTreeSet;

use ipnet::IpNet;
use proptest::prelude::*;

use super::{decode::Dump, encode, model, wire::*};
use crate::{
    DeviceChange, DeviceConfig, DeviceKind, PeerChange, PresharedKey, PrivateKey, PublicKey,
    arbitrary::{config, device, state_of},
    device::DeviceError,
};

const A: [u8; 32] = [0xaa; 32];
const B: [u8; 32] = [0xbb; 32];

fn joined(messages: &[Vec<u8>]) -> Dump {
    let mut dump = Dump::default();
    for message in messages {
        dump.join(message).unwrap();
    }
    dump
}

#[test]
#[cfg(target_endian = "little")]
fn a_request_is_the_bytes_of_the_header_file() {
    let peer = PeerChange {
        preshared_key: Some(None),
        endpoint: Some("192.0.2.1:51820".parse().unwrap()),
        persistent_keepalive: Some(25),
        replace_allowed_ips: true,
        update_only: true,
        add_allowed_ips: vec!["10.244.1.0/26".parse().unwrap(), "fd00::/64".parse().unwrap()],
        ..PeerChange::new(PublicKey::from(A))
    };
    let change = DeviceChange { listen_port: Some(51_820), peers: vec![peer], ..DeviceChange::default() };
    let messages = encode::set("wg0", &change).unwrap();
    let name = [&[8, 0, 2, 0][..], b"wg0\0"].concat();
    // WG_CMD_SET_DEVICE, version 1; WGDEVICE_A_LISTEN_PORT of 6 bytes, padded.
    let device = [&[1, 1, 0, 0][..], &name, &[6, 0, 6, 0, 0x6c, 0xca, 0, 0]].concat();
    let allowed_ips = [
        // A nest of family AF_INET, address and length.
        &[28, 0, 0, 0x80, 6, 0, 1, 0, 2, 0, 0, 0, 8, 0, 2, 0, 10, 244, 1, 0, 5, 0, 3, 0, 26, 0, 0, 0][..],
        &[
            40, 0, 0, 0x80, 6, 0, 1, 0, 10, 0, 0, 0, 20, 0, 2, 0, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0,
        ],
        &[5, 0, 3, 0, 64, 0, 0, 0],
    ]
    .concat();
    let fields = [
        &[36, 0, 1, 0][..],
        &A,
        // WGPEER_F_REPLACE_ALLOWEDIPS | WGPEER_F_UPDATE_ONLY.
        &[8, 0, 3, 0, 6, 0, 0, 0],
        &[36, 0, 2, 0],
        &[0; 32],
        // struct sockaddr_in.
        &[20, 0, 4, 0, 2, 0, 0xca, 0x6c, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        &[6, 0, 5, 0, 25, 0, 0, 0],
        &[72, 0, 9, 0x80],
        &allowed_ips,
    ]
    .concat();
    let length = |bytes: &[u8]| u8::try_from(bytes.len() + 4).unwrap();
    let peer = [&[length(&fields), 0, 0, 0x80][..], &fields].concat();
    let peers = [&[1, 1, 0, 0][..], &name, &[length(&peer), 0, 8, 0x80], &peer].concat();
    let messages: Vec<&[u8]> = messages.iter().map(|message| message.as_slice()).collect();
    assert_eq!(messages, [&device[..], &peers[..]]);
    assert_eq!(encode::get("wg0").unwrap(), [&[0, 1, 0, 0][..], &name].concat());
}

#[test]
#[cfg(target_endian = "little")]
fn a_dump_is_read_and_joined() {
    let key = |kind: u8, key: &[u8; 32]| [&[36, 0, kind, 0][..], key].concat();
    let v4 = [28, 0, 0, 0x80, 6, 0, 1, 0, 2, 0, 0, 0, 8, 0, 2, 0, 10, 244, 1, 0, 5, 0, 3, 0, 26, 0, 0, 0];
    let mut other_v4 = v4;
    other_v4[18] = 2;
    let nest = |kind: u8, inner: &[u8]| {
        [&[u8::try_from(inner.len() + 4).unwrap(), 0, kind, 0x80][..], inner].concat()
    };
    let peer_b = [
        key(1, &B),
        key(2, &[5; 32]),
        // Two seconds and three nanoseconds.
        vec![20, 0, 6, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0],
        vec![6, 0, 5, 0, 9, 0, 0, 0],
        vec![12, 0, 7, 0, 1, 1, 0, 0, 0, 0, 0, 0],
        vec![12, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0],
        // struct sockaddr_in6 of [2001:db8::1%3]:51820 with a flow label.
        [&[32, 0, 4, 0, 10, 0, 0xca, 0x6c, 0, 9, 9, 9, 0x20, 1, 0xd, 0xb8][..], &[0; 11], &[1, 3, 0, 0, 0]]
            .concat(),
        nest(9, &v4),
        // WGPEER_A_PROTOCOL_VERSION.
        vec![8, 0, 10, 0, 1, 0, 0, 0],
    ]
    .concat();
    let first = [
        vec![8, 0, 1, 0, 7, 0, 0, 0],
        vec![8, 0, 2, 0, b'w', b'g', b'0', 0],
        key(3, &[1; 32]),
        key(4, &A),
        vec![6, 0, 6, 0, 0x6c, 0xca, 0, 0],
        vec![8, 0, 7, 0, 0x2a, 0, 0, 0],
        nest(8, &nest(0, &peer_b)),
    ]
    .concat();
    // The same peer goes on.
    let second = [
        vec![8, 0, 2, 0, b'w', b'g', b'0', 0],
        nest(8, &nest(0, &[key(1, &B), nest(9, &other_v4)].concat())),
    ]
    .concat();
    let state = joined(&[first, second]).state;
    assert_eq!(state.kind, DeviceKind::Kernel);
    assert_eq!((state.public_key, state.listen_port, state.fwmark), (Some(PublicKey::from(A)), 51_820, 42));
    let peer = &state.peers[&PublicKey::from(B)];
    assert_eq!(peer.config.preshared_key, Some(PresharedKey::from([5; 32])));
    assert_eq!(peer.config.endpoint.unwrap().to_string(), "[2001:db8::1%3]:51820");
    assert_eq!(peer.config.persistent_keepalive, 9);
    assert_eq!(peer.last_handshake, Some(std::time::Duration::new(2, 3)));
    assert_eq!((peer.rx_bytes, peer.tx_bytes), (257, 65_536));
    let prefixes: Vec<_> = peer.config.allowed_ips.iter().map(ToString::to_string).collect();
    assert_eq!(prefixes, ["10.244.1.0/26", "10.244.2.0/26"]);
}

#[test]
fn a_device_without_keys_is_read() {
    let mut attributes = Attributes::default();
    attributes.add(DEVICE_PUBLIC_KEY, &[0; 32]);
    attributes.add(DEVICE_LISTEN_PORT, &0_u16.to_ne_bytes());
    let state = joined(&[attributes.as_bytes().to_vec()]).state;
    assert_eq!((state.public_key, state.listen_port), (None, 0));
}

#[test]
fn one_prefix_goes_without_touching_the_peers_others() {
    let remove = PeerChange {
        update_only: true,
        remove_allowed_ips: vec!["10.0.2.0/26".parse().unwrap()],
        ..PeerChange::new(PublicKey::from(A))
    };
    let change = DeviceChange { peers: vec![remove], ..DeviceChange::default() };
    let messages = encode::set("weft.wg0", &change).unwrap();
    assert_eq!(messages.len(), 1, "all at once");
    let asked = model::change_of("weft.wg0", &messages[0]);
    let told: Vec<_> = asked.peers.iter().map(|peer| (peer.public_key, peer.remove)).collect();
    let undertaker = PublicKey::from(encode::UNDERTAKER);
    assert_eq!(told, [(undertaker, false), (undertaker, true), (PublicKey::from(A), false)]);
    assert!(asked.peers.iter().all(|peer| !peer.replace_allowed_ips));
}

#[test]
fn a_thousand_peers_go_in_messages_of_a_size_that_the_kernel_takes() {
    let mut wish = DeviceConfig { private_key: Some(PrivateKey::from([7; 32])), ..DeviceConfig::default() };
    for number in 0..1_000_u16 {
        let mut key = [9; 32];
        key[..2].copy_from_slice(&number.to_be_bytes());
        let [high, low] = number.to_be_bytes();
        let peer = wish.peers.entry(PublicKey::from(key)).or_default();
        peer.endpoint = Some(([192, 0, high, low], 51_820).into());
        peer.allowed_ips.extend(
            [0, 64, 128, 192].map(|host| format!("10.{high}.{low}.{host}/26").parse::<IpNet>().unwrap()),
        );
    }
    let change = DeviceChange::between(&wish, None, &state_of(&DeviceConfig::default())).unwrap();
    let mut kernel = DeviceConfig::default();
    let sizes = model::carry_out(&mut kernel, &change);
    assert_eq!(kernel, wish);
    assert!(sizes.iter().all(|size| *size <= encode::MESSAGE_BYTES_MAX), "{sizes:?}");
    assert!((10..30).contains(&sizes.len()), "{} messages", sizes.len());
}

#[test]
fn a_peer_with_more_prefixes_than_a_message_holds_is_cut() {
    let prefixes: BTreeSet<IpNet> = (0..3_000_u32)
        .map(|number| IpNet::new((0x0a00_0000 + (number << 6)).to_be_bytes().into(), 26).unwrap())
        .collect();
    let mut wish = DeviceConfig::default();
    wish.peers.entry(PublicKey::from(A)).or_default().allowed_ips = prefixes;
    let change = DeviceChange::between(&wish, None, &state_of(&DeviceConfig::default())).unwrap();
    let mut kernel = DeviceConfig::default();
    let sizes = model::carry_out(&mut kernel, &change);
    assert_eq!(kernel, wish);
    assert!(sizes.len() > 3 && sizes.iter().all(|size| *size <= encode::MESSAGE_BYTES_MAX), "{sizes:?}");

    // And all of them go again, the peer staying.
    let mut bare = wish.clone();
    bare.peers.entry(PublicKey::from(A)).or_default().allowed_ips.clear();
    let change = DeviceChange::between(&bare, Some(&wish), &state_of(&wish)).unwrap();
    model::carry_out(&mut kernel, &change);
    assert_eq!(kernel, bare);
}

#[test]
fn a_name_that_is_none_is_refused() {
    for name in ["", "sixteen-letters.", "a\0b"] {
        assert!(matches!(encode::get(name), Err(DeviceError::Name { .. })), "{name:?}");
        assert!(encode::set(name, &DeviceChange::default()).is_err());
    }
}

#[tokio::test]
async fn a_kernel_without_wireguard_says_so() {
    use crate::{Device, KernelDevice, kernel_has_wireguard};
    let device = KernelDevice::new("weft.none");
    let error = device.read().await.unwrap_err();
    assert!(error.is_absent(), "{error}");
    if kernel_has_wireguard().await.unwrap() {
        assert!(matches!(error, DeviceError::NoLink { .. }), "{error}");
    } else {
        assert!(matches!(error, DeviceError::NoModule), "{error}");
    }
}

proptest! {
    #[test]
    fn the_kernel_becomes_as_wished(wish in config(), before in device()) {
        let Some(change) = DeviceChange::between(&wish, None, &state_of(&before)) else { return Ok(()) };
        let (mut expected, mut kernel) = (before.clone(), before);
        expected.apply(&change);
        model::carry_out(&mut kernel, &change);
        prop_assert_eq!(kernel, expected);
    }

    #[test]
    fn a_dump_in_pieces_is_the_device(device in device(), prefixes_per_message in 1_usize..4) {
        let mut expected = state_of(&device);
        expected.kind = DeviceKind::Kernel;
        for peer in expected.peers.values_mut() {
            (peer.rx_bytes, peer.tx_bytes) = (1, 2);
        }
        prop_assert_eq!(joined(&model::dump(&device, prefixes_per_message)).state, expected);
    }

    #[test]
    fn a_damaged_dump_is_read_or_refused(device in device(), at: usize, byte: u8, cut: usize) {
        let mut messages = model::dump(&device, 2);
        let index = at % messages.len();
        let message = &mut messages[index];
        let position = at % message.len();
        message[position] = byte;
        message.truncate(message.len() - cut % 8);
        let mut dump = Dump::default();
        for message in &messages {
            let _ = dump.join(message);
        }
    }
}
