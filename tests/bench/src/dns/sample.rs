// SPDX-License-Identifier: Apache-2.0
//! One run of dnsperf in the client's pod, and what it cost the server.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::NODE_DNS;
use super::servers::Kind;
use crate::lab::DNS as LAB;
use crate::pairs::at_share;

/// Sockets of dnsperf, each with a port of its own.
const SOCKETS: &str = "8";
/// Answers that may be missing of all: dnsperf gives up those that are under way at its end.
const LOST_SHARE: f64 = 0.01;

/// How to ask.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load<'a> {
    /// dnsperf's questions.
    pub questions: &'a Path,
    pub secs: u64,
    /// Questions a second; none: as many as go through.
    pub rate: Option<u64>,
    /// Whether each answer's time is wanted, which costs the client a line for each.
    pub each: bool,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// Answers a second.
    pub rate: f64,
    /// The server's time on processors for one answer, microseconds: of all its threads.
    pub cpu_us: f64,
    /// Of each answer's time, microseconds; not a number where it was not asked for.
    pub p99_us: f64,
    /// Share of the machine's time that went into software interrupts meanwhile.
    pub softirq: f64,
}

/// Asks a server.
pub(super) fn sample(kind: Kind, pid: u32, load: Load<'_>) -> Result<Sample> {
    let mut command = LAB.exec("client")?;
    command.args(["dnsperf", "-T", "1", "-c", SOCKETS, "-s", NODE_DNS, "-p", &kind.port().to_string()]);
    command.arg("-d").arg(load.questions).args(["-l", &load.secs.to_string()]);
    if let Some(rate) = load.rate {
        command.args(["-Q", &rate.to_string()]);
    }
    if load.each {
        command.arg("-v");
    }
    let (cpu, machine) = (cpu_ns(pid)?, machine()?);
    let out = command.output().context("cannot run dnsperf")?;
    let (cpu, machine) = (cpu_ns(pid)?.saturating_sub(cpu), machine_share(machine)?);
    let text = String::from_utf8_lossy(&out.stdout);
    if !out.status.success() {
        bail!("dnsperf: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    let completed = number(&text, "Queries completed:")?;
    let sent = number(&text, "Queries sent:")?;
    ensure!(completed >= sent * (1.0 - LOST_SHARE), "{}: {completed} of {sent} were answered", kind.name());
    let good = text.lines().any(|line| line.contains("Response codes:") && line.contains("NOERROR"));
    ensure!(
        good && !text.contains("NXDOMAIN") && !text.contains("SERVFAIL"),
        "{}: wrong answers: {}",
        kind.name(),
        tail(&text)
    );
    Ok(Sample {
        rate: number(&text, "Queries per second:")?,
        cpu_us: cpu as f64 / 1e3 / completed,
        p99_us: at_share(&times(&text), 0.99),
        softirq: machine,
    })
}

/// Resident memory of a process, MiB.
pub(super) fn resident_mib(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.split_whitespace().next().context("no VmRSS")?.parse()?;
    Ok(kib / 1_024.0)
}

/// Time that a process' threads spent on processors (the first number of schedstat), nanoseconds. Those that have ended are
/// missing: servers' threads stay.
fn cpu_ns(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).context("the server has ended")?.flatten() {
        // A thread may end between the two.
        let text = std::fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        sum += text.split_whitespace().next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or_default();
    }
    Ok(sum)
}

/// All ticks and those of software interrupts (proc(5), /proc/stat: the seventh number).
fn machine() -> Result<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    Ok((ticks.iter().take(8).sum(), ticks.get(6).copied().unwrap_or_default()))
}

fn machine_share(before: (u64, u64)) -> Result<f64> {
    let after = machine()?;
    Ok((after.1 - before.1) as f64 / (after.0 - before.0).max(1) as f64)
}

/// `  Queries per second:   29999.123456`
fn number(text: &str, what: &str) -> Result<f64> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix(what));
    let word = line.and_then(|line| line.split_whitespace().next());
    word.and_then(|word| word.parse().ok())
        .with_context(|| format!("dnsperf says no {what:?}: {}", tail(text)))
}

/// `> NOERROR svc-1.default.svc.cluster.local A 0.000123` of each answer, in microseconds.
fn times(text: &str) -> Vec<f64> {
    let of = |line: &str| line.strip_prefix("> ")?.split_whitespace().last()?.parse::<f64>().ok();
    text.lines().filter_map(of).map(|secs| secs * 1e6).collect()
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("> ")).collect();
    lines[lines.len().saturating_sub(20)..].join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dnsperf_is_understood() {
        let text = "> NOERROR a.b A 0.000100\n> NOERROR a.c A 0.000300\n\nStatistics:\n\n  Queries sent:         2\n  Queries completed:    2 (100.00%)\n  Queries per second:   1999.5\n";
        assert_eq!(times(text), [100.0, 300.0]);
        assert!((number(text, "Queries per second:").unwrap() - 1999.5).abs() < 1e-9);
        assert!((number(text, "Queries completed:").unwrap() - 2.0).abs() < 1e-9);
        assert!(number(text, "Queries lost:").is_err());
    }

    #[test]
    fn our_own_time_grows() {
        let (own, before) = (std::process::id(), cpu_ns(std::process::id()).unwrap());
        let mut sum = 0_u64;
        while cpu_ns(own).unwrap() == before {
            sum = sum.wrapping_add(1);
        }
        assert!(resident_mib(own).unwrap() > 0.1, "{sum}");
    }
}
