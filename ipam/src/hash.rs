// SPDX-License-Identifier: Apache-2.0
//! A small hash that is the same on every node and in every version, for choosing where a search starts.

/// FNV-1a over the bytes, then SplitMix64's finaliser, so that short inputs reach all bits.
pub(crate) fn hash(parts: &[&[u8]]) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        for byte in *part {
            state = (state ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        // A mark between the parts: "a" + "bc" differs from "ab" + "c".
        state = (state ^ 0xff).wrapping_mul(0x0000_0100_0000_01b3);
    }
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}
