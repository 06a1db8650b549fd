// SPDX-License-Identifier: Apache-2.0
//! Packets of the tunnel's size into large ones for the TUN device.

use std::io::IoSlice;
use std::ops::Range;

use super::checksum::checksum;
use super::flow::{Candidate, Protocol, same_addresses, same_flow, same_head};
use super::packet::{
    self, CWR, IPV4_HEADER_LEN, IPV6_HEADER_LEN, PSH, TCP, TCP_CHECKSUM, UDP, UDP_CHECKSUM, set_word,
};
use super::vnet::{GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VNET_HEADER_LEN, VnetHeader};

/// TCP segments of one super-packet: 64 KiB of 512 bytes each, and far below the 1,024 slices that `writev` takes.
pub const SEGMENTS_MAX: usize = 128;

/// UDP datagrams of one super-packet: kernels before 6.9 take no more.
pub const UDP_SEGMENTS_MAX: usize = 64;

/// Flows that are held open at the same time. One more closes the one that was opened longest ago.
const FLOWS_MAX: usize = 16;

/// Bytes of an IP packet: what its length field can say (for IPv6 a little less than that, as the kernel's GRO).
const LEN_MAX: usize = u16::MAX as usize;

/// IPv6 header and TCP header with all options.
const HEAD_MAX: usize = 100;

/// What is put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coalescing {
    /// TCP segments: every TUN device with a virtio-net header takes them.
    pub tcp: bool,
    /// UDP datagrams: only for kernels that take `TUN_F_USO4` and `TUN_F_USO6`.
    pub udp: bool,
}

/// Why a packet was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// As many packets are held as the coalescer was made for: flush, then push it again.
    #[error("no room for a further packet before the next flush")]
    Full,
    /// The range does not lie inside the arena or is empty.
    #[error("the packet lies outside of the buffer")]
    Outside,
}

/// One write to the TUN device.
#[derive(Debug)]
pub struct SuperPacket<'a> {
    /// For `writev`: virtio-net header and headers, then the payloads. At most [`SEGMENTS_MAX`] + 1.
    pub slices: &'a [IoSlice<'a>],
    /// Packets of the tunnel that it consists of.
    pub segments: usize,
    /// Bytes of the IP packet, without the virtio-net header.
    pub len: usize,
}

/// Puts packets of one flow together that follow each other.
///
/// It holds ranges of the caller's buffer ("arena"), never bytes: what was pushed has to stay as it is until
/// [`Coalescer::flush`], which gives out everything. Flush when the socket has no more datagrams, when the arena is
/// full, or on [`PushError::Full`]; never per datagram, for merging across datagrams is what makes this fast.
///
/// Packets of one flow come out in the order they came in, each exactly once.
#[derive(Debug)]
pub struct Coalescer {
    coalescing: Coalescing,
    packets_max: usize,
    pieces: Vec<Piece>,
    /// In the order in which they were opened, which is the order of writing.
    groups: Vec<Group>,
    open: Vec<OpenFlow>,
}

/// A range of the arena: the whole packet for a group's first, the payload for the others.
#[derive(Clone, Copy, Debug)]
struct Piece {
    start: u32,
    len: u32,
    /// Index of the group's next piece.
    next: u32,
}

/// A group that may still grow.
#[derive(Clone, Copy, Debug)]
struct OpenFlow {
    hash: u64,
    group: u32,
}

/// Packets that are written as one.
#[derive(Clone, Copy, Debug)]
struct Group {
    first: u32,
    last: u32,
    segments: usize,
    /// The first packet; of its fields only the head's shape is used after merging. None: written as it is.
    candidate: Option<Candidate>,
    /// Payload bytes of all segments.
    payload: usize,
    next_seq: u32,
    next_id: IdRule,
    /// The last segment carries PSH.
    push: bool,
    /// The first packet's checksums were found right. Left to the second packet: most groups never get one.
    verified: bool,
}

/// What the IPv4 identification of the next packet has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IdRule {
    /// After the first packet: one more, or, with DF set, the same.
    Open(u16),
    /// One more.
    Counts(u16),
    /// The same: with DF set a sender may leave it alone (RFC 6864).
    Fixed(u16),
}

impl Coalescer {
    /// Room for `packets_max` packets between two flushes (about 200 bytes each, allocated here and never again).
    #[must_use]
    pub fn new(packets_max: usize, coalescing: Coalescing) -> Self {
        Self {
            coalescing,
            packets_max,
            pieces: Vec::with_capacity(packets_max),
            groups: Vec::with_capacity(packets_max),
            open: Vec::with_capacity(FLOWS_MAX),
        }
    }

    /// Takes the packet at `at` in `arena`. Whatever is no TCP or UDP packet fit for merging is held too and comes out
    /// as it is; the source address was checked by the caller. Padding behind the IP packet is left out.
    pub fn push(&mut self, arena: &[u8], at: Range<usize>) -> Result<(), PushError> {
        let start = at.start as u32;
        let packet = match (u32::try_from(at.end), arena.get(at)) {
            (Ok(_), Some(packet)) if !packet.is_empty() => packet,
            _ => return Err(PushError::Outside),
        };
        if self.pieces.len() >= self.packets_max {
            return Err(PushError::Full);
        }
        let packet = &packet[..packet::ip_len(packet).unwrap_or(packet.len())];
        let candidate = if packet::ip_len(packet).is_some() { Candidate::of(packet) } else { None };
        let whole = Piece { start, len: packet.len() as u32, next: 0 };
        let Some(candidate) = candidate else {
            self.close_addresses(arena, packet);
            self.add(whole, None);
            return Ok(());
        };
        let wanted = match candidate.protocol {
            Protocol::Tcp => self.coalescing.tcp,
            Protocol::Udp => self.coalescing.udp,
        };
        if !wanted {
            self.add(whole, None);
            return Ok(());
        }
        if let Some(slot) = self.find(arena, packet, &candidate) {
            if self.join(slot, arena, packet, start, &candidate) {
                return Ok(());
            }
            self.open.remove(slot);
        }
        let group = self.add(whole, Some(candidate));
        if candidate.mergeable && candidate.flags & PSH == 0 {
            if self.open.len() == FLOWS_MAX {
                self.open.remove(0);
            }
            self.open.push(OpenFlow { hash: candidate.hash, group });
        }
        Ok(())
    }

    /// Gives out everything that is held, in order, and forgets it. `arena` is the one of the pushes.
    pub fn flush(&mut self, arena: &[u8], mut write: impl FnMut(SuperPacket<'_>)) {
        for group in &self.groups {
            match &group.candidate {
                Some(candidate) if group.segments > 1 => {
                    self.write_merged(group, candidate, arena, &mut write)
                }
                _ => self.write_plain(group, arena, &mut write),
            }
        }
        self.pieces.clear();
        self.groups.clear();
        self.open.clear();
    }

    /// Packets held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Whether no packet is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Opens a group of one.
    fn add(&mut self, piece: Piece, candidate: Option<Candidate>) -> u32 {
        let (index, group) = (self.pieces.len() as u32, self.groups.len() as u32);
        self.pieces.push(piece);
        self.groups.push(Group {
            first: index,
            last: index,
            segments: 1,
            payload: candidate.map_or(0, |first| first.payload),
            next_seq: candidate.map_or(0, |first| first.seq.wrapping_add(first.payload as u32)),
            next_id: IdRule::Open(candidate.map_or(0, |first| first.id)),
            push: false,
            verified: false,
            candidate,
        });
        group
    }

    /// The open group of the candidate's flow.
    fn find(&self, arena: &[u8], packet: &[u8], candidate: &Candidate) -> Option<usize> {
        self.open.iter().position(|open| {
            open.hash == candidate.hash
                && self.first_packet(open.group, arena).is_some_and(|(shape, first)| {
                    shape.protocol == candidate.protocol
                        && shape.ip_header == candidate.ip_header
                        && same_flow(first, packet, shape.ip_header)
                })
        })
    }

    /// Appends the packet to the open group at `slot` if it continues it. The group is closed when it is complete.
    fn join(&mut self, slot: usize, arena: &[u8], packet: &[u8], start: u32, candidate: &Candidate) -> bool {
        let index = self.open[slot].group;
        let Some((shape, first)) = self.first_packet(index, arena) else { return false };
        let group = self.groups[index as usize];
        let fits = candidate.mergeable
            && candidate.head == shape.head
            && candidate.payload <= shape.payload
            && shape.head + group.payload + candidate.payload <= LEN_MAX
            && (candidate.protocol == Protocol::Udp || candidate.seq == group.next_seq)
            && same_head(first, packet, candidate);
        if !fits {
            return false;
        }
        let Some(next_id) = group.next_id.after(candidate, first) else { return false };
        if !(group.verified || shape.verified(first)) || !candidate.verified(packet) {
            return false;
        }
        let piece = self.pieces.len() as u32;
        let payload = Piece { start: start + candidate.head as u32, len: candidate.payload as u32, next: 0 };
        self.pieces.push(payload);
        self.pieces[group.last as usize].next = piece;
        let push = candidate.flags & PSH != 0;
        let segments = group.segments + 1;
        self.groups[index as usize] = Group {
            last: piece,
            segments,
            payload: group.payload + candidate.payload,
            next_seq: group.next_seq.wrapping_add(candidate.payload as u32),
            next_id,
            push,
            verified: true,
            ..group
        };
        let segments_max = if candidate.protocol == Protocol::Tcp { SEGMENTS_MAX } else { UDP_SEGMENTS_MAX };
        if push || candidate.payload < shape.payload || segments == segments_max {
            self.open.remove(slot);
        }
        true
    }

    /// Closes what the packet could belong to unseen: fragments and the like keep their place among their addresses.
    fn close_addresses(&mut self, arena: &[u8], packet: &[u8]) {
        for slot in (0..self.open.len()).rev() {
            let first = self.first_packet(self.open[slot].group, arena);
            if first.is_none_or(|(_, first)| same_addresses(first, packet)) {
                self.open.remove(slot);
            }
        }
    }

    fn first_packet<'p>(&self, group: u32, arena: &'p [u8]) -> Option<(Candidate, &'p [u8])> {
        let group = self.groups.get(group as usize)?;
        Some((group.candidate?, self.pieces[group.first as usize].of(arena)?))
    }

    fn write_plain(&self, group: &Group, arena: &[u8], write: &mut impl FnMut(SuperPacket<'_>)) {
        let Some(packet) = self.pieces[group.first as usize].of(arena) else { return };
        let slices = [IoSlice::new(&[0; VNET_HEADER_LEN]), IoSlice::new(packet)];
        write(SuperPacket { slices: &slices, segments: 1, len: packet.len() });
    }

    fn write_merged(
        &self,
        group: &Group,
        shape: &Candidate,
        arena: &[u8],
        write: &mut impl FnMut(SuperPacket<'_>),
    ) {
        let mut piece = self.pieces[group.first as usize];
        let Some((first, payload)) = piece.of(arena).and_then(|packet| packet.split_at_checked(shape.head))
        else {
            return;
        };
        let mut head = [0; VNET_HEADER_LEN + HEAD_MAX];
        let head = &mut head[..VNET_HEADER_LEN + shape.head];
        head[VNET_HEADER_LEN..].copy_from_slice(first);
        group.write_head(shape, head);
        let mut slices = [IoSlice::new(&[]); SEGMENTS_MAX + 1];
        slices[0] = IoSlice::new(head);
        slices[1] = IoSlice::new(payload);
        for slot in &mut slices[2..=group.segments] {
            piece = self.pieces[piece.next as usize];
            let Some(payload) = piece.of(arena) else { return };
            *slot = IoSlice::new(payload);
        }
        let len = shape.head + group.payload;
        write(SuperPacket { slices: &slices[..=group.segments], segments: group.segments, len });
    }
}

impl Piece {
    fn of<'p>(&self, arena: &'p [u8]) -> Option<&'p [u8]> {
        let start = self.start as usize;
        arena.get(start..start + self.len as usize)
    }
}

impl Group {
    /// Turns the first packet's headers, behind ten bytes of room, into those of the whole group: lengths, IP checksum,
    /// PSH, and the pseudo-header's sum where the kernel finishes the checksum.
    fn write_head(&self, shape: &Candidate, head: &mut [u8]) {
        let (vnet, ip) = head.split_at_mut(VNET_HEADER_LEN);
        let len = shape.head + self.payload;
        let transport_len = len - shape.ip_header;
        let v4 = shape.ip_header == IPV4_HEADER_LEN;
        if v4 {
            set_word(ip, 2, len as u16);
            set_word(ip, 10, 0);
            let sum = checksum(&ip[..IPV4_HEADER_LEN]);
            set_word(ip, 10, sum);
        } else {
            set_word(ip, 4, (len - IPV6_HEADER_LEN) as u16);
        }
        let (protocol, csum_offset) = match shape.protocol {
            Protocol::Tcp => (TCP, TCP_CHECKSUM),
            Protocol::Udp => (UDP, UDP_CHECKSUM),
        };
        let pseudo = packet::pseudo_sum(ip, v4, protocol).add_u32(transport_len as u32).fold();
        let transport = &mut ip[shape.ip_header..];
        set_word(transport, csum_offset, pseudo);
        let mut gso_type = match (shape.protocol, v4) {
            (Protocol::Udp, _) => GSO_UDP_L4,
            (Protocol::Tcp, true) => GSO_TCPV4,
            (Protocol::Tcp, false) => GSO_TCPV6,
        };
        if shape.protocol == Protocol::Udp {
            set_word(transport, 4, transport_len as u16);
        } else {
            if self.push {
                transport[13] |= PSH;
            }
            if transport[13] & CWR != 0 {
                gso_type |= GSO_ECN;
            }
        }
        let header = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type,
            hdr_len: shape.head as u16,
            gso_size: shape.payload as u16,
            csum_start: shape.ip_header as u16,
            csum_offset: csum_offset as u16,
        };
        vnet.copy_from_slice(&header.to_bytes());
    }
}

impl IdRule {
    /// The rule after `candidate`, if it obeys this one. `first` is the group's first packet.
    fn after(self, candidate: &Candidate, first: &[u8]) -> Option<Self> {
        if candidate.ip_header == IPV6_HEADER_LEN {
            return Some(self);
        }
        let do_not_fragment = packet::word(first, 6) & 0x4000 != 0;
        let id = candidate.id;
        match self {
            Self::Open(last) | Self::Counts(last) if id == last.wrapping_add(1) => Some(Self::Counts(id)),
            Self::Open(last) if id == last && do_not_fragment => Some(Self::Fixed(id)),
            Self::Fixed(last) if id == last => Some(self),
            _ => None,
        }
    }
}
