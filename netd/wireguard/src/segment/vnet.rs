// SPDX-License-Identifier: Apache-2.0
//! The header before each packet of a TUN device that was opened with `IFF_VNET_HDR`.

/// Bytes of `struct virtio_net_hdr`, the TUN device's default (`TUNSETVNETHDRSZ` not used).
pub const VNET_HEADER_LEN: usize = 10;

/// Bytes that one read from the TUN device needs at most: header, and the longest IPv6 packet without a jumbo option.
pub const READ_MAX: usize = VNET_HEADER_LEN + 40 + u16::MAX as usize;

/// Flag: the packet's checksum holds the pseudo-header's sum only and has to be finished.
pub(super) const NEEDS_CSUM: u8 = 1;
/// No segmentation: one packet.
pub(super) const GSO_NONE: u8 = 0;
/// TCP over IPv4.
pub(super) const GSO_TCPV4: u8 = 1;
/// TCP over IPv6.
pub(super) const GSO_TCPV6: u8 = 4;
/// UDP datagrams of one size, over either IP.
pub(super) const GSO_UDP_L4: u8 = 5;
/// Bit beside the type: the first segment carries CWR, the others must not.
pub(super) const GSO_ECN: u8 = 0x80;

/// `struct virtio_net_hdr` of linux/virtio_net.h, little-endian (the host's order on all targets we build for).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// `VIRTIO_NET_HDR_F_*`: bit 0 is `NEEDS_CSUM`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`: 0 none, 1 TCPv4, 4 TCPv6, 5 UDP; bit 7 is ECN.
    pub gso_type: u8,
    /// Bytes of all headers. A hint: for forwarded packets the kernel does not keep it true.
    pub hdr_len: u16,
    /// Payload bytes of each segment but the last.
    pub gso_size: u16,
    /// Where the sum begins: offset of the transport header.
    pub csum_start: u16,
    /// Where the checksum is stored, from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// The header at the beginning of `bytes`; none when they are fewer than [`VNET_HEADER_LEN`].
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<VNET_HEADER_LEN>()?;
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Some(Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        })
    }

    /// The header as the TUN device takes it.
    #[must_use]
    pub fn to_bytes(self) -> [u8; VNET_HEADER_LEN] {
        let mut bytes = [0; VNET_HEADER_LEN];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        let words = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset];
        for (slot, word) in bytes[2..].as_chunks_mut::<2>().0.iter_mut().zip(words) {
            *slot = word.to_le_bytes();
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_lie_where_the_kernel_has_them() {
        let bytes = [1, 0x81, 0x34, 0, 0x58, 0x05, 20, 0, 16, 0];
        let header = VnetHeader::parse(&bytes).unwrap();
        let expected = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: GSO_TCPV4 | GSO_ECN,
            hdr_len: 52,
            gso_size: 1368,
            csum_start: 20,
            csum_offset: 16,
        };
        assert_eq!(header, expected);
        assert_eq!(header.to_bytes(), bytes);
        assert_eq!(VnetHeader::parse(&bytes[..9]), None);
        assert_eq!(VnetHeader::default().to_bytes(), [0; 10]);
    }
}
