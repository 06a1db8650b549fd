// SPDX-License-Identifier: Apache-2.0
//! Backends that come and go a hundred times a second under a stream of connections.

use crate::service_stage::{LINE, PORT, Stage, TCP, service, slice};
use crate::soaking;
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};
use weft_lab::{Lab, PodSpec, Running, monotonic_us};

/// Slices of each family whose backends come and go, each written by somebody who waits for nobody else, and the backends of each.
const SLICES: usize = 4;
const IN_A_SLICE: usize = 5;
/// The one that never goes, alone in a slice.
const STEADY: &str = "b0";
/// Backends that change in a second; at one stroke all of a slice.
const CHANGES: u64 = 100;
const STROKES: u64 = CHANGES / (SLICES * IN_A_SLICE) as u64;
/// Clients of both paths, each of both families.
const WAYS: [(&str, usize); 4] = [("c1", 0), ("g1", 1), ("c1", 1), ("g1", 0)];
/// A machine that is busy with other things gets as many times the time.
const ROUNDS: u64 = 6;
/// The same where 100 changes and 5,000 connections a second are promised.
const SOAK_ROUNDS: u64 = 3;
/// As many times backends were gone for certain, for a time, and as many connections began while one was: fewer prove nothing.
const TIMES_GONE: usize = 20;
const WHILE_GONE: u64 = 200;

#[test]
fn churn_no_connection_to_who_was_gone_and_none_failed_while_one_was_there() -> Result<()> {
    let Some(stage) = Stage::alone("svcchurn", &[])? else { return Ok(()) };
    let (time, rate) = if soaking() { (60, 5_000) } else { (5, 1_000) };
    let names: Vec<String> = (0..=SLICES * IN_A_SLICE).map(|number| format!("b{number}")).collect();
    let mut servers = Vec::new();
    for pod in &names {
        stage.lab.pod_add(&PodSpec::new("n1", pod))?;
        servers.push(stage.lab.serve(pod, pod, &[TCP], &[])?);
    }
    stage.client("n1", "c1")?;
    stage.guest("n1", "g1")?;
    let churns = names[1..].chunks(IN_A_SLICE).enumerate();
    let mut churns: Vec<Churn> =
        churns.map(|(number, names)| Churn::new(&stage, number, names)).collect::<Result<_>>()?;
    let ports = json!([{"name": "http", "port": PORT, "targetPort": TCP}]);
    let spec = json!({"ipFamilyPolicy": "RequireDualStack", "ports": ports});
    let mut objects = vec![service("churn", spec)];
    objects.extend(stage.slices("churn", "steady", &[(STEADY, json!({}))])?);
    objects.extend(churns.iter().flat_map(Churn::slices));
    let reply = stage.put(&objects)?;
    let vips = &reply.results[0].cluster_ips;
    let rounds = if soaking() { SOAK_ROUNDS } else { ROUNDS };
    let mut last = Proven::default();
    for _ in 0..rounds {
        last = round(&stage, vips, &mut churns, time, rate)?;
        println!("none to who was gone, none failed: {last:?}");
        if last.suffices(time, rate) {
            return stage.lab.down();
        }
    }
    bail!("this machine is too busy to prove anything: {last:?}")
}

/// What was seen.
#[derive(Debug, Default)]
struct Proven {
    /// A backend that changed, in both families together.
    changes: u64,
    connections: u64,
    times_gone: usize,
    /// Connections that began while somebody was gone, and ended before it came back.
    while_gone: u64,
}

impl Proven {
    fn suffices(&self, time: u64, rate: u64) -> bool {
        let as_promised = self.changes >= CHANGES * time * 9 / 10 && self.connections >= rate * time * 9 / 10;
        self.times_gone >= TIMES_GONE && self.while_gone >= WHILE_GONE && (as_promised || !soaking())
    }
}

/// Connections over both paths to both families while backends change.
fn round(stage: &Stage, vips: &[IpAddr], churns: &mut [Churn], time: u64, rate: u64) -> Result<Proven> {
    let mut proven = Proven::default();
    churns.iter_mut().for_each(|churn| churn.gone.clear());
    let clients: Result<Vec<Running>> = WAYS
        .iter()
        .map(|(from, family)| {
            let to = SocketAddr::new(vips[*family], PORT).to_string();
            let (time, rate) = (format!("{time}s"), (rate / 4).to_string());
            let how = ["--threads", "4", "--timeout", "10s", "--each"];
            stage.lab.worker_start(
                from,
                &[&["rush", "--to", &to, "--for", &time, "--rate", &rate], &how[..]].concat(),
            )
        })
        .collect();
    let lab = &stage.lab;
    let strokes: u64 = thread::scope(|scope| {
        let go_on = |churn: &'_ mut Churn| churn.go_on(lab, Duration::from_secs(time));
        let writers: Vec<_> = churns.iter_mut().map(|churn| scope.spawn(move || go_on(churn))).collect();
        let ended =
            writers.into_iter().map(|writer| writer.join().map_err(|_| anyhow!("a writer panicked"))?);
        ended.sum::<Result<u64>>()
    })?;
    proven.changes += strokes * IN_A_SLICE as u64;
    for (mut client, (from, family)) in clients?.into_iter().zip(WAYS) {
        ensure!(client.wait(Duration::from_secs(time + 60))?, "{}", client.errors().join(" "));
        // To the end of the pipe.
        while let Ok(line) = client.wait_line(LINE) {
            let words: Vec<&str> = line.split(' ').collect();
            let [began, ended, who] = words[..] else { continue };
            ensure!(!who.starts_with('!'), "a connection failed though {STEADY} was there: {line}");
            let (began, ended) = (began.parse()?, ended.parse()?);
            for churn in &*churns {
                churn.was_there(who, began, ended).with_context(|| format!("{from} to {}", vips[family]))?;
            }
            proven.connections += 1;
            proven.while_gone += u64::from(churns.iter().any(|churn| churn.somebody_was_gone(began, ended)));
        }
    }
    proven.times_gone = churns.iter().flat_map(|churn| churn.gone.values()).map(Vec::len).sum();
    Ok(proven)
}

/// Who of a slice is a backend, and when.
struct Churn {
    number: usize,
    /// By backend: ready, terminating, or not there.
    state: BTreeMap<String, State>,
    /// Times at which a backend was gone for certain, and when it was about to come back, in order.
    gone: BTreeMap<String, Vec<(u64, u64)>>,
    /// The revision with which each left last.
    left: BTreeMap<String, u64>,
    /// Of the backends, by family.
    addresses: BTreeMap<(String, bool), IpAddr>,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Ready,
    Leaving,
    Gone,
}

impl Churn {
    fn new(stage: &Stage, number: usize, names: &[String]) -> Result<Churn> {
        let mut addresses = BTreeMap::new();
        for pod in names {
            for v6 in [false, true] {
                addresses.insert((pod.clone(), v6), stage.ip(pod, v6)?);
            }
        }
        // A third in each state: every stroke moves each of them on.
        let states = [State::Ready, State::Leaving, State::Gone].into_iter().cycle();
        let state = names.iter().cloned().zip(states).collect();
        Ok(Churn { number, state, gone: BTreeMap::new(), left: BTreeMap::new(), addresses })
    }

    /// The slice, of each family.
    fn slices(&self) -> [Value; 2] {
        [false, true].map(|v6| {
            let endpoint = |(pod, state): (&String, &State)| {
                let conditions = match state {
                    State::Ready => json!({"ready": true, "serving": true, "terminating": false}),
                    State::Leaving => json!({"ready": false, "serving": true, "terminating": true}),
                    State::Gone => return None,
                };
                let address = self.addresses[&(pod.clone(), v6)].to_string();
                Some(json!({"addresses": [address], "nodeName": "n1", "conditions": conditions}))
            };
            let endpoints = self.state.iter().filter_map(endpoint).collect();
            slice("churn", &self.number.to_string(), v6, endpoints)
        })
    }

    /// Moves backends on at each stroke, evenly over time. Returns how many strokes there were.
    fn go_on(&mut self, lab: &Lab, time: Duration) -> Result<u64> {
        let mut written = VecDeque::new();
        let started = Instant::now();
        let mut strokes = 0;
        while started.elapsed() < time {
            let (mut leaves, mut returns) = (BTreeSet::new(), BTreeSet::new());
            for (name, state) in &mut self.state {
                *state = match state {
                    State::Ready => State::Leaving,
                    State::Leaving => State::Gone,
                    State::Gone => State::Ready,
                };
                match state {
                    // Somebody else is ready: no new connection from here on.
                    State::Leaving => drop(leaves.insert(name.clone())),
                    State::Ready => drop(returns.insert(name.clone())),
                    State::Gone => {}
                }
            }
            let before = monotonic_us();
            for name in returns {
                // One that was not seen to be gone has no end to its last time either.
                let last = self.gone.entry(name).or_default().last_mut();
                if let Some((_, until)) = last.filter(|(_, until)| *until == u64::MAX) {
                    *until = before;
                }
            }
            let reply = lab.apply_objects(self.slices().into())?;
            for name in &leaves {
                self.left.insert(name.clone(), reply.revision);
            }
            written.push_back((reply.revision, leaves));
            // Who asks learns of it later than it was: what began in between is nobody's fault.
            let programmed = lab.status("n1")?.programmed_revision;
            let since = monotonic_us();
            while written.front().is_some_and(|(revision, _)| *revision <= programmed) {
                let Some((revision, leaves)) = written.pop_front() else { break };
                for name in leaves {
                    // Unless it has come back meanwhile, and perhaps left again.
                    if self.state.get(&name) != Some(&State::Ready) && self.left.get(&name) == Some(&revision)
                    {
                        self.gone.entry(name).or_default().push((since, u64::MAX));
                    }
                }
            }
            strokes += 1;
            let due = started + Duration::from_micros(strokes * 1_000_000 / STROKES);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        Ok(strokes)
    }

    /// Fails where a connection went to somebody who was gone before it began, and still when it was answered.
    fn was_there(&self, who: &str, began: u64, ended: u64) -> Result<()> {
        if let Some((since, until)) = self.gone.get(who).and_then(|times| while_gone(times, began, ended)) {
            bail!(
                "a connection from {began} to {ended} went to {who}, which was gone from {since} to {until}"
            );
        }
        Ok(())
    }

    fn somebody_was_gone(&self, began: u64, ended: u64) -> bool {
        self.gone.values().any(|times| while_gone(times, began, ended).is_some())
    }
}

/// The time, of those in order, that all of this lies in.
fn while_gone(times: &[(u64, u64)], began: u64, ended: u64) -> Option<(u64, u64)> {
    let after = times.partition_point(|(since, _)| *since <= began);
    times[..after].last().copied().filter(|(_, until)| ended < *until)
}
