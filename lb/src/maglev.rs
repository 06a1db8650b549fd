// SPDX-License-Identifier: Apache-2.0
//! A lookup table from hash to backend, after Maglev (NSDI 2016): as long as wanted, split by weight, and hardly moved
//! when one backend comes or goes. Equal candidates give equal tables on every node, whatever was before.
//!
//! The paper fills the table in turns, which with 100 slots for each backend moves 2 to 4 % of all slots more than the
//! backend that went had. Here each slot first goes to the backend that it likes best (weighted rendezvous hashing,
//! which moves nothing else), and then those with too many slots give some to those with too few. What may remain, the
//! tolerance, is the price: the less of it, the more moves. [`Fill`] says which of the two matters.

/// Sizes of tables by which connections are hashed. Primes, so that any hash spreads over them by its remainder, and far apart, because a table of
/// another size has nothing in common with the one before.
const SIZES: [u32; 3] = [8_191, 32_749, 65_537];
/// The least for a table of which random slots are taken: shares are right to a thousandth, and nothing is to stay.
const SIZE_EXACT: u32 = 1_021;
/// Slots for each backend, at least, as long as there is a size for it: with 100 a share would be off by 1 % for the
/// lack of slots alone, and the largest size still has 100 for 655 backends.
const SLOTS_EACH: u32 = 128;

/// Bits behind the point of a quota.
const FRACTION: u32 = 16;
/// Steps in which the tolerance is tightened.
const PARTS: u64 = 64;

/// 2⁶⁴: hashes are fractions of it.
const TWO_64: f64 = 18_446_744_073_709_551_616.0;

/// One backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// What it is, hashed: equal on every node, different for each backend.
    pub(crate) seed: u64,
    /// Its share, against the sum of all; above 0.
    pub(crate) weight: u32,
}

/// What matters more where both cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fill {
    /// Shares are right to a slot.
    Exact,
    /// A change of one backend moves at most 1 % of the table more than it must; no share is off by more than 0.8 % of
    /// the table, nor by more than a tenth of itself.
    Stable,
}

/// The size of a table for so many backends.
pub(crate) fn size_for(candidates: usize, fill: Fill) -> u32 {
    let [.., largest] = SIZES;
    let enough = |size: &u32| candidates as u64 * u64::from(SLOTS_EACH) <= u64::from(*size);
    let small = (fill == Fill::Exact).then_some(SIZE_EXACT);
    small.into_iter().chain(SIZES).find(enough).unwrap_or(largest)
}

/// For each slot the index of a candidate. Empty where there are none.
pub(crate) fn table(size: u32, candidates: &[Candidate], fill: Fill) -> Vec<u32> {
    let Some(first) = candidates.first() else { return Vec::new() };
    let equal = candidates.iter().all(|c| c.weight == first.weight);
    let mut table: Vec<u32> = (0..size).map(|slot| favourite(slot, candidates, equal)).collect();
    balance(&mut table, candidates, fill);
    table
}

/// How much more or less than its quota of slots a backend may have.
fn tolerance(size: u32, quota: u64, fill: Fill) -> u64 {
    match fill {
        Fill::Exact => 0,
        Fill::Stable => ((u64::from(size) << FRACTION) / 125).min((quota / 10).max(1 << FRACTION)).min(quota),
    }
}

fn favourite(slot: u32, candidates: &[Candidate], equal: bool) -> u32 {
    let slot = slot_hash(slot);
    let indices = 0..candidates.len() as u32;
    if equal {
        // The same order as by cost, without logarithms.
        return indices.max_by_key(|&i| mix(slot ^ candidates[i as usize].seed)).unwrap_or(0);
    }
    let (mut best, mut least) = (0, f64::INFINITY);
    for i in indices {
        let candidate = candidates[i as usize];
        let hash = mix(slot ^ candidate.seed);
        // −ln u is at least 1 − u: that spares most of the logarithms.
        let bound = (1.0 - hash as f64 / TWO_64) / f64::from(candidate.weight);
        if bound < least {
            let cost = minus_ln(hash) / f64::from(candidate.weight);
            if cost < least {
                (best, least) = (i, cost);
            }
        }
    }
    best
}

fn balance(table: &mut [u32], candidates: &[Candidate], fill: Fill) {
    let size = table.len() as u32;
    let total: u64 = candidates.iter().map(|c| u64::from(c.weight)).sum();
    let quotas = candidates.iter().map(|c| (u64::from(size) << FRACTION) * u64::from(c.weight) / total);
    let quotas: Vec<(u64, u64)> = quotas.map(|quota| (quota, tolerance(size, quota, fill))).collect();
    let mut counts = vec![0u64; candidates.len()];
    for index in &*table {
        counts[*index as usize] += 1;
    }
    // Level 1 is the quota, rounded to the backend's favour; each level more allows a part of the tolerance.
    let allowed = |i: usize, level: u64| quotas[i].1 * (level - 1) / PARTS;
    let most = |i: usize, level: u64| match level {
        0 => quotas[i].0 >> FRACTION,
        _ => (quotas[i].0 + allowed(i, level)).div_ceil(1 << FRACTION),
    };
    let least = |i: usize, level: u64| (quotas[i].0 - allowed(i, level)) >> FRACTION;
    let all = 0..candidates.len();
    let above = |level: u64| all.clone().map(|i| counts[i].saturating_sub(most(i, level))).sum::<u64>();
    let below = |level: u64| all.clone().map(|i| least(i, level).saturating_sub(counts[i])).sum::<u64>();
    // What the ones give up must suffice for the others: the side with less to say is held to less tolerance.
    let (mut up, mut down) = (PARTS + 1, PARTS + 1);
    let (surplus, deficit) = (above(up), below(down));
    while up > 0 && above(up) < deficit {
        up -= 1;
    }
    while down > 1 && below(down) < surplus {
        down -= 1;
    }

    let mut given: Vec<u32> = Vec::new();
    let surplus: Vec<usize> = all.clone().map(|i| counts[i].saturating_sub(most(i, up)) as usize).collect();
    for (i, surplus) in surplus.into_iter().enumerate().filter(|(_, surplus)| *surplus > 0) {
        // Which ones go has nothing to do with how much they like it here: new ones are not the first to go on.
        let mut own: Vec<u32> = (0..size).filter(|&slot| table[slot as usize] == i as u32).collect();
        own.sort_by_key(|&slot| (mix(slot_hash(slot) ^ candidates[i].seed.rotate_left(17)), slot));
        given.extend(own.into_iter().take(surplus));
        counts[i] -= surplus as u64;
    }
    let mut needs: Vec<u64> = all.clone().map(|i| least(i, down).saturating_sub(counts[i])).collect();
    let mut rooms: Vec<u64> =
        all.clone().map(|i| most(i, up.max(1)).saturating_sub(counts[i].max(least(i, down)))).collect();
    given.sort_by_key(|&slot| (slot_hash(slot), slot));
    let mut needed: u64 = needs.iter().sum();
    for slot in given {
        let open = if needed > 0 { &mut needs } else { &mut rooms };
        let hash = slot_hash(slot);
        let cost = |i: &usize| cost(hash, candidates[*i]);
        let best = all.clone().filter(|&i| open[i] > 0).min_by(|a, b| cost(a).total_cmp(&cost(b)));
        let Some(best) = best else { continue };
        open[best] -= 1;
        needed = needed.saturating_sub(1);
        table[slot as usize] = best as u32;
    }
}

/// Smaller is better; a share of slots in proportion to the weight has the smallest at one candidate.
fn cost(slot: u64, candidate: Candidate) -> f64 {
    minus_ln(mix(slot ^ candidate.seed)) / f64::from(candidate.weight)
}

fn slot_hash(slot: u32) -> u64 {
    mix((u64::from(slot) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// A bijection that spreads every bit over all others (the finaliser of MurmurHash3, in the public domain).
pub(crate) fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

/// −ln(x ÷ 2⁶⁴) by additions, multiplications and divisions alone: unlike a library's logarithm these give the same
/// bits on every machine, and nodes of two architectures must agree about a table.
fn minus_ln(x: u64) -> f64 {
    let x = x | 1;
    let zeros = x.leading_zeros();
    // x ÷ 2⁶⁴ = m · 2^−(zeros + 1), with m in 1..2.
    let m = ((x << zeros) >> 11) as f64 / (1u64 << 52) as f64;
    // ln m = 2 · artanh z, z in 0..1/3; ten terms are exact to 10⁻¹⁰.
    let z = (m - 1.0) / (m + 1.0);
    let square = z * z;
    let series = (0..10).rev().fold(0.0, |sum, k| sum * square + 1.0 / f64::from(2 * k + 1));
    f64::from(zeros + 1) * std::f64::consts::LN_2 - 2.0 * z * series
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let weights = prop_oneof![
            (2usize..60).prop_map(|count| vec![1; count]),
            prop::collection::vec(1u32..=10, 2..60),
        ];
        (weights, any::<u64>()).prop_map(|(weights, salt)| {
            let seeded = (0u64..).zip(weights);
            seeded.map(|(i, weight)| Candidate { seed: mix(salt.wrapping_add(i)), weight }).collect()
        })
    }

    fn shares(table: &[u32], candidates: &[Candidate]) -> Vec<(f64, f64)> {
        let total: f64 = candidates.iter().map(|c| f64::from(c.weight)).sum();
        let wanted = candidates.iter().map(|c| f64::from(c.weight) / total);
        let found = (0..candidates.len() as u32)
            .map(|i| table.iter().filter(|index| **index == i).count() as f64 / table.len() as f64);
        found.zip(wanted).collect()
    }

    #[test]
    fn a_table_has_100_slots_for_each_backend_as_long_as_a_size_has() {
        let found = [1, 63, 64, 255, 256, 655, 9_999].map(|count| size_for(count, Fill::Stable));
        assert_eq!(found, [8_191, 8_191, 32_749, 32_749, 65_537, 65_537, 65_537]);
    }

    #[test]
    fn the_logarithm_is_right() {
        for x in [u64::MAX, 1 << 63, (1 << 63) + 1, 1 << 62, 12_345_678_901_234_567, 1] {
            let exact = -((x as f64) / TWO_64).ln();
            assert!((minus_ln(x) - exact).abs() < 1e-9, "{x}: {} is not {exact}", minus_ln(x));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

        #[test]
        fn shares_follow_the_weights(candidates in candidates()) {
            let size = size_for(candidates.len(), Fill::Exact);
            for (found, wanted) in shares(&table(size, &candidates, Fill::Exact), &candidates) {
                prop_assert!((found - wanted).abs() <= 1.0 / f64::from(size), "{found} instead of {wanted}");
            }
            let size = size_for(candidates.len(), Fill::Stable);
            for (found, wanted) in shares(&table(size, &candidates, Fill::Stable), &candidates) {
                prop_assert!((found - wanted).abs() <= 0.01, "{found} instead of {wanted}");
            }
        }

        /// The bound: at most 1 % of the table more than the minimum.
        #[test]
        fn one_backend_less_or_more_moves_little_else(candidates in candidates(), gone in any::<prop::sample::Index>()) {
            let size = size_for(candidates.len(), Fill::Stable);
            let gone = gone.index(candidates.len());
            let rest: Vec<Candidate> =
                candidates.iter().enumerate().filter(|(i, _)| *i != gone).map(|(_, c)| *c).collect();
            let (all, fewer) = (table(size, &candidates, Fill::Stable), table(size, &rest, Fill::Stable));
            let moved = all.iter().zip(&fewer).filter(|(a, b)| candidates[**a as usize] != rest[**b as usize]).count();
            let least = all.iter().filter(|index| **index as usize == gone).count();
            let excess = (moved - least) as f64 / f64::from(size);
            prop_assert!(excess <= 0.01, "{:.2} % more than needed", excess * 100.0);
        }

        #[test]
        fn the_order_of_candidates_does_not_matter(candidates in candidates()) {
            let reversed: Vec<Candidate> = candidates.iter().rev().copied().collect();
            let seeds = |list: &[Candidate], table: Vec<u32>| -> Vec<u64> {
                table.into_iter().map(|index| list[index as usize].seed).collect()
            };
            let size = size_for(candidates.len(), Fill::Stable);
            prop_assert_eq!(
                seeds(&candidates, table(size, &candidates, Fill::Stable)),
                seeds(&reversed, table(size, &reversed, Fill::Stable))
            );
        }
    }
}
