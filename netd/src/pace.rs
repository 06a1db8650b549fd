// SPDX-License-Identifier: Apache-2.0
//! How often something runs whose cost grows with the number of pods: after a quiet time at once, but for what comes
//! together; while changes keep coming, for a small part of the time. ADD and DEL have the CPUs then, however many pods there
//! are.

use std::time::Duration;

use tokio::time::Instant;

/// A run is followed by a rest of so many times its own length: it has a fifth of one CPU at most.
const REST: u32 = 4;
/// The longest rest: what waits for a run waits no longer than that.
const REST_MAX: Duration = Duration::from_millis(500);
/// So much rest is owed before anybody waits for it: a change that comes soon after a few short runs is handled at once, and
/// changes that keep coming owe more than that at all times.
const CREDIT: Duration = Duration::from_millis(50);

/// When the next run may begin.
#[derive(Debug)]
pub(crate) struct Pace {
    coalesce: Duration,
    rested: Instant,
}

impl Pace {
    /// Changes that come within `coalesce` are handled together.
    pub(crate) fn new(coalesce: Duration) -> Self {
        Self { coalesce, rested: Instant::now() }
    }

    /// Waits until a run may begin that was asked for now.
    pub(crate) async fn wait(&self) {
        tokio::time::sleep_until(self.next(Instant::now())).await;
    }

    /// Notes a run that took this long.
    pub(crate) fn ran(&mut self, took: Duration) {
        self.rest(Instant::now(), took);
    }

    fn next(&self, asked: Instant) -> Instant {
        let due = self.rested.checked_sub(CREDIT).unwrap_or(self.rested);
        due.max(asked + self.coalesce)
    }

    fn rest(&mut self, ended: Instant, took: Duration) {
        // What is owed still runs on beside a run, so the run's own length is owed, too.
        let begun = ended.checked_sub(took).unwrap_or(ended);
        let owed = self.rested.max(begun) + took * (REST + 1);
        self.rested = owed.min(ended + REST_MAX + CREDIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COALESCE: Duration = Duration::from_millis(5);
    const TOOK: Duration = Duration::from_millis(20);

    #[test]
    fn a_change_after_a_quiet_time_waits_only_for_its_like() {
        let mut pace = Pace::new(COALESCE);
        let start = Instant::now();
        assert_eq!(pace.next(start), start + COALESCE);
        pace.rest(start, TOOK);
        let later = start + TOOK * REST;
        assert_eq!(pace.next(later), later + COALESCE);
    }

    #[test]
    fn a_change_soon_after_short_runs_is_handled_at_once() {
        let mut pace = Pace::new(COALESCE);
        let start = Instant::now();
        for _ in 0..2 {
            pace.rest(start, Duration::from_millis(5));
            assert_eq!(pace.next(start), start + COALESCE);
        }
    }

    #[test]
    fn changes_that_keep_coming_leave_most_of_the_time_to_others() {
        let mut pace = Pace::new(COALESCE);
        let (start, mut now, mut ran) = (Instant::now(), Instant::now(), Duration::ZERO);
        while now < start + Duration::from_secs(10) {
            now = pace.next(now) + TOOK;
            ran += TOOK;
            pace.rest(now, TOOK);
        }
        assert!(ran < (now - start) * 11 / 10 / (REST + 1), "{ran:?} of {:?}", now - start);
        pace.rest(now, Duration::from_secs(10));
        assert_eq!(pace.next(now), now + REST_MAX, "however long the run was");
        pace.rest(now, Duration::from_secs(10));
        assert_eq!(pace.next(now), now + REST_MAX, "and however many there were");
    }
}
