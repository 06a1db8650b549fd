// SPDX-License-Identifier: Apache-2.0
//! Limits as asked for, and the objects that they become.

use netd_plan::shape::{BURST_BYTES_MIN, DEFAULT_BURST_BYTES_MAX};
use netd_plan::{Bandwidth, BandwidthError, LinkSpec, Rate, TokenBucket, ifb_name, shape_objects};
use proptest::prelude::*;

const VETH: &str = "weft0123456789a";

#[test]
fn each_direction_has_its_own_objects() {
    let bandwidth = Bandwidth::checked((8_000_000, 2_000_000), (4_000_000, 1_600_000)).unwrap();
    let objects = shape_objects(VETH, &bandwidth);
    let ifb = ifb_name(VETH);
    assert_eq!(objects.links, [(ifb.clone(), LinkSpec::Ifb)].into());
    assert_eq!(objects.queues[VETH], TokenBucket { bytes_per_sec: 1_000_000, burst_bytes: 250_000 });
    assert_eq!(objects.queues[&ifb], TokenBucket { bytes_per_sec: 500_000, burst_bytes: 200_000 });
    assert_eq!(objects.redirects, [(VETH.to_owned(), ifb)].into());

    let only_to = Bandwidth { from_pod: None, ..bandwidth };
    assert_eq!(shape_objects(VETH, &only_to).len(), 1);
    let only_from = Bandwidth { to_pod: None, ..bandwidth };
    assert_eq!(shape_objects(VETH, &only_from).len(), 3);
    assert!(shape_objects(VETH, &Bandwidth::default()).is_empty());
}

#[test]
fn what_cannot_be_kept_is_refused() {
    assert_eq!(Rate::checked(0, 0), Ok(None));
    assert_eq!(Rate::checked(0, 1), Err(BandwidthError::BurstAlone { burst_bits: 1 }));
    assert_eq!(Rate::checked(7, 0), Err(BandwidthError::TooSlow { bits_per_sec: 7 }));
    let most = 8 * u64::from(u32::MAX);
    assert!(matches!(Rate::checked(8_000, most), Err(BandwidthError::TooLarge { .. })));
    assert!(Rate::checked(8_000, most - 8_000).is_ok());
    assert!(matches!(Rate::checked(u64::MAX, 0), Err(BandwidthError::TooLarge { .. })));
    let error = Bandwidth::checked((0, 0), (0, 5)).unwrap_err();
    assert!(error.to_string().contains("without a rate"), "{error}");
}

#[test]
fn a_rate_without_a_burst_gets_one_that_holds_whole_packets() {
    let burst = |rate| Rate::checked(rate, 0).unwrap().unwrap().burst_bits / 8;
    assert_eq!(burst(8), 128 * 1024);
    assert_eq!(burst(1_000_000_000), 2_500_000);
    assert_eq!(burst(400_000_000_000), DEFAULT_BURST_BYTES_MAX);
    let tiny = Rate::checked(1_000_000, 8).unwrap().unwrap().bucket();
    assert_eq!(tiny.burst_bytes, BURST_BYTES_MIN, "a bucket smaller than a packet would let none pass");
}

proptest! {
    #[test]
    fn a_bucket_is_read_back_from_its_limit(rate in 8_u64..1_000_000_000_000, burst in 0_u64..30_000_000_000) {
        if let Ok(Some(rate)) = Rate::checked(rate, burst) {
            let bucket = rate.bucket();
            let limit = bucket.limit_bytes().unwrap();
            prop_assert!(limit >= bucket.burst_bytes);
            prop_assert_eq!(TokenBucket::from_limit(bucket.bytes_per_sec, limit), Some(bucket));
        }
    }
}
