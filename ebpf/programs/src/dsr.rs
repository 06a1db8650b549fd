// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! Direct server return: the node that a client asks wraps its packets, untouched, for the backend's node (VXLAN between the nodes'
//! overlay addresses, inside the encrypted overlay when there is one); that node chooses among its own backends and answers the
//! client itself, from the address that was asked.

use ebpf_abi::{Counter, DropReason, PROTO_TCP, address::is_unspecified, node::DSR_VNI};

use crate::{
    forward, icmp, maps,
    packet::{ETHERNET_BYTES, Packet},
    route,
    scratch::Scratch,
    translate::TCP_CHECKSUM,
};

/// IP and TCP headers without options.
const HEADERS4: u32 = 40;
const HEADERS6: u32 = 60;
/// Where the options of a TCP header begin, and where the length of the header is.
const TCP_OPTIONS: u32 = 20;
const TCP_LENGTH: u32 = 12;
/// TCP options (RFC 9293, section 3.2).
const OPTION_END: u8 = 0;
const OPTION_NOTHING: u8 = 1;
const OPTION_MSS: u8 = 2;
/// Options looked at: Linux has the MSS first, others among the first five.
const OPTIONS_MAX: u32 = 8;

/// Wraps the packet for the backend's node.
#[inline(never)]
pub(crate) fn wrap(packet: &Packet, s: &mut Scratch) -> i32 {
    let (Some(config), Some(node)) = (maps::config(), maps::node(s.value.node)) else {
        return forward::drop(DropReason::NoRoute);
    };
    let remote = if is_unspecified(&node.overlay4) { &node.overlay6 } else { &node.overlay4 };
    if packet.ip() != ETHERNET_BYTES {
        return forward::drop(DropReason::NoRoute);
    }
    let mtu = config.dsr_mtu(s.is_ipv6());
    if mtu != 0 && length(packet, s) > mtu {
        return icmp::too_big(packet, s, mtu, DropReason::DsrTooBig);
    }
    // One hop older, as by any router: should two nodes take each other for the backend's, it ends.
    let is_older =
        if s.is_ipv6() { packet.count_hop6(s.view.next, s.view.hops) } else { packet.count_hop4(&s.view.ip) };
    if !is_older || !packet.set_tunnel(DSR_VNI, remote) {
        return forward::drop(DropReason::NoRoute);
    }
    maps::count(Counter::DsrWrapped);
    route::redirect(config.dsr_ifindex())
}

/// Makes the backend's SYN-ACK ask for segments that fit when they are wrapped; `false` when it cannot be written.
#[inline(never)]
pub(crate) fn clamp(packet: &Packet, s: &Scratch) -> bool {
    let Some(config) = maps::config() else { return true };
    let mtu = config.dsr_mtu(s.is_ipv6());
    let headers = if s.is_ipv6() { HEADERS6 } else { HEADERS4 };
    if mtu <= headers {
        return true;
    }
    let mss_max = (mtu - headers).min(u32::from(u16::MAX)) as u16;
    let tcp = s.view.transport;
    let Some([words]) = packet.load::<[u8; 1]>(tcp + TCP_LENGTH) else { return true };
    let end = tcp + u32::from(words >> 4) * 4;
    let mut at = tcp + TCP_OPTIONS;
    for _ in 0..OPTIONS_MAX {
        if at + 2 > end {
            return true;
        }
        let Some([kind, length]) = packet.load::<[u8; 2]>(at) else { return true };
        match kind {
            OPTION_END => return true,
            OPTION_NOTHING => at += 1,
            OPTION_MSS => {
                // On an odd address the checksum would take the bytes the other way round; nobody writes it there.
                let Some(now) = packet.load::<[u8; 4]>(at) else { return true };
                if (at - tcp).is_multiple_of(2) && u16::from_be_bytes([now[2], now[3]]) > mss_max {
                    let [high, low] = mss_max.to_be_bytes();
                    let then = [now[0], now[1], high, low];
                    if packet.checksum_word(tcp + TCP_CHECKSUM, now, then, false) {
                        packet.store(at, &then, 0);
                    }
                }
                return true;
            }
            _ if length < 2 => return true,
            _ => at += u32::from(length),
        }
    }
    true
}

/// Length of the packet, or of its longest segment, from the IP header on.
#[inline(always)]
fn length(packet: &Packet, s: &Scratch) -> u32 {
    let payload = packet.segment_bytes();
    if payload == 0 {
        return packet.ip_bytes();
    }
    // TCP headers are as long in each segment as in the whole.
    let words = packet.load::<[u8; 1]>(s.view.transport + TCP_LENGTH).map_or(0, |[byte]| byte >> 4);
    let header = if s.key.proto == PROTO_TCP { u32::from(words) * 4 } else { 8 };
    s.view.transport - packet.ip() + header + payload
}
