// SPDX-License-Identifier: Apache-2.0
//! The two devices of a node: one for even generations of keys, one for odd ones.

use std::collections::BTreeMap;

use netd_plan::generation::HANDSHAKE_FRESH_MS;
use netd_plan::links::WIREGUARD_DEVICES;
use netd_wireguard::{
    Device, DeviceChange, DeviceConfig, DeviceError, DeviceKind, DeviceState, KernelDevice, PeerChange,
    PeerConfig, PeerState, PublicKey, UserDevice,
};

use super::state::PeerLink;
use crate::config::Config;

/// Bytes of a keepalive: a header and an empty packet's tag (WireGuard paper, 5.4.6). It asks for no answer.
const KEEPALIVE_BYTES: u64 = 32;
/// Whoever gets a packet sends one back within 10 s, if only an empty one (KEEPALIVE_TIMEOUT, WireGuard paper 6.5).
const SILENT_MS: u64 = 15_000;

/// Both devices, with what was last wished for and last seen.
pub(super) struct Devices {
    slots: [Slot; 2],
}

struct Slot {
    device: Box<dyn Device>,
    applied: Option<DeviceConfig>,
    seen: Option<(u64, DeviceState)>,
    before: Option<(u64, DeviceState)>,
    heard: BTreeMap<PublicKey, Hearing>,
}

impl Devices {
    pub(super) fn new(config: &Config, kind: DeviceKind) -> Self {
        let slots = WIREGUARD_DEVICES.map(|name| {
            let device: Box<dyn Device> = match kind {
                DeviceKind::Kernel => Box::new(KernelDevice::new(name)),
                DeviceKind::User => Box::new(UserDevice::new(&config.wireguard_socket_dir, name)),
            };
            Slot { device, applied: None, seen: None, before: None, heard: BTreeMap::new() }
        });
        Self { slots }
    }

    /// Reads both devices at once: one that does not answer costs the other one's round no more than its own
    /// time. Gives those that could not be read, by generation modulo 2.
    pub(super) async fn read(&mut self, now_ms: u64) -> Vec<(u64, DeviceError)> {
        let [even, odd] = &mut self.slots;
        let (even, odd) = tokio::join!(even.read(now_ms), odd.read(now_ms));
        let failed = |(slot, result): (u64, Result<(), DeviceError>)| Some((slot, result.err()?));
        [(0, even), (1, odd)].into_iter().filter_map(failed).collect()
    }

    /// Makes the device of a generation as wished; true when something was to be done.
    pub(super) async fn apply(&mut self, generation: u64, wish: &DeviceConfig) -> Result<bool, DeviceError> {
        let slot = self.slot(generation);
        let Some((at, observed)) = &slot.seen else { return Ok(false) };
        let silent = |key: &PublicKey| slot.heard.get(key).is_some_and(|heard| heard.is_silent(*at));
        let applied = endpoints_in_force(wish, slot.applied.as_ref(), observed, *at, silent);
        let Some(change) = wanted_change(wish, Some(&applied), observed) else {
            slot.applied = Some(wish.clone());
            return Ok(false);
        };
        slot.device.apply(&change).await?;
        tracing::info!(device = slot.device.ifname(), %change, "WireGuard device configured");
        let at = *at;
        slot.applied = Some(wish.clone());
        slot.seen = Some((at, slot.device.read().await?));
        Ok(true)
    }

    /// Makes the device of a generation send a packet to each peer that it has an endpoint of.
    pub(super) async fn speak(&mut self, generation: u64) -> Result<(), DeviceError> {
        let slot = self.slot(generation);
        let Some((_, state)) = &slot.seen else { return Ok(()) };
        let known = state.peers.iter().filter(|(_, peer)| peer.config.endpoint.is_some());
        let peers = known.flat_map(|(key, peer)| spoken_to(*key, peer.config.persistent_keepalive)).collect();
        slot.device.apply(&DeviceChange { peers, ..DeviceChange::default() }).await
    }

    /// Whether the device of a generation answered in this round.
    pub(super) fn answers(&self, generation: u64) -> bool {
        self.slots[(generation % 2) as usize].seen.is_some()
    }

    /// Whether the device of a generation has this key and peers.
    pub(super) fn serves(&self, generation: u64, key: &PublicKey) -> bool {
        let seen = self.slots[(generation % 2) as usize].seen.as_ref();
        seen.is_some_and(|(_, state)| state.public_key.as_ref() == Some(key) && !state.peers.is_empty())
    }

    /// The wish with all that the device of a generation has beside it: its peers, and their prefixes as they are.
    pub(super) fn only_adding(&self, generation: u64, mut wish: DeviceConfig) -> DeviceConfig {
        let Some((_, state)) = &self.slots[(generation % 2) as usize].seen else { return wish };
        for (key, peer) in &state.peers {
            wish.peers.insert(*key, peer.config.clone());
        }
        let had: std::collections::BTreeSet<_> =
            state.peers.values().flat_map(|peer| peer.config.allowed_ips.iter().copied()).collect();
        for (_, peer) in wish.peers.iter_mut().filter(|(key, _)| !state.peers.contains_key(key)) {
            peer.allowed_ips.retain(|net| !had.contains(net));
        }
        wish
    }

    /// Key and port that the device of a generation has now.
    pub(super) fn listening(&mut self, generation: u64) -> Option<(PublicKey, u16)> {
        let (_, state) = self.slot(generation).seen.as_ref()?;
        Some((state.public_key?, state.listen_port)).filter(|(_, port)| *port != 0)
    }

    /// The peer with this key in the device of a generation.
    pub(super) fn peer(&mut self, generation: u64, key: &PublicKey) -> Option<PeerLink> {
        let slot = self.slot(generation);
        let (at_ms, state) = slot.seen.as_ref()?;
        let peer = state.peers.get(key)?;
        let earlier = slot.before.as_ref().and_then(|(ms, before)| Some((*ms, before.peers.get(key)?)));
        let rate = |of: fn(&PeerState) -> u64| {
            earlier.map_or(0, |(before_ms, earlier)| {
                let bits = of(peer).saturating_sub(of(earlier)).saturating_mul(8);
                bits.saturating_mul(1_000) / at_ms.saturating_sub(before_ms).max(1)
            })
        };
        Some(PeerLink {
            generation,
            endpoint: peer.config.endpoint,
            handshake_ms: peer.last_handshake.map(|since| since.as_millis() as u64),
            rx_bytes: peer.rx_bytes,
            tx_bytes: peer.tx_bytes,
            rx_bits_per_sec: rate(|peer| peer.rx_bytes),
            tx_bits_per_sec: rate(|peer| peer.tx_bytes),
        })
    }

    fn slot(&mut self, generation: u64) -> &mut Slot {
        &mut self.slots[(generation % 2) as usize]
    }
}

impl Slot {
    async fn read(&mut self, now_ms: u64) -> Result<(), DeviceError> {
        match self.device.read().await {
            Ok(state) => {
                self.heard.retain(|key, _| state.peers.contains_key(key));
                for (key, peer) in &state.peers {
                    self.heard.entry(*key).or_insert_with(|| Hearing::new(peer, now_ms)).note(peer, now_ms);
                }
                self.before = self.seen.replace((now_ms, state));
                Ok(())
            }
            Err(error) => {
                (self.seen, self.before) = (None, None);
                self.heard.clear();
                Err(error)
            }
        }
    }
}

/// A keepalive that is switched on sends a packet at once, in the kernel (`set_peer` of its netlink.c) and in
/// weft-wireguard.
fn spoken_to(key: PublicKey, keepalive_secs: u16) -> impl Iterator<Item = PeerChange> {
    let each = [0, keepalive_secs.max(1), keepalive_secs];
    each.into_iter().map(move |secs| PeerChange {
        update_only: true,
        persistent_keepalive: Some(secs),
        ..PeerChange::new(key)
    })
}

/// When a peer was last heard, and whether it should have been heard since.
#[derive(Clone, Copy, Debug)]
struct Hearing {
    rx_bytes: u64,
    /// Sent when it was last heard.
    tx_bytes: u64,
    at_ms: u64,
    /// Since when more was sent than what asks for no answer.
    unanswered_ms: Option<u64>,
}

impl Hearing {
    fn new(peer: &PeerState, now_ms: u64) -> Self {
        Self { rx_bytes: peer.rx_bytes, tx_bytes: peer.tx_bytes, at_ms: now_ms, unanswered_ms: None }
    }

    fn note(&mut self, peer: &PeerState, now_ms: u64) {
        // Less: another device by the same name.
        if peer.rx_bytes != self.rx_bytes || peer.tx_bytes < self.tx_bytes {
            *self = Self::new(peer, now_ms);
            return;
        }
        let every_ms = u64::from(peer.config.persistent_keepalive) * 1_000;
        let keepalives = now_ms.saturating_sub(self.at_ms).checked_div(every_ms).map_or(0, |count| count + 1);
        if peer.tx_bytes - self.tx_bytes > keepalives.saturating_mul(KEEPALIVE_BYTES) {
            self.unanswered_ms.get_or_insert(now_ms);
        }
    }

    fn is_silent(&self, now_ms: u64) -> bool {
        self.unanswered_ms.is_some_and(|since| now_ms.saturating_sub(since) >= SILENT_MS)
    }
}

/// Which published endpoints stand, also where the device has another: the peer spoke from there, which is true of one
/// behind a NAT and of one that moved. The published one is set anew where the tunnel is dead, for the one that was learnt
/// leads nowhere then, and where it changed, unless the peer is heard from elsewhere: behind a NAT it is another's
/// address. So a restart of netd leaves a peer where it is.
fn endpoints_in_force(
    wish: &DeviceConfig,
    applied: Option<&DeviceConfig>,
    observed: &DeviceState,
    now_ms: u64,
    silent: impl Fn(&PublicKey) -> bool,
) -> DeviceConfig {
    let lives = |key: &PublicKey| {
        let at = observed.peers.get(key).and_then(|peer| peer.last_handshake);
        at.is_some_and(|at| now_ms.saturating_sub(at.as_millis() as u64) < HANDSHAKE_FRESH_MS) && !silent(key)
    };
    let stands = |key: &PublicKey, peer: &PeerConfig| {
        let last = applied.map(|applied| applied.peers.get(key).and_then(|last| last.endpoint));
        let seen = observed.peers.get(key).and_then(|seen| seen.config.endpoint);
        lives(key) && last.is_none_or(|last| last == peer.endpoint || last != seen)
    };
    let peers = wish.peers.iter().filter(|(key, peer)| stands(key, peer));
    DeviceConfig { peers: peers.map(|(key, peer)| (*key, peer.clone())).collect(), ..DeviceConfig::default() }
}

/// A device without a key in the wish must lose the one that it has: it belongs to a generation that is gone.
fn wanted_change(
    wish: &DeviceConfig,
    applied: Option<&DeviceConfig>,
    observed: &DeviceState,
) -> Option<DeviceChange> {
    let change = DeviceChange::between(wish, applied, observed);
    if wish.private_key.is_some() || observed.public_key.is_none() {
        return change;
    }
    let mut change = change.unwrap_or_default();
    change.private_key = Some(None);
    Some(change)
}

/// Handshakes of a peer by generation, in milliseconds since the Unix epoch.
pub(super) fn handshakes(links: &[PeerLink]) -> BTreeMap<u64, u64> {
    links.iter().filter_map(|link| Some((link.generation, link.handshake_ms?))).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::SocketAddr;
    use std::time::Duration;

    use netd_wireguard::PrivateKey;

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
        assert_eq!(
            set(published, Some(published), learnt, HANDSHAKE_FRESH_MS),
            Some(published.parse().unwrap())
        );
        assert_eq!(set(moved, Some(published), published, 5_000), Some(moved.parse().unwrap()), "both moved");
        assert_eq!(
            set(moved, Some(published), learnt, 5_000),
            None,
            "behind a NAT, whose address is as before"
        );
        assert_eq!(set(published, Some(published), published, HANDSHAKE_FRESH_MS), None);
    }

    #[test]
    fn a_learnt_endpoint_that_does_not_answer_goes() {
        let (published, learnt) = ("192.0.2.1:51820", "198.51.100.9:40000");
        let anew = Some(published.parse().unwrap());
        assert_eq!(set_while(published, Some(published), learnt, (20_000, true)), anew);
        assert_eq!(set_while(published, None, learnt, (20_000, true)), anew, "a restart of netd");
    }

    fn counted(rx_bytes: u64, tx_bytes: u64) -> PeerState {
        let config = PeerConfig { persistent_keepalive: 25, ..PeerConfig::default() };
        PeerState { config, last_handshake: None, rx_bytes, tx_bytes }
    }

    #[test]
    fn a_peer_is_silent_when_packets_that_ask_for_an_answer_get_none() {
        let mut heard = Hearing::new(&counted(100, 100), 0);
        for now_ms in (5_000..=60_000).step_by(5_000) {
            let keepalives = 100 + now_ms / 25_000 * KEEPALIVE_BYTES;
            heard.note(&counted(100, keepalives), now_ms);
            assert!(!heard.is_silent(now_ms), "keepalives alone, at {now_ms}");
        }
        for now_ms in (65_000..80_000).step_by(5_000) {
            heard.note(&counted(100, 500), now_ms);
            assert!(!heard.is_silent(now_ms), "at {now_ms}");
        }
        assert!(heard.is_silent(80_000));
        heard.note(&counted(101, 600), 80_000);
        assert!(!heard.is_silent(100_000), "heard again");
        heard.note(&counted(101, 700), 100_000);
        heard.note(&counted(0, 0), 120_000);
        assert!(!heard.is_silent(120_000), "another device");
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
}
