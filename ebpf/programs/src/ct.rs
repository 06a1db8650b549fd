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
    ct_maps::{self, Entry},
    maps,
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
    if let Some(entry) = ct_maps::live(&s.key) {
        entry.copy_to(&mut s.value);
        let is_quiet = s.value.seen_secs == now_secs && !s.has_tcp(TCP_SYN | TCP_FIN | TCP_RST);
        if is_quiet && holds(&s.value) {
            return kind(&s.value);
        }
        return live(s, entry, now_secs);
    }
    fresh(s, now_secs)
}

/// Removes both directions of the flow in [`Scratch::value`].
#[inline(never)]
pub(crate) fn forget(s: &mut Scratch) {
    s.peer_key = s.key.peer(&s.value);
    ct_maps::remove_live(&s.key);
    ct_maps::remove_fresh(&s.key);
    ct_maps::remove_live(&s.peer_key);
    ct_maps::remove_fresh(&s.peer_key);
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
    entry.set_seen(now_secs);
    mirror(s);
    let peer = if s.value.flags & CT_ALONE == 0 { ct_maps::live(&s.peer_key) } else { None };
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
            s.peer.seen_secs = now_secs;
            s.peer.state = state.number();
            if !ct_maps::set_live(&s.peer_key, &s.peer) {
                maps::count(Counter::CtFull);
            }
        }
        None => {}
    }
    kind(&s.value)
}

/// A packet of a flow in CT_NEW, or of none.
#[inline(never)]
fn fresh(s: &mut Scratch, now_secs: u32) -> Found {
    let Some(entry) = ct_maps::fresh(&s.key) else { return Found::Nothing };
    entry.copy_to(&mut s.value);
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
            establish(s, now_secs);
        }
        return kind(&s.value);
    }
    if s.has_tcp(TCP_SYN) {
        return kind(&s.value);
    }
    if is_alone {
        // The answers do not come by here: that the client goes on must do.
        establish(s, now_secs);
        return kind(&s.value);
    }
    mirror(s);
    match ct_maps::fresh(&s.peer_key) {
        Some(peer) => {
            let state = peer.state();
            if state >= CtState::Answered.number() && state < CtState::Closed.number() {
                establish(s, now_secs);
            }
        }
        // Evicted by a flood.
        None => {
            s.peer.state = CtState::New.number();
            s.peer.seen_secs = now_secs;
            ct_maps::add_fresh(&s.peer_key, &s.peer);
        }
    }
    kind(&s.value)
}

/// Moves the flow in [`Scratch::value`] to CT_LIVE.
#[inline(never)]
fn establish(s: &mut Scratch, now_secs: u32) {
    s.value.state = CtState::Established.number();
    s.value.seen_secs = now_secs;
    mirror(s);
    // In CT_LIVE before it is gone from CT_NEW: whoever inserts the same key into CT_NEW meanwhile looks into CT_LIVE after.
    let has_room = (s.value.flags & CT_ALONE != 0 || ct_maps::set_live(&s.peer_key, &s.peer))
        && ct_maps::set_live(&s.key, &s.value);
    if !has_room {
        // It stays where it is, and the next packet tries again.
        maps::count(Counter::CtFull);
        return;
    }
    ct_maps::remove_fresh(&s.key);
    if s.value.flags & CT_ALONE == 0 {
        ct_maps::remove_fresh(&s.peer_key);
    }
    maps::count(Counter::FlowEstablished);
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
    let is_reply = s.value.flags & CT_REPLY != 0;
    if is_tcp && begins && !is_reply && (s.value.is_over() || s.value.is_expired(s.key.proto, now_secs)) {
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
