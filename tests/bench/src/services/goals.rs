// SPDX-License-Identifier: Apache-2.0
//! What is promised of services, as rows.

use super::apply::Figures as Loads;
use super::node_port::Figures as NodePorts;
use super::path::{Kind, Metric, Samples, best};
use crate::pairs::{Bound, Pair, Row, Terms, at_share, median};

/// With as many services as there may be, a connection through an address of a service costs no more than one without.
const SOCKET_CONNECT: f64 = 1.0;
const PACKET_CONNECT: f64 = 1.03;
/// Ahead of nftables by 12 %.
const AHEAD: f64 = 0.88;
/// From one service to the most: 6 % more, or 4 µs.
const GROWTH: f64 = 1.06;
const GROWTH_US: f64 = 4.0;
const STEADY_REQUESTS: f64 = 0.95;
/// Throughputs of two equal paths differ by so much from round to round.
const STEADY_STREAM: f64 = 0.9;
const LOAD_SECS: f64 = 3.0;
const CHANGE_MS: f64 = 5.0;
const EVENT_P99_MS: f64 = 50.0;

/// Connections: each stage against the direct way and against nftables where that has as many services.
pub(super) fn connect(samples: &Samples, stages: &[usize]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (kind, bound) in [(Kind::Socket, SOCKET_CONNECT), (Kind::Packet, PACKET_CONNECT)] {
        let name = format!("service-connect-{}", kind.short());
        for stage in stages {
            let pairs = samples.pairs(*stage, Metric::Connect, kind, Kind::Direct);
            rows.extend(row(
                &format!("{name}/{stage}"),
                terms(kind, Kind::Direct, Bound::AtMost(bound)),
                pairs,
            ));
        }
        for stage in stages {
            let pairs = samples.pairs(*stage, Metric::Connect, kind, Kind::Nftables);
            let terms = terms(kind, Kind::Nftables, Bound::AtMost(AHEAD));
            rows.extend(row(&format!("{name}/nft-{stage}"), terms, pairs));
        }
    }
    rows.extend(growth(samples, stages));
    rows
}

/// The socket path with the most services against itself with the fewest. Minutes lie between the two, and the direct way
/// says what they did to the machine: each stage is taken as a multiple of it.
fn growth(samples: &Samples, stages: &[usize]) -> Option<Row> {
    let (few, many) = (*stages.first()?, *stages.last()?);
    if few == many {
        return None;
    }
    let to_direct = |stage, at: usize| {
        let of = |kind| samples.of(stage, Metric::Connect, kind).get(at).copied();
        Some(of(Kind::Socket)? / of(Kind::Direct)?)
    };
    let base = best(Metric::Connect, samples.of(few, Metric::Connect, Kind::Direct));
    let rounds = samples.of(many, Metric::Connect, Kind::Socket).len();
    let pairs: Vec<Pair> = (0..rounds)
        .filter_map(|at| Some(Pair::new(to_direct(many, at)? * base, to_direct(few, at)? * base)))
        .collect();
    let small = best(Metric::Connect, &pairs.iter().map(|pair| pair.baseline).collect::<Vec<_>>());
    let terms = Terms {
        unit: "µs p50",
        weft: "socket path, most services",
        baseline: "fewest, both by the direct way",
        bound: Bound::AtMost(GROWTH.max((small + GROWTH_US) / small)),
        by_best: true,
    };
    row("service-connect-growth", terms, pairs)
}

/// Connections that stay.
pub(super) fn steady(samples: &Samples, services: usize) -> Vec<Row> {
    let mut rows = Vec::new();
    for kind in [Kind::Socket, Kind::Packet] {
        let requests = samples.pairs(services, Metric::Requests, kind, Kind::Direct);
        let terms = terms(kind, Kind::Direct, Bound::AtMost(STEADY_REQUESTS));
        rows.extend(row(&format!("service-steady-requests/{}", kind.short()), terms, requests));
        let streams = samples.pairs(services, Metric::Stream, kind, Kind::Direct);
        let terms = Terms { unit: "Mbit/s", bound: Bound::AtLeast(STEADY_STREAM), by_best: false, ..terms };
        rows.extend(row(&format!("service-steady-stream/{}", kind.short()), terms, streams));
    }
    rows
}

/// Services into maps.
pub(super) fn apply(loads: &Loads) -> Vec<Row> {
    let alone = |name: &str, unit, weft, bound, values: Vec<f64>| {
        let pairs = values.iter().map(|value| Pair::new(*value, 1.0)).collect();
        row(name, Terms { unit, weft, baseline: "1", bound: Bound::AtMost(bound), by_best: false }, pairs)
    };
    let tail = |values: &[f64]| {
        if values.is_empty() { Vec::new() } else { vec![at_share(values, 0.99)] }
    };
    let change = if loads.change_ms.is_empty() { Vec::new() } else { vec![median(loads.change_ms.clone())] };
    let rows = [
        alone("service-apply-load", "s", "all services from nothing", LOAD_SECS, loads.load_secs.clone()),
        alone("service-apply-change", "ms p50", "one change, to the maps", CHANGE_MS, change),
        alone(
            "service-apply-change-p99",
            "ms p99",
            "one change, to the maps",
            CHANGE_MS,
            tail(&loads.change_ms),
        ),
        alone(
            "service-apply-event",
            "ms p99",
            "one change, from the store",
            EVENT_P99_MS,
            tail(&loads.event_ms),
        ),
    ];
    rows.into_iter().flatten().collect()
}

/// From outside.
pub(super) fn node_port(figures: &NodePorts) -> Vec<Row> {
    let terms = |weft, baseline| Terms {
        unit: "connects/s",
        weft,
        baseline,
        bound: Bound::AtLeast(1.0),
        by_best: false,
    };
    let against_nft = NodePorts::pairs(&figures.snat, &figures.nftables);
    let against_snat = NodePorts::pairs(&figures.dsr, &figures.snat);
    let rows = [
        row("service-nodeport/nft", terms("Weft, SNAT", "nftables DNAT + masquerade"), against_nft),
        row("service-nodeport/dsr", terms("Weft, DSR", "Weft, SNAT"), against_snat),
    ];
    rows.into_iter().flatten().collect()
}

fn terms(ours: Kind, theirs: Kind, bound: Bound) -> Terms {
    Terms { unit: "µs p50", weft: ours.name(), baseline: theirs.name(), bound, by_best: true }
}

/// None where a way was not there.
fn row(name: &str, terms: Terms, pairs: Vec<Pair>) -> Option<Row> {
    (!pairs.is_empty()).then(|| Row::new(name, terms, pairs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_judged_past_the_drift_of_the_machine() {
        let mut samples = Samples::default();
        // Everything became slower by half meanwhile, the socket path by 4 % more.
        for (stage, kind, value) in [
            (1, Kind::Direct, 80.0),
            (1, Kind::Socket, 80.0),
            (50_000, Kind::Direct, 120.0),
            (50_000, Kind::Socket, 124.8),
        ] {
            samples.add(stage, Metric::Connect, kind, value);
        }
        let row = growth(&samples, &[1, 50_000]).unwrap();
        assert!(row.kept && (row.best_ratio - 1.04).abs() < 1e-9, "{row:?}");
        assert!(growth(&samples, &[1]).is_none());
        samples.add(50_000, Metric::Requests, Kind::Socket, 1.0);
        assert!(connect(&samples, &[1, 50_000]).iter().all(|row| !row.name.contains("nft")));
    }
}
