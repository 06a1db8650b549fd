// SPDX-License-Identifier: Apache-2.0
//! The way of a packet: TUN to sealed datagrams, and datagrams to the TUN. One per thread; all buffers are made once.

use std::iter::Peekable;
use std::slice::Chunks;
use std::sync::Arc;
use std::time::Instant;

use super::cipher::{
    COOKIE_REPLY, DATA, DATA_OVERHEAD, Due, HANDSHAKE_RESPONSE, MESSAGE_MAX, Opened, Sealed, answered_index,
    message_type, word,
};
use super::counters::Counters;
use super::peer::{Peer, PeerState};
use super::tables::Tables;
use super::tunnel::Tunnel;
use super::udp::{Datagrams, Endpoint, Flushed, Sender, Sockets};
use crate::segment::{Coalescer, Coalescing, PushError, Split, source};

/// Opened packets that wait for their way to the TUN: a few super-packets, small enough to stay in the cache.
const ARENA_BYTES: usize = 256 << 10;
/// As many packets wait at most: the arena full of small ones.
const PACKETS_MAX: usize = 2_048;

/// Seals and opens for a device.
pub(crate) struct Worker {
    pub tunnel: Arc<Tunnel>,
    pub sender: Sender,
    sockets: Option<Arc<Sockets>>,
    sockets_version: u32,
    arena: Box<[u8]>,
    used: usize,
    coalescer: Coalescer,
    /// Read once per turn.
    pub now: Instant,
}

impl Worker {
    pub(crate) fn new(tunnel: Arc<Tunnel>) -> Self {
        let coalescing = Coalescing { tcp: tunnel.tun.offloads.tcp, udp: tunnel.tun.offloads.udp };
        Self {
            sockets: None,
            sockets_version: u32::MAX,
            sender: Sender::new(),
            arena: vec![0; ARENA_BYTES].into_boxed_slice(),
            used: 0,
            coalescer: Coalescer::new(PACKETS_MAX, coalescing),
            now: Instant::now(),
            tunnel,
        }
    }

    /// To be called at the start of a turn: takes the time, and the sockets when they changed (true then).
    pub(crate) fn refresh(&mut self) -> bool {
        self.now = Instant::now();
        let version = self.tunnel.sockets_version();
        if version == self.sockets_version {
            return false;
        }
        self.sockets = self.tunnel.sockets();
        self.sockets_version = version;
        true
    }

    pub(crate) fn sockets(&self) -> Option<Arc<Sockets>> {
        self.sockets.clone()
    }

    /// Seals what one read of the TUN gave (virtio-net header and packet) and puts it on its way.
    pub(crate) fn seal(&mut self, read: &mut [u8]) {
        let tunnel = Arc::clone(&self.tunnel);
        let counters = &tunnel.counters;
        let Ok(mut split) = Split::new(read) else {
            return Counters::add(&counters.not_ip, 1);
        };
        let tables = tunnel.tables();
        let Some(peer) = tables.owner(split.destination()).and_then(|id| tables.by_id(id)) else {
            return Counters::add(&counters.no_peer, split.count() as u64);
        };
        let mut state = peer.lock();
        let (Some(sockets), Some(to)) = (&self.sockets, state.endpoint) else {
            return Counters::add(&counters.no_endpoint, split.count() as u64);
        };
        let sockets = Arc::clone(sockets);
        if !state.ticking {
            self.start_ticking(peer, &mut state);
        }
        let state = &mut *state;
        let Some(cipher) = &mut state.cipher else {
            return Counters::add(&counters.no_endpoint, split.count() as u64);
        };
        state.last_authentic = Some(self.now);
        while let Some(segment) = split.next_segment() {
            let room = (segment.len() + DATA_OVERHEAD).max(MESSAGE_MAX);
            let Some(slot) = self.sender.slot(room, &sockets, counters) else { continue };
            match cipher.seal(segment, slot) {
                Sealed::Data(len) => {
                    state.tx_bytes += len as u64;
                    self.sender.commit(len, &to, &sockets, counters);
                }
                Sealed::Handshake(len) => {
                    state.waiting = true;
                    state.tx_bytes += len as u64;
                    self.sender.commit(len, &to, &sockets, counters);
                }
                Sealed::Waits => state.waiting = true,
            }
        }
    }

    /// Opens the datagrams of one message; what is not data waits for its turn.
    pub(crate) fn open(&mut self, datagrams: &Datagrams<'_>) {
        let tunnel = Arc::clone(&self.tunnel);
        let tables = tunnel.tables();
        let mut segments = datagrams.bytes.chunks(datagrams.segment).peekable();
        while let Some(first) = segments.peek().copied() {
            let at = first.as_ptr().addr() - datagrams.bytes.as_ptr().addr();
            match (message_type(first), word(first, 1)) {
                (Some(DATA), Some(index)) if first.len() >= DATA_OVERHEAD => {
                    match tables.by_index(index >> 8) {
                        Some(peer) => {
                            self.open_run(&tables, peer, &mut segments, &datagrams.from);
                            continue;
                        }
                        None => {
                            let run =
                                std::iter::from_fn(|| segments.next_if(|next| is_data_of(next, index >> 8)));
                            let (count, len) =
                                run.fold((0, 0), |(count, len), one| (count + 1, len + one.len()));
                            let bytes = &datagrams.bytes[at..at + len];
                            if !tunnel.pass_late(bytes, datagrams.segment) {
                                Counters::add(&tunnel.counters.unknown_session, count);
                            }
                            continue;
                        }
                    }
                }
                // An answer to nothing of ours costs a look-up: a forged one takes no place in the queue.
                (Some(HANDSHAKE_RESPONSE | COOKIE_REPLY), _)
                    if answered_index(first).and_then(|index| tables.by_index(index)).is_none() =>
                {
                    Counters::add(&tunnel.counters.handshake_refused, 1);
                }
                (Some(1..DATA), _) => {
                    if !tunnel.queue_handshake(first, &datagrams.from) {
                        // Full: the rest of a flood goes at once, not message by message through the lock.
                        let mut dropped = 0;
                        while segments.next_if(|next| matches!(message_type(next), Some(1..DATA))).is_some() {
                            dropped += 1;
                        }
                        Counters::add(&tunnel.counters.handshake_refused, dropped);
                        continue;
                    }
                }
                _ => Counters::add(&tunnel.counters.malformed, 1),
            }
            segments.next();
        }
    }

    /// Hands everything opened to the TUN.
    pub(crate) fn flush_tun(&mut self) {
        let tunnel = &self.tunnel;
        self.coalescer.flush(&self.arena, |packet| {
            if tunnel.tun.write(packet.slices).is_err() {
                Counters::add(&tunnel.counters.tun_write_errors, packet.segments as u64);
            }
        });
        self.used = 0;
    }

    /// Sends everything sealed.
    pub(crate) fn flush_udp(&mut self) -> Flushed {
        match &self.sockets {
            Some(sockets) if !self.sender.is_empty() => self.sender.flush(sockets, &self.tunnel.counters),
            _ => Flushed::Done,
        }
    }

    /// A message made elsewhere.
    pub(crate) fn send(&mut self, message: &[u8], to: &Endpoint) {
        if let Some(sockets) = &self.sockets {
            self.sender.push(message, to, sockets, &self.tunnel.counters);
        }
    }

    /// Opens data messages of one peer, as far as they go in a row.
    fn open_run(
        &mut self,
        tables: &Tables,
        peer: &Arc<Peer>,
        segments: &mut Peekable<Chunks<'_, u8>>,
        from: &Endpoint,
    ) {
        let mut state = peer.lock();
        let (mut authentic, mut refused, mut foreign, mut bytes) = (false, 0, 0, 0);
        // One flow has one source: it is looked up once per run.
        let mut known = None;
        while let Some(segment) = segments.next_if(|next| is_data_of(next, peer.index)) {
            let room = segment.len().max(MESSAGE_MAX);
            if self.arena.len() - self.used < room {
                self.flush_tun();
            }
            let at = self.used;
            let (Some(cipher), Some(slot)) = (&mut state.cipher, self.arena.get_mut(at..at + room)) else {
                refused += 1;
                continue;
            };
            let opened = cipher.open(segment, slot);
            if opened == Opened::Refused {
                refused += 1;
                continue;
            }
            authentic = true;
            bytes += segment.len() as u64;
            let Opened::Packet(len) = opened else { continue };
            let from = source(&self.arena[at..at + len]);
            if from.is_none() || (from != known && from.and_then(|ip| tables.owner(ip)) != Some(peer.id)) {
                foreign += 1;
                continue;
            }
            known = from;
            if self.coalescer.push(&self.arena, at..at + len) == Err(PushError::Full) {
                // Its bytes stay where they are: only the places before it are free again.
                self.flush_tun();
                let _ = self.coalescer.push(&self.arena, at..at + len);
            }
            self.used = at + len;
        }
        let counters = &self.tunnel.counters;
        if refused > 0 {
            Counters::add(&counters.refused, refused);
        }
        if foreign > 0 {
            Counters::add(&counters.source_not_allowed, foreign);
        }
        if authentic {
            state.rx_bytes += bytes;
            state.seen_at(from, self.now);
            if state.confirming {
                state.handshake_done(&self.tunnel);
            }
            if !state.ticking {
                self.start_ticking(peer, &mut state);
            }
            if state.waiting {
                self.send_waiting(&mut state);
            }
        }
    }

    /// Sends the packets that waited for a session, if there is one now.
    pub(super) fn send_waiting(&mut self, state: &mut PeerState) {
        let (Some(sockets), Some(to), Some(cipher)) =
            (self.sockets.clone(), state.endpoint, &mut state.cipher)
        else {
            return;
        };
        if !cipher.has_session() {
            return;
        }
        state.waiting = false;
        let counters = &self.tunnel.counters;
        // As large as a packet can be: those that wait were read from the TUN whole.
        while let Some(slot) = self.sender.slot(WAITING_BYTES_MAX, &sockets, counters) {
            let Some(len) = cipher.seal_waiting(slot) else { break };
            state.tx_bytes += len as u64;
            self.sender.commit(len, &to, &sockets, counters);
        }
        // Before the lock goes: no thread may send a newer packet of this peer first.
        self.sender.flush(&sockets, counters);
    }

    /// A peer that slept: its state has to learn the time before it is used.
    pub(super) fn start_ticking(&mut self, peer: &Peer, state: &mut PeerState) {
        state.ticking = true;
        self.tunnel.wake_peer(peer.id);
        let mut message = [0; MESSAGE_MAX];
        let due = state.cipher.as_mut().map_or(Due::Nothing, |cipher| cipher.tick(&mut message));
        if let (Due::Send(len), Some(to)) = (due, state.endpoint) {
            state.tx_bytes += len as u64;
            self.send(&message[..len], &to);
        }
    }
}

/// The largest packet that the TUN gives, sealed.
const WAITING_BYTES_MAX: usize = 65_535 + DATA_OVERHEAD;

fn is_data_of(message: &[u8], index: u32) -> bool {
    message.len() >= DATA_OVERHEAD
        && message_type(message) == Some(DATA)
        && word(message, 1).is_some_and(|receiver| receiver >> 8 == index)
}
