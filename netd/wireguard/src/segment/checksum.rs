// SPDX-License-Identifier: Apache-2.0
//! The Internet checksum (RFC 1071).

use std::net::IpAddr;

/// Bytes added in one turn of the inner loop: four words of 64 bits, which the compiler turns into vector code.
const BLOCK: usize = 32;

/// A one's complement sum of 16-bit words that is still being added up. The words are in the host's byte order: the
/// sum of swapped words is the swapped sum, so that no byte is swapped on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// Adds `bytes`. When their number is odd a zero byte follows, so an odd piece can only be the last.
    #[must_use]
    pub fn add_bytes(self, bytes: &[u8]) -> Self {
        let (blocks, rest) = bytes.as_chunks::<BLOCK>();
        // Each lane takes two 32-bit halves a turn: it overflows after 2^31 turns, which is more than any packet has.
        let mut lanes = [0_u64; BLOCK / 8];
        for block in blocks {
            for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<8>().0) {
                *lane = lane.wrapping_add(halves(u64::from_ne_bytes(*word)));
            }
        }
        let (words, tail) = rest.as_chunks::<8>();
        let mut sum = self;
        for lane in lanes {
            sum = sum.add_word(lane);
        }
        for word in words {
            sum = sum.add_word(u64::from_ne_bytes(*word));
        }
        if !tail.is_empty() {
            let mut last = [0; 8];
            last[..tail.len()].copy_from_slice(tail);
            sum = sum.add_word(u64::from_ne_bytes(last));
        }
        sum
    }

    /// Adds one 16-bit number.
    #[must_use]
    pub fn add_u16(self, value: u16) -> Self {
        self.add_word(u64::from(value.to_be()))
    }

    /// Adds one 32-bit number.
    #[must_use]
    pub fn add_u32(self, value: u32) -> Self {
        self.add_word(u64::from(value.to_be()))
    }

    /// The sum in 16 bits. A checksum field holds its complement; a whole packet with a right checksum sums to 0xffff.
    #[must_use]
    pub fn fold(self) -> u16 {
        let mut sum = halves(self.0);
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::from_be(sum as u16)
    }

    fn add_word(self, word: u64) -> Self {
        let (sum, carry) = self.0.overflowing_add(word);
        Self(sum + u64::from(carry))
    }
}

/// The checksum of `bytes` in which the checksum field is zero.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    !Sum::default().add_bytes(bytes).fold()
}

/// The sum of the pseudo-header that TCP and UDP checksums begin with (RFC 9293 section 3.1, RFC 8200 section 8.1).
/// `len` is the length of transport header and payload. Addresses of different families have no pseudo-header; both
/// are added as they are.
#[must_use]
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, len: u32) -> Sum {
    let mut sum = Sum::default().add_u16(u16::from(protocol)).add_u32(len);
    for address in [source, destination] {
        sum = match address {
            IpAddr::V4(address) => sum.add_bytes(&address.octets()),
            IpAddr::V6(address) => sum.add_bytes(&address.octets()),
        };
    }
    sum
}

/// The sum of a word's two halves: the same number modulo 0xffff with room above.
fn halves(word: u64) -> u64 {
    (word & 0xffff_ffff) + (word >> 32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::segment::tests::naive_checksum;

    #[test]
    fn the_example_of_rfc_1071_gives_its_sum() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().add_bytes(&bytes).fold(), 0xddf2);
        assert_eq!(checksum(&bytes), !0xddf2);
    }

    #[test]
    fn a_known_header_has_its_checksum() {
        // The header of many textbooks: 192.168.0.1 to 192.168.0.199, UDP, 115 bytes.
        let header: [u8; 20] =
            [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        assert_eq!(checksum(&header), 0xb861);
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_sum_of_single_words(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(checksum(&bytes), naive_checksum(&bytes));
        }

        #[test]
        fn pieces_of_even_length_may_be_added_one_by_one(
            bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0_usize..100,
        ) {
            let (left, right) = bytes.split_at((cut * 2).min(bytes.len() & !1));
            prop_assert_eq!(!Sum::default().add_bytes(left).add_bytes(right).fold(), checksum(&bytes));
        }

        #[test]
        fn all_ones_never_overflow(len in 0_usize..70_000) {
            prop_assert_eq!(checksum(&vec![0xff; len]), naive_checksum(&vec![0xff; len]));
        }

        #[test]
        fn numbers_count_as_their_bytes(a: u16, b: u32) {
            let bytes = [a.to_be_bytes().to_vec(), b.to_be_bytes().to_vec()].concat();
            prop_assert_eq!(!Sum::default().add_u16(a).add_u32(b).fold(), naive_checksum(&bytes));
        }
    }
}
