// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! Answers that come out of the host's stack: at the egress of a pod's link and of the uplink they get the frontend's address back.

use ebpf_abi::{DropReason, conntrack::CT_REPLY};

use crate::{
    ct::{self, Found},
    ct_maps, forward, icmp, nat,
    packet::{Packet, TC_NEXT},
    translate,
    tuple::{self, Kind},
};

#[inline(always)]
pub(crate) fn egress(packet: &Packet) -> i32 {
    if !ct_maps::is_active() {
        return TC_NEXT;
    }
    let Some(s) = ct_maps::scratch() else { return TC_NEXT };
    let found = match tuple::read(packet, s) {
        Kind::Flow => match ct::follow(s) {
            // The client's link has new maps before that of the backend has them.
            Found::Nothing if nat::is_lost_answer(s) => return forward::drop(DropReason::Migrating),
            found => found,
        },
        Kind::Error => icmp::about(packet, s),
        Kind::Cut | Kind::Other => Found::Nothing,
    };
    // A client's packets are translated where they come in; here they are what the backend gets.
    if found != Found::Flow || s.value.flags & CT_REPLY == 0 {
        return TC_NEXT;
    }
    tuple::remember_fragment(s);
    if translate::apply_in_place(packet, s) { TC_NEXT } else { forward::drop(DropReason::ServiceHeaders) }
}
