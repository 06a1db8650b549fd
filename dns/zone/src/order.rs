// SPDX-License-Identifier: Apache-2.0
//! The order of records in an answer.

/// All numbers below `len` in an order that the seed decides, without memory: a start and a step that shares no factor with
/// `len`. Up to three that is every order there is; with more, clients that take the first one spread over all of them, and
/// those that go on to the second over the others.
pub(crate) fn shuffled(len: usize, seed: u64) -> impl Iterator<Item = usize> {
    let (start, step) = match len as u64 {
        0 | 1 => (0, 1),
        number => {
            let mut step = 1 + mix(seed ^ 0x5851_F42D_4C95_7F2D) % (number - 1).max(1);
            while divisor(step, number) != 1 {
                step = step % number + 1;
            }
            (mix(seed) % number, step)
        }
    };
    let modulus = len.max(1) as u64;
    (0..len as u64).map(move |index| ((start + index * step) % modulus) as usize)
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(seed: u64) -> u64 {
    let mut mixed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// The greatest that both have (Euclid).
fn divisor(mut a: u64, mut b: u64) -> u64 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_comes_once() {
        for len in 0..200 {
            for seed in 0..20 {
                let all: Vec<usize> = shuffled(len, seed).collect();
                assert_eq!(all.iter().copied().collect::<BTreeSet<_>>(), (0..len).collect(), "{len} {seed}");
                assert_eq!(all.len(), len);
            }
        }
    }

    #[test]
    fn each_comes_first_and_second_about_equally_often() {
        let (mut firsts, mut seconds) = ([0u32; 5], [0u32; 5]);
        for seed in 0..5_000 {
            let mut order = shuffled(5, seed);
            firsts[order.next().unwrap()] += 1;
            seconds[order.next().unwrap()] += 1;
        }
        assert!(
            firsts.iter().chain(&seconds).all(|count| (850..1_150).contains(count)),
            "{firsts:?} {seconds:?}"
        );
    }

    #[test]
    fn three_have_all_six_orders() {
        let orders: BTreeSet<Vec<usize>> = (0..200).map(|seed| shuffled(3, seed).collect()).collect();
        assert_eq!(orders.len(), 6);
    }
}
