// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! What a pod may say in ICMPv6: neighbour discovery (RFC 4861), duplicate address detection (RFC 4862) and multicast
//! listener reports (RFC 3810) that concern the pod itself.
//!
//! | message | a pod may send it |
//! | --- | --- |
//! | neighbour solicitation | for any target, with no link-layer address but its own; from `::` only for an own target |
//! | neighbour advertisement | for an own target, with no link-layer address but its own |
//! | router solicitation | with no link-layer address but its own; not from `::` |
//! | multicast listener report, done | yes, also from `::` |
//! | router advertisement, redirect, multicast listener query, … | no |
//! | inverse neighbour discovery | no: nothing here speaks it |
//! | anything else (echo, errors) | yes, not from `::` |
//!
//! Before a message of neighbour discovery there must be no extension header: nobody needs one there, and whoever looks less
//! closely would not see the message. None of them is redirected: they end at this link.

use ebpf_abi::{DropReason, PodLink};

use crate::{
    extension::Before,
    packet::Packet,
    pod6::{self, Source},
};

// ICMPv6 types (IANA).
const LISTENER_QUERY: u8 = 130;
const LISTENER_REPORT: u8 = 131;
const LISTENER_DONE: u8 = 132;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const ROUTER_RENUMBERING: u8 = 138;
const INVERSE_SOLICITATION: u8 = 141;
const INVERSE_ADVERTISEMENT: u8 = 142;
const LISTENER_REPORT_V2: u8 = 143;
/// RFC 4286, with the next two.
const MULTICAST_ROUTER_ADVERTISEMENT: u8 = 151;
const MULTICAST_ROUTER_TERMINATION: u8 = 153;

/// Options of neighbour discovery (RFC 4861, section 4.6): the sender's or the target's link-layer address.
const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;
/// Length of such an option for Ethernet, in units of 8 bytes.
const LINK_LAYER_UNITS: u8 = 1;
/// Bytes before the options of a router solicitation.
const SOLICITATION_BYTES: u32 = 8;
/// Bytes before the options of a neighbour solicitation or advertisement, and before their target.
const NEIGHBOUR_BYTES: u32 = 24;
const TARGET_OFFSET: u32 = 8;
/// Options in one message; kernels send at most two (link-layer address and nonce).
const OPTIONS_MAX: u32 = 8;

/// An ICMPv6 message and what surrounds it.
pub(crate) struct Message {
    /// Where it begins, from the start of the IPv6 header.
    pub(crate) offset: u32,
    /// Where the packet ends.
    pub(crate) end: u32,
    pub(crate) before: Before,
    pub(crate) source: Source,
}

/// How far a message may go.
pub(crate) enum Reach {
    Link,
    Anywhere,
}

/// Whether the pod may send the message.
#[inline(never)]
pub(crate) fn check(packet: &Packet, link: &PodLink, message: &Message) -> Result<Reach, DropReason> {
    // A first fragment must not leave the type to the next one.
    if message.offset + 4 > message.end {
        return Err(DropReason::ExtensionHeaders);
    }
    let Some(kind) = packet.read::<u8>(message.offset) else { return Err(DropReason::Malformed) };
    let is_discovery = matches!(kind, ROUTER_SOLICITATION..=REDIRECT);
    if is_discovery && message.before != Before::Nothing {
        return Err(DropReason::ExtensionHeaders);
    }
    match kind {
        LISTENER_QUERY
        | ROUTER_ADVERTISEMENT
        | REDIRECT
        | ROUTER_RENUMBERING
        | MULTICAST_ROUTER_ADVERTISEMENT..=MULTICAST_ROUTER_TERMINATION => Err(DropReason::RouterMessage),
        LISTENER_REPORT | LISTENER_DONE | LISTENER_REPORT_V2 => {
            if message.source == Source::Unspecified && message.before != Before::HopByHop {
                return Err(DropReason::SourceAddress6);
            }
            Ok(Reach::Link)
        }
        NEIGHBOUR_SOLICITATION => {
            // From `::` it claims the target (duplicate address detection), else it asks for it.
            let claims = message.source == Source::Unspecified;
            neighbour(packet, link, message, claims)
        }
        NEIGHBOUR_ADVERTISEMENT if message.source != Source::Unspecified => {
            neighbour(packet, link, message, true)
        }
        INVERSE_SOLICITATION | INVERSE_ADVERTISEMENT => Err(DropReason::NeighbourSender),
        _ if message.source == Source::Unspecified => Err(DropReason::SourceAddress6),
        ROUTER_SOLICITATION => options(packet, link, message, SOLICITATION_BYTES),
        _ => Ok(Reach::Anywhere),
    }
}

/// A message with a target, which must be the pod's if the message claims it.
#[inline(always)]
fn neighbour(packet: &Packet, link: &PodLink, message: &Message, claims: bool) -> Result<Reach, DropReason> {
    if message.offset + NEIGHBOUR_BYTES > message.end {
        return Err(DropReason::Malformed);
    }
    if claims {
        let Some(target) = packet.read::<[u8; 16]>(message.offset + TARGET_OFFSET) else {
            return Err(DropReason::Malformed);
        };
        if !pod6::is_own(packet, link, target) {
            return Err(DropReason::NeighbourSender);
        }
    }
    options(packet, link, message, NEIGHBOUR_BYTES)
}

/// Each link-layer address among the options, which begin after `skip` bytes, must be the pod's; who has no address yet
/// must not name one at all (RFC 4861, section 4.3).
#[inline(always)]
fn options(packet: &Packet, link: &PodLink, message: &Message, skip: u32) -> Result<Reach, DropReason> {
    let mut offset = message.offset + skip;
    for _ in 0..OPTIONS_MAX {
        if offset + 8 > message.end {
            // Not even one option fits: what is left, if anything, makes receivers discard the message.
            return if offset == message.end { Ok(Reach::Link) } else { Err(DropReason::Malformed) };
        }
        let Some([kind, units, m0, m1, m2, m3, m4, m5]) = packet.read::<[u8; 8]>(offset) else {
            return Err(DropReason::Malformed);
        };
        if units == 0 {
            return Err(DropReason::Malformed);
        }
        if (kind == SOURCE_LINK_LAYER || kind == TARGET_LINK_LAYER)
            && (units != LINK_LAYER_UNITS
                || [m0, m1, m2, m3, m4, m5] != link.mac
                || message.source == Source::Unspecified)
        {
            return Err(DropReason::NeighbourSender);
        }
        offset += u32::from(units) * 8;
    }
    if offset == message.end { Ok(Reach::Link) } else { Err(DropReason::Malformed) }
}
