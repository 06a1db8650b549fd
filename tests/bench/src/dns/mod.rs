// SPDX-License-Identifier: Apache-2.0
//! Names: Weft's DNS beside other servers with the same records, in the same node's namespace, asked by the same pod with
//! dnsperf. On a small machine dnsperf is the limit, so what counts is the server's time on processors for one answer at a
//! rate that all of them can do; the most that go through and the time of an answer at half of that stand beside it.

mod goals;
mod sample;
mod servers;
mod workers;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::lab::DNS as LAB;
use crate::pairs::{Row, median};
use crate::services::cluster::{Cluster, service, slice};
use crate::{lab, say, worker};
use sample::{Load, sample};
use servers::Kind;

/// Names that `--row` may hold a part of.
pub(crate) const ROWS: [&str; 3] = ["dns-services", "dns-cached", workers::ROW];
/// The zone of all of them.
const ZONE: &str = "cluster.local";
/// The node's DNS address; others have other ports of it.
const NODE_DNS: &str = "169.254.53.53";
/// The lab's upstream.
const UPSTREAM: &str = "172.31.77.254";
/// Services, and endpoints of each.
const SERVICES: usize = 10_000;
const ENDPOINTS: usize = 10;
/// Names outside that are asked for again and again.
const EXTERNAL: usize = 100;
/// Questions a second that every server can answer.
const RATE: u64 = 20_000;
/// Every other server's port answers by then.
const START_LIMIT: std::time::Duration = std::time::Duration::from_secs(30);
const START_EVERY: std::time::Duration = std::time::Duration::from_millis(200);

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

/// What is measured of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Metric {
    /// Time on processors for an answer, µs.
    Cpu,
    /// The same, of names outside.
    CpuCached,
    /// Answers a second at most.
    Most,
    /// At half of that, µs.
    P99,
    /// Share of software interrupts at the fixed rate.
    Softirq,
    /// Resident, MiB.
    Memory,
}

const METRICS: [(Metric, &str); 6] = [
    (Metric::Cpu, "CPU µs/answer"),
    (Metric::CpuCached, "cached, µs"),
    (Metric::Most, "answers/s"),
    (Metric::P99, "p99 µs"),
    (Metric::Softirq, "softirq"),
    (Metric::Memory, "MiB"),
];

/// Samples by metric and server, round after round.
#[derive(Debug, Default)]
struct Samples(BTreeMap<(Metric, Kind), Vec<f64>>);

impl Samples {
    fn add(&mut self, metric: Metric, kind: Kind, value: f64) {
        self.0.entry((metric, kind)).or_default().push(value);
    }

    fn of(&self, metric: Metric, kind: Kind) -> &[f64] {
        self.0.get(&(metric, kind)).map_or(&[], Vec::as_slice)
    }
}

/// Measures; the rows, and every figure for the report.
pub(crate) fn run(plan: &Plan<'_>) -> Result<(Vec<Row>, Value)> {
    let of_the_lab = plan.rows.iter().any(|row| *row != workers::ROW);
    let outcome = if of_the_lab { measure(plan) } else { Ok((Vec::new(), Value::Null)) };
    worker::end_all();
    remove();
    let (mut rows, figures) = outcome?;
    if plan.rows.contains(&workers::ROW) {
        say(&format!("measuring {} ({} rounds)", workers::ROW, plan.rounds));
        rows.push(workers::row(plan.rounds)?);
    }
    Ok((rows, figures))
}

/// Everything these rows make, removed; what is not there is fine. Processes are ended before.
pub(crate) fn remove() {
    lab::DNS.down();
    let _ = std::fs::remove_dir_all(folder());
}

fn folder() -> PathBuf {
    std::env::temp_dir().join(format!("weft-bench-dns-{}", std::process::id()))
}

fn measure(plan: &Plan<'_>) -> Result<(Vec<Row>, Value)> {
    if crate::tunnel::installed("dnsperf").is_none() {
        say("SKIP dns-*: dnsperf is not installed: `make bench-deps`");
        return Ok((Vec::new(), Value::Null));
    }
    let folder = folder();
    std::fs::create_dir_all(&folder)?;
    let count = plan.services.min(SERVICES);
    say(&format!("measuring {} ({count} services, {} rounds)", plan.rows.join(", "), plan.rounds));
    let names: Vec<(String, Ipv4Addr)> =
        (0..count).map(|number| (format!("svc-{number}.default.svc.{ZONE}"), vip(number))).collect();
    let cluster = Cluster::bare(LAB, &["--netd-arg", "--dns-workers=1"])?;
    cluster.install((0..count).map(object).collect::<Result<Vec<_>>>()?)?;
    let mut servers = Vec::new();
    for kind in Kind::ALL {
        match kind.program() {
            Err(why) => say(&format!("SKIP {}: {why}", kind.name())),
            Ok(_) => servers.push((kind, kind.start(&folder, &names)?)),
        }
    }
    let (ours, others) = (folder.join("services.txt"), folder.join("external.txt"));
    std::fs::write(&ours, questions(&names))?;
    let external = (0..EXTERNAL).map(|number| (format!("host-{number}.example.test"), Ipv4Addr::LOCALHOST));
    std::fs::write(&others, questions(&external.collect::<Vec<_>>()))?;
    for (kind, pid) in &servers {
        warm(*kind, *pid, &ours)?;
    }
    let mut samples = Samples::default();
    for round in 0..plan.rounds {
        for at in 0..servers.len() {
            let (kind, pid) = servers[(at + round) % servers.len()];
            one(plan, kind, pid, [&ours, &others], &mut samples)?;
        }
    }
    for (kind, pid) in &servers {
        samples.add(Metric::Memory, *kind, sample::resident_mib(*pid)?);
    }
    say(&table(&servers, &samples));
    Ok((goals::rows(&samples), report(&samples)))
}

/// One server's part of a round.
fn one(
    plan: &Plan<'_>,
    kind: Kind,
    pid: u32,
    [ours, others]: [&Path; 2],
    samples: &mut Samples,
) -> Result<()> {
    let secs = plan.secs;
    if plan.rows.contains(&"dns-services") {
        let load = Load { questions: ours, secs, rate: Some(RATE), each: false };
        let steady = sample(kind, pid, load)?;
        samples.add(Metric::Cpu, kind, steady.cpu_us);
        samples.add(Metric::Softirq, kind, steady.softirq);
        let most = sample(kind, pid, Load { rate: None, ..load })?.rate;
        samples.add(Metric::Most, kind, most);
        let half = Load { rate: Some((most / 2.0) as u64), each: true, ..load };
        samples.add(Metric::P99, kind, sample(kind, pid, half)?.p99_us);
    }
    if plan.rows.contains(&"dns-cached") && kind.forwards() {
        let load = Load { questions: others, secs, rate: Some(RATE), each: false };
        samples.add(Metric::CpuCached, kind, sample(kind, pid, load)?.cpu_us);
    }
    Ok(())
}

/// Until it answers: some read their records first.
fn warm(kind: Kind, pid: u32, questions: &Path) -> Result<()> {
    let start = std::time::Instant::now();
    let load = Load { questions, secs: 1, rate: Some(200), each: false };
    loop {
        match sample(kind, pid, load) {
            Ok(_) => return Ok(()),
            Err(error) if start.elapsed() > START_LIMIT => {
                let log = std::fs::read_to_string(folder().join(kind.name()).join("log")).unwrap_or_default();
                return Err(error).with_context(|| format!("{} does not answer: {log}", kind.name()));
            }
            Err(_) => std::thread::sleep(START_EVERY),
        }
    }
}

fn questions(names: &[(String, Ipv4Addr)]) -> String {
    // In steps through all of them, so that neighbours in time are none in memory; the step has no divisor in common.
    let step = 7_919 % names.len().max(1);
    let mut text = String::new();
    for number in 0..names.len() {
        let (name, _) = &names[number * step.max(1) % names.len()];
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name} A");
    }
    text
}

/// Outside of the part from which addresses are given.
fn vip(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, 20 + (number / 250) as u8, (number % 250 + 1) as u8)
}

fn object(number: usize) -> Result<(::lb::Service, ::lb::EndpointSlice)> {
    let name = format!("svc-{number}");
    let ports = [(80, 8080)];
    let endpoint = |of: usize| {
        let at = number * ENDPOINTS + of;
        IpAddr::from(Ipv4Addr::new(
            10,
            128 + (at / 62_500) as u8,
            (at / 250 % 250) as u8,
            (at % 250 + 1) as u8,
        ))
    };
    let endpoints: Vec<IpAddr> = (0..ENDPOINTS).map(endpoint).collect();
    Ok((service(&name, vip(number), &ports)?, slice(&name, &ports, &endpoints)?))
}

fn table(servers: &[(Kind, u32)], samples: &Samples) -> String {
    let mut text = format!("{:<12}", "medians");
    for (_, name) in METRICS {
        let _ = write!(text, " {name:>14}");
    }
    text.push('\n');
    for (kind, _) in servers {
        let _ = write!(text, "{:<12}", kind.name());
        for (metric, _) in METRICS {
            let values = samples.of(metric, *kind);
            let shown =
                if values.is_empty() { "-".to_owned() } else { format!("{:.2}", median(values.to_vec())) };
            let _ = write!(text, " {shown:>14}");
        }
        text.push('\n');
    }
    text
}

fn report(samples: &Samples) -> Value {
    let figures = samples.0.iter().map(|((metric, kind), values)| {
        json!({ "metric": format!("{metric:?}"), "server": kind.name(), "rounds": values })
    });
    figures.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_asked_for_once_and_addresses_differ() {
        let names: Vec<_> = (0..SERVICES).map(|number| (format!("n{number}"), vip(number))).collect();
        let asked: std::collections::BTreeSet<_> = questions(&names).lines().map(str::to_owned).collect();
        assert_eq!(asked.len(), SERVICES);
        let vips: std::collections::BTreeSet<_> = names.iter().map(|(_, ip)| *ip).collect();
        assert_eq!(vips.len(), SERVICES);
        assert_eq!(questions(&names[..1]).lines().count(), 1);
    }
}
