// SPDX-License-Identifier: Apache-2.0
//! Two devices, one of them a fake, and what netd makes of what they say.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use netd_wireguard::PrivateKey;

use super::super::hearing::KEEPALIVE_BYTES;
use super::*;

const NOW_MS: u64 = 1_000_000;

fn wish(key: PublicKey, endpoint: &str) -> DeviceConfig {
    let peer = PeerConfig { endpoint: Some(endpoint.parse().unwrap()), ..PeerConfig::default() };
    DeviceConfig { peers: BTreeMap::from([(key, peer)]), ..DeviceConfig::default() }
}

/// The endpoint that netd sets, where it sets one.
fn set(wished: &str, applied: Option<&str>, learnt: &str, handshake_age_ms: u64) -> Option<SocketAddr> {
    set_while(wished, applied, learnt, (handshake_age_ms, false))
}

fn set_while(
    wished: &str,
    applied: Option<&str>,
    learnt: &str,
    (handshake_age_ms, silent): (u64, bool),
) -> Option<SocketAddr> {
    let key = PrivateKey::from([7; 32]).public();
    let mut observed = DeviceState {
        kind: DeviceKind::User,
        public_key: None,
        listen_port: 0,
        fwmark: 0,
        peers: BTreeMap::new(),
    };
    let peer = PeerState {
        config: wish(key, learnt).peers.remove(&key).unwrap(),
        last_handshake: Some(Duration::from_millis(NOW_MS - handshake_age_ms)),
        rx_bytes: 0,
        tx_bytes: 0,
    };
    observed.peers.insert(key, peer);
    let wished = wish(key, wished);
    let applied = applied.map(|endpoint| wish(key, endpoint));
    let applied = endpoints_in_force(&wished, applied.as_ref(), &observed, NOW_MS, |_| silent);
    let change = wanted_change(&wished, Some(&applied), &observed);
    change.and_then(|change| change.peers.first()?.endpoint)
}

#[test]
fn a_learnt_endpoint_stays_while_the_tunnel_lives() {
    let (published, learnt, moved) = ("192.0.2.1:51820", "198.51.100.9:40000", "192.0.2.7:51820");
    assert_eq!(set(published, Some(published), learnt, 5_000), None);
    assert_eq!(set(published, None, learnt, 5_000), None, "a restart of netd");
    assert_eq!(set(published, Some(published), learnt, HANDSHAKE_FRESH_MS), Some(published.parse().unwrap()));
    assert_eq!(set(moved, Some(published), published, 5_000), Some(moved.parse().unwrap()), "both moved");
    assert_eq!(set(moved, Some(published), learnt, 5_000), None, "behind a NAT, whose address is as before");
    assert_eq!(set(published, Some(published), published, HANDSHAKE_FRESH_MS), None);
}

#[test]
fn a_learnt_endpoint_that_does_not_answer_goes() {
    let (published, learnt) = ("192.0.2.1:51820", "198.51.100.9:40000");
    let anew = Some(published.parse().unwrap());
    assert_eq!(set_while(published, Some(published), learnt, (20_000, true)), anew);
    assert_eq!(set_while(published, None, learnt, (20_000, true)), anew, "a restart of netd");
}

#[test]
fn to_speak_is_to_switch_the_keepalive_on() {
    let key = PrivateKey::from([7; 32]).public();
    let secs = |keepalive: u16| -> Vec<_> {
        spoken_to(key, keepalive).map(|change| change.persistent_keepalive.unwrap()).collect()
    };
    assert_eq!(secs(25), [0, 25, 25]);
    assert_eq!(secs(0), [0, 1, 0], "and it stays off");
}

/// A device with one peer that has its endpoint, and takes all that it is told.
#[derive(Clone)]
struct Fake(Arc<Mutex<DeviceState>>);

impl Fake {
    fn peer(&self, change: impl FnMut(&mut PeerState)) {
        self.0.lock().unwrap().peers.values_mut().for_each(change);
    }
}

impl Device for Fake {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Kernel
    }

    fn ifname(&self) -> &str {
        "weft.wg0"
    }

    fn read<'life0, 'async_trait>(&'life0 self) -> BoxFuture<'async_trait, Result<DeviceState, DeviceError>>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async { Ok(self.0.lock().unwrap().clone()) })
    }

    fn apply<'life0, 'life1, 'async_trait>(
        &'life0 self,
        change: &'life1 DeviceChange,
    ) -> BoxFuture<'async_trait, Result<(), DeviceError>>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async {
            let mut state = self.0.lock().unwrap();
            for change in &change.peers {
                let peer = state.peers.get_mut(&change.public_key).unwrap();
                if let Some(secs) = change.persistent_keepalive {
                    let is_on = peer.config.persistent_keepalive == 0 && secs != 0;
                    peer.tx_bytes += if is_on { KEEPALIVE_BYTES } else { 0 };
                    peer.config.persistent_keepalive = secs;
                }
                peer.config.endpoint = change.endpoint.or(peer.config.endpoint);
            }
            Ok(())
        })
    }
}

const PUBLISHED: &str = "10.0.0.1:51820";
const LEARNT: &str = "198.51.100.9:40000";

/// A peer behind a NAT in the device of even generations, heard at second 0, and what is wished for it.
fn behind_a_nat(keepalive_secs: u16) -> (Devices, Fake, DeviceConfig) {
    let key = PrivateKey::from([7; 32]).public();
    let with = |endpoint: &str| {
        let mut wish = wish(key, endpoint);
        wish.peers.get_mut(&key).unwrap().persistent_keepalive = keepalive_secs;
        wish
    };
    let last_handshake = Some(Duration::from_millis(NOW_MS));
    let config = with(LEARNT).peers.remove(&key).unwrap();
    let peer = PeerState { config, last_handshake, rx_bytes: 1_000, tx_bytes: 1_000 };
    let mut state = DeviceState::new(DeviceKind::Kernel);
    state.peers.insert(key, peer);
    let fake = Fake(Arc::new(Mutex::new(state)));
    let absent = UserDevice::new("/nonexistent", "weft.wg1");
    let devices = Devices { slots: [Slot::new(Box::new(fake.clone())), Slot::new(Box::new(absent))] };
    (devices, fake, with(PUBLISHED))
}

fn second(second: u64) -> Moment {
    Moment { wall_ms: NOW_MS + second * 1_000, uptime_ms: second * 1_000 }
}

fn endpoint(fake: &Fake) -> String {
    fake.0.lock().unwrap().peers.values().next().unwrap().config.endpoint.unwrap().to_string()
}

#[tokio::test]
async fn a_node_that_got_another_address_keeps_its_peers_where_they_are() {
    for keepalive_secs in [25, 0] {
        let (mut devices, fake, wish) = behind_a_nat(keepalive_secs);
        // The peer's own keepalive comes 25 s after the last of ours.
        for at in 0..27 {
            devices.read(second(at)).await;
            devices.apply(0, &wish).await.unwrap();
            if at < 3 {
                assert!(devices.speak(0).await.unwrap());
            }
            assert_eq!(endpoint(&fake), LEARNT, "after {at} s, keepalive {keepalive_secs}");
        }
        // What asks for an answer and gets none is something else.
        fake.peer(|peer| peer.tx_bytes += 1_000);
        for at in 27..43 {
            devices.read(second(at)).await;
            devices.apply(0, &wish).await.unwrap();
        }
        assert_eq!(endpoint(&fake), PUBLISHED);
    }
}

#[tokio::test]
async fn a_clock_that_is_set_makes_no_peer_silent() {
    let (mut devices, fake, wish) = behind_a_nat(25);
    devices.read(second(0)).await;
    fake.peer(|peer| peer.tx_bytes += 1_000);
    devices.read(second(1)).await;
    let set = Moment { wall_ms: second(1).wall_ms + 20_000, ..second(2) };
    devices.read(set).await;
    devices.apply(0, &wish).await.unwrap();
    assert_eq!(endpoint(&fake), LEARNT);
}

#[tokio::test]
async fn a_device_that_nobody_runs_takes_neither_words_nor_keys() {
    let (mut devices, _, _) = behind_a_nat(25);
    assert_eq!((devices.dead(0), devices.dead(1)), (None, None), "not looked at yet");
    devices.read(second(0)).await;
    assert_eq!(devices.dead(2), None);
    let why = devices.dead(3).unwrap();
    assert!(why.contains("weft-wireguard does not answer"), "{why}");
    assert!(!devices.speak(1).await.unwrap());
    // The kernel's link comes with the key.
    let ifname = "weft.wg1".to_owned();
    devices.slots[1].silent = Some(DeviceError::NoLink { ifname });
    assert_eq!(devices.dead(3), None);
}
