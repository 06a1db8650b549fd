// SPDX-License-Identifier: Apache-2.0
//! The two devices of a node: one for even generations of keys, one for odd ones.

use std::collections::BTreeMap;

use netd_plan::generation::HANDSHAKE_FRESH_MS;
use netd_plan::links::WIREGUARD_DEVICES;
use netd_wireguard::{
    Device, DeviceChange, DeviceConfig, DeviceError, DeviceKind, DeviceState, KernelDevice, PeerConfig,
    PeerState, PublicKey, UserDevice,
};

use super::state::PeerLink;
use crate::config::Config;

/// Both devices, with what was last wished for and last seen.
pub(super) struct Devices {
    slots: [Slot; 2],
}

struct Slot {
    device: Box<dyn Device>,
    applied: Option<DeviceConfig>,
    seen: Option<(u64, DeviceState)>,
    before: Option<(u64, DeviceState)>,
}

impl Devices {
    pub(super) fn new(config: &Config, kind: DeviceKind) -> Self {
        let slots = WIREGUARD_DEVICES.map(|name| {
            let device: Box<dyn Device> = match kind {
                DeviceKind::Kernel => Box::new(KernelDevice::new(name)),
                DeviceKind::User => Box::new(UserDevice::new(&config.wireguard_socket_dir, name)),
            };
            Slot { device, applied: None, seen: None, before: None }
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
        let applied = endpoints_in_force(wish, slot.applied.as_ref(), observed, *at);
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
                self.before = self.seen.replace((now_ms, state));
                Ok(())
            }
            Err(error) => {
                (self.seen, self.before) = (None, None);
                Err(error)
            }
        }
    }
}

/// Which published endpoints stand, also where the device has another: the peer spoke from there, which is true of one
/// behind a NAT and of one that moved. The published one is set anew where it changed, and where the tunnel is dead, for the
/// one that was learnt leads nowhere then. So a restart of netd leaves a peer where it is.
fn endpoints_in_force(
    wish: &DeviceConfig,
    applied: Option<&DeviceConfig>,
    observed: &DeviceState,
    now_ms: u64,
) -> DeviceConfig {
    let lives = |key: &PublicKey| {
        let at = observed.peers.get(key).and_then(|peer| peer.last_handshake);
        at.is_some_and(|at| now_ms.saturating_sub(at.as_millis() as u64) < HANDSHAKE_FRESH_MS)
    };
    let stands = |key: &PublicKey, peer: &PeerConfig| {
        let last = applied.map(|applied| applied.peers.get(key).and_then(|last| last.endpoint));
        lives(key) && last.is_none_or(|last| last == peer.endpoint)
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
        let applied = endpoints_in_force(&wished, applied.as_ref(), &observed, NOW_MS);
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
        assert_eq!(set(moved, Some(published), learnt, 5_000), Some(moved.parse().unwrap()));
        assert_eq!(set(published, Some(published), published, HANDSHAKE_FRESH_MS), None);
    }
}
