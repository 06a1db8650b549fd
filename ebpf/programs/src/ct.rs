// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! Flows that are known: which one a packet belongs to, and what the packet says about how far the flow is.
//!
//! The way of nearly all packets is short: one look-up in CT_LIVE, and for a client's packet the question whether its backend
//! still is one. What changes a flow (its first packets, FIN, RST, a second of the clock) is in functions of their own.

use ebpf_abi::{
    Counter, CtState, CtValue, PROTO_TCP,
    conntrack::{CT_ALONE, CT_DIRECT, CT_FIN, CT_REPLY, CT_WRAPPED},
};

use crate::{
    ct_maps::{self, Entry, Inserted},
    maps, nat,
    packet::now_secs,
    scratch::{Scratch, TCP_ACK, TCP_FIN, TCP_PSH, TCP_RST, TCP_SYN},
};

/// Answers for longer than this make a flow of a single datagram.
const STREAM_SECS: u32 = 2;
/// How much more than a SYN-ACK a client may acknowledge that shows that it has heard it: the first acknowledgement may be lost. Who
/// guesses is right once in 65,536 times.
const HEARD_BYTES: u32 = 1 << 16;

/// What conntrack says about a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Found {
    /// Of no flow.
    Nothing,
    /// Of a flow; [`Scratch::value`] is its entry.
    Flow,
    /// Of a flow that is not translated.
    Plain,
    /// Of a connection whose backend is gone.
    Gone,
}

/// Finds the flow of the packet in [`Scratch::key`].
#[inline(never)]
pub(crate) fn follow(s: &mut Scratch) -> Found {
    if !ct_maps::is_active() {
        return Found::Nothing;
    }
    let now_secs = now_secs();
    if let Some(entry) = ct_maps::read_live(&s.key, &mut s.value) {
        let is_quiet = s.value.seen_secs == now_secs && !s.has_tcp(TCP_SYN | TCP_FIN | TCP_RST);
        if is_quiet && holds(&s.value) {
            return kind(&s.value);
        }
        return live(s, entry, now_secs);
    }
    if let Some(entry) = ct_maps::read_fresh(&s.key, &mut s.value) {
        return fresh(s, entry, now_secs);
    }
    // It may have moved between the two looks.
    match ct_maps::read_live(&s.key, &mut s.value) {
        Some(entry) => live(s, entry, now_secs),
        None => Found::Nothing,
    }
}

/// Removes both directions of the flow in [`Scratch::value`].
#[inline(never)]
pub(crate) fn forget(s: &mut Scratch) {
    disown(s);
    mirror(s);
    if ct_maps::live(&s.peer_key).is_some_and(|peer| peer.is_like(&s.peer)) {
        ct_maps::remove_live(&s.peer_key);
    }
    if ct_maps::fresh(&s.peer_key).is_some_and(|peer| peer.is_like(&s.peer)) {
        ct_maps::remove_fresh(&s.peer_key);
    }
}

/// Removes the entry of this direction only: the other one is another flow's.
#[inline(always)]
fn disown(s: &Scratch) -> Found {
    ct_maps::remove_live(&s.key);
    ct_maps::remove_fresh(&s.key);
    Found::Nothing
}

/// The entry of the other direction of the flow in [`Scratch::value`], into [`Scratch::peer_key`] and [`Scratch::peer`].
#[inline(always)]
pub(crate) fn mirror(s: &mut Scratch) {
    s.peer_key = s.key.peer(&s.value);
    s.peer = CtValue {
        src: s.key.dst,
        dst: s.key.src,
        sport: s.key.dport,
        dport: s.key.sport,
        difference: !s.value.difference,
        flags: (s.value.flags ^ CT_REPLY) & !CT_FIN,
        ..s.value
    };
}

/// A packet of a flow in CT_LIVE that is more than one of many.
#[inline(never)]
fn live(s: &mut Scratch, entry: Entry, now_secs: u32) -> Found {
    if let Some(found) = is_over(s, now_secs) {
        return found;
    }
    // Past the services there is no backend to choose anew.
    let is_again = s.value.state == CtState::Doubtful.number()
        && s.value.flags & (CT_DIRECT | CT_REPLY) == CT_DIRECT
        && s.key.proto == PROTO_TCP
        && nat::may_begin(s);
    if is_again && resume(s, entry) {
        return kind(&s.value);
    }
    let tick = s.value.seen_secs != now_secs;
    if !tick && !s.has_tcp(TCP_FIN | TCP_RST) {
        return kind(&s.value);
    }
    mirror(s);
    let peer = ct_maps::live(&s.peer_key);
    if peer.is_some_and(|peer| !peer.is_like(&s.peer)) {
        return disown(s);
    }
    entry.set_seen(now_secs);
    let is_closed = s.value.state == CtState::Closed.number();
    let state = if s.has_tcp(TCP_RST) {
        // Not the end yet, for it may be anybody's: only until somebody speaks again.
        if is_closed { CtState::Closed } else { CtState::Doubtful }
    } else if s.has_tcp(TCP_FIN) {
        entry.set_flags(s.value.flags | CT_FIN);
        match peer {
            Some(peer) if peer.flags() & CT_FIN != 0 => CtState::Closed,
            _ if is_closed => CtState::Closed,
            _ => CtState::Closing,
        }
    } else if s.value.state == CtState::Doubtful.number() && !s.has_tcp(TCP_SYN) {
        // A second later, for an ACK of another CPU may come after the RST that it was sent before: whoever then has the same port
        // for another connection would be sent to the backend of this one.
        let has_fin = s.value.flags & CT_FIN != 0 || peer.is_some_and(|peer| peer.flags() & CT_FIN != 0);
        if has_fin { CtState::Closing } else { CtState::Established }
    } else {
        CtState::from_number(s.value.state).unwrap_or(CtState::Established)
    };
    // Only what changes is written: another CPU may have seen an RST meanwhile, or the end.
    let changes = state.number() != s.value.state;
    if changes {
        entry.go_on_to(state);
    }
    match peer {
        Some(peer) => {
            peer.set_seen(now_secs);
            if changes {
                peer.go_on_to(state);
            }
        }
        // Or it has been taken away, so that the client's next datagram chooses anew.
        None if s.key.proto != PROTO_TCP && s.value.flags & CT_REPLY != 0 => {}
        // Evicted: of a flow that only one side speaks in, the other direction is least recently used.
        None => {
            s.value.seen_secs = now_secs;
            s.value.state = state.number();
            match nat::claim(s, now_secs, true) {
                Inserted::Taken => return disown(s),
                Inserted::Yes if ct_maps::set_live(&s.peer_key, &s.peer) => {
                    ct_maps::remove_fresh(&s.peer_key);
                }
                _ => maps::count(Counter::CtFull),
            }
        }
    }
    kind(&s.value)
}

/// A packet of a flow in CT_NEW.
#[inline(never)]
fn fresh(s: &mut Scratch, entry: Entry, now_secs: u32) -> Found {
    if let Some(found) = is_over(s, now_secs) {
        return found;
    }
    entry.set_seen(now_secs);
    if s.value.flags & CT_ALONE != 0 {
        return alone(s, entry, now_secs);
    }
    if s.value.flags & CT_REPLY != 0 {
        let answered = s.value.state != CtState::New.number();
        if s.has_tcp(TCP_RST) {
            entry.set_state(CtState::Reset);
        } else if s.value.state != CtState::Answered.number() {
            entry.set_state(CtState::Answered);
        }
        // Of each segment, for that of the SYN-ACK may not be known: it made two (SYN cookies), or this entry is younger.
        if s.has_tcp(TCP_SYN | TCP_ACK) && !s.has_tcp(TCP_RST) {
            let sequence = u32::from_be_bytes(s.view.tcp_seq);
            entry.set_node(if s.has_tcp(TCP_SYN) { sequence } else { sequence.wrapping_sub(1) });
        }
        let goes_on = match s.key.proto {
            // Nobody is sent anything before the handshake's end.
            PROTO_TCP => s.view.tcp_flags & (TCP_PSH | TCP_SYN | TCP_RST) == TCP_PSH,
            // Who asked once and is answered for a while: that the other side goes on to speak must do.
            _ => answered && now_secs.wrapping_sub(s.value.began_secs) > STREAM_SECS,
        };
        if !goes_on {
            return kind(&s.value);
        }
        mirror(s);
        // Not what has been taken away, so that the client's next datagram chooses anew.
        return if ct_maps::fresh(&s.peer_key).is_some() { establish(s, now_secs) } else { kind(&s.value) };
    }
    mirror(s);
    if let Some(peer) = ct_maps::fresh(&s.peer_key) {
        if !peer.is_like(&s.peer) {
            return disown(s);
        }
        // They age together: an entry for the answers that is over may be given to another flow.
        peer.set_seen(now_secs);
        if s.has_tcp(TCP_RST) {
            // It asked, and does not want the answer: whoever looks for open ports does so.
            entry.set_state(CtState::Reset);
            peer.set_state(CtState::Reset);
            return kind(&s.value);
        }
        let state = peer.state();
        let has_answered = state >= CtState::Answered.number() && state < CtState::Closed.number();
        let proves = s.key.proto != PROTO_TCP || has_heard(s, peer.node());
        return if has_answered && proves { establish(s, now_secs) } else { kind(&s.value) };
    }
    // Another CPU moves the flow at this moment, or it was evicted by a flood.
    if ct_maps::live(&s.peer_key).is_some_and(|peer| peer.is_like(&s.peer)) {
        return kind(&s.value);
    }
    s.value.state = CtState::New.number();
    s.value.seen_secs = now_secs;
    if nat::claim(s, now_secs, true) == Inserted::Taken { disown(s) } else { kind(&s.value) }
}

/// Whether the client acknowledges the backend's SYN-ACK, which had this sequence number (or what it said last, which stands behind the
/// number): who only says that it is the client has not heard it.
#[inline(always)]
fn has_heard(s: &Scratch, sequence: u32) -> bool {
    let acknowledged = u32::from_be_bytes(s.view.tcp_ack);
    s.view.tcp_flags & (TCP_ACK | TCP_SYN) == TCP_ACK
        && acknowledged.wrapping_sub(sequence).wrapping_sub(1) < HEARD_BYTES
}

/// A packet of a flow with one entry, which only one of its sides is seen by. Nothing proves that the other one speaks, so it stays in
/// CT_NEW, where it takes no room from those that have two; and only one that began with a SYN and went on lives longer than that.
#[inline(never)]
fn alone(s: &mut Scratch, entry: Entry, now_secs: u32) -> Found {
    const NEW: u8 = CtState::New as u8;
    const ANSWERED: u8 = CtState::Answered as u8;
    const JOINED: u8 = CtState::Joined as u8;
    const CLOSED: u8 = CtState::Closed as u8;
    const DOUBTFUL: u8 = CtState::Doubtful as u8;
    let is_open = !matches!(s.value.state, NEW | ANSWERED | JOINED);
    let state = match s.value.state {
        CLOSED => CtState::Closed,
        _ if s.has_tcp(TCP_RST) => {
            if is_open {
                CtState::Doubtful
            } else {
                CtState::Reset
            }
        }
        // Of a client, once more or late; of a backend, the first answer.
        NEW | JOINED if s.has_tcp(TCP_SYN) => {
            if s.value.flags & CT_REPLY != 0 {
                CtState::Answered
            } else {
                CtState::New
            }
        }
        JOINED => CtState::Joined,
        // See `live`.
        DOUBTFUL if s.value.seen_secs == now_secs => CtState::Doubtful,
        // Nobody sees the other FIN.
        _ if s.has_tcp(TCP_FIN) => CtState::Closed,
        ANSWERED if s.has_tcp(TCP_SYN) => CtState::Answered,
        // A datagram's answer.
        NEW if s.value.flags & CT_REPLY != 0 => CtState::Answered,
        _ => CtState::Established,
    };
    if !is_open && state == CtState::Established {
        maps::count(Counter::FlowEstablished);
    }
    if state.number() != s.value.state {
        entry.set_state(state);
    }
    kind(&s.value)
}

/// Moves the flow in [`Scratch::value`] to CT_LIVE.
#[inline(never)]
fn establish(s: &mut Scratch, now_secs: u32) -> Found {
    s.value.state = CtState::Established.number();
    s.value.seen_secs = now_secs;
    s.value.node = 0;
    if s.has_tcp(TCP_FIN) {
        s.value.state = CtState::Closing.number();
        s.value.flags |= CT_FIN;
    }
    mirror(s);
    if ct_maps::fresh(&s.peer_key).is_some_and(|peer| !peer.is_like(&s.peer)) {
        return disown(s);
    }
    // In CT_LIVE before it is gone from CT_NEW: whoever inserts the same key into CT_NEW meanwhile looks into CT_LIVE after.
    let peer = ct_maps::add_live(&s.peer_key, &s.peer);
    if peer == Inserted::Taken && !ct_maps::live(&s.peer_key).is_some_and(|peer| peer.is_like(&s.peer)) {
        return disown(s);
    }
    if peer == Inserted::Full || !ct_maps::set_live(&s.key, &s.value) {
        // It stays where it is, and the next packet tries again.
        maps::count(Counter::CtFull);
        return kind(&s.value);
    }
    ct_maps::remove_fresh(&s.key);
    ct_maps::remove_fresh(&s.peer_key);
    maps::count(Counter::FlowEstablished);
    kind(&s.value)
}

/// Whether the SYN in [`Scratch::key`] goes on in a flow that an RST has made doubtful, for it goes to the same backend; then
/// [`Scratch::value`] is its entry. One to another backend ends that flow.
#[inline(never)]
pub(crate) fn stays(s: &mut Scratch, backend_id: u32) -> bool {
    let Some(entry) = ct_maps::read_live(&s.key, &mut s.value) else { return false };
    if s.value.flags & CT_REPLY != 0 {
        return false;
    }
    if holds(&s.value) {
        // Another CPU has seen it go on meanwhile: one flow, not two.
        if !s.value.is_over() {
            return true;
        }
        let is_same = s.value.backend_id == backend_id && s.value.service_id == s.service.service_id;
        if is_same && s.value.state == CtState::Doubtful.number() && resume(s, entry) {
            return true;
        }
    }
    forget(s);
    false
}

/// A SYN in the doubtful flow in [`Scratch::value`]: it goes on as one that has just been established. `false` where it has lost its
/// ports to another one.
#[inline(never)]
fn resume(s: &mut Scratch, entry: Entry) -> bool {
    mirror(s);
    let Some(peer) = ct_maps::live(&s.peer_key) else { return false };
    if !peer.is_like(&s.peer) {
        return false;
    }
    let now_secs = now_secs();
    for entry in [entry, peer] {
        entry.set_flags(entry.flags() & !CT_FIN);
        entry.set_seen(now_secs);
        entry.set_state(CtState::Established);
    }
    true
}

/// Whether the packet does not belong to the flow any more whose addresses and ports it has.
#[inline(always)]
fn is_over(s: &mut Scratch, now_secs: u32) -> Option<Found> {
    let is_tcp = s.key.proto == PROTO_TCP;
    let begins = nat::may_begin(s);
    if !holds(&s.value) {
        if !begins {
            return Some(Found::Gone);
        }
        forget(s);
        return Some(Found::Nothing);
    }
    // What a TCP connection is, its two ends say; of all else only the clock does.
    let is_expired = s.value.is_expired(s.key.proto, now_secs);
    let begins_anew = is_tcp && begins && s.value.flags & CT_REPLY == 0;
    let is_doubtful = s.value.state == CtState::Doubtful.number() && s.value.flags & CT_ALONE == 0;
    if begins_anew && is_doubtful && !is_expired {
        // As the RST, the SYN may be anybody's: it ends nothing, however long nobody spoke. See `stays` and `live`.
        return if s.value.flags & CT_DIRECT != 0 { None } else { Some(Found::Nothing) };
    }
    if (begins_anew && (s.value.is_over() || is_expired)) || (!is_tcp && is_expired) {
        forget(s);
        return Some(Found::Nothing);
    }
    None
}

/// Whether the flow's backend still is one. Identifiers are not given to another at once, and an entry that has an old one
/// names another address.
#[inline(always)]
fn holds(value: &CtValue) -> bool {
    if value.flags & (CT_REPLY | CT_DIRECT) != 0 {
        return true;
    }
    match maps::backend(value.backend_id) {
        Some(backend) => backend.addr() == value.dst && backend.port() == value.dport,
        None => false,
    }
}

#[inline(always)]
fn kind(value: &CtValue) -> Found {
    if value.flags & (CT_ALONE | CT_WRAPPED) == CT_ALONE { Found::Plain } else { Found::Flow }
}
