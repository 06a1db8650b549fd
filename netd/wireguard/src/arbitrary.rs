// SPDX-License-Identifier: Apache-2.0
//! Configurations for property tests: few keys and few prefixes, so that they meet often.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use ipnet::IpNet;
use proptest::{collection::vec, option, prelude::*};

use crate::{
    DeviceChange, DeviceConfig, DeviceKind, DeviceState, PeerChange, PeerConfig, PeerState, PresharedKey,
    PrivateKey, PublicKey,
};

pub(crate) fn private_key() -> impl Strategy<Value = PrivateKey> {
    (0_u8..3).prop_map(|number| PrivateKey::from([number + 1; 32]))
}

/// Of a peer; one is that of a [`private_key`].
pub(crate) fn public_key() -> impl Strategy<Value = PublicKey> {
    prop_oneof![
        9 => (0_u8..6).prop_map(|number| PublicKey::from([number * 16 + 9; 32])),
        1 => Just(PrivateKey::from([1; 32]).public()),
    ]
}

pub(crate) fn prefix() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (0_u8..6).prop_map(|block| format!("10.244.{block}.0/26").parse().unwrap()),
        (0_u8..3).prop_map(|host| format!("10.244.0.{host}/32").parse().unwrap()),
        (0_u8..3).prop_map(|block| format!("fd00:10:244:{block}::/64").parse().unwrap()),
        Just("0.0.0.0/0".parse().unwrap()),
    ]
}

pub(crate) fn endpoint() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![
        (0_u8..3, 51_820_u16..51_822).prop_map(|(host, port)| SocketAddr::from(([192, 0, 2, host], port))),
        (0_u16..3).prop_map(|host| SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, host], 51_820))),
    ]
}

fn preshared_key() -> impl Strategy<Value = PresharedKey> {
    (1_u8..4).prop_map(|number| PresharedKey::from([number; 32]))
}

/// Prefixes of several peers may collide.
pub(crate) fn config() -> impl Strategy<Value = DeviceConfig> {
    let peer = (option::of(preshared_key()), option::of(endpoint()), 0_u16..3, vec(prefix(), 0..5)).prop_map(
        |(preshared_key, endpoint, persistent_keepalive, prefixes)| PeerConfig {
            preshared_key,
            endpoint,
            persistent_keepalive,
            allowed_ips: prefixes.into_iter().collect(),
        },
    );
    let peers = vec((public_key(), peer), 0..6).prop_map(BTreeMap::from_iter);
    let listen_port = prop_oneof![Just(None), Just(Some(0)), Just(Some(51_820)), Just(Some(51_821))];
    (option::of(private_key()), listen_port, 0_u32..3, peers).prop_map(
        |(private_key, listen_port, fwmark, peers)| DeviceConfig { private_key, listen_port, fwmark, peers },
    )
}

/// A configuration that a device can have: one owner for each prefix, no peer with its own key.
pub(crate) fn device() -> impl Strategy<Value = DeviceConfig> {
    config().prop_map(possible)
}

pub(crate) fn possible(mut config: DeviceConfig) -> DeviceConfig {
    if let Some(own_key) = config.private_key.as_ref().map(PrivateKey::public) {
        config.peers.remove(&own_key);
    }
    let mut owned = BTreeSet::new();
    for peer in config.peers.values_mut() {
        peer.allowed_ips.retain(|prefix| owned.insert(*prefix));
    }
    config
}

/// What a device with this configuration says.
pub(crate) fn state_of(config: &DeviceConfig) -> DeviceState {
    let peer = |(key, config): (&PublicKey, &PeerConfig)| {
        (*key, PeerState { config: config.clone(), ..PeerState::default() })
    };
    DeviceState {
        kind: DeviceKind::User,
        public_key: config.private_key.as_ref().map(PrivateKey::public),
        listen_port: config.listen_port.unwrap_or(0),
        fwmark: config.fwmark,
        peers: config.peers.iter().map(peer).collect(),
    }
}

/// Any request.
pub(crate) fn change() -> impl Strategy<Value = DeviceChange> {
    let keys = (option::of(preshared_key()), any::<bool>());
    let prefixes = (vec(prefix(), 0..3), vec(prefix(), 0..4));
    let peer =
        (public_key(), any::<[bool; 3]>(), keys, option::of(endpoint()), option::of(any::<u16>()), prefixes);
    let peer = peer.prop_map(|(key, [remove, update_only, replace], psk, endpoint, keepalive, prefixes)| {
        PeerChange {
            remove,
            update_only,
            preshared_key: psk.1.then_some(psk.0),
            endpoint,
            persistent_keepalive: keepalive,
            replace_allowed_ips: replace,
            remove_allowed_ips: prefixes.0,
            add_allowed_ips: prefixes.1,
            ..PeerChange::new(key)
        }
    });
    let device = (option::of(option::of(private_key())), option::of(any::<u16>()), option::of(any::<u32>()));
    (device, any::<bool>(), vec(peer, 0..5)).prop_map(
        |((private_key, listen_port, fwmark), replace_peers, peers)| DeviceChange {
            private_key,
            listen_port,
            fwmark,
            replace_peers,
            peers,
        },
    )
}
