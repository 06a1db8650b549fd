// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! Packets from outside: at the uplink, and those that another node has wrapped.

use ebpf_abi::{
    Counter, DropReason,
    conntrack::{CT_REPLY, CT_SOURCE, CT_WORLD, CT_WRAPPED},
    node::CONFIG_BLIND_UPLINK,
};

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
            Found::Flow if is_worlds(s, asker) => forward::send(packet, s, origin),
            _ => TC_NEXT,
        },
        Kind::Cut => cut(s, TC_NEXT),
        Kind::Other => TC_NEXT,
    }
}

#[inline(always)]
fn flow(packet: &Packet, s: &mut Scratch, origin: Origin, asker: Asker) -> i32 {
    match ct::follow(s) {
        Found::Flow if is_worlds(s, asker) => return forward::send(packet, s, origin),
        // This node wrapped its packets before, and would again: another one sent them here, so the backend is.
        Found::Flow if asker == Asker::Node && s.value.flags & CT_WRAPPED != 0 => ct::forget(s),
        Found::Gone if is_worlds(s, asker) => return forward::refuse(packet, s.value.service_id),
        Found::Flow | Found::Gone | Found::Plain => return TC_NEXT,
        Found::Nothing => {}
    }
    match nat::begin(packet, s, asker) {
        Begun::Flow => forward::send(packet, s, origin),
        Begun::Refuse => forward::refuse(packet, s.value.service_id),
        // Of a backend that is no pod.
        Begun::Nothing if nat::is_lost_answer(s) => forward::drop(DropReason::Migrating),
        Begun::Nothing => {
            if nat::may_need_marker(s, asker) && nat::mark_direct(packet, s, asker) == Found::Flow {
                return forward::send(packet, s, origin);
            }
            TC_NEXT
        }
        begun => forward::drop(begun.reason()),
    }
}

/// Whether the flow in [`Scratch::value`] is one that the world may speak in: it has begun it, or is asked on its behalf, under an
/// address of this host. Pods' own flows go by the stack here, whose rules know which addresses no uplink brings.
#[inline(always)]
fn is_worlds(s: &Scratch, asker: Asker) -> bool {
    let flags = s.value.flags;
    match asker {
        Asker::Node => flags & (CT_WORLD | CT_REPLY | CT_WRAPPED) == CT_WORLD,
        _ => flags & CT_WORLD != 0 && flags & (CT_REPLY | CT_SOURCE) != CT_REPLY,
    }
}

/// Whether answers to the packet would leave by this interface, or at least by another one that is neither a pod's link nor the
/// overlay: whoever has such an address does not speak from outside.
#[inline(never)]
pub(crate) fn leads_back(packet: &Packet, s: &mut Scratch) -> bool {
    if forward::pod_at(&s.key.src).is_some() || !packet.way(&s.key.dst, &s.key.src, &mut s.way) {
        return false;
    }
    let ifindex = s.way.ifindex;
    // Tunnels without Ethernet headers have no MAC.
    ifindex == packet.ifindex()
        || (s.way.resolved != 0
            && s.way.hop.src != [0; 6]
            && maps::overlay() != Some(ifindex)
            && maps::pod_link(ifindex).is_none())
}

/// Whether answers that come out of the stack are translated where they leave, when [`leads_back`] has said by where: by this
/// interface, and every uplink has its program at the egress.
#[inline(always)]
pub(crate) fn sees_answers(packet: &Packet, s: &Scratch) -> bool {
    s.way.ifindex == packet.ifindex()
        && maps::config().is_some_and(|config| config.flags() & CONFIG_BLIND_UPLINK == 0)
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
