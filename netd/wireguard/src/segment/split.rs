// SPDX-License-Identifier: Apache-2.0
//! One large packet of the TUN device into segments of the tunnel's size.

use std::net::IpAddr;

use super::checksum::{Sum, checksum};
use super::packet::{self, CWR, FIN, PSH, TCP, TCP_CHECKSUM, UDP, UDP_CHECKSUM, UDP_HEADER_LEN, set_word};
use super::vnet::{
    GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VNET_HEADER_LEN, VnetHeader,
};

/// Bytes of IP and transport headers that are kept to be repeated: IPv4 never has more than 120, IPv6 with TCP has 100
/// and room for extension headers.
const HEAD_MAX: usize = 256;

/// Why a read from the TUN device holds no packet that could be sent. The packet is dropped and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// The read is shorter than the virtio-net header.
    #[error(
        "read of {0} bytes from the TUN device: shorter than the virtio-net header (is IFF_VNET_HDR set?)"
    )]
    Short(usize),
    /// No IPv4 or IPv6 packet, or one shorter than its own header says.
    #[error("{0} bytes from the TUN device are no whole IPv4 or IPv6 packet")]
    NotIp(usize),
    /// The checksum to finish lies outside of the packet.
    #[error("checksum at {start} + {offset} lies outside of the packet of {len} bytes")]
    ChecksumOutside {
        /// `csum_start`.
        start: u16,
        /// `csum_offset`.
        offset: u16,
        /// Bytes of the packet.
        len: usize,
    },
    /// A segmentation type that was not asked for with `TUNSETOFFLOAD`.
    #[error("segmentation type {0:#04x} is not one this device offers")]
    UnknownType(u8),
    /// Segmentation wanted, but with segments of no bytes.
    #[error("segmentation into segments of 0 bytes")]
    ZeroSize,
    /// The packet is a fragment, its transport is not the one the segmentation type names, or its headers do not end
    /// inside it.
    #[error("headers of a packet of {len} bytes do not fit segmentation type {gso_type:#04x}")]
    Headers {
        /// `gso_type`.
        gso_type: u8,
        /// Bytes of the packet.
        len: usize,
    },
}

/// A packet from the TUN device, given out segment by segment.
///
/// It works in place: the headers of a segment are written over the end of the payload before it. So a segment has to
/// be used up (sealed into its own slot) before the next is asked for, which the borrow sees to.
#[derive(Debug)]
pub struct Split<'a> {
    packet: &'a mut [u8],
    source: IpAddr,
    destination: IpAddr,
    /// Payload bytes of each segment but the last; of a plain packet: all.
    size: usize,
    index: usize,
    count: usize,
    /// None for a plain packet.
    head: Option<Head>,
}

/// The headers that every segment gets.
#[derive(Debug)]
struct Head {
    bytes: [u8; HEAD_MAX],
    len: usize,
    /// Offset of the transport header.
    transport: usize,
    protocol: u8,
    /// Pseudo-header without the length.
    pseudo: Sum,
}

impl<'a> Split<'a> {
    /// Takes what one `read` returned: virtio-net header and packet. A plain packet becomes one segment, its checksum
    /// finished when the header asks for it. All lengths are checked here.
    pub fn new(read: &'a mut [u8]) -> Result<Self, SegmentError> {
        let vnet = VnetHeader::parse(read).ok_or(SegmentError::Short(read.len()))?;
        let packet = &mut read[VNET_HEADER_LEN..];
        let not_ip = SegmentError::NotIp(packet.len());
        let len = packet::ip_len(packet).ok_or(not_ip)?;
        let source = packet::source(packet).ok_or(not_ip)?;
        let destination = packet::destination(packet).ok_or(not_ip)?;
        let packet = &mut packet[..len];
        let (head, size, count) = if vnet.gso_type & !GSO_ECN == GSO_NONE {
            if vnet.flags & NEEDS_CSUM != 0 {
                finish_checksum(packet, vnet.csum_start, vnet.csum_offset)?;
            }
            (None, len, 1)
        } else {
            let head = Head::of(packet, vnet)?;
            let size = usize::from(vnet.gso_size);
            let count = (len - head.len).div_ceil(size).max(1);
            (Some(head), size, count)
        };
        Ok(Self { packet, source, destination, size, index: 0, count, head })
    }

    /// The next segment: a whole packet with right lengths and checksums. None after the last.
    pub fn next_segment(&mut self) -> Option<&mut [u8]> {
        if self.index == self.count {
            return None;
        }
        let index = self.index;
        self.index += 1;
        let Some(head) = &self.head else {
            return Some(self.packet);
        };
        let start = index * self.size;
        let end = (start + head.len + self.size).min(self.packet.len());
        let segment = &mut self.packet[start..end];
        head.write(segment, index, self.size, self.index == self.count);
        Some(segment)
    }

    /// Source address.
    #[must_use]
    pub fn source(&self) -> IpAddr {
        self.source
    }

    /// Destination address: the same for all segments.
    #[must_use]
    pub fn destination(&self) -> IpAddr {
        self.destination
    }

    /// Segments that are still to come.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count - self.index
    }

    /// Bytes of each segment but the last; with one segment only, of that one.
    #[must_use]
    pub fn segment_len(&self) -> usize {
        match &self.head {
            Some(head) if self.count > 1 => head.len + self.size,
            _ => self.packet.len(),
        }
    }

    /// Bytes of the last segment, at most [`Split::segment_len`].
    #[must_use]
    pub fn last_len(&self) -> usize {
        self.packet.len() - (self.count - 1) * self.size
    }
}

impl Head {
    fn of(packet: &[u8], vnet: VnetHeader) -> Result<Self, SegmentError> {
        let gso_type = vnet.gso_type & !GSO_ECN;
        let (protocol, version) = match gso_type {
            GSO_TCPV4 => (TCP, Some(4)),
            GSO_TCPV6 => (TCP, Some(6)),
            GSO_UDP_L4 => (UDP, None),
            other => return Err(SegmentError::UnknownType(other)),
        };
        if vnet.gso_size == 0 {
            return Err(SegmentError::ZeroSize);
        }
        let unfit = SegmentError::Headers { gso_type, len: packet.len() };
        let transport = packet::transport(packet).ok_or(unfit)?;
        if transport.protocol != protocol || version.is_some_and(|version| packet[0] >> 4 != version) {
            return Err(unfit);
        }
        let len = transport.offset
            + match protocol {
                TCP => usize::from(packet.get(transport.offset + 12).ok_or(unfit)? >> 4) * 4,
                _ => UDP_HEADER_LEN,
            };
        if len < transport.offset + UDP_HEADER_LEN.max(if protocol == TCP { 20 } else { 0 }) || len > HEAD_MAX
        {
            return Err(unfit);
        }
        let mut bytes = [0; HEAD_MAX];
        bytes[..len].copy_from_slice(packet.get(..len).ok_or(unfit)?);
        // Fields that differ from segment to segment are zero, so that they can be summed and written anew.
        if bytes[0] >> 4 == 4 {
            bytes[10..12].fill(0);
        }
        let field = transport.offset + if protocol == TCP { TCP_CHECKSUM } else { UDP_CHECKSUM };
        bytes[field..field + 2].fill(0);
        let pseudo = packet::pseudo_sum(&bytes, bytes[0] >> 4 == 4, protocol);
        Ok(Self { bytes, len, transport: transport.offset, protocol, pseudo })
    }

    /// Writes the headers of segment `index` before its payload.
    fn write(&self, segment: &mut [u8], index: usize, size: usize, last: bool) {
        let len = segment.len();
        segment[..self.len].copy_from_slice(&self.bytes[..self.len]);
        if segment[0] >> 4 == 4 {
            set_word(segment, 2, len as u16);
            set_word(segment, 4, packet::word(&self.bytes, 4).wrapping_add(index as u16));
            let header_len = usize::from(segment[0] & 0x0f) * 4;
            let sum = checksum(&segment[..header_len]);
            set_word(segment, 10, sum);
        } else {
            set_word(segment, 4, (len - packet::IPV6_HEADER_LEN) as u16);
        }
        let transport = &mut segment[self.transport..];
        let field = if self.protocol == TCP {
            let seq = packet::long(transport, 4).wrapping_add((index * size) as u32);
            transport[4..8].copy_from_slice(&seq.to_be_bytes());
            if !last {
                transport[13] &= !(FIN | PSH);
            }
            if index > 0 {
                transport[13] &= !CWR;
            }
            TCP_CHECKSUM
        } else {
            let len = transport.len() as u16;
            set_word(transport, 4, len);
            UDP_CHECKSUM
        };
        let sum = !self.pseudo.add_u32(transport.len() as u32).add_bytes(transport).fold();
        set_word(transport, field, if self.protocol == UDP { not_zero(sum) } else { sum });
    }
}

/// Finishes the checksum that the sender left to its device: the field holds the pseudo-header's folded sum.
fn finish_checksum(packet: &mut [u8], start: u16, offset: u16) -> Result<(), SegmentError> {
    let outside = SegmentError::ChecksumOutside { start, offset, len: packet.len() };
    let (start, field) = (usize::from(start), usize::from(start) + usize::from(offset));
    if field + 2 > packet.len() {
        return Err(outside);
    }
    let sum = checksum(&packet[start..]);
    set_word(packet, field, not_zero(sum));
    Ok(())
}

/// Zero in the field means "no checksum" for UDP; 0xffff is the same number, and as right for TCP.
fn not_zero(sum: u16) -> u16 {
    if sum == 0 { 0xffff } else { sum }
}
