// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! ICMP errors: about translated packets they are mapped back, so that the one who gets them knows the packet in them; and
//! "too big" for translated packets that do not fit their next link.
//!
//! An error from R about a packet `b -> a` goes to b. The entry for packets `a -> b` says that these become `a' -> b'`; so the one
//! that R has seen was `b' -> a'` to its sender b', who gets the error. It comes from a' where R is a.

use ebpf_abi::{
    Counter, DropReason, PROTO_TCP, PROTO_UDP,
    address::{mapped, tail},
    conntrack::{CT_ALONE, CT_SOURCE, CT_WRAPPED},
};

use crate::{
    ct::Found,
    ct_maps,
    extension::ICMPV6,
    maps,
    packet::{
        ETHER_IPV4, ETHER_IPV6, ETHERNET_BYTES, Head, Head6, Hop, Packet, TC_DROP, add, difference, fold, sum,
    },
    pod6, route,
    scratch::Scratch,
    translate::joined,
    tuple::ICMP,
};

/// Bytes of an ICMP header, in both versions.
const HEADER_BYTES: u32 = 8;
/// Where its checksum lies.
const CHECKSUM: u32 = 2;
/// Where the checksum lies in an IPv4 header; the addresses follow.
const CHECKSUM4: u32 = 10;
/// Where the addresses lie in an IPv6 header.
const ADDRESSES6: u32 = 8;
/// In the seventh and eighth byte of an IPv4 header: where in the packet it lies.
const OFFSET4: u16 = 0x1fff;
/// Destination unreachable, fragmentation needed (RFC 1191).
const FRAGMENTATION_NEEDED: [u8; 2] = [3, 4];
/// Packet too big (RFC 4443).
const PACKET_TOO_BIG: [u8; 2] = [2, 0];
/// What is quoted of a packet: its IP header and 20 bytes, where the checksum of a TCP segment is among them.
const QUOTED4: u32 = 40;
const QUOTED6: u32 = 60;
/// Hops left to what we send.
const HOPS: u8 = 64;

/// Finds the flow that the ICMP error is about. [`Scratch::value`] then says what the error's own addresses become.
#[inline(never)]
pub(crate) fn about(packet: &Packet, s: &mut Scratch) -> Found {
    if !ct_maps::is_active() || !read(packet, s) {
        return Found::Nothing;
    }
    // The error goes to the sender of the packet in it; a pod speaks for itself only.
    if s.inner_key.dst != s.key.dst || (s.view.is_from_pod != 0 && s.inner_key.src != s.key.src) {
        return Found::Nothing;
    }
    if !ct_maps::read(&s.inner_key, &mut s.inner) {
        maps::count(Counter::IcmpUnknown);
        return Found::Nothing;
    }
    s.value = s.inner;
    s.view.is_error = 1;
    if s.inner.flags & CT_WRAPPED != 0 {
        return Found::Flow;
    }
    if s.inner.flags & CT_ALONE != 0 {
        return Found::Plain;
    }
    // Somebody on the way keeps its address, unless it is one that only this node's side of the flow can know.
    if s.key.src != s.inner_key.src && s.inner.flags & CT_SOURCE == 0 {
        s.value.src = s.key.src;
    }
    s.value.difference = difference(&s.key, &s.value);
    maps::count(Counter::IcmpMapped);
    Found::Flow
}

/// Reads the packet in the error: its addresses and ports, the other way round, into [`Scratch::inner_key`].
// Not inline: LLVM 22 dies on the debug information that it makes of that.
#[inline(never)]
fn read(packet: &Packet, s: &mut Scratch) -> bool {
    let ip = s.view.transport + HEADER_BYTES;
    s.error.ip = ip;
    s.inner_key.pad = [0; 3];
    if s.is_ipv6() {
        let Some(head) = packet.load::<Head6>(ip) else { return false };
        s.error.transport = ip + pod6::HEADER_BYTES;
        (s.inner_key.dst, s.inner_key.src, s.inner_key.proto) = (head.src, head.dst, head.next);
    } else {
        let Some(body) = packet.load::<[u8; 20]>(ip) else { return false };
        let [version, _, _, _, _, _, f0, f1, _, proto, c0, c1, s0, s1, s2, s3, d0, d1, d2, d3] = body;
        if version >> 4 != 4 || version & 0x0f < 5 || u16::from_be_bytes([f0, f1]) & OFFSET4 != 0 {
            return false;
        }
        s.error.checksum = [c0, c1];
        s.error.transport = ip + u32::from(version & 0x0f) * 4;
        s.inner_key.dst = mapped([s0, s1, s2, s3]);
        s.inner_key.src = mapped([d0, d1, d2, d3]);
        s.inner_key.proto = proto;
    }
    if s.inner_key.proto != PROTO_TCP && s.inner_key.proto != PROTO_UDP {
        return false;
    }
    let Some([s0, s1, d0, d1]) = packet.load::<[u8; 4]>(s.error.transport) else { return false };
    (s.inner_key.sport, s.inner_key.dport) = ([d0, d1], [s0, s1]);
    true
}

/// Translates the packet in the error, and the error's checksum. The checksum of the TCP or UDP header in it, often cut off,
/// stays: nobody can verify it.
#[inline(never)]
pub(crate) fn rewrite(packet: &Packet, s: &Scratch) -> bool {
    let checksum = s.view.transport + CHECKSUM;
    let from = joined(s.inner_key.dport, s.inner_key.sport);
    let to = joined(s.inner.dport, s.inner.sport);
    let ports = add(u32::from_ne_bytes(to), !u32::from_ne_bytes(from));
    if from != to && !packet.store(s.error.transport, &to, 0) {
        return false;
    }
    if s.is_ipv6() {
        let addresses = [s.inner.dst, s.inner.src];
        // Its checksum covers its own addresses, too.
        let all = add(add(ports, s.inner.difference), s.value.difference);
        return packet.store(s.error.ip + ADDRESSES6, &addresses, 0) && packet.checksum_sum(checksum, all);
    }
    // The inner header's checksum makes up for the inner addresses.
    let inner = !fold(add(u32::from(!u16::from_ne_bytes(s.error.checksum)), s.inner.difference));
    let [c0, c1] = inner.to_ne_bytes();
    let [s0, s1, s2, s3] = tail(&s.inner.dst);
    let [d0, d1, d2, d3] = tail(&s.inner.src);
    let header = [c0, c1, s0, s1, s2, s3, d0, d1, d2, d3];
    packet.store(s.error.ip + CHECKSUM4, &header, 0) && (from == to || packet.checksum_sum(checksum, ports))
}

/// Answers the packet, which is not translated yet, with "too big" from the address that it is for; the packet itself is dropped.
#[inline(never)]
pub(crate) fn too_big(packet: &Packet, s: &mut Scratch, mtu: u32, reason: DropReason) -> i32 {
    maps::count_drop(reason);
    maps::count(if reason == DropReason::DsrTooBig { Counter::DsrTooBig } else { Counter::TooBig });
    // Without an Ethernet header there is no way back that we know; with one, the sender's hop is in it.
    if packet.ip() != ETHERNET_BYTES {
        return TC_DROP;
    }
    let Some(head) = packet.head() else { return TC_DROP };
    let done = if s.is_ipv6() { make6(packet, s, &head, mtu) } else { make4(packet, s, &head, mtu) };
    if done { route::redirect(packet.ifindex()) } else { TC_DROP }
}

#[inline(never)]
fn make4(packet: &Packet, s: &mut Scratch, head: &Head, mtu: u32) -> bool {
    let [m0, m1] = (mtu.min(u32::from(u16::MAX)) as u16).to_be_bytes();
    if !packet.read_into(&mut s.quoted.ipv4) {
        return false;
    }
    let [kind, code] = FRAGMENTATION_NEEDED;
    let mut message = [kind, code, 0, 0, 0, 0, m0, m1];
    [message[2], message[3]] = (!fold(add(sum(&message), sum(&s.quoted.ipv4)))).to_ne_bytes();
    let frame = &mut s.frame;
    frame.hop = Hop { dst: head.src, src: head.dst };
    frame.ether_type = ETHER_IPV4;
    // Version and words, length, do not fragment, hops left, protocol.
    let total = (20 + HEADER_BYTES + QUOTED4) as u8;
    let [s0, s1, s2, s3] = tail(&s.key.dst);
    let [d0, d1, d2, d3] = tail(&s.key.src);
    let mut ip = [0x45, 0, 0, total, 0, 0, 0x40, 0, HOPS, ICMP, 0, 0, s0, s1, s2, s3, d0, d1, d2, d3];
    [ip[10], ip[11]] = (!fold(sum(&ip))).to_ne_bytes();
    frame.ip = ip;
    packet.cut(ETHERNET_BYTES + QUOTED4)
        && packet.make_room((20 + HEADER_BYTES) as i32)
        && packet.store(0, frame, 0)
        && packet.store(ETHERNET_BYTES + 20, &message, 0)
}

#[inline(never)]
fn make6(packet: &Packet, s: &mut Scratch, head: &Head, mtu: u32) -> bool {
    let [a, b, c, d] = mtu.to_be_bytes();
    if !packet.read_into(&mut s.quoted.ipv6) {
        return false;
    }
    let [kind, code] = PACKET_TOO_BIG;
    let mut message = [kind, code, 0, 0, a, b, c, d];
    let bytes = (HEADER_BYTES + QUOTED6) as u8;
    // RFC 8200, section 8.1: length and protocol, and the addresses, are summed up as well.
    let mut total = add(add(sum(&message), sum(&s.quoted.ipv6)), sum(&[0, 0, 0, bytes, 0, 0, 0, ICMPV6]));
    total = add(total, add(sum(&s.key.src), sum(&s.key.dst)));
    [message[2], message[3]] = (!fold(total)).to_ne_bytes();
    // The answer goes back where the packet came from.
    (s.value.src, s.value.dst) = (s.key.dst, s.key.src);
    let hop = Hop { dst: head.src, src: head.dst };
    let first = [0x60, 0, 0, 0, 0, bytes, ICMPV6, HOPS];
    packet.cut(ETHERNET_BYTES + QUOTED6)
        && packet.make_room((40 + HEADER_BYTES) as i32)
        && packet.store(0, &hop, 0)
        && packet.store(size_of::<Hop>() as u32, &ETHER_IPV6, 0)
        && packet.store(ETHERNET_BYTES, &first, 0)
        && packet.store_addresses(ETHERNET_BYTES + ADDRESSES6, &s.value, 0)
        && packet.store(ETHERNET_BYTES + 40, &message, 0)
}
