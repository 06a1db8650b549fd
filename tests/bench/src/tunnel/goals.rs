// SPDX-License-Identifier: Apache-2.0
//! What the encrypted overlay must reach, as ratios of the same rounds.

use super::ground::Underlay;
use super::path::Kind;
use super::sample::{Metric, Samples};
use crate::pairs::{Bound, Pair, Row, Terms};

/// A ratio of two paths that must keep a bound.
struct Goal {
    name: &'static str,
    metric: Metric,
    unit: &'static str,
    ours: Kind,
    theirs: Kind,
    bound: Bound,
    /// More than must be.
    wanted: Option<f64>,
}

const fn goal(name: &'static str, metric: Metric, unit: &'static str, theirs: Kind, bound: Bound) -> Goal {
    Goal { name, metric, unit, ours: Kind::Weft, theirs, bound, wanted: None }
}

const VETH: [Goal; 12] = [
    Goal {
        wanted: Some(6.5),
        ..goal("tunnel-stream/gotatun", Metric::Stream, "Mbit/s", Kind::Gotatun, Bound::AtLeast(5.5))
    },
    Goal {
        wanted: Some(0.48),
        ..goal("tunnel-stream/vxlan", Metric::Stream, "Mbit/s", Kind::Vxlan, Bound::AtLeast(0.40))
    },
    goal("tunnel-streams4/gotatun", Metric::Streams4, "Mbit/s", Kind::Gotatun, Bound::AtLeast(5.5)),
    goal("tunnel-rtt/gotatun", Metric::RttP50, "µs p50", Kind::Gotatun, Bound::AtMost(0.85)),
    goal("tunnel-retransmits/vxlan", Metric::Retransmits, "segments", Kind::Vxlan, Bound::AtMost(1.0)),
    goal("tunnel-udp64/gotatun", Metric::SmallPps, "packets/s", Kind::Gotatun, Bound::AtLeast(1.0)),
    goal("tunnel-udp64/boringtun", Metric::SmallPps, "packets/s", Kind::Boringtun, Bound::AtLeast(1.0)),
    goal("tunnel-udp64/wireguard-go", Metric::SmallPps, "packets/s", Kind::WireguardGo, Bound::AtLeast(1.0)),
    goal("tunnel-udp64/tinc", Metric::SmallPps, "packets/s", Kind::Tinc, Bound::AtLeast(1.0)),
    goal("tunnel-udp64/nebula", Metric::SmallPps, "packets/s", Kind::Nebula, Bound::AtLeast(1.0)),
    goal("tunnel-udp-mtu/gotatun", Metric::FullPps, "packets/s", Kind::Gotatun, Bound::AtLeast(1.0)),
    goal("tunnel-udp-mtu/boringtun", Metric::FullPps, "packets/s", Kind::Boringtun, Bound::AtLeast(1.0)),
];
const VETH_MORE: [Goal; 3] = [
    goal("tunnel-udp-mtu/wireguard-go", Metric::FullPps, "packets/s", Kind::WireguardGo, Bound::AtLeast(1.0)),
    goal("tunnel-udp-mtu/tinc", Metric::FullPps, "packets/s", Kind::Tinc, Bound::AtLeast(1.0)),
    goal("tunnel-udp-mtu/nebula", Metric::FullPps, "packets/s", Kind::Nebula, Bound::AtLeast(1.0)),
];
const NIC: [Goal; 2] = [
    goal("tunnel-nic/gotatun", Metric::Stream, "Mbit/s", Kind::Gotatun, Bound::AtLeast(4.2)),
    goal("tunnel-nic/vxlan", Metric::Stream, "Mbit/s", Kind::Vxlan, Bound::AtLeast(0.6)),
];
const NO_OFFLOAD: [Goal; 1] =
    [goal("tunnel-no-offload/gotatun", Metric::Stream, "Mbit/s", Kind::Gotatun, Bound::AtLeast(3.0))];
const MANY_PEERS: [Goal; 1] = [Goal {
    ours: Kind::WeftManyPeers,
    ..goal("tunnel-peers-packet", Metric::CpuPerPacket, "core-µs/packet", Kind::Weft, Bound::AtMost(1.05))
}];
const JUMBO: [Goal; 1] = [Goal {
    ours: Kind::WeftJumbo,
    ..goal("tunnel-jumbo", Metric::Stream, "Mbit/s", Kind::Weft, Bound::AtLeast(1.15))
}];

/// Core-seconds of both ends per GiB: must be, and wanted.
const CPU: (f64, f64) = (2.8, 2.4);
/// Of what one core seals and opens with `ring`.
const CIPHER_SHARE: f64 = 0.58;
/// Seconds for a thousand peers.
const CONFIGURE_SECS: f64 = 1.0;
/// Below saturation nothing is lost; a machine that is shared may stand still for longer than a queue lasts.
const LOSS: f64 = 0.001;

/// Rows of an underlay.
pub(super) fn rows(underlay: Underlay, samples: &Samples, cipher: &[f64]) -> Vec<Row> {
    let goals: Vec<&Goal> = match underlay {
        Underlay::Veth => VETH.iter().chain(&VETH_MORE).collect(),
        Underlay::Nic => NIC.iter().collect(),
        Underlay::NoOffload => NO_OFFLOAD.iter().collect(),
    };
    let mut rows = of_goals(goals, samples);
    if underlay == Underlay::Veth {
        rows.extend(own(
            "tunnel-cpu",
            samples,
            Metric::CpuPerGib,
            "core-s/GiB",
            Bound::AtMost(CPU.0),
            Some(CPU.1),
        ));
        rows.extend(own(
            "tunnel-udp64-loss",
            samples,
            Metric::SmallLoss,
            "lost at half rate",
            Bound::AtMost(LOSS),
            None,
        ));
        let streams = samples.of(Kind::Weft, Metric::Stream).iter();
        let pairs: Vec<Pair> = streams.zip(cipher).map(|((_, weft), ring)| Pair::new(*weft, *ring)).collect();
        let terms = Terms {
            unit: "Mbit/s",
            weft: Kind::Weft.name(),
            baseline: "one core's ring",
            bound: Bound::AtLeast(CIPHER_SHARE),
            by_best: false,
        };
        rows.extend((!pairs.is_empty()).then(|| Row::new("tunnel-cipher-share", terms, pairs)));
    }
    rows
}

/// The row of the many peers: what a packet costs, and what it takes to configure them.
pub(super) fn many_peers(samples: &Samples, configure_secs: &[f64]) -> Vec<Row> {
    let mut rows = of_goals(MANY_PEERS.iter().collect(), samples);
    let pairs = configure_secs.iter().map(|secs| Pair::new(*secs, 1.0)).collect();
    let terms = Terms {
        unit: "s",
        weft: "1,000 peers configured",
        baseline: "1 s",
        bound: Bound::AtMost(CONFIGURE_SECS),
        by_best: false,
    };
    rows.push(Row::new("tunnel-peers-configure", terms, pairs));
    rows
}

/// The row of the larger MTU.
pub(super) fn jumbo(samples: &Samples) -> Vec<Row> {
    of_goals(JUMBO.iter().collect(), samples)
}

fn of_goals(goals: Vec<&Goal>, samples: &Samples) -> Vec<Row> {
    let each = goals.into_iter().filter_map(|goal| {
        let mut pairs = samples.pairs(goal.metric, goal.ours, goal.theirs);
        if goal.metric == Metric::Retransmits {
            // None against none is a tie, not a division by zero.
            pairs = pairs.into_iter().map(|p| Pair { ratio: p.weft / p.baseline.max(1.0), ..p }).collect();
        }
        let terms = Terms {
            unit: goal.unit,
            weft: goal.ours.name(),
            baseline: goal.theirs.name(),
            bound: goal.bound,
            by_best: false,
        };
        (!pairs.is_empty()).then(|| Row::new(goal.name, terms, pairs).wanting(goal.wanted))
    });
    each.collect()
}

/// A figure of our own that has a bound and no neighbour.
fn own(
    name: &str,
    samples: &Samples,
    metric: Metric,
    unit: &'static str,
    bound: Bound,
    wanted: Option<f64>,
) -> Option<Row> {
    let values = samples.of(Kind::Weft, metric);
    let pairs = values.iter().map(|(_, value)| Pair::new(*value, 1.0)).collect();
    let terms = Terms { unit, weft: Kind::Weft.name(), baseline: "1", bound, by_best: false };
    (!values.is_empty()).then(|| Row::new(name, terms, pairs).wanting(wanted))
}
