// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! Packets from outside: at the uplink, and those that another node has wrapped.

use ebpf_abi::{Counter, DropReason};

use crate::{
    ct::{self, Found},
    ct_maps,
    forward::{self, Origin},
    icmp, maps,
    nat::{self, Asker, Begun},
    packet::{Packet, TC_DROP, TC_NEXT},
    scratch::{PART_LATER, Scratch},
    tuple::{self, Kind},
};

/// At the uplink: frontends, answers to what this node sent on for others; the rest is the stack's.
#[inline(always)]
pub(crate) fn ingress(packet: &Packet) -> i32 {
    if !packet.is_for_host() || packet.is_tagged() {
        return TC_NEXT;
    }
    let Some(s) = ct_maps::scratch() else { return TC_NEXT };
    receive(packet, s, Origin::World, Asker::World)
}

/// Wrapped by another node, for a backend of this one. The frame in it was addressed to that node.
#[inline(always)]
pub(crate) fn unwrap(packet: &Packet) -> i32 {
    let Some(s) = ct_maps::scratch() else { return TC_DROP };
    maps::count(Counter::DsrUnwrapped);
    packet.take_for_host();
    match receive(packet, s, Origin::Node, Asker::Node) {
        // Nothing else has any business in there; what is to be refused has the mark.
        TC_NEXT if !packet.is_refused() => forward::drop(DropReason::DsrSender),
        action => action,
    }
}

#[inline(always)]
fn receive(packet: &Packet, s: &mut Scratch, origin: Origin, asker: Asker) -> i32 {
    match tuple::read(packet, s) {
        Kind::Flow => flow(packet, s, origin, asker),
        Kind::Error => match icmp::about(packet, s) {
            Found::Flow => forward::send(packet, s, origin),
            _ => TC_NEXT,
        },
        Kind::Cut => cut(s, TC_NEXT),
        Kind::Other => TC_NEXT,
    }
}

#[inline(always)]
fn flow(packet: &Packet, s: &mut Scratch, origin: Origin, asker: Asker) -> i32 {
    match ct::follow(s) {
        Found::Flow => return forward::send(packet, s, origin),
        Found::Plain => return TC_NEXT,
        Found::Gone => return forward::refuse(packet, s.value.service_id),
        Found::Nothing => {}
    }
    match nat::begin(s, asker) {
        Begun::Flow => forward::send(packet, s, origin),
        Begun::Refuse => forward::refuse(packet, s.value.service_id),
        Begun::Nothing => {
            if nat::may_need_marker(s, asker) && nat::mark_direct(s) == Found::Flow {
                return forward::send(packet, s, origin);
            }
            TC_NEXT
        }
        begun => forward::drop(begun.reason()),
    }
}

/// A fragment whose ports are not known, or a cut-off transport header: dropped where it is for a service.
#[inline(always)]
pub(crate) fn cut(s: &mut Scratch, otherwise: i32) -> i32 {
    if !nat::is_frontend(s) {
        return otherwise;
    }
    if s.view.part == PART_LATER {
        maps::count(Counter::FragmentUnknown);
        return forward::drop(DropReason::ServiceFragment);
    }
    forward::drop(DropReason::ServiceHeaders)
}
