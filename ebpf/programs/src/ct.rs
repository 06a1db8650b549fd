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
    scratch::{Scratch, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
};

/// Answers for longer than this make a flow of a single datagram.
const STREAM_SECS: u32 = 2;

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
    let tick = s.value.seen_secs != now_secs;
    if !tick && !s.has_tcp(TCP_FIN | TCP_RST) {
        return kind(&s.value);
    }
    mirror(s);
    let peer = if s.value.flags & CT_ALONE == 0 { ct_maps::live(&s.peer_key) } else { None };
    if peer.is_some_and(|peer| !peer.is_like(&s.peer)) {
        return disown(s);
    }
    entry.set_seen(now_secs);
    let state = if s.has_tcp(TCP_RST) {
        CtState::Reset
    } else if s.has_tcp(TCP_FIN) {
        entry.set_flags(s.value.flags | CT_FIN);
        match peer {
            Some(peer) if peer.flags() & CT_FIN != 0 => CtState::Closed,
            // Of a flow with one entry nobody sees the other FIN.
            _ if s.value.flags & CT_ALONE != 0 => CtState::Closed,
            _ if s.value.state == CtState::Closed.number() => CtState::Closed,
            _ => CtState::Closing,
        }
    } else if s.value.state == CtState::Reset.number() && !s.has_tcp(TCP_SYN) {
        // Somebody sent an RST that neither side believed.
        CtState::Established
    } else {
        CtState::from_number(s.value.state).unwrap_or(CtState::Established)
    };
    entry.set_state(state);
    match peer {
        Some(peer) => {
            peer.set_seen(now_secs);
            peer.set_state(state);
        }
        // Evicted: of a flow that only one side speaks in, the other direction is least recently used.
        None if s.value.flags & CT_ALONE == 0 => {
            s.value.seen_secs = now_secs;
            s.value.state = state.number();
            match nat::claim(s, now_secs) {
                Inserted::Taken => return disown(s),
                Inserted::Yes if ct_maps::set_live(&s.peer_key, &s.peer) => {
                    ct_maps::remove_fresh(&s.peer_key);
                }
                _ => maps::count(Counter::CtFull),
            }
        }
        None => {}
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
    let is_alone = s.value.flags & CT_ALONE != 0;
    if s.value.flags & CT_REPLY != 0 {
        let answered = s.value.state != CtState::New.number();
        if s.has_tcp(TCP_RST) {
            entry.set_state(CtState::Reset);
        } else if !answered {
            entry.set_state(CtState::Answered);
        }
        // Nobody asks through this entry, or asked once and is answered for a while: that the other side goes on to speak
        // must do.
        let goes_on = s.key.proto != PROTO_TCP && now_secs.wrapping_sub(s.value.began_secs) > STREAM_SECS;
        if (is_alone || goes_on) && answered && !s.has_tcp(TCP_SYN | TCP_RST) {
            return establish(s, now_secs);
        }
        return kind(&s.value);
    }
    if is_alone {
        // The answers do not come by here: that the client goes on must do.
        return if s.has_tcp(TCP_SYN) { kind(&s.value) } else { establish(s, now_secs) };
    }
    mirror(s);
    if let Some(peer) = ct_maps::fresh(&s.peer_key) {
        if !peer.is_like(&s.peer) {
            return disown(s);
        }
        // They age together: an entry for the answers that is over may be given to another flow.
        peer.set_seen(now_secs);
        let state = peer.state();
        let has_answered = state >= CtState::Answered.number() && state < CtState::Closed.number();
        return if has_answered && !s.has_tcp(TCP_SYN) { establish(s, now_secs) } else { kind(&s.value) };
    }
    // Another CPU moves the flow at this moment, or it was evicted by a flood.
    if ct_maps::live(&s.peer_key).is_some_and(|peer| peer.is_like(&s.peer)) {
        return kind(&s.value);
    }
    s.value.state = CtState::New.number();
    s.value.seen_secs = now_secs;
    if nat::claim(s, now_secs) == Inserted::Taken { disown(s) } else { kind(&s.value) }
}

/// Moves the flow in [`Scratch::value`] to CT_LIVE.
#[inline(never)]
fn establish(s: &mut Scratch, now_secs: u32) -> Found {
    s.value.state = CtState::Established.number();
    s.value.seen_secs = now_secs;
    mirror(s);
    // In CT_LIVE before it is gone from CT_NEW: whoever inserts the same key into CT_NEW meanwhile looks into CT_LIVE after.
    let peer = if s.value.flags & CT_ALONE != 0 {
        Inserted::Yes
    } else if ct_maps::fresh(&s.peer_key).is_some_and(|peer| !peer.is_like(&s.peer)) {
        return disown(s);
    } else {
        ct_maps::add_live(&s.peer_key, &s.peer)
    };
    if peer == Inserted::Taken && !ct_maps::live(&s.peer_key).is_some_and(|peer| peer.is_like(&s.peer)) {
        return disown(s);
    }
    if peer == Inserted::Full || !ct_maps::set_live(&s.key, &s.value) {
        // It stays where it is, and the next packet tries again.
        maps::count(Counter::CtFull);
        return kind(&s.value);
    }
    ct_maps::remove_fresh(&s.key);
    if s.value.flags & CT_ALONE == 0 {
        ct_maps::remove_fresh(&s.peer_key);
    }
    maps::count(Counter::FlowEstablished);
    kind(&s.value)
}

/// Whether the packet does not belong to the flow any more whose addresses and ports it has.
#[inline(always)]
fn is_over(s: &mut Scratch, now_secs: u32) -> Option<Found> {
    let is_tcp = s.key.proto == PROTO_TCP;
    let begins = !is_tcp || s.view.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
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
