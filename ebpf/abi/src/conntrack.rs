// SPDX-License-Identifier: Apache-2.0
//! Flows of the packet path.
//!
//! A flow has two entries, one for each direction, and each is found by the addresses and ports that a packet of that direction
//! arrives with; its value says what they become. A client's packet to a frontend, and the answer:
//!
//! ```text
//! 10.244.0.5:40000 -> 10.96.0.1:80   becomes  10.244.0.5:2371 -> 10.244.1.7:8080
//! 10.244.1.7:8080 -> 10.244.0.5:2371 becomes  10.96.0.1:80 -> 10.244.0.5:40000      (CT_REPLY)
//! ```
//!
//! Keys and values are aligned to eight bytes, as entries of maps are, so that programs copy them in words.
//!
//! The second key is what makes a flow unique: it is only inserted where there is none. An entry is in CT_NEW until both sides
//! have spoken and the client once more; then both move to CT_LIVE, so that a flood of half-open flows evicts only its like.
//!
//! ```text
//!           answer               client again           FIN of one     FIN of the other
//! New ───────────────► Answered ─────────────► Established ──► Closing ──────► Closed
//!  CT_NEW                CT_NEW                  CT_LIVE  │       │              CT_LIVE
//!   │ RST                  │ RST                      RST ▼       ▼ RST
//!   └────► Reset ◄─────────┘                          Doubtful ───► back with a later second's packet without one
//! ```
//!
//! Nobody looks at sequence numbers: an RST may be anybody's who guesses addresses and ports. So it ends no connection that goes on;
//! it only lets others have the ports of one that does not.
//!
//! A flow with one entry ([`CT_ALONE`]) never leaves CT_NEW: only one of its sides is seen.

use crate::{
    address::Address,
    protocol::{PROTO_TCP, PROTO_UDP},
};

/// Flag of [`CtValue`]: the direction of the answers.
pub const CT_REPLY: u8 = 1;
/// Flag of [`CtValue`]: no service; the flow goes to a backend directly, and has an entry so that no translated flow takes its
/// addresses and ports.
pub const CT_DIRECT: u8 = 2;
/// Flag of [`CtValue`]: the other direction has no entry.
pub const CT_ALONE: u8 = 4;
/// Flag of [`CtValue`]: packets are not translated but wrapped for the backend's node, which answers directly.
pub const CT_WRAPPED: u8 = 8;
/// Flag of [`CtValue`]: the backend does not see the client's address but this node's.
pub const CT_SOURCE: u8 = 16;
/// Flag of [`CtValue`]: this direction has sent its FIN.
pub const CT_FIN: u8 = 32;
/// Flag of [`CtValue`]: packets come wrapped from another node, and the answers go to the client from here.
pub const CT_UNWRAPPED: u8 = 64;
/// Flag of [`CtValue`]: begun from outside; only in such a flow the uplink's packets are the packet path's.
pub const CT_WORLD: u8 = 128;

/// How far a flow is; the number is [`CtValue::state`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum CtState {
    /// The client has spoken.
    New = 1,
    /// The backend, too.
    Answered = 2,
    /// Both, and the client again.
    Established = 3,
    /// One side has sent its FIN.
    Closing = 4,
    /// Both have.
    Closed = 5,
    /// One has sent an RST before the flow was established.
    Reset = 6,
    /// One has sent an RST later; nobody has spoken since, but in the same second.
    Doubtful = 7,
    /// Of a flow with one entry: begun without its SYN, when it had come another way before.
    Joined = 8,
}

impl CtState {
    /// The state with this number.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::New,
            2 => Self::Answered,
            3 => Self::Established,
            4 => Self::Closing,
            5 => Self::Closed,
            6 => Self::Reset,
            7 => Self::Doubtful,
            8 => Self::Joined,
            _ => return None,
        })
    }

    /// The number in [`CtValue::state`].
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// A short name for listings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Answered => "answered",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::Doubtful => "doubtful",
            Self::Joined => "joined",
        }
    }
}

/// A handshake without an end: what a SYN is retried for (tcp_syn_retries 6 and its back-off end later, but each retry counts).
pub const TCP_OPENING_SECS: u32 = 60;
/// An idle connection: well above the two hours after which keepalives begin (RFC 9293, section 3.8.4; RFC 5382 asks for more
/// than 2 h 4 min). Room is made earlier only where CT_LIVE is full.
pub const TCP_IDLE_SECS: u32 = 86_400;
/// Half closed, or reset, by one who may have been anybody: the other side may still have much to say, and of an idle one the
/// keepalive comes after two hours and must find it (RFC 5382, as above).
pub const TCP_CLOSING_SECS: u32 = 7_500;
/// Both closed: twice the segment lifetime that Linux assumes.
pub const TCP_CLOSED_SECS: u32 = 120;
/// Reset: time for what is under way. After that others may have the flow's ports.
pub const TCP_RESET_SECS: u32 = 10;
/// One datagram, or one and its answer.
pub const UDP_ONCE_SECS: u32 = 30;
/// A datagram and its answer, where room or ports are short: what comes later is late.
pub const UDP_ANSWERED_SECS: u32 = 10;
/// A UDP flow (RFC 4787, REQ-5: at least two minutes).
pub const UDP_FLOW_SECS: u32 = 180;
/// The fragments of one packet: as long as Linux waits for them (net.ipv4.ipfrag_time). Identifications come again.
pub const FRAGMENT_SECS: u32 = 30;

/// A packet's addresses and ports as it arrives: one direction of a flow. 40 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(8))]
pub struct CtKey {
    /// Source.
    pub src: Address,
    /// Destination.
    pub dst: Address,
    /// Source port, network order.
    pub sport: [u8; 2],
    /// Destination port, network order.
    pub dport: [u8; 2],
    /// IP protocol number.
    pub proto: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// What such a packet becomes, and how far the flow is. 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(8))]
pub struct CtValue {
    /// Its source, translated.
    pub src: Address,
    /// Its destination, translated. Of a flow that is [`CT_WRAPPED`], the backend.
    pub dst: Address,
    /// Its source port, translated, network order.
    pub sport: [u8; 2],
    /// Its destination port, translated, network order.
    pub dport: [u8; 2],
    /// What the translation of the addresses adds to a checksum: a sum in ones' complement, not folded, in the order of the
    /// packet's bytes.
    pub difference: u32,
    /// The frontend; 0 of a flow that is [`CT_DIRECT`].
    pub service_id: u32,
    /// The backend; 0 of a flow that is [`CT_DIRECT`].
    pub backend_id: u32,
    /// The backend's node, an index into NODES, where [`CT_WRAPPED`]; the sequence number of the backend's SYN-ACK, or
    /// the one before that of its last segment, where [`CT_REPLY`] in CT_NEW; else 0.
    pub node: u32,
    /// When it began: seconds of CLOCK_MONOTONIC.
    pub began_secs: u32,
    /// When a packet of either direction was last seen, to the second.
    pub seen_secs: u32,
    /// A [`CtState`].
    pub state: u8,
    /// `CT_*`.
    pub flags: u8,
    /// Zero.
    pub pad: [u8; 2],
}

impl CtValue {
    /// How many seconds after its last packet the flow is over; 0 for an entry that is none.
    #[inline(always)]
    pub const fn timeout_secs(&self, proto: u8) -> u32 {
        match (proto, self.state) {
            (_, 0) => 0,
            (PROTO_TCP, 1 | 2 | 8) => TCP_OPENING_SECS,
            (PROTO_TCP, 3) => TCP_IDLE_SECS,
            (PROTO_TCP, 4 | 7) => TCP_CLOSING_SECS,
            (PROTO_TCP, 5) => TCP_CLOSED_SECS,
            (PROTO_TCP, _) => TCP_RESET_SECS,
            (PROTO_UDP, 3) => UDP_FLOW_SECS,
            _ => UDP_ONCE_SECS,
        }
    }

    /// Whether the flow is over; `now_secs` of CLOCK_MONOTONIC.
    #[inline(always)]
    pub const fn is_expired(&self, proto: u8, now_secs: u32) -> bool {
        is_older(self.seen_secs, now_secs, self.timeout_secs(proto))
    }

    /// Whether another flow may have its addresses and ports where nothing else is left: it is over, or it has come to what may be its
    /// end and nobody spoke since.
    #[inline(always)]
    pub const fn is_free(&self, proto: u8, now_secs: u32) -> bool {
        let secs = match (proto, self.state) {
            (PROTO_TCP, 5 | 7) => TCP_RESET_SECS,
            (PROTO_UDP, 2) => UDP_ANSWERED_SECS,
            _ => self.timeout_secs(proto),
        };
        is_older(self.seen_secs, now_secs, secs)
    }

    /// Whether a SYN between the same ports begins another connection.
    #[inline(always)]
    pub const fn is_over(&self) -> bool {
        self.state >= CtState::Closed as u8 && self.state <= CtState::Doubtful as u8
    }
}

/// Whether more than `secs` have passed. A packet of another CPU may have been seen a moment after `now`: that is no age of a
/// hundred years.
#[inline(always)]
const fn is_older(seen_secs: u32, now_secs: u32, secs: u32) -> bool {
    let age = now_secs.wrapping_sub(seen_secs);
    age > secs && age < u32::MAX / 2
}

impl CtKey {
    /// The key of the other direction of the flow that has `value` here.
    #[inline(always)]
    pub const fn peer(&self, value: &CtValue) -> Self {
        Self {
            src: value.dst,
            dst: value.src,
            sport: value.dport,
            dport: value.sport,
            proto: self.proto,
            pad: [0; 3],
        }
    }

    /// A packet the other way, between the same addresses and ports.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            sport: self.dport,
            dport: self.sport,
            proto: self.proto,
            pad: [0; 3],
        }
    }
}

/// A packet whose fragments are on their way. 40 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(8))]
pub struct FragmentKey {
    /// Source.
    pub src: Address,
    /// Destination.
    pub dst: Address,
    /// Identification, as it lies in the packet (IPv4: in the first two bytes).
    pub id: [u8; 4],
    /// IP protocol number.
    pub proto: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// The ports that its first fragment had. 8 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FragmentValue {
    /// Source port, network order.
    pub sport: [u8; 2],
    /// Destination port, network order.
    pub dport: [u8; 2],
    /// When that fragment came: seconds of CLOCK_MONOTONIC.
    pub seen_secs: u32,
}

impl FragmentValue {
    /// Whether the identification may be another packet's by now.
    #[inline(always)]
    pub const fn is_expired(&self, now_secs: u32) -> bool {
        is_older(self.seen_secs, now_secs, FRAGMENT_SECS)
    }
}

// The layouts are the ABI: a change here must fail to compile before it confuses a running program.
const _: () = {
    assert!(size_of::<CtKey>() == 40);
    assert!(size_of::<CtValue>() == 64);
    // The programs exchange the last word as a whole.
    assert!(core::mem::offset_of!(CtValue, seen_secs) == 56);
    assert!(size_of::<FragmentKey>() == 40);
    assert!(size_of::<FragmentValue>() == 8);
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::mapped;

    const CLIENT: CtKey = CtKey {
        src: mapped([10, 244, 0, 5]),
        dst: mapped([10, 96, 0, 1]),
        sport: [156, 64],
        dport: [0, 80],
        proto: PROTO_TCP,
        pad: [0; 3],
    };
    const BACKEND: CtValue = CtValue {
        src: mapped([10, 244, 0, 5]),
        dst: mapped([10, 244, 1, 7]),
        sport: [9, 67],
        dport: [31, 144],
        difference: 0,
        service_id: 1,
        backend_id: 1,
        node: 0,
        began_secs: 100,
        seen_secs: 100,
        state: CtState::New as u8,
        flags: 0,
        pad: [0; 2],
    };

    #[test]
    fn the_answer_comes_from_where_the_packet_went() {
        let answer = CLIENT.peer(&BACKEND);
        assert_eq!((answer.src, answer.sport), (BACKEND.dst, BACKEND.dport));
        assert_eq!((answer.dst, answer.dport), (BACKEND.src, BACKEND.sport));
        assert_eq!(CLIENT.reversed().reversed(), CLIENT);
    }

    #[test]
    fn a_flow_is_over_after_its_time_and_not_before() {
        for (proto, state, secs) in [
            (PROTO_TCP, CtState::New, TCP_OPENING_SECS),
            (PROTO_TCP, CtState::Answered, TCP_OPENING_SECS),
            (PROTO_TCP, CtState::Established, TCP_IDLE_SECS),
            (PROTO_TCP, CtState::Closing, TCP_CLOSING_SECS),
            (PROTO_TCP, CtState::Closed, TCP_CLOSED_SECS),
            (PROTO_TCP, CtState::Reset, TCP_RESET_SECS),
            (PROTO_TCP, CtState::Doubtful, TCP_CLOSING_SECS),
            (PROTO_TCP, CtState::Joined, TCP_OPENING_SECS),
            (PROTO_UDP, CtState::New, UDP_ONCE_SECS),
            (PROTO_UDP, CtState::Answered, UDP_ONCE_SECS),
            (PROTO_UDP, CtState::Established, UDP_FLOW_SECS),
        ] {
            let value = CtValue { state: state.number(), ..BACKEND };
            assert_eq!(CtState::from_number(value.state), Some(state));
            assert!(!value.is_expired(proto, 100 + secs), "{proto} {state:?}");
            assert!(value.is_expired(proto, 101 + secs), "{proto} {state:?}");
            assert!(!value.is_expired(proto, 99), "seen by another CPU a moment later");
        }
        assert_eq!(CtState::from_number(0), None);
    }

    #[test]
    fn what_anybody_may_have_sent_leaves_a_connection_until_its_keepalive() {
        for state in [CtState::Closing, CtState::Doubtful] {
            let value = CtValue { state: state.number(), ..BACKEND };
            assert!(!value.is_expired(PROTO_TCP, 100 + 7_200 + 240), "{state:?}");
        }
    }

    #[test]
    fn what_may_be_the_end_gives_the_ports_to_others_soon_and_ends_the_flow_late() {
        for (proto, state, secs) in [
            (PROTO_TCP, CtState::Doubtful, TCP_RESET_SECS),
            (PROTO_TCP, CtState::Closed, TCP_RESET_SECS),
            (PROTO_UDP, CtState::Answered, UDP_ANSWERED_SECS),
        ] {
            let value = CtValue { state: state.number(), ..BACKEND };
            assert!(!value.is_free(proto, 100 + secs) && value.is_free(proto, 101 + secs), "{state:?}");
            assert!(!value.is_expired(proto, 101 + secs), "{state:?}");
        }
        let is_over = |state: CtState| CtValue { state: state.number(), ..BACKEND }.is_over();
        assert!(is_over(CtState::Doubtful) && is_over(CtState::Closed) && !is_over(CtState::Joined));
        for (proto, state) in [
            (PROTO_TCP, CtState::New),
            (PROTO_TCP, CtState::Answered),
            (PROTO_TCP, CtState::Established),
            (PROTO_TCP, CtState::Closing),
            (PROTO_UDP, CtState::New),
            (PROTO_UDP, CtState::Established),
        ] {
            let value = CtValue { state: state.number(), ..BACKEND };
            for age in [1, UDP_ANSWERED_SECS + 1, TCP_OPENING_SECS + 1, TCP_IDLE_SECS + 1] {
                assert_eq!(
                    value.is_free(proto, 100 + age),
                    value.is_expired(proto, 100 + age),
                    "{proto} {state:?}"
                );
            }
        }
    }

    #[test]
    fn an_identification_is_a_packets_for_half_a_minute() {
        let value = FragmentValue { seen_secs: 100, ..FragmentValue::default() };
        assert!(!value.is_expired(99) && !value.is_expired(100 + FRAGMENT_SECS));
        assert!(value.is_expired(101 + FRAGMENT_SECS));
    }
}
