// SPDX-License-Identifier: Apache-2.0
//! How a client's packets choose a slot. Programs and user space compute the same, so that `explain` can tell where a packet
//! would go, and nodes with one seed agree.

use crate::address::Address;

/// Hash of a client's address.
#[inline(always)]
pub const fn hash_client(client: &Address, seed: u32) -> u32 {
    let [a, b] = halves(client);
    fold(mix(mix(start(seed), a), b))
}

/// Hash of a flow: client, frontend, ports (network order) and protocol.
#[inline(always)]
pub const fn hash_flow(
    client: &Address,
    frontend: &Address,
    [s0, s1]: [u8; 2],
    [d0, d1]: [u8; 2],
    proto: u8,
    seed: u32,
) -> u32 {
    let ([a, b], [c, d]) = (halves(client), halves(frontend));
    let rest = u64::from_be_bytes([s0, s1, d0, d1, proto, 0, 0, 0]);
    fold(mix(mix(mix(mix(mix(start(seed), a), b), c), d), rest))
}

/// Hash of a number: a socket's cookie.
#[inline(always)]
pub const fn hash_number(number: u64, seed: u32) -> u32 {
    fold(mix(start(seed), number))
}

/// A hash as an index below `count`; 0 when `count` is 0.
#[inline(always)]
pub const fn below(hash: u32, count: u32) -> u32 {
    ((hash as u64 * count as u64) >> 32) as u32
}

const fn start(seed: u32) -> u64 {
    // 2^64 divided by the golden ratio: bits all over, whatever the seed.
    (seed as u64) ^ 0x9e37_79b9_7f4a_7c15
}

/// One word more: the finalizer of SplitMix64 (Steele, Lea and Flood, 2014), in which each bit of the input moves half of
/// the output.
#[inline(always)]
const fn mix(state: u64, word: u64) -> u64 {
    let mut x = state.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ word;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

const fn fold(state: u64) -> u32 {
    (state >> 32) as u32
}

#[inline(always)]
const fn halves(address: &Address) -> [u64; 2] {
    let number = u128::from_be_bytes(*address);
    [(number >> 64) as u64, number as u64]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::mapped;

    #[test]
    fn an_index_is_below_the_count_and_reaches_all() {
        for count in [1_u32, 2, 3, 7, 65_537] {
            assert_eq!((below(0, count), below(u32::MAX, count)), (0, count - 1));
        }
        assert_eq!(below(u32::MAX, 0), 0);
    }

    #[test]
    fn clients_spread_evenly() {
        let mut hits = [0_u32; 7];
        for client in 0..70_000_u32 {
            let [_, b, c, d] = client.to_be_bytes();
            hits[below(hash_client(&mapped([10, b, c, d]), 1), 7) as usize] += 1;
        }
        // 10,000 each: five standard deviations are 463.
        assert!(hits.iter().all(|hits| hits.abs_diff(10_000) < 463), "{hits:?}");
    }

    #[test]
    fn ports_cookies_and_seeds_spread_evenly() {
        let (client, vip) = (mapped([10, 244, 0, 7]), mapped([10, 96, 0, 1]));
        let mut hits = [[0_u32; 4]; 3];
        for number in 0..40_000_u32 {
            let port = (number as u16).to_be_bytes();
            hits[0][below(hash_flow(&client, &vip, port, [0, 80], 6, 1), 4) as usize] += 1;
            hits[1][below(hash_number(u64::from(number), 1), 4) as usize] += 1;
            hits[2][below(hash_client(&client, number), 4) as usize] += 1;
        }
        // 10,000 each: five standard deviations are 433.
        assert!(hits.iter().flatten().all(|hits| hits.abs_diff(10_000) < 433), "{hits:?}");
    }

    #[test]
    fn each_part_of_a_flow_counts() {
        let (client, vip) = (mapped([10, 244, 0, 7]), mapped([10, 96, 0, 1]));
        let one = hash_flow(&client, &vip, [1, 2], [3, 4], 6, 0);
        assert_ne!(one, hash_flow(&vip, &vip, [1, 2], [3, 4], 6, 0));
        assert_ne!(one, hash_flow(&client, &client, [1, 2], [3, 4], 6, 0));
        assert_ne!(one, hash_flow(&client, &vip, [2, 1], [3, 4], 6, 0));
        assert_ne!(one, hash_flow(&client, &vip, [1, 2], [4, 3], 6, 0));
        assert_ne!(one, hash_flow(&client, &vip, [1, 2], [3, 4], 17, 0));
        assert_ne!(one, hash_flow(&client, &vip, [1, 2], [3, 4], 6, 1));
    }
}
