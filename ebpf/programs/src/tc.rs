// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! The TC programs.

use aya_ebpf::{macros::classifier, programs::TcContext};

use crate::{egress, maps, overlay, packet, packet::Packet, pod, route, tunnel, uplink};

/// A packet from a pod, seen at the ingress of its veth's host end.
#[classifier]
fn weft_pod_ingress(ctx: TcContext) -> i32 {
    let packet = Packet::new(ctx);
    match pod::ingress(&packet) {
        pod::Verdict::Continue => {
            packet.mark_checked();
            packet::TC_NEXT
        }
        pod::Verdict::Drop(reason) => {
            maps::count_drop(reason);
            packet::TC_DROP
        }
        pod::Verdict::Deliver { ifindex } => route::redirect_peer(ifindex),
        pod::Verdict::Forward { ifindex } => route::redirect(ifindex),
        pod::Verdict::Done(action) => action,
        pod::Verdict::Own(_) => packet::TC_DROP,
    }
}

/// A packet to a pod that comes from the host's stack, seen at the egress of its veth's host end.
#[classifier]
fn weft_pod_egress(ctx: TcContext) -> i32 {
    egress::egress(&Packet::new(ctx))
}

/// A packet from another node, out of the tunnel, seen at the ingress of the overlay device.
#[classifier]
fn weft_overlay_ingress(ctx: TcContext) -> i32 {
    overlay::ingress(&Packet::new(ctx))
}

/// The same where the device has no Ethernet headers.
#[classifier]
fn weft_tunnel_ingress(ctx: TcContext) -> i32 {
    tunnel::ingress(&Packet::without_ethernet(ctx))
}

/// A packet from outside, seen at the ingress of an uplink.
#[classifier]
fn weft_uplink_ingress(ctx: TcContext) -> i32 {
    uplink::ingress(&Packet::new(ctx))
}

/// A packet of this host, or one that it forwards, seen at the egress of an uplink.
#[classifier]
fn weft_uplink_egress(ctx: TcContext) -> i32 {
    egress::egress(&Packet::new(ctx))
}

/// A packet from outside that another node has wrapped for a backend of this one.
#[classifier]
fn weft_dsr_ingress(ctx: TcContext) -> i32 {
    uplink::unwrap(&Packet::new(ctx))
}
