// SPDX-License-Identifier: Apache-2.0
//! The table of an underlay: medians of every path.

use std::fmt::Write as _;

use super::ground::Underlay;
use super::path::Kind;
use super::sample::{Metric, Samples};
use crate::pairs::median;

/// Heading, metric, decimals.
const COLUMNS: [(&str, Metric, usize); 9] = [
    ("1 stream", Metric::Stream, 0),
    ("4 streams", Metric::Streams4, 0),
    ("core-s/GiB", Metric::CpuPerGib, 2),
    ("retransm.", Metric::Retransmits, 0),
    ("RTT p50", Metric::RttP50, 0),
    ("p99 µs", Metric::RttP99, 0),
    ("64 B pps", Metric::SmallPps, 0),
    ("lost at ½", Metric::SmallLoss, 4),
    ("MTU pps", Metric::FullPps, 0),
];

/// Paths below each other, a dash where nothing was measured.
pub(super) fn text(underlay: Underlay, samples: &Samples, cipher: &[f64]) -> String {
    let mut text = format!("\n{} ({}); medians, Mbit/s\n{:<30}", underlay.name(), underlay.described(), "");
    let there = |metric| Kind::ALL.iter().any(|kind| !samples.of(*kind, metric).is_empty());
    let columns: Vec<_> = COLUMNS.into_iter().filter(|(_, metric, _)| there(*metric)).collect();
    for (heading, ..) in &columns {
        let _ = write!(text, "{heading:>11}");
    }
    for kind in Kind::ALL.into_iter().filter(|kind| !samples.of(*kind, Metric::Stream).is_empty()) {
        let _ = write!(text, "\n{:<30}", kind.name());
        for (_, metric, decimals) in &columns {
            let value = samples.median(kind, *metric);
            let cell = if value.is_nan() { "-".to_owned() } else { format!("{value:.decimals$}") };
            let _ = write!(text, "{cell:>11}");
        }
    }
    let _ = write!(text, "\n{:<30}{:>11.0}\n", "ring seal + open, one core", median(cipher.to_vec()));
    text
}
