// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! Working memory of one packet's way through a program: the stack has 512 bytes for all functions together.

use ebpf_abi::{CtKey, CtValue, FragmentKey, FrontendKey, ServiceValue};

use crate::{
    ct_maps::Inserted,
    packet::{Head, Head6, Hop},
    route::Route,
};

/// What is known of the packet at hand. Bytes and integers only (and one enumeration, whose zero is a value): so is fresh memory.
#[repr(C)]
pub(crate) struct Scratch {
    /// Addresses and ports as the packet has them; of an ICMP error, the addresses of its own header.
    pub(crate) key: CtKey,
    /// What they become.
    pub(crate) value: CtValue,
    /// The other direction.
    pub(crate) peer_key: CtKey,
    pub(crate) peer: CtValue,
    /// Of an ICMP error: the flow it is about, in the direction opposite to the packet in it (which is its own direction).
    pub(crate) inner_key: CtKey,
    pub(crate) inner: CtValue,
    pub(crate) fragment: FragmentKey,
    pub(crate) view: View,
    pub(crate) error: ErrorView,
    /// The frontend that is asked.
    pub(crate) service: ServiceValue,
    /// The key that it is looked up by.
    pub(crate) frontend: FrontendKey,
    /// The search for a source port.
    pub(crate) search: Search,
    /// Where the host's routes lead.
    pub(crate) way: Route,
    /// A pod's packet: its Ethernet header and what follows, IPv6's header.
    pub(crate) head: Head,
    pub(crate) head6: Head6,
    /// Headers that are being made.
    pub(crate) frame: Frame4,
    /// What an ICMP error quotes.
    pub(crate) quoted: Quoted,
}

/// A search for a source port.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Search {
    /// The first port, and how many there are.
    pub(crate) first: u32,
    pub(crate) ports: u32,
    /// The one that was tried last, counted from the first and beyond the end.
    pub(crate) number: u32,
    pub(crate) now_secs: u32,
    pub(crate) outcome: Inserted,
}

/// An Ethernet and an IPv4 header.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Frame4 {
    pub(crate) hop: Hop,
    pub(crate) ether_type: [u8; 2],
    pub(crate) ip: [u8; 20],
}

/// The beginning of a packet, from its IP header on; as words, so that it lies on a multiple of four.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Quoted {
    pub(crate) ipv4: [u32; 10],
    pub(crate) ipv6: [u32; 15],
    pub(crate) pad: u32,
}

/// Where things are in the packet.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct View {
    /// The transport header, from the packet's start.
    pub(crate) transport: u32,
    /// TCP: its sequence and acknowledgement numbers, network order; of a later fragment anything.
    pub(crate) tcp_seq: [u8; 4],
    pub(crate) tcp_ack: [u8; 4],
    /// TTL or hop limit.
    pub(crate) hops: u8,
    /// IPv6: the next header of the first header.
    pub(crate) next: u8,
    /// 1 for IPv6.
    pub(crate) is_ipv6: u8,
    /// TCP: its flags; else 0.
    pub(crate) tcp_flags: u8,
    /// [`PART_WHOLE`] and the next ones.
    pub(crate) part: u8,
    /// 1 for an ICMP error that is to be translated.
    pub(crate) is_error: u8,
    /// 1 where a pod sent it: it speaks for itself only.
    pub(crate) is_from_pod: u8,
    pub(crate) pad: u8,
    /// IPv4: the header without its options.
    pub(crate) ip: [u8; 20],
}

/// Where things are in an ICMP error, from the packet's start.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ErrorView {
    /// The IP header in it.
    pub(crate) ip: u32,
    /// The transport header in it.
    pub(crate) transport: u32,
    /// IPv4: the checksum of the header in it.
    pub(crate) checksum: [u8; 2],
    pub(crate) pad: [u8; 2],
}

/// [`View::part`]: not a fragment.
pub(crate) const PART_WHOLE: u8 = 0;
/// The first fragment, with the transport header.
pub(crate) const PART_FIRST: u8 = 1;
/// A later fragment.
pub(crate) const PART_LATER: u8 = 2;

impl Scratch {
    #[inline(always)]
    pub(crate) fn is_ipv6(&self) -> bool {
        self.view.is_ipv6 != 0
    }

    /// Whether the packet has this TCP flag.
    #[inline(always)]
    pub(crate) fn has_tcp(&self, flag: u8) -> bool {
        self.view.tcp_flags & flag != 0
    }
}

/// TCP flags (RFC 9293, section 3.1).
pub(crate) const TCP_FIN: u8 = 1;
/// See [`TCP_FIN`].
pub(crate) const TCP_SYN: u8 = 2;
/// See [`TCP_FIN`].
pub(crate) const TCP_RST: u8 = 4;
/// See [`TCP_FIN`].
pub(crate) const TCP_PSH: u8 = 8;
/// See [`TCP_FIN`].
pub(crate) const TCP_ACK: u8 = 16;
