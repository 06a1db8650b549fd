// SPDX-License-Identifier: Apache-2.0
//! Waiting after failures.

use std::time::Duration;

use netd_plan::Backoff;
use netd_plan::backoff::{BACKOFF_MS_MAX, BACKOFF_MS_MIN};
use proptest::prelude::*;

#[test]
fn item_that_fails_waits_and_others_do_not() {
    let mut backoff = Backoff::default();
    let wait = backoff.failed("route", "no such device", 1_000, 7);
    assert!(!backoff.ready(&"route", 1_000));
    assert!(backoff.ready(&"link", 1_000));
    assert_eq!(backoff.next(1_000), Some(wait));
    assert!(backoff.ready(&"route", 1_000 + BACKOFF_MS_MIN));
    assert_eq!(backoff.next(1_000 + BACKOFF_MS_MAX), Some(Duration::ZERO));
    let (_, waiting) = backoff.waiting().next().unwrap();
    assert_eq!((waiting.failures, waiting.error.as_str()), (1, "no such device"));
    backoff.succeeded(&"route");
    assert_eq!(backoff.next(1_000), None);
}

#[test]
fn item_that_is_no_longer_pending_is_forgotten() {
    let mut backoff = Backoff::default();
    backoff.failed(1, "a", 0, 0);
    backoff.failed(2, "b", 0, 0);
    backoff.retain(|key| *key == 2);
    assert_eq!(backoff.waiting().map(|(key, _)| *key).collect::<Vec<_>>(), [2]);
}

proptest! {
    #[test]
    fn waits_double_up_to_the_maximum(seed: u64, now in 0_u64..u64::MAX / 2) {
        let mut backoff = Backoff::default();
        for failures in 0..80_u32 {
            let full = BACKOFF_MS_MIN.saturating_mul(1 << failures.min(63)).min(BACKOFF_MS_MAX);
            let wait = u64::try_from(backoff.failed((), "down", now, seed).as_millis()).unwrap();
            prop_assert!((full / 2..=full).contains(&wait), "{wait} ms after {failures} failures");
        }
    }
}
