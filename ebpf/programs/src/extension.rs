// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! IPv6 extension headers (RFC 8200, section 4): what stands behind them.

use crate::{packet::Packet, pod6::HEADER_BYTES};

/// Next header: options for each hop on the way. Only the first may be it.
pub(crate) const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const ICMPV6: u8 = 58;
const DESTINATION_OPTIONS: u8 = 60;
/// In the third and fourth byte of a fragment header: where in the packet it lies.
const FRAGMENT_OFFSET: u16 = 0xfff8;
/// Headers in one packet; RFC 8200 recommends an order with six before the last (ESP, which nobody can look behind).
const EXTENSIONS_MAX: u32 = 6;
/// No extension header is shorter.
const EXTENSION_BYTES_MIN: u32 = 8;

/// What stands behind the extension headers.
pub(crate) enum Upper {
    /// An ICMPv6 message.
    Icmp {
        /// Where, from the start of the IPv6 header.
        offset: u32,
        before: Before,
    },
    /// Another protocol, or a fragment that is not the first: what it carries was judged with the first.
    Other,
}

/// The extension headers before an ICMPv6 message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    Nothing,
    /// Options for each hop and nothing else: how multicast listeners report (RFC 3810, section 5).
    HopByHop,
    Others,
}

/// Walks from the header `next` behind the IPv6 header to the last. `None` when there are too many, or when one is cut off
/// by the packet's `end`: in a fragment it would go on in the next one, out of sight (RFC 7112 forbids that, too).
#[inline(always)]
pub(crate) fn walk(packet: &Packet, next: u8, end: u32) -> Option<Upper> {
    let mut next = next;
    let mut offset = HEADER_BYTES;
    let mut before = Before::Nothing;
    for position in 0..=EXTENSIONS_MAX {
        match next {
            ICMPV6 => return Some(Upper::Icmp { offset, before }),
            HOP_BY_HOP if position > 0 => return None,
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS => {}
            _ => return Some(Upper::Other),
        }
        if offset + EXTENSION_BYTES_MIN > end {
            return None;
        }
        let [following, length, high, low] = packet.read::<[u8; 4]>(offset)?;
        let bytes = match next {
            FRAGMENT if u16::from_be_bytes([high, low]) & FRAGMENT_OFFSET != 0 => return Some(Upper::Other),
            FRAGMENT => EXTENSION_BYTES_MIN,
            AUTHENTICATION => (u32::from(length) + 2) * 4,
            _ => (u32::from(length) + 1) * 8,
        };
        before = if next == HOP_BY_HOP { Before::HopByHop } else { Before::Others };
        next = following;
        offset += bytes;
    }
    None
}
