// SPDX-License-Identifier: Apache-2.0
//! What is measured of a path, once per round, and where the figures of all rounds are kept.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Serialize;

use super::path::{Kind, Path};
use crate::pairs::{Pair, median};

/// Round trips of one sample.
const PINGS: u64 = 4_000;
/// Payload of small datagrams, and of those that fill a packet of every path (1,400 bytes of MTU at least).
const SMALL: u64 = 64;
const FULL: u64 = 1_372;
/// Long enough for ticks of 10 ms to say something about a twentieth, at a rate far below saturation.
const COST_SECS: u64 = 4;
const COST_RATE: u64 = 40_000;
const GIB: f64 = (1_u64 << 30) as f64;

/// A figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Metric {
    /// One TCP stream, Mbit/s.
    Stream,
    /// Four, Mbit/s.
    Streams4,
    /// Core-seconds of both tunnel ends per GiB of one stream's payload.
    CpuPerGib,
    /// Segments sent again, of one stream.
    Retransmits,
    /// Round trip of a datagram, µs.
    RttP50,
    RttP99,
    /// 64-byte datagrams that arrive in a second when more are sent.
    SmallPps,
    /// The same of MTU size.
    FullPps,
    /// Share of 64-byte datagrams lost at half of that rate.
    SmallLoss,
    /// Core-microseconds of both ends per 64-byte datagram at a rate that all of them carry.
    CpuPerPacket,
}

/// What is taken together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    Stream,
    Streams4,
    Rtt,
    Small,
    Full,
    Cost,
}

/// All figures of one underlay.
#[derive(Debug, Default)]
pub(super) struct Samples(BTreeMap<(Kind, Metric), Vec<(usize, f64)>>);

impl Samples {
    /// Takes one sample of a path.
    pub(super) fn take(&mut self, round: usize, path: &Path, probe: Probe, secs: u64) -> Result<()> {
        let (kind, from) = (path.kind, &path.from);
        let context = || format!("{} {probe:?}", kind.name());
        match probe {
            Probe::Stream | Probe::Streams4 => {
                let streams = if probe == Probe::Stream { 1 } else { 4 };
                let before = cpu_secs(&path.pids)?;
                let figures =
                    from.client_with("stream", path.target(1), &[secs, streams]).with_context(context)?;
                let cpu = cpu_secs(&path.pids)? - before;
                let rate = figures.bits_per_sec / 1e6;
                if probe == Probe::Streams4 {
                    self.put(round, kind, Metric::Streams4, rate);
                    return Ok(());
                }
                self.put(round, kind, Metric::Stream, rate);
                self.put(round, kind, Metric::Retransmits, figures.retransmits as f64);
                if !path.pids.is_empty() {
                    self.put(round, kind, Metric::CpuPerGib, cpu / (figures.bytes as f64 / GIB));
                }
            }
            Probe::Rtt => {
                let figures = from.client("pings", path.target(0), PINGS).with_context(context)?;
                self.put(round, kind, Metric::RttP50, figures.p50_us);
                self.put(round, kind, Metric::RttP99, figures.p99_us);
            }
            Probe::Cost => {
                let before = cpu_secs(&path.pids)?;
                let length = &[COST_SECS, SMALL, COST_RATE];
                let figures = from.client_with("flood", path.target(1), length).with_context(context)?;
                let cpu = cpu_secs(&path.pids)? - before;
                self.put(round, kind, Metric::CpuPerPacket, cpu * 1e6 / figures.received.max(1) as f64);
            }
            Probe::Small | Probe::Full => {
                let (size, metric) =
                    if probe == Probe::Small { (SMALL, Metric::SmallPps) } else { (FULL, Metric::FullPps) };
                let all = from.client_with("flood", path.target(1), &[1, size, 0]).with_context(context)?;
                self.put(round, kind, metric, all.packets_per_sec);
                if probe == Probe::Small {
                    self.below_saturation(round, path, all.packets_per_sec as u64 / 2)
                        .with_context(context)?;
                }
            }
        }
        Ok(())
    }

    fn below_saturation(&mut self, round: usize, path: &Path, rate: u64) -> Result<()> {
        let half = path.from.client_with("flood", path.target(1), &[1, SMALL, rate.max(1)])?;
        let loss = 1.0 - half.received as f64 / half.sent.max(1) as f64;
        self.put(round, path.kind, Metric::SmallLoss, loss.max(0.0));
        Ok(())
    }

    fn put(&mut self, round: usize, kind: Kind, metric: Metric, value: f64) {
        self.0.entry((kind, metric)).or_default().push((round, value));
    }

    /// All of a path, with their rounds.
    pub(super) fn of(&self, kind: Kind, metric: Metric) -> &[(usize, f64)] {
        self.0.get(&(kind, metric)).map_or(&[], Vec::as_slice)
    }

    /// Not a number where there is none.
    pub(super) fn median(&self, kind: Kind, metric: Metric) -> f64 {
        median(self.of(kind, metric).iter().map(|(_, value)| *value).collect())
    }

    /// Two paths in the same rounds.
    pub(super) fn pairs(&self, metric: Metric, ours: Kind, theirs: Kind) -> Vec<Pair> {
        let theirs = self.of(theirs, metric);
        let of_round = |round| theirs.iter().find(|(at, _)| *at == round);
        let each = self.of(ours, metric).iter();
        each.filter_map(|(round, value)| of_round(*round).map(|(_, other)| Pair::new(*value, *other)))
            .collect()
    }

    /// Everything, for the report.
    pub(super) fn json(&self) -> serde_json::Value {
        let mut paths = serde_json::Map::new();
        for ((kind, metric), values) in &self.0 {
            let path = paths.entry(kind.name()).or_insert_with(|| serde_json::json!({}));
            let name = serde_json::to_value(metric).unwrap_or_default();
            let values: Vec<f64> = values.iter().map(|(_, value)| *value).collect();
            path[name.as_str().unwrap_or_default()] = serde_json::json!(values);
        }
        paths.into()
    }
}

/// User and system time that processes have had; of the kernel's packet work what it bills to them.
fn cpu_secs(pids: &[u32]) -> Result<f64> {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock tick")?;
    let mut sum = 0.0;
    for pid in pids {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| {
            format!("the tunnel process {pid} has ended: its log is beside its configuration")
        })?;
        // After the name, which may hold anything in parentheses: state is field 3, utime 14, stime 15.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace();
        sum += fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>();
    }
    Ok(sum / ticks as f64)
}
