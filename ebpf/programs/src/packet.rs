// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! A packet of a TC program, and the helpers called on it: safe functions around the kernel's context.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{
        bpf_csum_diff, bpf_csum_update, bpf_get_socket_cookie, bpf_ktime_get_coarse_ns, bpf_l4_csum_replace,
        bpf_skb_adjust_room, bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_change_type,
        bpf_skb_load_bytes, bpf_skb_store_bytes,
    },
    programs::TcContext,
};
use ebpf_abi::{Address, CHECKED_MARK, CtKey, CtValue, REFUSE_MARK};

/// TC_ACT_UNSPEC and TCX_NEXT (linux/pkt_cls.h, linux/bpf.h): the next program, then the host's stack.
pub(crate) const TC_NEXT: i32 = -1;
/// TC_ACT_SHOT and TCX_DROP.
pub(crate) const TC_DROP: i32 = 2;

/// BPF_F_RECOMPUTE_CSUM (linux/bpf.h): a checksum that the NIC took of the packet follows the change.
pub(crate) const RECOMPUTE_CHECKSUM: u64 = 1;
/// BPF_F_PSEUDO_HDR: the change is one of the pseudo header, which a checksum has in it that is not finished yet.
const PSEUDO_HEADER: u64 = 1 << 4;
/// BPF_F_MARK_MANGLED_0: zero means that there is no checksum (UDP); none stays none, and no other becomes zero.
const ZERO_IS_NONE: u64 = 1 << 5;
/// BPF_F_IPV6 (Linux 6.16): addresses without a checksum of their own.
const NO_HEADER_CHECKSUM: u64 = 1 << 7;
/// BPF_ADJ_ROOM_MAC: between the Ethernet header and what follows.
const ROOM_BEHIND_ETHERNET: u32 = 1;
/// PACKET_HOST (linux/if_packet.h): the frame is for this host.
const PACKET_HOST: u32 = 0;
/// Nanoseconds in a second.
const NANOSECONDS: u64 = 1_000_000_000;

/// Ethernet types (IEEE 802), network order.
pub(crate) const ETHER_IPV4: [u8; 2] = [0x08, 0x00];
/// See [`ETHER_IPV4`].
pub(crate) const ETHER_ARP: [u8; 2] = [0x08, 0x06];
/// See [`ETHER_IPV4`].
pub(crate) const ETHER_IPV6: [u8; 2] = [0x86, 0xdd];
/// Length of the Ethernet header.
pub(crate) const ETHERNET_BYTES: u32 = 14;
/// Where the TTL lies in an IPv4 header; protocol and checksum follow.
const TTL_OFFSET: u32 = 8;
/// Where next header and hop limit lie in an IPv6 header, together.
const NEXT_AND_HOP_LIMIT_OFFSET: u32 = 6;

/// A packet, seen by a TC program.
#[derive(Clone, Copy)]
pub(crate) struct Packet {
    pub(crate) skb: *mut __sk_buff,
    /// Where the IP header begins.
    ip: u32,
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
    /// A packet that begins with its Ethernet header.
    #[inline(always)]
    pub(crate) fn new(ctx: TcContext) -> Self {
        Self { skb: ctx.skb.skb, ip: ETHERNET_BYTES }
    }

    /// A packet of a device that has none.
    #[inline(always)]
    pub(crate) fn without_ethernet(ctx: TcContext) -> Self {
        Self { skb: ctx.skb.skb, ip: 0 }
    }

    /// Where the IP header begins.
    #[inline(always)]
    pub(crate) fn ip(&self) -> u32 {
        self.ip
    }

    /// The interface that it is at.
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        // SAFETY: the kernel's context pointer; the field may be read in TC programs.
        unsafe { (*self.skb).ifindex }
    }

    /// The Ethernet type that the kernel has for it, network order; there is one without an Ethernet header, too.
    #[inline(always)]
    pub(crate) fn ether_type(&self) -> [u8; 2] {
        // SAFETY: as above.
        let number = unsafe { (*self.skb).protocol };
        (number as u16).to_ne_bytes()
    }

    /// Cookie of the socket that sent it, in whatever netns of this host; 0 when it has come from elsewhere.
    #[inline(always)]
    pub(crate) fn socket(&self) -> u64 {
        // SAFETY: the helper takes the context of a TC program.
        unsafe { bpf_get_socket_cookie(self.skb.cast()) }
    }

    /// Whether it carries a VLAN tag (which the kernel keeps beside the packet).
    #[inline(always)]
    pub(crate) fn is_tagged(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.skb).vlan_present != 0 }
    }

    /// Whether its frame is addressed to this host.
    #[inline(always)]
    pub(crate) fn is_for_host(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.skb).pkt_type == PACKET_HOST }
    }

    /// Makes the host's stack take it, whomever its frame is addressed to.
    #[inline(always)]
    pub(crate) fn take_for_host(&self) {
        // SAFETY: the helper takes the context of a TC program. Where it fails the stack drops the packet.
        unsafe { bpf_skb_change_type(self.skb, PACKET_HOST) };
    }

    /// Payload of each segment that the kernel will cut it into; 0 for a packet that stays whole.
    #[inline(always)]
    pub(crate) fn segment_bytes(&self) -> u32 {
        // SAFETY: as above; the field may be read in TC programs.
        unsafe { (*self.skb).gso_size }
    }

    /// Sets [`CHECKED_MARK`]; the mark's other bits stay.
    #[inline(always)]
    pub(crate) fn mark_checked(&self) {
        // SAFETY: as above; the field may be written in TC programs.
        unsafe { (*self.skb).mark |= CHECKED_MARK };
    }

    /// Sets the mark that makes the nft table refuse it.
    #[inline(always)]
    pub(crate) fn mark_refused(&self) {
        // SAFETY: as above.
        unsafe { (*self.skb).mark |= CHECKED_MARK | REFUSE_MARK };
    }

    /// Whether it has that mark.
    #[inline(always)]
    pub(crate) fn is_refused(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.skb).mark & REFUSE_MARK != 0 }
    }

    /// Copies the headers out into `head`; `false` when it is shorter.
    #[inline(always)]
    pub(crate) fn head_into(&self, head: &mut Head) -> bool {
        let to: *mut Head = head;
        // SAFETY: the helper takes the context of a TC program and fills that many bytes, or fails.
        unsafe { bpf_skb_load_bytes(self.skb.cast(), 0, to.cast(), size_of::<Head>() as u32) == 0 }
    }

    /// The same for the IPv6 header.
    #[inline(always)]
    pub(crate) fn head6_into(&self, head: &mut Head6) -> bool {
        let to: *mut Head6 = head;
        // SAFETY: as above.
        unsafe { bpf_skb_load_bytes(self.skb.cast(), self.ip, to.cast(), size_of::<Head6>() as u32) == 0 }
    }

    /// Copies the headers out, wherever in the packet's buffers they lie; `None` when it is shorter.
    #[inline(always)]
    pub(crate) fn head(&self) -> Option<Head> {
        self.load::<Head>(0)
    }

    /// Copies the IPv6 header out; `None` when it is shorter.
    #[inline(always)]
    pub(crate) fn head6(&self) -> Option<Head6> {
        self.read::<Head6>(0)
    }

    /// Copies bytes out at an offset from the IP header's start; `None` beyond the end.
    #[inline(always)]
    pub(crate) fn read<T>(&self, offset: u32) -> Option<T> {
        self.load::<T>(self.ip + offset)
    }

    /// Copies bytes out at an offset from the packet's start; `None` beyond the end.
    #[inline(always)]
    pub(crate) fn load<T>(&self, offset: u32) -> Option<T> {
        let mut value = core::mem::MaybeUninit::<T>::uninit();
        // SAFETY: the helper takes the context of a TC program and fills as many bytes as a T has, or fails; the types read
        // so are of bytes only.
        unsafe {
            let failed =
                bpf_skb_load_bytes(self.skb.cast(), offset, value.as_mut_ptr().cast(), size_of::<T>() as u32);
            (failed == 0).then(|| value.assume_init())
        }
    }

    /// Copies bytes out from the IP header's start on; `false` when there are fewer.
    #[inline(always)]
    pub(crate) fn read_bytes<const BYTES: usize>(&self, bytes: &mut [u8; BYTES]) -> bool {
        // SAFETY: the helper takes the context of a TC program and fills that many bytes, or fails.
        unsafe { bpf_skb_load_bytes(self.skb.cast(), self.ip, bytes.as_mut_ptr().cast(), BYTES as u32) == 0 }
    }

    /// The same for words.
    #[inline(always)]
    pub(crate) fn read_into<const WORDS: usize>(&self, words: &mut [u32; WORDS]) -> bool {
        let bytes = size_of::<[u32; WORDS]>() as u32;
        // SAFETY: the helper takes the context of a TC program and fills that many bytes, or fails.
        unsafe { bpf_skb_load_bytes(self.skb.cast(), self.ip, words.as_mut_ptr().cast(), bytes) == 0 }
    }

    /// Overwrites bytes at an offset from the packet's start; `false` when that is impossible.
    #[inline(always)]
    pub(crate) fn store<T>(&self, offset: u32, value: &T, flags: u64) -> bool {
        let from: *const T = value;
        // SAFETY: the helper takes the context of a TC program and reads as many bytes as a T has.
        unsafe { bpf_skb_store_bytes(self.skb, offset, from.cast(), size_of::<T>() as u32, flags) == 0 }
    }

    /// Overwrites the two addresses at an offset from the packet's start.
    #[inline(always)]
    pub(crate) fn store_addresses(&self, offset: u32, value: &CtValue, flags: u64) -> bool {
        let from: *const CtValue = value;
        let bytes = size_of::<[Address; 2]>() as u32;
        // SAFETY: the helper takes the context of a TC program and reads that many bytes; the value begins with them.
        unsafe { bpf_skb_store_bytes(self.skb, offset, from.cast(), bytes, flags) == 0 }
    }

    /// Bytes from the IP header's start to the packet's end.
    #[inline(always)]
    pub(crate) fn ip_bytes(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.skb).len }.saturating_sub(self.ip)
    }

    /// Tells the transport checksum at `offset` that addresses changed by `difference` (a sum as [`difference`] gives).
    #[inline(always)]
    pub(crate) fn checksum_addresses(
        &self,
        offset: u32,
        difference: u32,
        is_udp: bool,
        is_ipv6: bool,
    ) -> bool {
        let flags = PSEUDO_HEADER | if is_udp { ZERO_IS_NONE } else { 0 };
        let difference64 = u64::from(difference);
        if !is_ipv6 {
            // SAFETY: the helper takes the context of a TC program and numbers.
            return unsafe { bpf_l4_csum_replace(self.skb, offset, 0, difference64, flags) } == 0;
        }
        // SAFETY: as above.
        if unsafe { bpf_l4_csum_replace(self.skb, offset, 0, difference64, flags | NO_HEADER_CHECKSUM) } == 0
        {
            return true;
        }
        // An older kernel takes for granted that the IP header's own checksum changes with the addresses, and corrects what
        // the NIC has summed up; the second call takes that back.
        // SAFETY: as above; fails where the NIC has summed nothing up, and then there is nothing to take back.
        unsafe {
            let done = bpf_l4_csum_replace(self.skb, offset, 0, difference64, flags) == 0;
            bpf_csum_update(self.skb, difference);
            done
        }
    }

    /// Tells the checksum at `offset` that four bytes of what it covers changed.
    #[inline(always)]
    pub(crate) fn checksum_word(&self, offset: u32, from: [u8; 4], to: [u8; 4], is_udp: bool) -> bool {
        let flags = size_of::<u32>() as u64 | if is_udp { ZERO_IS_NONE } else { 0 };
        let (from, to) = (u64::from(u32::from_ne_bytes(from)), u64::from(u32::from_ne_bytes(to)));
        // SAFETY: as above.
        unsafe { bpf_l4_csum_replace(self.skb, offset, from, to, flags) == 0 }
    }

    /// Tells the checksum at `offset` that what it covers, itself not counted, changed by this sum.
    #[inline(always)]
    pub(crate) fn checksum_sum(&self, offset: u32, difference: u32) -> bool {
        // SAFETY: as above.
        unsafe { bpf_l4_csum_replace(self.skb, offset, 0, u64::from(difference), 0) == 0 }
    }

    /// Cuts the packet off after `bytes`.
    #[inline(always)]
    pub(crate) fn cut(&self, bytes: u32) -> bool {
        // SAFETY: the helper takes the context of a TC program and numbers.
        unsafe { bpf_skb_change_tail(self.skb, bytes, 0) == 0 }
    }

    /// Makes room behind the Ethernet header.
    #[inline(always)]
    pub(crate) fn make_room(&self, bytes: i32) -> bool {
        // SAFETY: as above.
        unsafe { bpf_skb_adjust_room(self.skb, bytes, ROOM_BEHIND_ETHERNET, 0) == 0 }
    }

    /// Gives a packet of a device without Ethernet headers one; `None` when there is no memory.
    #[inline(always)]
    pub(crate) fn with_ethernet(&self, hop: &Hop, ether_type: [u8; 2]) -> Option<Self> {
        // SAFETY: as above.
        if unsafe { bpf_skb_change_head(self.skb, ETHERNET_BYTES, 0) } != 0 {
            return None;
        }
        let framed = Self { skb: self.skb, ip: ETHERNET_BYTES };
        (framed.store(0, hop, 0) && framed.store(size_of::<Hop>() as u32, &ether_type, 0)).then_some(framed)
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
        self.store(0, &rewrite, 0)
    }

    /// The same for IPv6 and its hop limit.
    #[inline(always)]
    pub(crate) fn readdress6(&self, head: &Head6, hop: &Hop) -> bool {
        self.count_hop6(head.next, head.hop_limit) && self.store(0, hop, 0)
    }

    /// Counts the TTL of an IPv4 packet down.
    #[inline(always)]
    pub(crate) fn count_hop4(&self, ip: &[u8; 20]) -> bool {
        let [high, low] = checksum_after_hop([ip[10], ip[11]]);
        self.store(self.ip + TTL_OFFSET, &[ip[8].wrapping_sub(1), ip[9], high, low], 0)
    }

    /// Counts the hop limit of an IPv6 packet down.
    #[inline(always)]
    pub(crate) fn count_hop6(&self, next: u8, hop_limit: u8) -> bool {
        // The IPv6 header has no checksum that would make up for the change, as that of IPv4 does.
        let changed = [next, hop_limit.wrapping_sub(1)];
        self.store(self.ip + NEXT_AND_HOP_LIMIT_OFFSET, &changed, RECOMPUTE_CHECKSUM)
    }
}

/// What a checksum has to gain when a packet's addresses become what an entry says: a sum in ones' complement, not folded, in the order of the
/// packet's bytes.
#[inline(always)]
pub(crate) fn difference(from: &CtKey, to: &CtValue) -> u32 {
    const BYTES: u32 = size_of::<[Address; 2]>() as u32;
    let (from, to): (*const CtKey, *const CtValue) = (from, to);
    // SAFETY: both begin with the two addresses; the helper reads that many bytes at either pointer.
    unsafe { bpf_csum_diff(from.cast_mut().cast(), BYTES, to.cast_mut().cast(), BYTES, 0) as u32 }
}

/// The sum of bytes as checksums take it, not folded. The number of bytes must be a multiple of four.
#[inline(always)]
pub(crate) fn sum<T>(bytes: &T) -> u32 {
    let bytes: *const T = bytes;
    // SAFETY: the helper reads that many bytes at the second pointer, none at the first.
    unsafe {
        bpf_csum_diff(core::ptr::null_mut(), 0, bytes.cast_mut().cast(), size_of::<T>() as u32, 0) as u32
    }
}

/// Adds two such sums.
#[inline(always)]
pub(crate) fn add(a: u32, b: u32) -> u32 {
    let sum = u64::from(a) + u64::from(b);
    (sum as u32).wrapping_add((sum >> 32) as u32)
}

/// Such a sum as a checksum without its final complement.
#[inline(always)]
pub(crate) fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// Seconds of CLOCK_MONOTONIC.
#[inline(always)]
pub(crate) fn now_secs() -> u32 {
    // SAFETY: no arguments, no requirements.
    (unsafe { bpf_ktime_get_coarse_ns() } / NANOSECONDS) as u32
}

/// The IPv4 header checksum after the TTL went down by one (RFC 1624; the TTL is the high byte of its word).
#[inline(always)]
fn checksum_after_hop(checksum: [u8; 2]) -> [u8; 2] {
    let sum = u32::from(u16::from_be_bytes(checksum)) + 0x0100;
    let carry = if sum >= 0xffff { 1 } else { 0 };
    ((sum + carry) as u16).to_be_bytes()
}
