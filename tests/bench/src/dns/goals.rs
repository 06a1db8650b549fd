// SPDX-License-Identifier: Apache-2.0
//! What is promised of names, as rows.

use super::servers::Kind;
use super::{Metric, Samples};
use crate::pairs::{Bound, Pair, Row, Terms};

/// Weft's time on processors for an answer, as a share of theirs.
const CPU: [(Kind, f64); 5] = [
    (Kind::CoreDns, 0.334),
    (Kind::Hickory, 0.334),
    (Kind::Dnsmasq, 1.0),
    (Kind::Unbound, 1.0),
    (Kind::Knot, 1.2),
];

/// Each promise whose other side could be measured.
pub(super) fn rows(samples: &Samples) -> Vec<Row> {
    let cpu =
        CPU.iter().filter_map(|(kind, most)| row(samples, "dns-services-cpu", Metric::Cpu, *kind, *most));
    let others = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Weft);
    let p99 = others.filter_map(|kind| row(samples, "dns-services-p99", Metric::P99, kind, 1.0));
    let cached = row(samples, "dns-cached-cpu", Metric::CpuCached, Kind::Unbound, 1.0);
    let memory = row(samples, "dns-services-memory", Metric::Memory, Kind::CoreDns, 1.0);
    cpu.chain(p99).chain(cached).chain(memory).collect()
}

fn row(samples: &Samples, name: &str, metric: Metric, other: Kind, most: f64) -> Option<Row> {
    let sides = samples.of(metric, Kind::Weft).iter().zip(samples.of(metric, other));
    let pairs: Vec<Pair> = sides.map(|(weft, other)| Pair::new(*weft, *other)).collect();
    let unit = if metric == Metric::Memory { "MiB" } else { "µs" };
    let terms =
        Terms { unit, weft: "weft", baseline: other.name(), bound: Bound::AtMost(most), by_best: false };
    (!pairs.is_empty()).then(|| Row::new(&format!("{name}/{}", other.name()), terms, pairs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_not_there_is_no_row() {
        let mut samples = Samples::default();
        for (kind, us) in [(Kind::Weft, 3.0), (Kind::CoreDns, 12.0), (Kind::Knot, 2.0)] {
            samples.add(Metric::Cpu, kind, us);
        }
        let rows = rows(&samples);
        let shown: Vec<_> = rows.iter().map(|row| (row.name.as_str(), row.kept)).collect();
        assert_eq!(shown, [("dns-services-cpu/CoreDNS", true), ("dns-services-cpu/knot", false)]);
    }
}
