// SPDX-License-Identifier: Apache-2.0
//! Timers of the peers that are awake: those with a session, a handshake under way or a keepalive. Sleeping
//! peers cost nothing.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::cipher::{Due, MESSAGE_MAX};
use super::peer::{Peer, PeerId};
use super::worker::Worker;

/// Between two steps.
const STEP: Duration = Duration::from_millis(50);
/// Steps until each peer had its turn: a thousand peers at once would hold up the packets.
const STEPS: usize = 4;
/// The rate limiter forgets the last second.
const LIMITER_RESET: Duration = Duration::from_secs(1);

/// Which peers are awake, and when the next step is due.
pub(crate) struct Timers {
    awake: Vec<PeerId>,
    /// The same: a peer's number may be another's by the time it is woken again, and each has one turn.
    known: HashSet<PeerId>,
    woken: Vec<PeerId>,
    at: usize,
    next: Instant,
    limiter_reset: Instant,
}

impl Timers {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            awake: Vec::new(),
            known: HashSet::new(),
            woken: Vec::new(),
            at: 0,
            next: now,
            limiter_reset: now,
        }
    }

    /// How long the thread may sleep; `None`: as long as nothing happens.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        (!self.awake.is_empty()).then(|| self.next.saturating_duration_since(now))
    }

    /// Takes a step when one is due.
    pub(crate) fn run(&mut self, worker: &mut Worker) {
        worker.tunnel.take_awake(&mut self.woken);
        for id in self.woken.drain(..) {
            if self.known.insert(id) {
                self.awake.push(id);
            }
        }
        let now = worker.now;
        if now < self.next {
            return;
        }
        self.next = now + STEP;
        if now.saturating_duration_since(self.limiter_reset) >= LIMITER_RESET {
            self.limiter_reset = now;
            if let Some(identity) = worker.tunnel.identity() {
                identity.limiter.reset_count();
            }
        }
        for _ in 0..self.awake.len().div_ceil(STEPS) {
            if self.at >= self.awake.len() {
                self.at = 0;
            }
            let Some(id) = self.awake.get(self.at).copied() else { break };
            let peer = worker.tunnel.tables().by_id(id).cloned();
            if peer.is_some_and(|peer| worker.tick(&peer)) {
                self.at += 1;
            } else {
                self.known.remove(&self.awake.swap_remove(self.at));
            }
        }
    }
}

impl Worker {
    /// Starts a handshake with every peer that had a session with the process before us.
    pub(crate) fn greet(&mut self) {
        let peers: Vec<_> = self.tunnel.tables().iter().cloned().collect();
        for peer in peers {
            let mut state = peer.lock();
            let state = &mut *state;
            if !state.greeting {
                continue;
            }
            let mut message = [0; MESSAGE_MAX];
            let started =
                state.cipher.as_mut().and_then(|cipher| cipher.start_handshake(&mut message, false));
            if let (Some(len), Some(to)) = (started, state.endpoint) {
                state.tx_bytes += len as u64;
                self.send(&message[..len], &to);
            }
        }
        self.flush_udp();
    }

    /// False: the peer sleeps from now on.
    fn tick(&mut self, peer: &Peer) -> bool {
        let mut state = peer.lock();
        if !state.ticking {
            return false;
        }
        let state = &mut *state;
        let Some(cipher) = &mut state.cipher else {
            state.ticking = false;
            return false;
        };
        let mut message = [0; MESSAGE_MAX];
        let mut send = match cipher.tick(&mut message) {
            Due::Send(len) => Some(len),
            Due::Nothing => None,
            Due::Asleep if state.keepalive_secs == 0 => {
                state.ticking = false;
                return false;
            }
            Due::Asleep => None,
        };
        if send.is_none() && state.keepalive_due(self.now) {
            send = state.keepalive(&mut message, self.now);
        }
        if let (Some(len), Some(to)) = (send, state.endpoint) {
            state.tx_bytes += len as u64;
            self.send(&message[..len], &to);
        }
        true
    }
}
