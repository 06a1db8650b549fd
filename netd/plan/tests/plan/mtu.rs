// SPDX-License-Identifier: Apache-2.0
//! Paths that swallow what is too large for them, and a prober that finds out.

use netd_plan::mtu::{AWAY_MS, CONFIRM_MS, MTU_MIN, MtuProber, PRECISION, RAISE_MS, SETTLING_RAISE_MS};
use proptest::prelude::*;

/// A path with its MTU; each packet is lost in so many cases of a hundred, each way as one.
struct Path {
    mtu: u32,
    lost_of_hundred: u64,
    random: u64,
    /// Whether somebody on it says what is too large.
    tells: bool,
}

impl Path {
    fn new(mtu: u32) -> Self {
        Path { mtu, lost_of_hundred: 0, random: 1, tells: false }
    }

    fn loses(&mut self) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % 100 < self.lost_of_hundred
    }
}

struct Story {
    now_ms: u64,
    prober: MtuProber,
    path: Path,
    probes: u32,
}

impl Story {
    fn new(ceiling: u32, mtu: u32) -> Self {
        Story { now_ms: 5_000, prober: MtuProber::new(ceiling, 5_000), path: Path::new(mtu), probes: 0 }
    }

    /// Time passes in leaps from probe to probe, each answered after 20 ms or not at all.
    fn pass(&mut self, ms: u64) {
        let end = self.now_ms + ms;
        while self.prober.next_ms() <= end {
            self.now_ms = self.now_ms.max(self.prober.next_ms());
            let Some(probe) = self.prober.next(self.now_ms) else { continue };
            self.probes += 1;
            if self.path.loses() {
                continue;
            }
            if probe.size <= self.path.mtu {
                self.now_ms += 20;
                self.prober.answered(probe.id, self.now_ms);
            } else if self.path.tells {
                self.prober.too_big(probe.id, self.now_ms);
            }
        }
        self.now_ms = self.now_ms.max(end);
    }

    fn is_found(&self, mtu: u32) -> bool {
        self.prober.mtu() <= mtu && self.prober.mtu() + PRECISION > mtu
    }
}

#[test]
fn a_path_as_wide_as_its_ends_costs_a_probe_a_minute() {
    let mut story = Story::new(1440, 1440);
    story.pass(10 * CONFIRM_MS);
    assert_eq!((story.prober.mtu(), story.probes), (1440, 10));
}

#[test]
fn a_hole_is_found_and_left_again() {
    for tells in [false, true] {
        let mut story = Story::new(8920, 8920);
        story.path.tells = tells;
        story.pass(10_000);
        assert_eq!(story.prober.mtu(), 8920);
        story.path.mtu = 1400;
        story.pass(CONFIRM_MS + 5_000);
        assert!(story.prober.mtu() <= 1400, "no more holes: {}", story.prober.mtu());
        story.pass(60_000);
        assert!(story.is_found(1400), "{}", story.prober.mtu());
        story.path.mtu = 8920;
        story.pass(RAISE_MS + CONFIRM_MS);
        assert_eq!(story.prober.mtu(), 8920);
    }
}

#[test]
fn a_path_that_narrows_just_before_more_is_tried_is_no_longer_hole() {
    for before_ms in [1_000, 30_000, 59_000] {
        let mut story = Story::new(6_500, 3_900);
        story.pass(CONFIRM_MS);
        assert!(story.is_found(3_900), "{}", story.prober.mtu());
        let searched_ms = story.now_ms;
        story.pass(RAISE_MS - CONFIRM_MS - before_ms);
        story.path.mtu = MTU_MIN;
        story.pass(CONFIRM_MS + AWAY_MS);
        assert_eq!(story.prober.mtu(), MTU_MIN, "searched at {searched_ms}, {before_ms} before");
    }
}

#[test]
fn a_peer_that_is_away_says_nothing_about_sizes() {
    let mut story = Story::new(1440, 1440);
    story.pass(1_000);
    story.path.lost_of_hundred = 100;
    story.pass(3_600_000);
    assert_eq!(story.prober.mtu(), 1440);
    story.path.lost_of_hundred = 0;
    story.path.mtu = 1300;
    story.pass(AWAY_MS + 60_000);
    assert!(story.is_found(1300), "{}", story.prober.mtu());
}

#[test]
fn a_late_answer_counts() {
    let mut prober = MtuProber::new(1440, 0);
    let mut ids = Vec::new();
    for now_ms in [0, 1_000, 2_000] {
        ids.push(prober.next(now_ms).unwrap().id);
    }
    prober.answered(ids[0], 2_500);
    assert_eq!((prober.mtu(), prober.next_ms()), (1440, 2_500 + CONFIRM_MS));
    prober.answered(ids[0], 2_600);
    prober.answered(77, 2_600);
    prober.too_big(77, 2_600);
    assert_eq!(prober.mtu(), 1440);
    prober.suspect(3_000);
    assert!(prober.next(3_000).is_some(), "somebody suspects a hole");
}

#[test]
fn the_devices_mtu_changes() {
    let mut story = Story::new(1440, 9_000);
    story.pass(1_000);
    story.prober.set_ceiling(8920, story.now_ms);
    story.pass(1_000);
    assert_eq!(story.prober.mtu(), 8920, "as before, whatever the devices take");
    story.prober.set_ceiling(1340, story.now_ms);
    assert_eq!(story.prober.mtu(), 1340, "at once");
    story.path.mtu = 1300;
    story.pass(2 * CONFIRM_MS);
    story.prober.set_ceiling(1440, story.now_ms);
    assert!(story.is_found(1300), "not believed again only because the devices take more");
    story.prober.set_ceiling(1000, story.now_ms);
    story.pass(10_000);
    assert_eq!(story.prober.mtu(), 1000, "a device below the least is used as it is");
}

/// The other end's link follows a little later than what is known of it: what is found in between must not stay.
#[test]
fn what_was_found_while_the_ends_changed_is_corrected_soon() {
    for (was, between) in [(1340, 1340), (1340, 1435), (1440, 1435)] {
        let mut story = Story::new(was, was);
        story.pass(CONFIRM_MS);
        story.path.mtu = between;
        story.prober.set_ceiling(1440, story.now_ms);
        story.prober.ends_changed(story.now_ms);
        story.prober.suspect(story.now_ms);
        story.pass(30_000);
        assert!(story.is_found(between), "{} of {between}", story.prober.mtu());
        story.path.mtu = 1440;
        story.pass(SETTLING_RAISE_MS + CONFIRM_MS / 10);
        assert_eq!(story.prober.mtu(), 1440, "{was}, then {between}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// A path that changes in both directions, with losses: what is believed is right in the end, holes are short, and the
    /// probes are few.
    #[test]
    fn the_truth_is_found(
        seed in 1..u64::MAX,
        ceiling in 1_000..9_000_u32,
        changes in prop::collection::vec((MTU_MIN..9_000, 0..20_u64, 10..2_000_u64, any::<bool>()), 1..8),
    ) {
        let mut story = Story::new(ceiling, 9_000);
        story.path.random = seed;
        for (mtu, lost, seconds, tells) in changes {
            (story.path.mtu, story.path.lost_of_hundred, story.path.tells) = (mtu, lost, tells);
            let probes = story.probes;
            story.pass(seconds * 1_000);
            prop_assert!(story.prober.mtu() >= ceiling.min(MTU_MIN) && story.prober.mtu() <= ceiling);
            prop_assert!(u64::from(story.probes - probes) < 200 + seconds, "{} in {seconds} s", story.probes - probes);
            if lost == 0 && seconds * 1_000 > CONFIRM_MS + AWAY_MS {
                prop_assert!(story.prober.mtu() <= mtu.max(ceiling.min(MTU_MIN)), "a hole: {} of {mtu}", story.prober.mtu());
            }
        }
        story.path.lost_of_hundred = 0;
        story.pass(2 * RAISE_MS + 5 * CONFIRM_MS);
        let truth = story.path.mtu.min(ceiling);
        prop_assert!(story.is_found(truth), "{} instead of {truth}", story.prober.mtu());
    }
}
