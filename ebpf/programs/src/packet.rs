// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! The packets the kernel hands to the TC programs, and the helpers called on them: safe functions around pointers.

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_fib_lookup as bpf_fib_lookup_params,
    helpers::generated::{
        bpf_check_mtu, bpf_fib_lookup, bpf_redirect, bpf_redirect_peer,
    },
    programs::TcContext,
};
use ebpf_abi::CHECKED_MARK;

/// TC_ACT_UNSPEC and TCX_NEXT (linux/pkt_cls.h, linux/bpf.h): the next program, then the host's stack.
pub(crate) const TC_NEXT: i32 = -1;
/// TC_ACT_SHOT and TCX_DROP.
pub(crate) const TC_DROP: i32 = 2;

/// AF_INET (linux/socket.h).
const AF_INET: u8 = 2;
/// AF_INET6 (linux/socket.h).
const AF_INET6: u8 = 10;
/// BPF_F_RECOMPUTE_CSUM (linux/bpf.h): a checksum that the NIC took of the packet follows the change.
const RECOMPUTE_CHECKSUM: u64 = 1;
/// BPF_FIB_LKUP_RET_SUCCESS (linux/bpf.h): forwarded, with a neighbour.
const FIB_SUCCESS: i64 = 0;
/// BPF_MTU_CHK_SEGS (linux/bpf.h): a GSO packet is judged by its segments.
const MTU_CHECK_SEGMENTS: u64 = 1;
/// BPF_MTU_CHK_RET_SUCCESS (linux/bpf.h).
const MTU_FITS: i64 = 0;

/// Ethernet types (IEEE 802), network order.
pub(crate) const ETHER_IPV4: [u8; 2] = [0x08, 0x00];
/// See [`ETHER_IPV4`].
pub(crate) const ETHER_ARP: [u8; 2] = [0x08, 0x06];
/// See [`ETHER_IPV4`].
pub(crate) const ETHER_IPV6: [u8; 2] = [0x86, 0xdd];
/// Where the IP header begins.
const IP_OFFSET: u32 = 14;
/// Where next header and hop limit lie in a packet, together.
const NEXT_AND_HOP_LIMIT_OFFSET: usize = 20;

/// A packet at the TC ingress of a pod's host end or of the overlay device.
pub(crate) struct Packet {
    ctx: TcContext,
}

/// The Ethernet header and 20 bytes after it: the IPv4 header without options, or ARP up to the sender.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Head {
    pub(crate) dst: [u8; 6],
    pub(crate) src: [u8; 6],
    pub(crate) ether_type: [u8; 2],
    pub(crate) body: [u8; 20],
}

/// The IPv6 header (RFC 8200, section 3).
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Head6 {
    /// Version, traffic class and flow label.
    pub(crate) first: [u8; 4],
    pub(crate) payload_bytes: [u8; 2],
    pub(crate) next: u8,
    pub(crate) hop_limit: u8,
    pub(crate) src: [u8; 16],
    pub(crate) dst: [u8; 16],
}

/// The MACs of a packet's next hop, as they lie in the packet.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Hop {
    pub(crate) dst: [u8; 6],
    pub(crate) src: [u8; 6],
}

/// What a delivered packet gets: new MACs, and the IPv4 header up to the checksum.
#[repr(C)]
struct Rewrite {
    dst: [u8; 6],
    src: [u8; 6],
    ether_type: [u8; 2],
    ip: [u8; 12],
}

impl Packet {
    #[inline(always)]
    pub(crate) fn new(ctx: TcContext) -> Self {
        Self { ctx }
    }

    /// The interface it came in at.
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        // SAFETY: the kernel's context pointer; the field may be read in TC programs.
        unsafe { (*self.ctx.skb.skb).ifindex }
    }

    /// Whether it carries a VLAN tag (which the kernel keeps beside the packet).
    #[inline(always)]
    pub(crate) fn is_tagged(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.ctx.skb.skb).vlan_present != 0 }
    }

    /// Sets [`CHECKED_MARK`]; the mark's other bits stay.
    #[inline(always)]
    pub(crate) fn mark_checked(&self) {
        // SAFETY: as above; the field may be written in TC programs.
        unsafe { (*self.ctx.skb.skb).mark |= CHECKED_MARK };
    }

    /// Copies the headers out, wherever in the packet's buffers they lie; `None` when it is shorter.
    #[inline(always)]
    pub(crate) fn head(&self) -> Option<Head> {
        self.ctx.load::<Head>(0).ok()
    }

    /// Copies the IPv6 header out; `None` when it is shorter.
    #[inline(always)]
    pub(crate) fn head6(&self) -> Option<Head6> {
        self.read::<Head6>(0)
    }

    /// Copies bytes out at an offset from the IP header's start; `None` beyond the end.
    #[inline(always)]
    pub(crate) fn read<T>(&self, offset: u32) -> Option<T> {
        self.ctx.load::<T>((IP_OFFSET + offset) as usize).ok()
    }

    /// Bytes from the IP header's start to the packet's end.
    #[inline(always)]
    pub(crate) fn ip_bytes(&self) -> u32 {
        self.ctx.len().saturating_sub(IP_OFFSET)
    }

    /// Where the host's routes and neighbours lead from `src` to `dst`: interface and MACs. `None` where the stack has more
    /// to do than to forward: an address of the host, no or an unreachable route, no neighbour yet, too long for the MTU.
    #[inline(always)]
    pub(crate) fn route(&self, src: [u8; 4], dst: [u8; 4]) -> Option<(u32, Hop)> {
        // SAFETY: plain integers and unions of them, for which zero is a value.
        let mut params: bpf_fib_lookup_params = unsafe { core::mem::zeroed() };
        params.family = AF_INET;
        params.ifindex = self.ifindex();
        params.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(src);
        params.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(dst);
        self.look_up(&mut params)
    }

    /// The same for IPv6.
    #[inline(always)]
    pub(crate) fn route6(&self, src: [u8; 16], dst: [u8; 16]) -> Option<(u32, Hop)> {
        // SAFETY: as above.
        let mut params: bpf_fib_lookup_params = unsafe { core::mem::zeroed() };
        params.family = AF_INET6;
        params.ifindex = self.ifindex();
        params.__bindgen_anon_3.ipv6_src = words(src);
        params.__bindgen_anon_4.ipv6_dst = words(dst);
        self.look_up(&mut params)
    }

    #[inline(always)]
    fn look_up(&self, params: &mut bpf_fib_lookup_params) -> Option<(u32, Hop)> {
        // SAFETY: the helper takes the context of a TC program and a parameter block of the size given.
        let verdict = unsafe {
            bpf_fib_lookup(self.ctx.as_ptr(), params, size_of::<bpf_fib_lookup_params>() as i32, 0)
        };
        if verdict != FIB_SUCCESS {
            return None;
        }
        // The look-up lets every GSO packet pass, and four bytes too many of the others: ask for each segment.
        let mut mtu = 0_u32;
        // SAFETY: the helper takes the context, an interface index and a pointer to write the MTU to.
        let verdict =
            unsafe { bpf_check_mtu(self.ctx.as_ptr(), params.ifindex, &raw mut mtu, 0, MTU_CHECK_SEGMENTS) };
        if verdict != MTU_FITS {
            return None;
        }
        Some((params.ifindex, Hop { dst: params.dmac, src: params.smac }))
    }

    /// Readdresses an IPv4 packet to its next hop and counts its TTL down; `false` when the buffer cannot be written.
    #[inline(always)]
    pub(crate) fn readdress(&self, head: &Head, hop: &Hop) -> bool {
        let body = &head.body;
        let [checksum_high, checksum_low] = checksum_after_hop([body[10], body[11]]);
        let ip = [
            body[0],
            body[1],
            body[2],
            body[3],
            body[4],
            body[5],
            body[6],
            body[7],
            body[8].wrapping_sub(1),
            body[9],
            checksum_high,
            checksum_low,
        ];
        let rewrite = Rewrite { dst: hop.dst, src: hop.src, ether_type: head.ether_type, ip };
        self.ctx.store(0, &rewrite, 0).is_ok()
    }

    /// The same for IPv6 and its hop limit.
    #[inline(always)]
    pub(crate) fn readdress6(&self, head: &Head6, hop: &Hop) -> bool {
        // The IPv6 header has no checksum that would make up for the change, as that of IPv4 does.
        let changed = [head.next, head.hop_limit.wrapping_sub(1)];
        self.ctx.store(NEXT_AND_HOP_LIMIT_OFFSET, &changed, RECOMPUTE_CHECKSUM).is_ok()
            && self.ctx.store(0, hop, 0).is_ok()
    }
}

/// Hands the packet to the peer of this veth end, in the pod's netns, past the host's stack.
#[inline(always)]
pub(crate) fn redirect_peer(ifindex: u32) -> i32 {
    // SAFETY: takes numbers; an interface that is gone makes the kernel drop the packet.
    unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
}

/// Sends the packet out of this interface, past the host's stack.
#[inline(always)]
pub(crate) fn redirect(ifindex: u32) -> i32 {
    // SAFETY: takes numbers; an interface that is gone makes the kernel drop the packet.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}

/// The IPv4 header checksum after the TTL went down by one (RFC 1624; the TTL is the high byte of its word).
#[inline(always)]
fn checksum_after_hop(checksum: [u8; 2]) -> [u8; 2] {
    let sum = u32::from(u16::from_be_bytes(checksum)) + 0x0100;
    let carry = if sum >= 0xffff { 1 } else { 0 };
    ((sum + carry) as u16).to_be_bytes()
}

/// An address as the route look-up takes it.
#[inline(always)]
fn words(addr: [u8; 16]) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = addr;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}
