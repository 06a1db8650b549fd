// SPDX-License-Identifier: Apache-2.0
//! Changes on a model of a device.

use proptest::prelude::*;

use super::*;
use crate::arbitrary::{config, device, endpoint, possible, public_key, state_of};

fn key(number: u8) -> PublicKey {
    PublicKey::from([number; 32])
}

fn prefixes(text: &str) -> BTreeSet<IpNet> {
    text.split_whitespace().map(|prefix| prefix.parse().unwrap()).collect()
}

fn peer(allowed_ips: &str) -> PeerConfig {
    PeerConfig { allowed_ips: prefixes(allowed_ips), ..PeerConfig::default() }
}

fn device_with(peers: &[(u8, PeerConfig)]) -> DeviceConfig {
    let peers = peers.iter().map(|(number, peer)| (key(*number), peer.clone())).collect();
    DeviceConfig { peers, ..DeviceConfig::default() }
}

fn change(from: &DeviceConfig, to: &DeviceConfig) -> Option<DeviceChange> {
    DeviceChange::between(to, Some(from), &state_of(from))
}

#[test]
fn a_prefix_that_moves_is_only_added() {
    let before = device_with(&[(1, peer("10.0.1.0/26 10.0.2.0/26")), (2, peer("10.0.3.0/26"))]);
    let after = device_with(&[(1, peer("10.0.1.0/26")), (2, peer("10.0.2.0/26 10.0.3.0/26"))]);
    let change = change(&before, &after).unwrap();
    let added = PeerChange {
        update_only: true,
        add_allowed_ips: vec!["10.0.2.0/26".parse().unwrap()],
        ..PeerChange::new(key(2))
    };
    assert_eq!(change.peers, [added], "the other peer's prefixes are not touched");
}

#[test]
fn two_peers_swap_prefixes() {
    let before = device_with(&[(1, peer("10.0.1.0/26")), (2, peer("10.0.2.0/26"))]);
    let after = device_with(&[(1, peer("10.0.2.0/26")), (2, peer("10.0.1.0/26"))]);
    let change = change(&before, &after).unwrap();
    assert!(change.peers.iter().all(|peer| peer.remove_allowed_ips.is_empty() && !peer.replace_allowed_ips));
    let mut model = before;
    model.apply(&change);
    assert_eq!(model, after);
}

#[test]
fn a_node_with_a_new_key_takes_over_before_the_old_peer_goes() {
    let before = device_with(&[(1, peer("10.0.1.0/26")), (5, peer("10.0.5.0/26"))]);
    let after = device_with(&[(9, peer("10.0.1.0/26")), (5, peer("10.0.5.0/26"))]);
    let change = change(&before, &after).unwrap();
    assert_eq!(change.peers.len(), 2);
    assert_eq!((change.peers[0].public_key, change.peers[0].remove), (key(9), false));
    assert_eq!(change.peers[1], PeerChange::removed(key(1)));
    assert_eq!(change.to_string(), "peers: 1 set, 1 removed");
}

#[test]
fn a_prefix_of_nobody_is_taken_away_alone() {
    let before = device_with(&[(1, peer("10.0.1.0/26 10.0.2.0/26"))]);
    let after = device_with(&[(1, peer("10.0.1.0/26"))]);
    let change = change(&before, &after).unwrap();
    assert_eq!(change.peers[0].remove_allowed_ips, ["10.0.2.0/26".parse().unwrap()]);
    assert!(!change.peers[0].replace_allowed_ips);
}

#[test]
fn a_peer_that_roamed_is_left_where_it_is() {
    let at =
        |endpoint: &str| PeerConfig { endpoint: Some(endpoint.parse().unwrap()), ..PeerConfig::default() };
    let wish = device_with(&[(1, at("192.0.2.1:51820"))]);
    let roamed = state_of(&device_with(&[(1, at("198.51.100.7:4242"))]));
    assert_eq!(DeviceChange::between(&wish, Some(&wish), &roamed), None);

    let new_wish = device_with(&[(1, at("192.0.2.9:51820"))]);
    let change = DeviceChange::between(&new_wish, Some(&wish), &roamed).unwrap();
    assert_eq!(change.peers[0].endpoint, Some("192.0.2.9:51820".parse().unwrap()));

    let after_a_restart = DeviceChange::between(&wish, None, &roamed).unwrap();
    assert_eq!(after_a_restart.peers[0].endpoint, Some("192.0.2.1:51820".parse().unwrap()));

    let nowhere = state_of(&device_with(&[(1, PeerConfig::default())]));
    let change = DeviceChange::between(&wish, Some(&wish), &nowhere).unwrap();
    assert_eq!(change.peers[0].endpoint, Some("192.0.2.1:51820".parse().unwrap()));

    let no_wish = device_with(&[(1, PeerConfig::default())]);
    assert_eq!(DeviceChange::between(&no_wish, Some(&wish), &roamed), None, "it cannot be taken away");
}

#[test]
fn a_device_that_started_anew_gets_everything() {
    let mut wish = device_with(&[(1, peer("10.0.1.0/26")), (2, peer("10.0.2.0/26"))]);
    wish.private_key = Some(PrivateKey::from([7; 32]));
    wish.listen_port = Some(51_820);
    let change = DeviceChange::between(&wish, Some(&wish), &state_of(&DeviceConfig::default())).unwrap();
    assert_eq!(change.to_string(), "private key, listen port 51820, peers: 2 set");
    let mut model = DeviceConfig::default();
    model.apply(&change);
    assert_eq!(model, wish);
}

#[test]
fn a_port_of_its_own_choice_is_kept() {
    let wish = DeviceConfig { listen_port: Some(0), ..DeviceConfig::default() };
    let chosen = DeviceConfig { listen_port: Some(40_000), ..DeviceConfig::default() };
    assert_eq!(change(&chosen, &wish), None);
    assert_eq!(change(&DeviceConfig::default(), &wish).unwrap().listen_port, Some(0));
}

#[test]
fn a_thousand_peers_are_compared_in_no_time() {
    let net = |number: u16| format!("10.{}.{}.0/26", number >> 8, number & 255);
    let mut wish = DeviceConfig::default();
    for number in 0..1_000_u16 {
        let mut key = [9; 32];
        key[..2].copy_from_slice(&number.to_be_bytes());
        wish.peers.insert(PublicKey::from(key), peer(&net(number)));
    }
    let change = DeviceChange::between(&wish, None, &state_of(&DeviceConfig::default())).unwrap();
    assert_eq!(change.to_string(), "peers: 1000 set");
    let mut model = DeviceConfig::default();
    model.apply(&change);
    assert_eq!(DeviceChange::between(&wish, Some(&wish), &state_of(&model)), None);
}

#[test]
fn nothing_secret_is_in_the_log_line() {
    let change = DeviceChange {
        private_key: Some(Some(PrivateKey::from([7; 32]))),
        fwmark: Some(3),
        replace_peers: true,
        peers: vec![PeerChange {
            preshared_key: Some(Some(PresharedKey::from([5; 32]))),
            ..PeerChange::new(key(1))
        }],
        ..DeviceChange::default()
    };
    assert_eq!(change.to_string(), "private key, fwmark 3, all peers replaced, peers: 1 set");
    assert!(!format!("{change:?}").contains("[5, 5"));
    assert_eq!(DeviceChange::default().to_string(), "nothing");
}

/// Who has a prefix.
fn owner(config: &DeviceConfig, prefix: &IpNet) -> Option<PublicKey> {
    config.peers.iter().find(|(_, peer)| peer.allowed_ips.contains(prefix)).map(|(key, _)| *key)
}

proptest! {
    #[test]
    fn a_change_makes_the_device_as_wished(wish in config(), last in proptest::option::of(config()), before in device()) {
        let mut after = before.clone();
        let changed = DeviceChange::between(&wish, last.as_ref(), &state_of(&before));
        if let Some(change) = &changed {
            after.apply(change);
        }

        // What cannot be is not wished: a peer that is the device itself, a prefix with two owners.
        let mut expected = wish.clone();
        expected.private_key = expected.private_key.or_else(|| before.private_key.clone());
        let mut expected = possible(expected);
        expected.listen_port = match wish.listen_port {
            None => before.listen_port,
            Some(0) if before.listen_port.is_some_and(|port| port != 0) => before.listen_port,
            port => port,
        };
        for (key, peer) in &mut expected.peers {
            let Some(observed) = before.peers.get(key) else { continue };
            let last_wish = last.as_ref().and_then(|last| last.peers.get(key));
            let roamed = last_wish.is_some_and(|last| last.endpoint == peer.endpoint);
            if observed.endpoint.is_some() && (roamed || peer.endpoint.is_none()) {
                peer.endpoint = observed.endpoint;
            }
        }
        prop_assert_eq!(&after, &expected);

        let mut state = state_of(&after);
        if wish.listen_port == Some(0) && state.listen_port == 0 {
            state.listen_port = 40_000;
        }
        prop_assert_eq!(DeviceChange::between(&wish, Some(&wish), &state), None, "a second time");
    }

    #[test]
    fn no_packet_finds_no_owner_meanwhile(wish in config(), before in device()) {
        let Some(change) = DeviceChange::between(&wish, None, &state_of(&before)) else { return Ok(()) };
        let mut after = before.clone();
        after.apply(&change);
        let device = DeviceChange { peers: Vec::new(), ..change.clone() };
        let mut now = before.clone();
        now.apply(&device);
        for peer in &change.peers {
            let one = DeviceChange { peers: vec![peer.clone()], ..DeviceChange::default() };
            now.apply(&one);
            prop_assert!(!(peer.replace_allowed_ips && before.peers.contains_key(&peer.public_key)));
            for prefix in before.peers.values().flat_map(|peer| &peer.allowed_ips) {
                // A peer with the device's new key goes at once: it cannot be its own peer.
                let stays = owner(&after, prefix).is_some();
                let had = owner(&before, prefix).filter(|key| Some(*key) != wish.private_key.as_ref().map(PrivateKey::public));
                prop_assert!(!stays || had.is_none() || owner(&now, prefix).is_some(), "{}", prefix);
            }
        }
    }

    #[test]
    fn a_device_as_wished_is_left_alone(device in device(), roamed in endpoint(), who in public_key()) {
        let mut observed = state_of(&device);
        if let Some(peer) = observed.peers.get_mut(&who) {
            peer.config.endpoint = Some(roamed);
        }
        let wish = DeviceConfig { listen_port: device.listen_port.filter(|port| *port != 0), ..device };
        prop_assert_eq!(DeviceChange::between(&wish, Some(&wish), &observed), None);
    }
}
