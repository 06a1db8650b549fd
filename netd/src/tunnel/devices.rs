// SPDX-License-Identifier: Apache-2.0
//! The two devices of a node: one for even generations of keys, one for odd ones.

use std::collections::BTreeMap;

use netd_plan::generation::HANDSHAKE_FRESH_MS;
use netd_plan::links::WIREGUARD_DEVICES;
use netd_wireguard::{
    Device, DeviceChange, DeviceConfig, DeviceError, DeviceKind, DeviceState, KernelDevice, PeerChange,
    PeerConfig, PeerState, PublicKey, UserDevice,
};

use super::hearing::Hearing;
use super::state::PeerLink;
use crate::config::Config;

/// Both devices, with what was last wished for and last seen.
pub(super) struct Devices {
    slots: [Slot; 2],
}

/// A moment by both clocks, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// Since the Unix epoch, as the devices tell handshakes: somebody may set it.
    pub wall_ms: u64,
    /// Of a clock that is never set, for what is as long as it is.
    pub uptime_ms: u64,
}

struct Slot {
    device: Box<dyn Device>,
    applied: Option<DeviceConfig>,
    seen: Option<Seen>,
    before: Option<Seen>,
    heard: BTreeMap<PublicKey, Hearing>,
    /// Why it did not answer when it was last read.
    silent: Option<DeviceError>,
}

/// A device as it was.
struct Seen {
    at: Moment,
    state: DeviceState,
}

impl Devices {
    pub(super) fn new(config: &Config, kind: DeviceKind) -> Self {
        let slots = WIREGUARD_DEVICES.map(|name| {
            let device: Box<dyn Device> = match kind {
                DeviceKind::Kernel => Box::new(KernelDevice::new(name)),
                DeviceKind::User => Box::new(UserDevice::new(&config.wireguard_socket_dir, name)),
            };
            Slot::new(device)
        });
        Self { slots }
    }

    /// Reads both devices at once: one that does not answer costs the other one's round no more than its own
    /// time. Gives those that could not be read, by generation modulo 2.
    pub(super) async fn read(&mut self, now: Moment) -> Vec<(u64, &DeviceError)> {
        let [even, odd] = &mut self.slots;
        tokio::join!(even.read(now), odd.read(now));
        [(0, &*even), (1, &*odd)]
            .into_iter()
            .filter_map(|(of, slot)| Some((of, slot.silent.as_ref()?)))
            .collect()
    }

    /// Makes the device of a generation as wished; true when something was to be done.
    pub(super) async fn apply(&mut self, generation: u64, wish: &DeviceConfig) -> Result<bool, DeviceError> {
        let slot = self.slot(generation);
        let Some(Seen { at, state: observed }) = &slot.seen else { return Ok(false) };
        let silent = |key: &PublicKey| slot.heard.get(key).is_some_and(|heard| heard.is_silent(at.uptime_ms));
        let applied = endpoints_in_force(wish, slot.applied.as_ref(), observed, at.wall_ms, silent);
        let Some(change) = wanted_change(wish, Some(&applied), observed) else {
            slot.applied = Some(wish.clone());
            return Ok(false);
        };
        slot.device.apply(&change).await?;
        tracing::info!(device = slot.device.ifname(), %change, "WireGuard device configured");
        let at = *at;
        slot.applied = Some(wish.clone());
        slot.seen = Some(Seen { at, state: slot.device.read().await? });
        Ok(true)
    }

    /// Makes the device of a generation send a packet to each peer that it has an endpoint of; false where there was no
    /// device to do it.
    pub(super) async fn speak(&mut self, generation: u64) -> Result<bool, DeviceError> {
        let slot = self.slot(generation);
        let Some(Seen { state, .. }) = &slot.seen else { return Ok(false) };
        let known = state.peers.iter().filter(|(_, peer)| peer.config.endpoint.is_some());
        let known: Vec<_> = known.map(|(key, peer)| (*key, peer.config.persistent_keepalive)).collect();
        let peers = known.iter().flat_map(|(key, secs)| spoken_to(*key, *secs)).collect();
        slot.device.apply(&DeviceChange { peers, ..DeviceChange::default() }).await?;
        for (key, _) in &known {
            if let Some(heard) = slot.heard.get_mut(key) {
                heard.spoken_to();
            }
        }
        Ok(true)
    }

    /// Whether the device of a generation answered in this round.
    pub(super) fn answers(&self, generation: u64) -> bool {
        self.slots[(generation % 2) as usize].seen.is_some()
    }

    /// Why a key of this generation would not come into use now. The kernel's link is made for a key that is there: that
    /// there is none yet is no reason.
    pub(super) fn dead(&self, generation: u64) -> Option<String> {
        let silent = self.slots[(generation % 2) as usize].silent.as_ref();
        silent.filter(|error| !matches!(error, DeviceError::NoLink { .. })).map(ToString::to_string)
    }

    /// Whether the device of a generation has this key and peers.
    pub(super) fn serves(&self, generation: u64, key: &PublicKey) -> bool {
        let seen = self.slots[(generation % 2) as usize].seen.as_ref();
        seen.is_some_and(|seen| seen.state.public_key.as_ref() == Some(key) && !seen.state.peers.is_empty())
    }

    /// The wish with all that the device of a generation has beside it: its peers, and their prefixes as they are.
    pub(super) fn only_adding(&self, generation: u64, mut wish: DeviceConfig) -> DeviceConfig {
        let Some(Seen { state, .. }) = &self.slots[(generation % 2) as usize].seen else { return wish };
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
        let Seen { state, .. } = self.slot(generation).seen.as_ref()?;
        Some((state.public_key?, state.listen_port)).filter(|(_, port)| *port != 0)
    }

    /// The peer with this key in the device of a generation.
    pub(super) fn peer(&mut self, generation: u64, key: &PublicKey) -> Option<PeerLink> {
        let slot = self.slot(generation);
        let Seen { at, state } = slot.seen.as_ref()?;
        let peer = state.peers.get(key)?;
        let before = slot.before.as_ref();
        let earlier = before.and_then(|before| Some((before.at.uptime_ms, before.state.peers.get(key)?)));
        let rate = |of: fn(&PeerState) -> u64| {
            earlier.map_or(0, |(before_ms, earlier)| {
                let bits = of(peer).saturating_sub(of(earlier)).saturating_mul(8);
                bits.saturating_mul(1_000) / at.uptime_ms.saturating_sub(before_ms).max(1)
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
    fn new(device: Box<dyn Device>) -> Self {
        Self { device, applied: None, seen: None, before: None, heard: BTreeMap::new(), silent: None }
    }

    async fn read(&mut self, now: Moment) {
        match self.device.read().await {
            Ok(state) => {
                self.heard.retain(|key, _| state.peers.contains_key(key));
                for (key, peer) in &state.peers {
                    let new = || Hearing::new(peer, now.uptime_ms);
                    self.heard.entry(*key).or_insert_with(new).note(peer, now.uptime_ms);
                }
                self.before = self.seen.replace(Seen { at: now, state });
                self.silent = None;
            }
            Err(error) => {
                (self.seen, self.before) = (None, None);
                self.heard.clear();
                self.silent = Some(error);
            }
        }
    }
}

/// A keepalive that is switched on sends a packet at once, to a peer that the device has: in the kernel (`set_peer` of its
/// netlink.c) and in weft-wireguard.
fn spoken_to(key: PublicKey, keepalive_secs: u16) -> impl Iterator<Item = PeerChange> {
    let each = [0, keepalive_secs.max(1), keepalive_secs];
    each.into_iter().map(move |secs| PeerChange {
        update_only: true,
        persistent_keepalive: Some(secs),
        ..PeerChange::new(key)
    })
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
mod tests;
