// SPDX-License-Identifier: Apache-2.0
//! One peer's protocol: boringtun's `Tunn` behind what the engine needs of it.
//!
//! With `cipher_off` (never in a released build) the handshake stays real and packets go in the clear.

use std::sync::Arc;

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;

use crate::{PresharedKey, PrivateKey, PublicKey};

/// Bytes that a packet grows by: header (16) and authentication tag (16).
pub(crate) const DATA_OVERHEAD: usize = 32;
/// The largest message that is not data: a handshake initiation.
pub(crate) const MESSAGE_MAX: usize = 148;
/// Message types are the first four bytes (little endian) of each message; this one asks for a session.
pub(crate) const HANDSHAKE_INITIATION: u32 = 1;
/// Answers an initiation.
pub(crate) const HANDSHAKE_RESPONSE: u32 = 2;
/// Answers either of them when there are too many.
pub(crate) const COOKIE_REPLY: u32 = 3;
/// A sealed packet.
pub(crate) const DATA: u32 = 4;

/// What came of sealing a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Sealed {
    /// So many bytes of a data message.
    Data(usize),
    /// No session yet: the packet waits inside, so many bytes of a handshake message go first.
    Handshake(usize),
    /// The packet waits inside for a handshake under way.
    Waits,
}

/// What came of opening a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Opened {
    /// A packet of so many bytes.
    Packet(usize),
    /// Authentic, and nothing to pass on.
    Empty,
    /// So many bytes to answer with.
    Answer(usize),
    /// Not authentic, replayed, or not for us.
    Refused,
}

/// What a peer's timers want.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Due {
    Nothing,
    /// So many bytes to send.
    Send(usize),
    /// No session and no handshake any more: nothing will be due until somebody calls.
    Asleep,
}

/// The protocol state of a peer.
pub(crate) struct Cipher {
    tunn: Box<Tunn>,
    /// Packets in the clear, with the peer's session index and our counter.
    off: Option<Off>,
}

#[derive(Default)]
struct Off {
    remote_index: Option<u32>,
    counter: u64,
}

impl Cipher {
    /// `index`: 24 bits that no other peer has. `limiter`: one that never limits, for the device's own has
    /// passed each message before.
    pub(crate) fn new(
        private: &PrivateKey,
        peer: &PublicKey,
        preshared: Option<&PresharedKey>,
        index: u32,
        limiter: Arc<RateLimiter>,
        off: bool,
    ) -> Self {
        let tunn = Tunn::new(
            x25519::StaticSecret::from(*private.as_bytes()),
            x25519::PublicKey::from(*peer.as_bytes()),
            preshared.map(|key| *key.as_bytes()),
            // Keepalives are the engine's: boringtun's cannot be changed on a living session, and end when a
            // handshake fails.
            None,
            index,
            Some(limiter),
        );
        Self { tunn: Box::new(tunn), off: off.then(Off::default) }
    }

    /// Ends all sessions: they were made with another key.
    pub(crate) fn set_private_key(&mut self, private: &PrivateKey, limiter: Arc<RateLimiter>) {
        let secret = x25519::StaticSecret::from(*private.as_bytes());
        let public = x25519::PublicKey::from(&secret);
        self.tunn.set_static_private(secret, public, Some(limiter));
        self.off = self.off.is_some().then(Off::default);
    }

    /// Seals `packet` into `slot` (at least [`DATA_OVERHEAD`] longer, and [`MESSAGE_MAX`]).
    pub(crate) fn seal(&mut self, packet: &[u8], slot: &mut [u8]) -> Sealed {
        if let Some(len) = self.seal_off(packet, slot) {
            return Sealed::Data(len);
        }
        match self.tunn.encapsulate(packet, slot) {
            TunnResult::WriteToNetwork(message) if message_type(message) == Some(DATA) => {
                Sealed::Data(message.len())
            }
            TunnResult::WriteToNetwork(message) => Sealed::Handshake(message.len()),
            _ => Sealed::Waits,
        }
    }

    /// The next packet that waited, sealed; `None` when none waits.
    pub(crate) fn seal_waiting(&mut self, slot: &mut [u8]) -> Option<usize> {
        match self.tunn.decapsulate(None, &[], slot) {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            _ => None,
        }
    }

    /// Opens a data message into `slot` (at least as long, and [`MESSAGE_MAX`]).
    pub(crate) fn open(&mut self, message: &[u8], slot: &mut [u8]) -> Opened {
        if self.off.as_ref().is_some_and(|off| off.remote_index.is_some()) && message.len() > DATA_OVERHEAD {
            return open_off(message, slot);
        }
        match self.tunn.decapsulate(None, message, slot) {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                Opened::Packet(packet.len())
            }
            TunnResult::WriteToNetwork(answer) => Opened::Answer(answer.len()),
            TunnResult::Done => Opened::Empty,
            TunnResult::Err(_) => Opened::Refused,
        }
    }

    /// Takes a handshake or cookie message, which has passed the device's rate limiter.
    pub(crate) fn open_handshake(&mut self, message: &[u8], slot: &mut [u8]) -> Opened {
        let opened = match self.tunn.decapsulate(None, message, slot) {
            TunnResult::WriteToNetwork(answer) => Opened::Answer(answer.len()),
            TunnResult::Err(_) => Opened::Refused,
            _ => Opened::Empty,
        };
        if let (Some(off), Opened::Answer(_), Some(index)) = (&mut self.off, opened, word(message, 1)) {
            off.remote_index = Some(index);
        }
        opened
    }

    /// Starts a handshake unless one is under way (`force`: even then).
    pub(crate) fn start_handshake(&mut self, slot: &mut [u8], force: bool) -> Option<usize> {
        match self.tunn.format_handshake_initiation(slot, force) {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            _ => None,
        }
    }

    /// To be called every fraction of a second while there is a session or a handshake: it also tells `Tunn` the time.
    pub(crate) fn tick(&mut self, slot: &mut [u8]) -> Due {
        match self.tunn.update_timers(slot) {
            TunnResult::WriteToNetwork(message) => Due::Send(message.len()),
            TunnResult::Err(_) if self.tunn.is_expired() => Due::Asleep,
            _ => Due::Nothing,
        }
    }

    /// Whether packets can be sealed.
    pub(crate) fn has_session(&self) -> bool {
        self.tunn.time_since_last_handshake().is_some()
    }

    fn seal_off(&mut self, packet: &[u8], slot: &mut [u8]) -> Option<usize> {
        let off = self.off.as_mut()?;
        let index = off.remote_index?;
        let len = packet.len() + DATA_OVERHEAD;
        let slot = slot.get_mut(..len)?;
        slot[..4].copy_from_slice(&DATA.to_le_bytes());
        slot[4..8].copy_from_slice(&index.to_le_bytes());
        slot[8..16].copy_from_slice(&off.counter.to_le_bytes());
        slot[16..16 + packet.len()].copy_from_slice(packet);
        off.counter += 1;
        Some(len)
    }
}

/// The type of a message; `None` when it is too short for one.
pub(crate) fn message_type(message: &[u8]) -> Option<u32> {
    word(message, 0)
}

/// Our session index (24 bits for the peer) in an answer to a handshake message of ours.
pub(crate) fn answered_index(message: &[u8]) -> Option<u32> {
    match message_type(message)? {
        HANDSHAKE_RESPONSE => word(message, 2).map(|index| index >> 8),
        COOKIE_REPLY => word(message, 1).map(|index| index >> 8),
        _ => None,
    }
}

/// Word `i` of a message, little endian.
pub(crate) fn word(message: &[u8], i: usize) -> Option<u32> {
    let bytes = message.get(i * 4..i * 4 + 4)?;
    Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

fn open_off(message: &[u8], slot: &mut [u8]) -> Opened {
    let packet = &message[16..message.len() - 16];
    match (crate::segment::ip_len(packet), slot.get_mut(..packet.len())) {
        (Some(len), Some(slot)) => {
            slot.copy_from_slice(packet);
            Opened::Packet(len)
        }
        _ => Opened::Refused,
    }
}
