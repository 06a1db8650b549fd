// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! From a packet's bytes to the addresses and ports that conntrack knows it by.

use ebpf_abi::{CtKey, FragmentKey, FragmentValue, PROTO_TCP, PROTO_UDP, address::mapped};

use crate::{
    ct_maps,
    extension::{self, Fragment, ICMPV6, Upper},
    packet::{ETHER_IPV4, ETHER_IPV6, Packet, now_secs},
    pod6,
    scratch::{PART_FIRST, PART_LATER, PART_WHOLE, Scratch},
};

/// Protocol number of ICMP.
pub(crate) const ICMP: u8 = 1;
/// Words of an IPv4 header without options.
const WORDS_MIN: u8 = 5;
/// In the seventh and eighth byte of an IPv4 header: where in the packet it lies; that there is more.
const OFFSET4: u16 = 0x1fff;
const MORE4: u16 = 0x2000;
/// ICMP errors (RFC 792): destination unreachable, time exceeded, parameter problem.
const ERRORS4: [u8; 3] = [3, 11, 12];
/// ICMPv6 errors (RFC 4443): destination unreachable, packet too big, time exceeded, parameter problem.
const ERROR6_LAST: u8 = 4;

/// What a packet is to the packet path.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    /// TCP or UDP; the key is complete.
    Flow,
    /// An ICMP error; the key has its addresses.
    Error,
    /// A fragment of TCP or UDP whose first one was not seen, or with a transport header that is cut off: its ports are unknown.
    Cut,
    /// Anything else.
    Other,
}

/// Reads the packet of a device whose packets nobody has looked at yet.
#[inline(never)]
pub(crate) fn read(packet: &Packet, s: &mut Scratch) -> Kind {
    match packet.ether_type() {
        ETHER_IPV4 if packet.read_bytes(&mut s.view.ip) => read4(packet, s),

        ETHER_IPV6 => read6(packet, s),
        _ => Kind::Other,
    }
}

/// Reads an IPv4 packet, the beginning of whose header is in [`View::ip`](crate::scratch::View::ip).
#[inline(always)]
pub(crate) fn read4(packet: &Packet, s: &mut Scratch) -> Kind {
    let [version, _, _, _, i0, i1, f0, f1, ttl, proto, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = s.view.ip;
    let words = version & 0x0f;
    if version >> 4 != 4 || words < WORDS_MIN {
        return Kind::Other;
    }
    s.view.is_ipv6 = 0;
    s.view.hops = ttl;
    s.view.next = proto;
    s.view.transport = packet.ip() + u32::from(words) * 4;
    begin(&mut s.key, mapped([s0, s1, s2, s3]), mapped([d0, d1, d2, d3]), proto);
    let position = u16::from_be_bytes([f0, f1]);
    if position & (OFFSET4 | MORE4) == 0 {
        return whole(packet, s);
    }
    let fragment = if position & OFFSET4 == 0 { Fragment::First } else { Fragment::Later };
    part(packet, s, fragment, [i0, i1, 0, 0])
}

/// Reads an IPv6 packet.
#[inline(never)]
pub(crate) fn read6(packet: &Packet, s: &mut Scratch) -> Kind {
    if !packet.head6_into(&mut s.head6) {
        return Kind::Other;
    }
    let head = &s.head6;
    if head.first[0] >> 4 != 6 {
        return Kind::Other;
    }
    let Some(end) = pod6::end(packet, head) else { return Kind::Other };
    let mut upper = Upper::UNKNOWN;
    if !extension::walk(packet, head.next, end, &mut upper) {
        return Kind::Other;
    }
    read_upper(packet, s, &upper)
}

/// The same where somebody has read the header and walked through those behind it.
#[inline(always)]
pub(crate) fn read_upper(packet: &Packet, s: &mut Scratch, upper: &Upper) -> Kind {
    let head = &s.head6;
    s.view.is_ipv6 = 1;
    s.view.hops = head.hop_limit;
    s.view.next = head.next;
    s.view.transport = packet.ip() + upper.offset;
    begin(&mut s.key, head.src, head.dst, upper.proto);
    match upper.fragment {
        Fragment::None => whole(packet, s),
        fragment => part(packet, s, fragment, upper.id),
    }
}

#[inline(always)]
fn begin(key: &mut CtKey, src: [u8; 16], dst: [u8; 16], proto: u8) {
    *key = CtKey { src, dst, sport: [0; 2], dport: [0; 2], proto, pad: [0; 3] };
}

/// A packet, or a first fragment.
#[inline(always)]
fn whole(packet: &Packet, s: &mut Scratch) -> Kind {
    s.view.part = PART_WHOLE;
    s.view.is_error = 0;
    s.view.is_from_pod = 0;
    s.view.tcp_flags = 0;
    match s.key.proto {
        PROTO_TCP => {
            let Some([s0, s1, d0, d1, q0, q1, q2, q3, a0, a1, a2, a3, _, flags]) =
                packet.load::<[u8; 14]>(s.view.transport)
            else {
                return Kind::Cut;
            };
            (s.key.sport, s.key.dport, s.view.tcp_flags) = ([s0, s1], [d0, d1], flags);
            (s.view.tcp_seq, s.view.tcp_ack) = ([q0, q1, q2, q3], [a0, a1, a2, a3]);
            Kind::Flow
        }
        PROTO_UDP => {
            let Some([s0, s1, d0, d1, ..]) = packet.load::<[u8; 8]>(s.view.transport) else {
                return Kind::Cut;
            };
            (s.key.sport, s.key.dport) = ([s0, s1], [d0, d1]);
            Kind::Flow
        }
        ICMP if !s.is_ipv6() => match packet.load::<[u8; 1]>(s.view.transport) {
            Some([kind]) if ERRORS4.contains(&kind) => Kind::Error,
            _ => Kind::Other,
        },
        ICMPV6 if s.is_ipv6() => match packet.load::<[u8; 1]>(s.view.transport) {
            Some([kind]) if kind > 0 && kind <= ERROR6_LAST => Kind::Error,
            _ => Kind::Other,
        },
        _ => Kind::Other,
    }
}

/// A fragment: the first one has the ports, for the others they were remembered.
#[inline(never)]
fn part(packet: &Packet, s: &mut Scratch, fragment: Fragment, id: [u8; 4]) -> Kind {
    s.fragment = FragmentKey { src: s.key.src, dst: s.key.dst, id, proto: s.key.proto, pad: [0; 3] };
    if fragment == Fragment::First {
        let kind = whole(packet, s);
        s.view.part = PART_FIRST;
        // The identification is another packet's now, and whether that one will be translated is not known yet.
        if ct_maps::fragment(&s.fragment)
            .is_some_and(|ports| (ports.sport, ports.dport) != (s.key.sport, s.key.dport))
        {
            ct_maps::forget_fragment(&s.fragment);
        }
        return kind;
    }
    s.view.part = PART_LATER;
    s.view.is_error = 0;
    s.view.is_from_pod = 0;
    s.view.tcp_flags = 0;
    if s.key.proto != PROTO_TCP && s.key.proto != PROTO_UDP {
        return Kind::Other;
    }
    match ct_maps::fragment(&s.fragment) {
        Some(ports) if !ports.is_expired(now_secs()) => {
            (s.key.sport, s.key.dport) = (ports.sport, ports.dport);
            Kind::Flow
        }
        _ => Kind::Cut,
    }
}

/// Remembers the ports of a first fragment that is translated: those of the others must be, too.
#[inline(always)]
pub(crate) fn remember_fragment(s: &Scratch) {
    if s.view.part == PART_FIRST {
        remember_ports(s);
    }
}

#[inline(never)]
fn remember_ports(s: &Scratch) {
    let value = FragmentValue { sport: s.key.sport, dport: s.key.dport, seen_secs: now_secs() };
    ct_maps::remember_fragment(&s.fragment, &value);
}
