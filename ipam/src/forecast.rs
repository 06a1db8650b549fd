// SPDX-License-Identifier: Apache-2.0
//! When the last block of a pool will be claimed, at the recent rate.

use std::time::Duration;

use crate::time::Timestamp;

/// Samples that span less tell nothing: they show the beginning of a cluster, or one rollout.
pub const FORECAST_SPAN_MIN: Duration = Duration::from_secs(6 * 3600);

/// A pool that lasts longer than this does not grow enough for a forecast.
pub const FORECAST_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Most samples looked at, the latest; it also keeps the sums far from the end of their type.
pub const FORECAST_SAMPLES_MAX: usize = 4096;

/// How long from `now` until `capacity` blocks are claimed, by the line that fits the samples (time, blocks claimed) best.
/// `None` where there are too few, where they span less than [`FORECAST_SPAN_MIN`], or where the growth is so small that
/// the pool lasts longer than [`FORECAST_MAX`]. Zero where it is full already.
///
/// Samples may be in any order; those that lie ahead of `now` come from a clock that was set back, and are left out.
pub fn forecast(samples: &[(Timestamp, u64)], capacity: u64, now: Timestamp) -> Option<Duration> {
    let mut samples: Vec<(Timestamp, u64)> = samples.iter().copied().filter(|(at, _)| *at <= now).collect();
    samples.sort();
    samples.drain(..samples.len().saturating_sub(FORECAST_SAMPLES_MAX));
    let (first, last) = (samples.first()?, samples.last()?);
    if last.1 >= capacity {
        return Some(Duration::ZERO);
    }
    if last.0.since(first.0) < FORECAST_SPAN_MIN {
        return None;
    }
    // Least squares in whole numbers, times in seconds from the first sample: the same everywhere.
    let count = i128::try_from(samples.len()).ok()?;
    let (mut x_sum, mut y_sum, mut xx_sum, mut xy_sum) = (0_i128, 0_i128, 0_i128, 0_i128);
    for (at, blocks) in &samples {
        let (x, y) = (i128::from(at.since(first.0).as_secs()), i128::from(*blocks));
        x_sum += x;
        y_sum += y;
        xx_sum = xx_sum.checked_add(x.checked_mul(x)?)?;
        xy_sum = xy_sum.checked_add(x.checked_mul(y)?)?;
    }
    let rise = count.checked_mul(xy_sum)?.checked_sub(x_sum.checked_mul(y_sum)?)?;
    let run = count.checked_mul(xx_sum)?.checked_sub(x_sum.checked_mul(x_sum)?)?;
    if rise <= 0 || run <= 0 {
        return None;
    }
    let left = i128::from(capacity - last.1).checked_mul(run)? / rise;
    let left = Duration::from_secs(u64::try_from(left).ok()?);
    // Time has gone by since the last sample.
    (left <= FORECAST_MAX).then(|| left.saturating_sub(now.since(last.0)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(secs: u64) -> Timestamp {
        Timestamp(1_000_000_000_000 + secs * 1000)
    }

    fn line(step: u64, blocks_each: u64, count: u64) -> Vec<(Timestamp, u64)> {
        (0..count).map(|n| (at(n * step), 10 + n * blocks_each)).collect()
    }

    #[test]
    fn steady_growth_ends_when_it_must() {
        // A block each ten minutes, 109 after 99 of these: 1,024 are gone after another 915.
        let samples = line(600, 1, 100);
        let now = at(99 * 600);
        assert_eq!(forecast(&samples, 1024, now), Some(Duration::from_secs(915 * 600)));
        assert_eq!(forecast(&samples, 1024, at(100 * 600)), Some(Duration::from_secs(914 * 600)));
        assert_eq!(forecast(&samples, 109, now), Some(Duration::ZERO));
    }

    #[test]
    fn too_little_to_say() {
        assert_eq!(forecast(&[], 10, at(0)), None);
        assert_eq!(forecast(&line(600, 0, 100), 1024, at(60_000)), None, "no growth");
        assert_eq!(forecast(&line(60, 1, 5), 1024, at(300)), None, "a few minutes");
        assert_eq!(forecast(&line(60, 1, 300), 1024, at(18_000)), None, "a morning: three nodes that joined");
        assert_eq!(
            forecast(&line(60, 1, 5), 14, at(300)),
            Some(Duration::ZERO),
            "what is full needs no history"
        );
        assert_eq!(forecast(&line(86_400, 1, 30), 1024, at(30 * 86_400)), None, "lasts for years");
        let falling: Vec<_> = line(600, 1, 100).into_iter().map(|(at, n)| (at, 200 - n)).collect();
        assert_eq!(forecast(&falling, 1024, at(60_000)), None);
        assert_eq!(forecast(&line(600, 1, 100), u64::MAX, at(60_000)), None, "an IPv6 pool");
    }

    #[test]
    fn samples_from_a_clock_that_was_set_back_are_left_out() {
        let mut samples = line(600, 1, 100);
        let now = at(99 * 600);
        samples.insert(0, (at(1_000_000), 900));
        assert_eq!(forecast(&samples, 1024, now), Some(Duration::from_secs(915 * 600)));
    }

    proptest! {
        #[test]
        fn any_history_gets_an_answer(samples in prop::collection::vec((any::<u64>(), any::<u64>()), 0..40), capacity: u64, now: u64) {
            let samples: Vec<_> = samples.into_iter().map(|(at, blocks)| (Timestamp(at), blocks)).collect();
            if let Some(left) = forecast(&samples, capacity, Timestamp(now)) {
                prop_assert!(left <= FORECAST_MAX);
            }
        }
    }
}
