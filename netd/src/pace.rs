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
        self.rested.max(asked + self.coalesce)
    }

    fn rest(&mut self, ended: Instant, took: Duration) {
        self.rested = ended + (took * REST).min(REST_MAX);
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
    fn changes_that_keep_coming_leave_most_of_the_time_to_others() {
        let mut pace = Pace::new(COALESCE);
        let start = Instant::now();
        pace.rest(start, TOOK);
        assert_eq!(pace.next(start), start + TOOK * REST);
        pace.rest(start, Duration::from_secs(10));
        assert_eq!(pace.next(start), start + REST_MAX, "however long the run was");
    }
}
