// SPDX-License-Identifier: Apache-2.0
//! The ways from a client to a service's backend that are compared, and the figures of each.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};

use crate::pairs::{Pair, median};
use crate::worker::Place;

/// The backends' answering port; that of streams is the next one.
pub(super) const PORT: u16 = 7000;
/// Connections of one sample.
const CONNECTS: u64 = 3_000;
/// Round trips of one sample.
const REQUESTS: u64 = 20_000;

/// What is between a client and a service's backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    /// No service at all: veth and routes, without Weft.
    Direct,
    /// Weft, a client in a pod.
    Socket,
    /// Weft, a client whose sockets the programs do not see.
    Packet,
    Nftables,
    Iptables,
    Haproxy,
}

impl Kind {
    pub(super) const PEERS: [Self; 4] = [Self::Direct, Self::Nftables, Self::Iptables, Self::Haproxy];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct, no Weft",
            Self::Socket => "Weft, socket path",
            Self::Packet => "Weft, packet path",
            Self::Nftables => "nftables DNAT",
            Self::Iptables => "iptables DNAT",
            Self::Haproxy => "HAProxy, TCP mode",
        }
    }

    pub(super) fn short(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Socket => "socket",
            Self::Packet => "packet",
            Self::Nftables => "nft",
            Self::Iptables => "iptables",
            Self::Haproxy => "haproxy",
        }
    }

    /// What is not ours and not the kernel's alone.
    pub(super) fn may_be_missing(self) -> bool {
        matches!(self, Self::Nftables | Self::Iptables | Self::Haproxy)
    }

    /// Whether more services are installed at every stage; the others have few or many.
    pub(super) fn has_every_stage(self) -> bool {
        matches!(self, Self::Direct | Self::Socket | Self::Packet)
    }
}

/// A way that is up.
#[derive(Clone, Debug)]
pub(super) struct Path {
    pub kind: Kind,
    pub from: Place,
    pub to: IpAddr,
    /// Of answers, and of streams.
    pub ports: [u16; 2],
}

/// A figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Metric {
    /// Connect, a byte there and back, reset; µs p50.
    Connect,
    /// A byte there and back on one connection; µs p50.
    Requests,
    /// One stream, Mbit/s.
    Stream,
}

impl Path {
    /// Takes one sample.
    pub(super) fn sample(&self, metric: Metric, secs: u64) -> Result<f64> {
        let target = |at: usize| SocketAddr::new(self.to, self.ports[at]);
        let taken = match metric {
            Metric::Connect => self.from.client("connects", target(0), CONNECTS).map(|f| f.p50_us),
            Metric::Requests => self.from.client("requests", target(0), REQUESTS).map(|f| f.p50_us),
            Metric::Stream => self.from.client("stream", target(1), secs).map(|f| f.bits_per_sec / 1e6),
        };
        taken.with_context(|| format!("{} {metric:?}", self.kind.name()))
    }

    /// Whether anybody answers there yet.
    pub(super) fn answers(&self) -> Result<()> {
        self.from.client("requests", SocketAddr::new(self.to, self.ports[0]), 10).map(drop)
    }
}

/// All figures: of so many services, a way, a metric, one for each round.
#[derive(Debug, Default)]
pub(super) struct Samples(BTreeMap<(usize, Metric, Kind), Vec<f64>>);

impl Samples {
    pub(super) fn add(&mut self, services: usize, metric: Metric, kind: Kind, value: f64) {
        self.0.entry((services, metric, kind)).or_default().push(value);
    }

    pub(super) fn of(&self, services: usize, metric: Metric, kind: Kind) -> &[f64] {
        self.0.get(&(services, metric, kind)).map(Vec::as_slice).unwrap_or_default()
    }

    /// The rounds of two ways beside each other.
    pub(super) fn pairs(&self, services: usize, metric: Metric, ours: Kind, theirs: Kind) -> Vec<Pair> {
        let theirs = self.of(services, metric, theirs);
        self.of(services, metric, ours).iter().zip(theirs).map(|(o, t)| Pair::new(*o, *t)).collect()
    }

    /// Of every way: median and best of the rounds, and how they stand to the direct one.
    pub(super) fn table(&self, metric: Metric) -> String {
        let heading = match metric {
            Metric::Connect => "connect + 1 byte, µs p50",
            Metric::Requests => "request and response, µs p50",
            Metric::Stream => "one stream, Mbit/s",
        };
        let mut text = format!(
            "{heading}\n{:>10}  {:<20}{:>12}{:>12}{:>12}{:>12}\n",
            "services", "", "median", "best", "× direct", "best ×"
        );
        for ((services, of, kind), values) in self.0.iter().filter(|((_, of, _), _)| *of == metric) {
            let direct = self.of(*services, *of, Kind::Direct);
            let _ = writeln!(
                text,
                "{services:>10}  {:<20}{:>12.2}{:>12.2}{:>12.3}{:>12.3}",
                kind.name(),
                median(values.clone()),
                best(metric, values),
                median(values.clone()) / median(direct.to_vec()),
                best(metric, values) / best(metric, direct),
            );
        }
        text
    }

    pub(super) fn json(&self) -> Value {
        let each = self.0.iter().map(|((services, metric, kind), values)| {
            json!({ "services": services, "metric": metric, "path": kind.name(), "rounds": values })
        });
        each.collect()
    }
}

/// Of all rounds: what is left when the machine's noise is not there.
pub(super) fn best(metric: Metric, values: &[f64]) -> f64 {
    match metric {
        Metric::Stream => values.iter().copied().fold(0.0, f64::max),
        _ => values.iter().copied().fold(f64::INFINITY, f64::min),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_paired_and_every_way_is_in_the_table() {
        let mut samples = Samples::default();
        for (kind, values) in [(Kind::Direct, [80.0, 100.0]), (Kind::Socket, [76.0, 99.0])] {
            values.into_iter().for_each(|value| samples.add(1, Metric::Connect, kind, value));
        }
        let pairs = samples.pairs(1, Metric::Connect, Kind::Socket, Kind::Direct);
        assert!((pairs[0].ratio - 0.95).abs() < 1e-9 && (pairs[1].ratio - 0.99).abs() < 1e-9);
        let table = samples.table(Metric::Connect);
        assert!(table.contains("direct, no Weft") && table.contains("0.950"), "{table}");
        assert!(samples.pairs(1, Metric::Connect, Kind::Socket, Kind::Haproxy).is_empty());
    }
}
