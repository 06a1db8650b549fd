// SPDX-License-Identifier: Apache-2.0
//! Services: connections through one, steady ones, many services into the maps, node ports from outside. Weft with more and
//! more services installed beside what others do, in turns: in each round every way is measured once, and the one that begins
//! moves on.

mod apply;
pub(crate) mod cluster;
mod goals;
mod node_port;
mod path;
mod peers;
mod rules;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path as FilePath, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};

use crate::pairs::{Row, median};
use crate::{bare, lab, netns, say, worker};
use cluster::Cluster;
use path::{Kind, Metric, PORT, Path, Samples};
use peers::Peer;
use rules::Wish;

/// Names that `--row` may hold a part of.
pub(crate) const ROWS: [&str; 4] = ["service-connect", "service-steady", "service-apply", "service-nodeport"];
/// Services that Weft has, stage after stage; where `--services` says fewer, that is the last stage.
const STAGES: [usize; 4] = [1, 1_000, 10_000, 50_000];
/// Services that the others have beside the first stage's one.
const PEERS_MANY: usize = 10_000;
/// What is called: in the static band, so that no other service of the run takes it.
const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 100);
/// Its ports and the backends': answers, streams.
const OURS: [(u16, u16); 2] = [(80, PORT), (81, PORT + 1)];
/// A way that gives no answer by then does not work.
const FIRST_LIMIT: Duration = Duration::from_secs(20);
const FIRST_EVERY: Duration = Duration::from_millis(200);
/// Measuring begins when this much of the machine has been idle for a moment, or when nothing helps.
const IDLE_SHARE: f64 = 0.9;
const IDLE_LOOK: Duration = Duration::from_millis(500);
const IDLE_LIMIT: Duration = Duration::from_secs(30);

/// What to measure.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// Of [`ROWS`].
    pub rows: Vec<&'a str>,
    pub rounds: usize,
    pub secs: u64,
    /// The most services.
    pub services: usize,
}

/// Measures; the rows, and every figure for the report.
pub(crate) fn run(plan: &Plan<'_>) -> Result<(Vec<Row>, Value)> {
    let outcome = measure(plan);
    worker::end_all();
    remove();
    outcome
}

/// Everything these rows make, removed; what is not there is fine. Processes are ended before.
pub(crate) fn remove() {
    lab::SERVICES.down();
    lab::VXLAN.down();
    bare::remove();
    netns::remove_all(peers::OWN);
    apply::remove();
    let _ = std::fs::remove_dir_all(folder());
}

/// Another service, that nobody calls, with backends that do not exist; fewer than 60,000.
fn other(number: usize) -> Wish {
    let address = |first: u8, n: usize| {
        Ipv4Addr::new(10, first + (n / 62_500) as u8, (n / 250 % 250) as u8, (n % 250 + 1) as u8)
    };
    let vip = address(0, number).octets();
    Wish {
        name: format!("other-{number}"),
        vip: Ipv4Addr::new(10, 96, vip[2] + 10, vip[3]),
        ports: vec![(8080, 8080)],
        backends: [address(128, 2 * number), address(128, 2 * number + 1)],
    }
}

fn folder() -> PathBuf {
    std::env::temp_dir().join(format!("weft-bench-services-{}", std::process::id()))
}

fn measure(plan: &Plan<'_>) -> Result<(Vec<Row>, Value)> {
    let has = |row: &str| plan.rows.contains(&row);
    let (mut rows, mut report) = (Vec::new(), json!({ "peers": peers::versions() }));
    let (mut loads, mut failed) = (None, Vec::new());
    if has("service-apply") {
        let services = plan.services.min(STAGES[3]);
        say(&format!("measuring service-apply ({services} services, {} rounds)", plan.rounds));
        loads = Some(apply::load(services, plan.rounds)?);
    }
    let stages = stages(plan);
    if !stages.is_empty() {
        std::fs::create_dir_all(folder())?;
        let mut run = Run::create(plan, &folder())?;
        for stage in &stages {
            run.stage(*stage)?;
        }
        if let Some(loads) = &mut loads {
            say("measuring service-apply (from the store's event)");
            match apply::events(&run.weft) {
                Ok(times) => loads.event_ms = times,
                Err(error) => failed.push(told_failed("service-apply, from the store's event", &error)),
            }
        }
        if has("service-connect") {
            rows.extend(goals::connect(&run.samples, &stages));
            say(&run.samples.table(Metric::Connect));
        }
        if has("service-steady") {
            rows.extend(goals::steady(&run.samples, PEERS_MANY.min(plan.services)));
            say(&run.samples.table(Metric::Requests));
            say(&run.samples.table(Metric::Stream));
        }
        report["installed_secs"] = json!(run.installed);
        report["samples"] = run.samples.json();
        worker::end_all();
        remove();
    }
    if let Some(loads) = &loads {
        rows.extend(goals::apply(loads));
        say(&told(loads));
        report["apply"] = json!(loads);
    }
    if has("service-nodeport") {
        match node_port::run(plan.rounds) {
            Ok(figures) => {
                rows.extend(goals::node_port(&figures));
                report["nodeport"] = json!(figures);
            }
            Err(error) => failed.push(told_failed("service-nodeport", &error)),
        }
    }
    // What was measured is worth keeping; the run fails at its end.
    report["failed"] = json!(failed);
    Ok((rows, report))
}

/// How many services at which stage, for the rows that are asked for.
fn stages(plan: &Plan<'_>) -> Vec<usize> {
    let has = |row: &str| plan.rows.contains(&row);
    let mut stages: Vec<usize> = STAGES.iter().map(|stage| (*stage).min(plan.services.max(1))).collect();
    stages.dedup();
    let last = stages.last().copied();
    let (many, connect) = (PEERS_MANY.min(plan.services), has("service-connect"));
    stages.retain(|stage| {
        connect || has("service-steady") && *stage == many || has("service-apply") && Some(*stage) == last
    });
    stages
}

fn told_failed(what: &str, error: &anyhow::Error) -> String {
    let text = format!("{what}: {error:#}");
    say(&format!("FAILED {text}"));
    text
}

fn told(loads: &apply::Figures) -> String {
    format!(
        "{} services of two backends: in the maps after {:.3} s (compiler {:.3} s), one change {:.3} ms; \
         maps of services take {:.1} MiB, {:.0} bytes for each service; from the store's event {:.1} ms (p50)",
        loads.services,
        median(loads.load_secs.clone()),
        median(loads.compile_secs.clone()),
        median(loads.change_ms.clone()),
        loads.map_bytes as f64 / f64::from(1 << 20),
        loads.bytes_per_service,
        median(loads.event_ms.clone()),
    )
}

/// All ways, up at once.
struct Run<'a> {
    plan: &'a Plan<'a>,
    weft: Cluster,
    peers: Vec<(Kind, Peer)>,
    /// Services that are there, of Weft.
    have: usize,
    samples: Samples,
    /// Way and number of services, to seconds.
    installed: BTreeMap<String, f64>,
}

impl<'a> Run<'a> {
    fn create(plan: &'a Plan<'a>, folder: &FilePath) -> Result<Self> {
        let mut peers = Vec::new();
        // No service rows without connections need them.
        let measured = plan.rows.iter().any(|row| ["service-connect", "service-steady"].contains(row));
        for kind in Kind::PEERS.into_iter().filter(|_| measured) {
            match Peer::missing(kind) {
                Some(reason) => skip(kind, &anyhow!(reason)),
                None => peers.push((kind, Peer::create(kind, folder)?)),
            }
        }
        let weft = Cluster::up().context("a lab for services")?;
        let (samples, installed) = (Samples::default(), BTreeMap::new());
        Ok(Self { plan, weft, peers, have: 1, samples, installed })
    }

    /// Installs so many, then measures.
    fn stage(&mut self, services: usize) -> Result<()> {
        let many = PEERS_MANY.min(self.plan.services);
        let peers_too = services == 1 || services == many;
        self.install(services, peers_too)?;
        let has = |row: &str| self.plan.rows.contains(&row);
        let ours = self.weft.paths();
        let (connect, steady) = (has("service-connect"), has("service-steady") && services == many);
        if !connect && !steady {
            return Ok(());
        }
        let theirs = self.peers.iter().filter(|(kind, _)| peers_too || kind.has_every_stage());
        let mut paths = Vec::new();
        for path in theirs.map(|(_, peer)| peer.path()).chain(ours) {
            match first_answer(&path) {
                Ok(()) => paths.push(path),
                Err(error) if path.kind.may_be_missing() => skip(path.kind, &error),
                Err(error) => return Err(error),
            }
        }
        quiet();
        say(&format!(
            "measuring with {services} services ({} rounds, {} ways)",
            self.plan.rounds,
            paths.len()
        ));
        let metrics = [(Metric::Connect, connect), (Metric::Requests, steady), (Metric::Stream, steady)];
        for (metric, _) in metrics.into_iter().filter(|(_, wanted)| *wanted) {
            for round in 0..self.plan.rounds {
                for turn in 0..paths.len() {
                    let path = &paths[(turn + round) % paths.len()];
                    self.samples.add(services, metric, path.kind, path.sample(metric, self.plan.secs)?);
                }
            }
        }
        Ok(())
    }

    /// Weft's and the others' beside each other: it takes long enough.
    fn install(&mut self, services: usize, peers_too: bool) -> Result<()> {
        let (weft, have) = (&self.weft, self.have);
        let mut secs: Vec<(Kind, f64)> = Vec::new();
        let peers = &mut self.peers;
        std::thread::scope(|scope| {
            let theirs = scope.spawn(move || {
                let mut secs = Vec::new();
                if peers_too {
                    peers.retain_mut(|(kind, peer)| match peer.install(services) {
                        Ok(took) => {
                            secs.push((*kind, took));
                            true
                        }
                        Err(error) => {
                            skip(*kind, &error);
                            false
                        }
                    });
                }
                secs
            });
            if services > have {
                secs.push((Kind::Socket, weft.install_others((have - 1..services - 1).map(other))?));
            }
            secs.extend(theirs.join().map_err(|_| anyhow!("an installing thread panicked"))?);
            anyhow::Ok(())
        })?;
        self.have = services;
        for (kind, secs) in secs.into_iter().filter(|(_, secs)| *secs > 0.0) {
            self.installed.insert(format!("{} {services}", kind.short()), secs);
        }
        Ok(())
    }
}

/// Another maker's program that does not work is that row's loss, not the run's.
fn skip(kind: Kind, error: &anyhow::Error) {
    say(&format!("SKIP {}: {error:#}", kind.name()));
}

fn first_answer(path: &Path) -> Result<()> {
    let start = Instant::now();
    while let Err(error) = path.answers() {
        if start.elapsed() > FIRST_LIMIT {
            bail!(error.context(format!("{}: no answer", path.kind.name())));
        }
        std::thread::sleep(FIRST_EVERY);
    }
    Ok(())
}

/// Waits until what was installed has been digested by everybody.
fn quiet() {
    let start = Instant::now();
    let mut before = cpu_ticks();
    while start.elapsed() < IDLE_LIMIT {
        std::thread::sleep(IDLE_LOOK);
        let now = cpu_ticks();
        let (idle, all) = (now.0.saturating_sub(before.0), now.1.saturating_sub(before.1));
        if all == 0 || idle as f64 / all as f64 >= IDLE_SHARE {
            return;
        }
        before = now;
    }
    say("the machine does other things: absolute figures are too high");
}

/// Idle ticks and all ticks since the machine started (proc(5), /proc/stat).
fn cpu_ticks() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let first = text.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = first.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    (ticks.get(3).copied().unwrap_or_default(), ticks.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn other_services_have_addresses_of_their_own() {
        let all: Vec<Wish> = (0..STAGES[3]).map(other).collect();
        let vips: BTreeSet<Ipv4Addr> = all.iter().map(|wish| wish.vip).collect();
        let backends: BTreeSet<Ipv4Addr> = all.iter().flat_map(|wish| wish.backends).collect();
        assert_eq!((vips.len(), backends.len()), (STAGES[3], 2 * STAGES[3]));
        assert!(!vips.contains(&VIP) && vips.iter().all(|ip| ip.octets()[..2] == [10, 96]));
    }

    #[test]
    fn fewer_services_make_fewer_stages() {
        let plan = |rows: &[&'static str], services| {
            stages(&Plan { rows: rows.to_vec(), rounds: 1, secs: 1, services })
        };
        assert_eq!(plan(&ROWS, 50_000), STAGES);
        assert_eq!(plan(&ROWS, 20), [1, 20]);
        assert_eq!(plan(&["service-steady"], 50_000), [10_000]);
        assert_eq!(plan(&["service-apply"], 50_000), [50_000]);
        assert!(plan(&["service-nodeport"], 50_000).is_empty());
    }
}
