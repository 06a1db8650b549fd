// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! The host's routes and neighbours, and the ways out of a program. There is no second copy of the routes: unreachable ones, the
//! fail-closed one too, hold here as in the stack.

use aya_ebpf::{
    bindings::{bpf_fib_lookup as bpf_fib_lookup_params, bpf_tunnel_key},
    helpers::generated::{
        bpf_check_mtu, bpf_fib_lookup, bpf_get_prandom_u32, bpf_loop, bpf_redirect, bpf_redirect_neigh,
        bpf_redirect_peer, bpf_skb_set_tunnel_key,
    },
};
use ebpf_abi::{
    Address,
    address::{ipv4, tail},
};

use crate::packet::{Hop, Packet};

/// AF_INET (linux/socket.h).
const AF_INET: u8 = 2;
/// AF_INET6 (linux/socket.h).
const AF_INET6: u8 = 10;
/// BPF_FIB_LKUP_RET_SUCCESS (linux/bpf.h): forwarded, with a neighbour.
const FIB_SUCCESS: i64 = 0;
/// BPF_FIB_LKUP_RET_FRAG_NEEDED: the same, and the packet is too long (the kernel looks at packets that are not GSO only).
const FIB_TOO_LONG: i64 = 8;
/// BPF_FIB_LKUP_RET_NO_NEIGH: forwarded, but the next hop's MAC is not known yet.
const FIB_NO_NEIGHBOUR: i64 = 7;
/// BPF_MTU_CHK_SEGS (linux/bpf.h): a GSO packet is judged by its segments.
const MTU_CHECK_SEGMENTS: u64 = 1;
/// BPF_MTU_CHK_RET_SUCCESS (linux/bpf.h).
const MTU_FITS: i64 = 0;
/// BPF_F_TUNINFO_IPV6: the tunnel's far end has an IPv6 address.
const TUNNEL_IPV6: u64 = 1;
/// BPF_F_ZERO_CSUM_TX: no UDP checksum, as VXLAN prefers it (RFC 7348, section 5).
const TUNNEL_NO_CHECKSUM: u64 = 2;
/// Hops left to a wrapped packet.
const TUNNEL_TTL: u8 = 64;

/// Where the host's routes lead.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Route {
    pub(crate) ifindex: u32,
    /// The next hop's MAC and the interface's own; zero where `resolved` is not set.
    pub(crate) hop: Hop,
    /// 1 where the neighbour is known.
    pub(crate) resolved: u32,
}

impl Packet {
    /// Where the host's routes lead from `src` to `dst`, of either family; `false` where they do not lead off this host.
    /// Says nothing about the packet's length.
    #[inline(never)]
    pub(crate) fn way(&self, src: &Address, dst: &Address, way: &mut Route) -> bool {
        // SAFETY: plain integers and unions of them, for which zero is a value.
        let mut params: bpf_fib_lookup_params = unsafe { core::mem::zeroed() };
        params.ifindex = self.ifindex();
        if ipv4(dst).is_some() {
            params.family = AF_INET;
            params.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(tail(src));
            params.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(tail(dst));
        } else {
            params.family = AF_INET6;
            params.__bindgen_anon_3.ipv6_src = words(src);
            params.__bindgen_anon_4.ipv6_dst = words(dst);
        }
        let bytes = size_of::<bpf_fib_lookup_params>() as i32;
        // SAFETY: the helper takes the context of a TC program and a parameter block of the size given.
        let verdict = unsafe { bpf_fib_lookup(self.skb.cast(), &raw mut params, bytes, 0) };
        // Too long for its link it is a matter of the caller, who asks `fits`.
        let resolved = verdict == FIB_SUCCESS || verdict == FIB_TOO_LONG;
        if !resolved && verdict != FIB_NO_NEIGHBOUR {
            return false;
        }
        let hop = Hop { dst: params.dmac, src: params.smac };
        *way = Route { ifindex: params.ifindex, hop, resolved: u32::from(resolved) };
        true
    }

    /// Whether the packet, or each of its segments, fits an interface; else the interface's MTU.
    #[inline(always)]
    pub(crate) fn fits(&self, ifindex: u32) -> Result<(), u32> {
        // The look-up lets every GSO packet pass, and four bytes too many of the others. With a length of its own the question is about the packet without its Ethernet header; a packet that will be cut
        // into segments must be asked about without.
        let is_cut = self.segment_bytes() != 0;
        let mut mtu = if is_cut { 0 } else { self.ip_bytes() };
        let flags = if is_cut { MTU_CHECK_SEGMENTS } else { 0 };
        // SAFETY: the helper takes the context of a TC program, an interface index and a pointer to read a length from and
        // write the MTU to.
        let verdict = unsafe { bpf_check_mtu(self.skb.cast(), ifindex, &raw mut mtu, 0, flags) };
        if verdict == MTU_FITS { Ok(()) } else { Err(mtu) }
    }

    /// What the tunnel device that the packet is redirected to next should do with it: wrap it for `remote`.
    #[inline(never)]
    pub(crate) fn set_tunnel(&self, vni: u32, remote: &Address) -> bool {
        // SAFETY: plain integers and unions of them, for which zero is a value.
        let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
        key.tunnel_id = vni;
        key.tunnel_ttl = TUNNEL_TTL;
        let flags = if ipv4(remote).is_some() {
            // This helper takes an IPv4 address as a number.
            key.__bindgen_anon_1.remote_ipv4 = u32::from_be_bytes(tail(remote));
            TUNNEL_NO_CHECKSUM
        } else {
            key.__bindgen_anon_1.remote_ipv6 = words(remote);
            TUNNEL_IPV6 | TUNNEL_NO_CHECKSUM
        };
        // SAFETY: the helper takes the context of a TC program and a key of the size given.
        unsafe {
            bpf_skb_set_tunnel_key(self.skb, &raw mut key, size_of::<bpf_tunnel_key>() as u32, flags) == 0
        }
    }
}

/// Hands the packet to the peer of this veth end, in the pod's netns, past the host's stack.
#[inline(always)]
pub(crate) fn redirect_peer(ifindex: u32) -> i32 {
    // SAFETY: takes numbers; an interface that is gone makes the kernel drop the packet.
    unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
}

/// Sends the packet out of this interface, past the host's stack. A device without Ethernet headers gets none.
#[inline(always)]
pub(crate) fn redirect(ifindex: u32) -> i32 {
    // SAFETY: takes numbers; an interface that is gone makes the kernel drop the packet.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}

/// The same where the next hop's MAC is not known: the kernel asks for it. The packet must have an Ethernet header.
#[inline(always)]
pub(crate) fn redirect_neighbour(ifindex: u32) -> i32 {
    // SAFETY: as above; without parameters the kernel looks the next hop up itself.
    unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 }
}

/// Calls a function up to `times` times (with a count, and nothing), until it says 1.
#[inline(always)]
pub(crate) fn repeat(times: u32, function: extern "C" fn(u32, *mut core::ffi::c_void) -> i64) {
    let function = function as *mut core::ffi::c_void;
    // SAFETY: the helper calls a function of this signature in this program.
    unsafe { bpf_loop(times, function.cast(), core::ptr::null_mut(), 0) };
}

/// A pseudo-random number.
#[inline(always)]
pub(crate) fn random() -> u32 {
    // SAFETY: no arguments, no requirements.
    unsafe { bpf_get_prandom_u32() }
}

/// An address as the route look-up takes it.
#[inline(always)]
fn words(addr: &[u8; 16]) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *addr;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}
