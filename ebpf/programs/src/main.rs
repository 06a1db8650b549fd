// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! The BPF programs of the datapath: services over IPv4 (TCP and UDP), pod links over IPv4 and IPv6.
//!
//! * [`service`] picks a backend for a frontend; pure apart from the maps;
//! * [`socket`] is what the four cgroup programs do to a socket's address;
//! * [`pod`] and [`pod6`] are what happens to a packet that a pod sends, [`neighbour`] is about what it says in ICMPv6,
//!   [`overlay`] about packets that another node's pod sent;
//! * [`maps`] and [`packet`] are the only places with `unsafe`: maps, context fields, helpers.
//!
//! Names, layouts and sizes come from `ebpf-abi`; the loader is `ebpf-loader`.

#![no_std]
#![no_main]

mod extension;
mod maps;
mod neighbour;
mod overlay;
mod packet;
mod pod;
mod pod6;
mod service;
mod socket;

use aya_ebpf::{
    macros::{cgroup_sock_addr, classifier},
    programs::{SockAddrContext, TcContext},
};

use crate::packet::{Packet, Peer};

// The kernel compares this with its list of GPL-compatible licences, letter by letter.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

/// A connect(2) of a TCP or UDP socket: to a ClusterIP becomes to a backend.
#[cgroup_sock_addr(connect4)]
fn weft_connect4(ctx: SockAddrContext) -> i32 {
    socket::translate(&Peer::new(ctx))
}

/// A sendto(2) or sendmsg(2) with an address on a UDP socket: the same, for one datagram.
#[cgroup_sock_addr(sendmsg4)]
fn weft_sendmsg4(ctx: SockAddrContext) -> i32 {
    socket::translate(&Peer::new(ctx))
}

/// A recvfrom(2) or recvmsg(2) on a UDP socket: the backend's answer comes from the ClusterIP.
#[cgroup_sock_addr(recvmsg4)]
fn weft_recvmsg4(ctx: SockAddrContext) -> i32 {
    socket::translate_back(&Peer::new(ctx))
}

/// A getpeername(2): the peer is the ClusterIP that the program asked for.
#[cgroup_sock_addr(getpeername4)]
fn weft_getpeername4(ctx: SockAddrContext) -> i32 {
    socket::translate_back(&Peer::new(ctx))
}

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
