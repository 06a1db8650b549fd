// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! IPv6 extension headers (RFC 8200, section 4): what stands behind them.

use crate::{packet::Packet, pod6::HEADER_BYTES};

/// Next header: options for each hop on the way. Only the first may be it.
pub(crate) const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
/// Next header: ICMPv6.
pub(crate) const ICMPV6: u8 = 58;
const DESTINATION_OPTIONS: u8 = 60;
/// In the third and fourth byte of a fragment header: where in the packet it lies.
const FRAGMENT_OFFSET: u16 = 0xfff8;
/// Headers in one packet; RFC 8200 recommends an order with six before the last (ESP, which nobody can look behind).
const EXTENSIONS_MAX: u32 = 6;
/// No extension header is shorter.
const EXTENSION_BYTES_MIN: u32 = 8;

/// What stands behind the extension headers.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Upper {
    /// Protocol; of a fragment that is not the first, of what follows its fragment header.
    pub(crate) proto: u8,
    pub(crate) before: Before,
    pub(crate) fragment: Fragment,
    /// Where it begins, from the start of the IPv6 header.
    pub(crate) offset: u32,
    /// Identification of the fragmented packet.
    pub(crate) id: [u8; 4],
}

impl Upper {
    /// Before anybody has looked.
    pub(crate) const UNKNOWN: Self =
        Self { proto: 0, before: Before::Nothing, fragment: Fragment::None, offset: 0, id: [0; 4] };
}

/// The extension headers before it.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Before {
    Nothing,
    /// Options for each hop and nothing else: how multicast listeners report (RFC 3810, section 5).
    HopByHop,
    Others,
}

/// Which part of a packet it is.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Fragment {
    None,
    First,
    /// What it carries was judged with the first.
    Later,
}

/// Walks from the header `next` behind the IPv6 header to the last. `false` when there are too many, or when one is cut off
/// by the packet's `end`: in a fragment it would go on in the next one, out of sight (RFC 7112 forbids that, too).
#[inline(never)]
pub(crate) fn walk(packet: &Packet, next: u8, end: u32, upper: &mut Upper) -> bool {
    *upper = Upper {
        proto: next,
        before: Before::Nothing,
        fragment: Fragment::None,
        offset: HEADER_BYTES,
        id: [0; 4],
    };
    for position in 0..=EXTENSIONS_MAX {
        match upper.proto {
            HOP_BY_HOP if position > 0 => return false,
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS => {}
            _ => return true,
        }
        if upper.offset + EXTENSION_BYTES_MIN > end {
            return false;
        }
        let Some([following, length, high, low, a, b, c, d]) = packet.read::<[u8; 8]>(upper.offset) else {
            return false;
        };
        let bytes = match upper.proto {
            FRAGMENT => {
                upper.id = [a, b, c, d];
                upper.fragment = Fragment::First;
                if u16::from_be_bytes([high, low]) & FRAGMENT_OFFSET != 0 {
                    upper.fragment = Fragment::Later;
                    upper.proto = following;
                    return true;
                }
                EXTENSION_BYTES_MIN
            }
            AUTHENTICATION => (u32::from(length) + 2) * 4,
            _ => (u32::from(length) + 1) * 8,
        };
        upper.before = if upper.proto == HOP_BY_HOP { Before::HopByHop } else { Before::Others };
        upper.proto = following;
        upper.offset += bytes;
    }
    false
}
