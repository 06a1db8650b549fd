// SPDX-License-Identifier: Apache-2.0
//! Packets that go to all peers because this node got another address: pure.

use std::time::Duration;

/// Routes may come a little after an address, and a packet may be lost.
const TIMES: u8 = 3;
/// Between two of them, and after one that no device took.
pub(super) const SPEAK_EVERY: Duration = Duration::from_secs(1);
/// A device that takes none for so long has none left to keep alive: its sessions begin anew when it is back.
const WITHIN_MS: u64 = 60_000;

/// What is left to be said. Times are milliseconds of a clock that is never set.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Speech {
    left: u8,
    until_ms: u64,
    /// When it was last tried.
    tried_ms: Option<u64>,
}

impl Speech {
    /// From the beginning, now.
    pub(super) fn begin(&mut self, now_ms: u64) {
        *self = Self { left: TIMES, until_ms: now_ms.saturating_add(WITHIN_MS), tried_ms: None };
    }

    /// Nobody is to be spoken to any more.
    pub(super) fn end(&mut self) {
        *self = Self::default();
    }

    /// Whether something is left to be said.
    pub(super) fn is_left(&self, now_ms: u64) -> bool {
        self.left > 0 && now_ms < self.until_ms
    }

    /// Whether it is time to say it; then it counts as tried.
    pub(super) fn take_turn(&mut self, now_ms: u64) -> bool {
        let is_soon = |at: u64| now_ms.saturating_sub(at) < SPEAK_EVERY.as_millis() as u64;
        if !self.is_left(now_ms) || self.tried_ms.is_some_and(is_soon) {
            return false;
        }
        self.tried_ms = Some(now_ms);
        true
    }

    /// A device took it.
    pub(super) fn said(&mut self) {
        self.left = self.left.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When it was its turn within ten minutes from 1 s on, looked at four times a second.
    fn turns(speech: &mut Speech, took: impl Fn(u64) -> bool) -> Vec<u64> {
        let times = (1_000..600_000).step_by(250);
        let turns = times.filter(|now| {
            let is_turn = speech.take_turn(*now);
            if is_turn && took(*now) {
                speech.said();
            }
            is_turn
        });
        turns.collect()
    }

    #[test]
    fn peers_are_spoken_to_three_times_and_no_more() {
        let mut speech = Speech::default();
        assert!(turns(&mut speech, |_| true).is_empty(), "nobody asked");
        speech.begin(1_000);
        assert_eq!(turns(&mut speech, |_| true), [1_000, 2_000, 3_000]);
        assert!(!speech.is_left(3_001));
    }

    #[test]
    fn what_no_device_takes_is_tried_again_for_a_while() {
        let mut speech = Speech::default();
        speech.begin(1_000);
        assert_eq!(turns(&mut speech, |now| now >= 10_000).last(), Some(&12_000));
        speech.begin(1_000);
        let turns = turns(&mut speech, |_| false);
        assert_eq!((turns.len(), turns.last()), (60, Some(&60_000)));
        assert!(!speech.is_left(61_000), "not for ever");
    }

    #[test]
    fn nothing_is_left_where_wireguard_is_not_used() {
        let mut speech = Speech::default();
        speech.begin(1_000);
        speech.end();
        assert!(!speech.is_left(1_000) && !speech.take_turn(1_000));
    }
}
