// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! The BPF programs of the datapath: services, pod links and the overlay, over IPv4 and IPv6.
//!
//! * [`service`] picks a backend for a frontend; pure apart from the maps; sockets and packets both ask there;
//! * [`cgroup`] has the programs of the cgroup, [`socket`] is what they do to a socket's peer, [`bind`] to its own address;
//! * [`pod`] and [`pod6`] are what happens to a packet that a pod sends, [`neighbour`] is about what it says in ICMPv6,
//!   [`overlay`] about packets that another node's pod sent;
//! * [`tc`] has the programs of links; where a packet of a service comes by: [`tuple`] reads it, [`ct`] finds its flow, [`nat`]
//!   begins one, [`forward`] sends it on, [`translate`] and [`icmp`] change its bytes; [`uplink`], [`egress`], [`tunnel`] and
//!   [`dsr`] are about the links that are no pods';
//! * [`maps`], [`ct_maps`], [`packet`], [`route`] and [`peer`] are the only places with `unsafe`: maps, context fields, helpers.
//!
//! Names, layouts and sizes come from `ebpf-abi`; the loader is `ebpf-loader`.

#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "atomic additions: core offers them for this target as intrinsics only")]

mod bind;
mod cgroup;
mod ct;
mod ct_maps;
mod dsr;
mod egress;
mod extension;
mod forward;
mod icmp;
mod maps;
mod nat;
mod neighbour;
mod overlay;
mod packet;
mod peer;
mod pod;
mod pod6;
mod route;
mod scratch;
mod service;
mod socket;
mod tc;
mod translate;
mod tunnel;
mod tuple;
mod uplink;

// The kernel compares this with its list of GPL-compatible licences, letter by letter.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
