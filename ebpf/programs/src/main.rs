// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! The BPF programs of the datapath: services, pod links and the overlay, over IPv4 and IPv6.
//!
//! * [`service`] picks a backend for a frontend; pure apart from the maps; sockets and packets both ask there;
//! * [`cgroup`] has the programs of the cgroup, [`socket`] is what they do to a socket's peer, [`bind`] to its own address;
//! * [`pod`] and [`pod6`] are what happens to a packet that a pod sends, [`neighbour`] is about what it says in ICMPv6,
//!   [`overlay`] about packets that another node's pod sent;
//! * [`maps`], [`packet`] and [`peer`] are the only places with `unsafe`: maps, context fields, helpers.
//!
//! Names, layouts and sizes come from `ebpf-abi`; the loader is `ebpf-loader`.

#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "atomic additions: core offers them for this target as intrinsics only")]

mod bind;
mod cgroup;
mod extension;
mod maps;
mod neighbour;
mod overlay;
mod packet;
mod peer;
mod pod;
mod pod6;
mod service;
mod socket;

use aya_ebpf::{macros::classifier, programs::TcContext};

use crate::packet::Packet;

// The kernel compares this with its list of GPL-compatible licences, letter by letter.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

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
        pod::Verdict::Deliver { ifindex } => packet::redirect_peer(ifindex),
        pod::Verdict::Forward { ifindex } => packet::redirect(ifindex),
    }
}

/// A packet from another node, out of the tunnel, seen at the ingress of the overlay device.
#[classifier]
fn weft_overlay_ingress(ctx: TcContext) -> i32 {
    match overlay::ingress(&Packet::new(ctx)) {
        Some(ifindex) => packet::redirect_peer(ifindex),
        None => packet::TC_NEXT,
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
