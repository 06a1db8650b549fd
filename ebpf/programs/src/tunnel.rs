// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! Packets out of a tunnel without Ethernet headers (TUN, the kernel's WireGuard): answers to what this node sent on for others.
//! Everything else is the stack's.

use ebpf_abi::DropReason;

use crate::{
    ct::{self, Found},
    ct_maps,
    forward::{self, Origin},
    icmp, nat,
    packet::{Packet, TC_NEXT},
    tuple::{self, Kind},
};

/// A packet of a flow that is known, and where it went; `None` for all others.
#[inline(always)]
pub(crate) fn known(packet: &Packet, origin: Origin) -> Option<i32> {
    if !ct_maps::is_active() {
        return None;
    }
    let s = ct_maps::scratch()?;
    let found = match tuple::read(packet, s) {
        Kind::Flow => match ct::follow(s) {
            Found::Nothing if nat::is_lost_answer(s) => return Some(forward::drop(DropReason::Migrating)),
            found => found,
        },
        Kind::Error => icmp::about(packet, s),
        Kind::Cut | Kind::Other => Found::Nothing,
    };
    match found {
        Found::Flow => Some(forward::send(packet, s, origin)),
        Found::Gone => Some(forward::refuse(packet, s.value.service_id)),
        Found::Nothing | Found::Plain => None,
    }
}

#[inline(always)]
pub(crate) fn ingress(packet: &Packet) -> i32 {
    known(packet, Origin::Tunnel).unwrap_or(TC_NEXT)
}
