// SPDX-License-Identifier: Apache-2.0
//! The order of records in an answer.

/// Shuffles after Fisher and Yates with numbers from SplitMix64 (Steele, Lea, Flood 2014): the same seed gives the
/// same order, and clients that take the first address spread over all of them.
pub(crate) fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut state = seed;
    for last in (1..items.len()).rev() {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        // The bias of the remainder is far below what anyone could see with a few thousand records.
        items.swap(last, (mixed % (last as u64 + 1)) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_item_comes_first_about_equally_often() {
        let mut firsts = [0u32; 4];
        for seed in 0..4_000 {
            let mut items = [0, 1, 2, 3];
            shuffle(&mut items, seed);
            firsts[items[0]] += 1;
        }
        assert!(firsts.iter().all(|count| (850..1_150).contains(count)), "{firsts:?}");
    }
}
