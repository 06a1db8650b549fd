// SPDX-License-Identifier: Apache-2.0
//! Handshakes: cheap checks first, a bounded number of costly ones per turn, so that a flood of them leaves
//! the data its time.

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, TunnResult};

use super::cipher::{HANDSHAKE_RESPONSE, MESSAGE_MAX, Opened, answered_index, message_type};
use super::counters::Counters;
use super::tunnel::{HandshakeMessage, Identity};
use super::worker::Worker;
use crate::PublicKey;

/// Costly handshakes (key agreements, some 0.2 ms) per turn while data flows.
const COSTLY_BESIDE_DATA: usize = 1;
/// And while none flows.
const COSTLY_ALONE: usize = 16;
/// Messages looked at per turn while data flows: most of a flood fails at the first, cheap check or gets a cookie.
const CHECKED_BESIDE_DATA: usize = 16;
/// And while none flows.
const CHECKED_ALONE: usize = 64;

/// How far a message came.
#[derive(Eq, PartialEq)]
enum Outcome {
    /// Refused (or answered with a cookie) by the cheap checks.
    Cheap,
    /// It cost a key agreement.
    Costly,
}

impl Worker {
    /// Takes its turn at the messages that wait; `beside_data`: packets moved in this turn.
    pub(crate) fn handle_handshakes(&mut self, beside_data: bool) {
        let Some(identity) = self.tunnel.identity() else {
            // Without a key nobody is meant: all go.
            while self.tunnel.next_handshake().is_some() {}
            return;
        };
        let (checked, mut budget) = match beside_data {
            true => (CHECKED_BESIDE_DATA, COSTLY_BESIDE_DATA),
            false => (CHECKED_ALONE, COSTLY_ALONE),
        };
        for _ in 0..checked {
            if budget == 0 {
                break;
            }
            let Some(message) = self.tunnel.next_handshake() else { break };
            if self.handle(&identity, &message) == Outcome::Costly {
                budget -= 1;
            }
        }
    }

    fn handle(&mut self, identity: &Identity, message: &HandshakeMessage) -> Outcome {
        let tunnel = self.tunnel.clone();
        let (bytes, from) = (message.bytes(), &message.from);
        let mut cookie = [0; MESSAGE_MAX];
        let verified = identity.limiter.verify_packet(Some(from.remote.ip()), bytes, &mut cookie);
        let peer = match &verified {
            Ok(Packet::HandshakeInit(initiation)) => {
                let parsed = parse_handshake_anon(&identity.secret, &identity.x25519_public, initiation);
                let Ok(half) = parsed else {
                    Counters::add(&tunnel.counters.handshake_refused, 1);
                    return Outcome::Costly;
                };
                tunnel.tables().by_key(&PublicKey::from(half.peer_static_public)).cloned()
            }
            Ok(Packet::HandshakeResponse(_) | Packet::PacketCookieReply(_)) => {
                answered_index(bytes).and_then(|index| tunnel.tables().by_index(index).cloned())
            }
            Ok(Packet::PacketData(_)) => None,
            Err(TunnResult::WriteToNetwork(reply)) => {
                Counters::add(&tunnel.counters.cookies_sent, 1);
                let reply: &[u8] = reply;
                self.send(reply, from);
                return Outcome::Cheap;
            }
            Err(_) => None,
        };
        // Only an initiation has cost a key agreement to find out whose it is. A cookie never costs one.
        let mut outcome = match &verified {
            Ok(Packet::HandshakeInit(_)) => Outcome::Costly,
            _ => Outcome::Cheap,
        };
        let Some(peer) = peer else {
            Counters::add(&tunnel.counters.handshake_refused, 1);
            return outcome;
        };
        if matches!(verified, Ok(Packet::HandshakeResponse(_))) {
            outcome = Outcome::Costly;
        }
        let mut state = peer.lock();
        if !state.ticking {
            self.start_ticking(&peer, &mut state);
        }
        let mut answer = [0; MESSAGE_MAX];
        let opened = match &mut state.cipher {
            Some(cipher) => cipher.open_handshake(bytes, &mut answer),
            None => Opened::Refused,
        };
        match opened {
            Opened::Refused => Counters::add(&tunnel.counters.handshake_refused, 1),
            Opened::Answer(len) => {
                state.rx_bytes += bytes.len() as u64;
                state.tx_bytes += len as u64;
                state.seen_at(from, self.now);
                self.send(&answer[..len], from);
                if message_type(bytes) == Some(HANDSHAKE_RESPONSE) {
                    state.handshake_done(&tunnel);
                } else {
                    state.confirming = true;
                }
                self.send_waiting(&mut state);
            }
            Opened::Empty | Opened::Packet(_) => state.rx_bytes += bytes.len() as u64,
        }
        outcome
    }
}
