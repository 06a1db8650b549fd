// SPDX-License-Identifier: Apache-2.0
//! Tunnels: Weft's WireGuard in user space against the bare paths and against other programs, all up at once, taking turns
//! on the same two namespaces. Per underlay one set of rounds; in each round every path is measured once, and the path that
//! begins moves on, so that a drift of the machine hits all alike.

mod cipher;
mod goals;
mod ground;
mod others;
mod path;
mod sample;
mod table;
mod wireguard;

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};

use crate::pairs::Row;
use crate::say;
use ground::Underlay;
use path::{Kind, Path};
use sample::{Probe, Samples};
pub(crate) use wireguard::installed;

/// Names that `--row` may hold a part of.
pub(crate) const ROWS: [&str; 5] =
    ["tunnel-veth", "tunnel-nic", "tunnel-no-offload", "tunnel-peers", "tunnel-jumbo"];
/// A median that counts needs so many.
const ROUNDS_MIN: usize = 5;
/// Rounds of paths that no goal divides by, in a run of everything.
const MINOR_ROUNDS: usize = 2;
/// Underlay MTU of the last row.
const JUMBO: u32 = 9_000;

/// What to measure.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// Of [`ROWS`].
    pub rows: Vec<&'a str>,
    /// The user asked for these rows: every path takes part in every round.
    pub whole: bool,
    pub rounds: usize,
    pub secs: u64,
}

/// Measures; the rows, and every figure for the report.
pub(crate) fn run(plan: &Plan<'_>) -> Result<(Vec<Row>, Value)> {
    let folder = folder();
    let outcome = measure(plan, &folder);
    remove();
    outcome
}

/// Everything these rows make, removed; what is not there is fine. Processes are ended before.
pub(crate) fn remove() {
    ground::remove();
    wireguard::remove();
    let _ = std::fs::remove_dir_all(folder());
}

fn folder() -> PathBuf {
    std::env::temp_dir().join(format!("weft-bench-tunnel-{}", std::process::id()))
}

/// A ground with paths on it.
struct Run<'a> {
    plan: &'a Plan<'a>,
    paths: Vec<Path>,
    rows: Vec<Row>,
    report: serde_json::Map<String, Value>,
}

fn measure(plan: &Plan<'_>, folder: &std::path::Path) -> Result<(Vec<Row>, Value)> {
    ground::create()?;
    std::fs::create_dir_all(folder)?;
    let mut run = Run { plan, paths: Vec::new(), rows: Vec::new(), report: serde_json::Map::new() };
    let wanted: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| run.needs(*kind)).collect();
    for kind in wanted {
        let made = match kind.missing() {
            Some(reason) => Err(anyhow!(reason)),
            None => kind.create(folder),
        };
        match made {
            Ok(path) => run.paths.push(path),
            // Another maker's program that does not come up is that row's loss, not the run's.
            Err(error) if kind.may_be_missing() => say(&format!("SKIP {}: {error:#}", kind.name())),
            Err(error) => return Err(error.context(kind.name())),
        }
    }
    run.first_packets()?;
    for underlay in Underlay::ALL {
        if plan.rows.contains(&format!("tunnel-{}", underlay.name()).as_str()) {
            run.underlay(underlay)?;
        }
    }
    Underlay::Veth.set()?;
    if plan.rows.contains(&"tunnel-peers") {
        run.many_peers()?;
    }
    if plan.rows.contains(&"tunnel-jumbo") {
        run.jumbo()?;
    }
    Ok((run.rows, run.report.into()))
}

impl Run<'_> {
    fn needs(&self, kind: Kind) -> bool {
        let has = |row: &str| self.plan.rows.contains(&row);
        let wire = has("tunnel-veth") || has("tunnel-nic") || has("tunnel-no-offload");
        match kind {
            Kind::Weft => true,
            Kind::WeftManyPeers => has("tunnel-peers"),
            Kind::WeftJumbo => has("tunnel-jumbo"),
            Kind::Plain | Kind::Vxlan | Kind::WeftNoCipher | Kind::Gotatun => wire,
            _ => has("tunnel-veth"),
        }
    }

    /// Handshakes, neighbours, servers that begin to listen: none of it belongs into a sample.
    fn first_packets(&self) -> Result<()> {
        for path in &self.paths {
            let mut last = None;
            ground::within(path.kind.name(), || {
                last = path.from.client("requests", path.target(0), 10).err();
                last.is_none()
            })
            .with_context(|| format!("the first packets: {last:?}"))?;
        }
        Ok(())
    }

    fn underlay(&mut self, underlay: Underlay) -> Result<()> {
        underlay.set()?;
        let is_veth = underlay == Underlay::Veth;
        let all = self.paths.iter().filter(|path| {
            !matches!(path.kind, Kind::WeftManyPeers | Kind::WeftJumbo) && (is_veth || !path.kind.is_minor())
        });
        let paths: Vec<&Path> = all.collect();
        let probes: &[Probe] = if is_veth {
            &[Probe::Stream, Probe::Streams4, Probe::Rtt, Probe::Small, Probe::Full]
        } else {
            &[Probe::Stream]
        };
        let (mut samples, mut cipher) = (Samples::default(), Vec::new());
        say(&format!(
            "measuring tunnel-{} ({} rounds, {} paths)",
            underlay.name(),
            self.plan.rounds,
            paths.len()
        ));
        for round in 0..self.plan.rounds {
            cipher.push(cipher::seal_and_open_mbit()?);
            for &probe in probes {
                self.round(round, &paths, probe, &mut samples)?;
            }
        }
        let rows = goals::rows(underlay, &samples, &cipher);
        say(&table::text(underlay, &samples, &cipher));
        self.keep(underlay.name(), underlay.described(), &samples, rows);
        self.report.insert(format!("ring-{}", underlay.name()), json!(cipher));
        Ok(())
    }

    /// Every path once; the one that begins moves on.
    fn round(&self, round: usize, paths: &[&Path], probe: Probe, samples: &mut Samples) -> Result<()> {
        for i in 0..paths.len() {
            let path = paths[(i + round) % paths.len()];
            if self.plan.whole || !path.kind.is_minor() || round < MINOR_ROUNDS {
                samples.take(round, path, probe, self.plan.secs)?;
            }
        }
        Ok(())
    }

    fn many_peers(&mut self) -> Result<()> {
        say("measuring tunnel-peers");
        let mut samples = Samples::default();
        let paths = self.only(&[Kind::Weft, Kind::WeftManyPeers]);
        let mut configure = Vec::new();
        for round in 0..self.plan.rounds.max(ROUNDS_MIN) {
            self.round(round, &paths, Probe::Cost, &mut samples)?;
            if paths.len() > 1 {
                configure.push(
                    wireguard::configure_again(Kind::WeftManyPeers.number(), path::STRANGERS)?.as_secs_f64(),
                );
            }
        }
        let rows = goals::many_peers(&samples, &configure);
        self.keep("peers", Underlay::Veth.described(), &samples, rows);
        Ok(())
    }

    fn jumbo(&mut self) -> Result<()> {
        say("measuring tunnel-jumbo");
        ground::set_mtu(JUMBO)?;
        let mut samples = Samples::default();
        let paths = self.only(&[Kind::Weft, Kind::WeftJumbo]);
        for round in 0..self.plan.rounds.max(ROUNDS_MIN) {
            self.round(round, &paths, Probe::Stream, &mut samples)?;
        }
        let rows = goals::jumbo(&samples);
        self.keep("jumbo", format!("MTU {JUMBO}, {}", Underlay::Veth.described()), &samples, rows);
        Ok(())
    }

    fn only(&self, kinds: &[Kind]) -> Vec<&Path> {
        self.paths.iter().filter(|path| kinds.contains(&path.kind)).collect()
    }

    fn keep(&mut self, name: &str, offloads: String, samples: &Samples, rows: Vec<Row>) {
        self.report.insert(name.to_owned(), json!({ "offloads": offloads, "paths": samples.json() }));
        self.rows.extend(rows);
    }
}
