// SPDX-License-Identifier: Apache-2.0
//! A peer: its protocol state behind one lock, so that a single thread seals or opens for it at a time.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::cipher::{Cipher, Sealed};
use super::tunnel::Tunnel;
use super::udp::Endpoint;
use crate::{PresharedKey, PublicKey};

/// Which peer of a device: its place in the device's table.
pub(crate) type PeerId = u32;

/// One peer of one device.
pub(crate) struct Peer {
    pub id: PeerId,
    pub key: PublicKey,
    /// The upper 24 bits of our session indices with this peer: in each message that it sends us.
    pub index: u32,
    state: Mutex<PeerState>,
}

/// What changes while packets flow.
#[derive(Default)]
pub(crate) struct PeerState {
    /// `None` while the device has no key.
    pub cipher: Option<Cipher>,
    pub preshared_key: Option<PresharedKey>,
    pub endpoint: Option<Endpoint>,
    /// Seconds; 0: none.
    pub keepalive_secs: u16,
    /// Last authentic packet in either direction.
    pub last_authentic: Option<Instant>,
    /// Since the Unix epoch.
    pub last_handshake: Option<Duration>,
    /// We answered a handshake: it is complete when the first packet of its session comes.
    pub confirming: bool,
    /// Its timers run.
    pub ticking: bool,
    /// Packets wait for a session.
    pub waiting: bool,
    /// It had a session with the process before us.
    pub greeting: bool,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
}

impl Peer {
    pub(crate) fn new(id: PeerId, key: PublicKey, index: u32) -> Self {
        Self { id, key, index, state: Mutex::default() }
    }

    /// For the whole of a burst: one lock, not one per packet.
    pub(crate) fn lock(&self) -> MutexGuard<'_, PeerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PeerState {
    /// A session stands now.
    pub(crate) fn handshake_done(&mut self, tunnel: &Tunnel) {
        self.confirming = false;
        if std::mem::take(&mut self.greeting) {
            tunnel.greeted();
        }
        self.last_handshake = SystemTime::now().duration_since(UNIX_EPOCH).ok();
    }

    /// An authentic packet came from `from`: the peer is there now. From an unspecified address: the process after us passed
    /// it on and does not say from where; what we have for the peer goes where it went before.
    pub(crate) fn seen_at(&mut self, from: &Endpoint, now: Instant) {
        self.last_authentic = Some(now);
        if self.endpoint.as_ref() != Some(from) && !from.remote.ip().is_unspecified() {
            self.endpoint = Some(*from);
        }
    }

    /// Writes a keepalive to `slot`, or what begins a session for it; gives its length. `None`: a handshake is under way, or
    /// the device has no key.
    pub(crate) fn keepalive(&mut self, slot: &mut [u8], now: Instant) -> Option<usize> {
        let cipher = self.cipher.as_mut()?;
        self.last_authentic = Some(now);
        if !cipher.has_session() {
            return cipher.start_handshake(slot, false);
        }
        match cipher.seal(&[], slot) {
            Sealed::Data(len) | Sealed::Handshake(len) => Some(len),
            Sealed::Waits => None,
        }
    }

    /// Whether the peer wants a keepalive now.
    pub(crate) fn keepalive_due(&self, now: Instant) -> bool {
        let interval = Duration::from_secs(self.keepalive_secs.into());
        self.keepalive_secs != 0
            && self.endpoint.is_some()
            && self.last_authentic.is_none_or(|last| now.saturating_duration_since(last) >= interval)
    }
}
