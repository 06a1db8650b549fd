// SPDX-License-Identifier: Apache-2.0
//! Backends that come and go a hundred times a second under a stream of connections.

use crate::service_stage::{PORT, Stage, TCP, service, slice};
use crate::soaking;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};
use weft_lab::{PodSpec, Running, monotonic_us};

/// The backends, in two slices of each family.
const PODS: [&str; 10] = ["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "b8", "b9"];
const IN_A_SLICE: usize = 5;
/// Changes of a backend in a second.
const CHANGES: u64 = 100;
/// The one that never goes.
const STEADY: &str = "b0";

#[test]
fn churn_no_connection_to_who_was_gone_and_none_failed_while_one_was_there() -> Result<()> {
    let Some(stage) = Stage::alone("svcchurn", &[])? else { return Ok(()) };
    let (time, rate) = if soaking() { (60, 5_000) } else { (5, 1_000) };
    let mut servers = Vec::new();
    for pod in PODS {
        stage.lab.pod_add(&PodSpec::new("n1", pod))?;
        servers.push(stage.lab.serve(pod, pod, &[TCP], &[])?);
    }
    stage.client("n1", "c1")?;
    stage.guest("n1", "g1")?;
    let ports = json!([{"name": "http", "port": PORT, "targetPort": TCP}]);
    let spec = json!({"ipFamilyPolicy": "RequireDualStack", "ports": ports});
    let mut churn = Churn::new(&stage)?;
    let reply =
        stage.put(&[vec![service("churn", spec)], churn.slices(&BTreeSet::from([0, 1]))?].concat())?;
    let vips = &reply.results[0].cluster_ips;
    let clients: Result<Vec<Running>> = [("c1", 0), ("g1", 1), ("c1", 1), ("g1", 0)]
        .iter()
        .map(|(from, family)| {
            let to = SocketAddr::new(vips[*family], PORT).to_string();
            let (time, rate) = (format!("{time}s"), (rate / 4).to_string());
            let args = ["rush", "--to", &to, "--for", &time, "--rate", &rate, "--threads", "4", "--each"];
            stage.lab.worker_start(from, &args)
        })
        .collect();
    churn.go_on(Duration::from_secs(time))?;
    let strokes = churn.strokes;
    println!("{} changes of backends in {time} s", strokes * 2 * CHANGED);
    // On a machine that is busy with other stories fewer will do: what is proven holds for each of them.
    let tenths = if soaking() { 9 } else { 1 };
    let enough = STROKES * time * tenths / 10;
    ensure!(strokes >= enough, "only {} changes in {time} s", strokes * 2 * CHANGED);
    let mut total = 0;
    for mut client in clients? {
        ensure!(client.wait(Duration::from_secs(time + 20))?, "{}", client.errors().join(" "));
        for line in client.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [began, ended, who] = words[..] else { continue };
            total += 1;
            ensure!(!who.starts_with('!'), "a connection failed though {STEADY} was there: {line}");
            churn.was_there(who, began.parse()?, ended.parse()?)?;
        }
    }
    println!("{total} connections, none to who was gone, none failed");
    ensure!(total >= rate * time * tenths / 10, "only {total} connections");
    stage.lab.down()
}

/// Pods that change at one stroke, each a backend of both families.
const CHANGED: u64 = 5;
const STROKES: u64 = CHANGES / CHANGED / 2;

/// Who is a backend, and when.
struct Churn<'a> {
    stage: &'a Stage,
    /// By backend: ready, terminating, or not there.
    state: BTreeMap<String, State>,
    /// Times at which a backend was gone for certain, and when it was about to come back.
    gone: BTreeMap<String, Vec<(u64, u64)>>,
    /// The revision with which each left last.
    left: BTreeMap<String, u64>,
    strokes: u64,
    /// Of the backends, by family.
    addresses: BTreeMap<(&'static str, bool), IpAddr>,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Ready,
    Leaving,
    Gone,
}

impl<'a> Churn<'a> {
    fn new(stage: &'a Stage) -> Result<Churn<'a>> {
        let mut addresses = BTreeMap::new();
        for pod in PODS {
            for v6 in [false, true] {
                addresses.insert((pod, v6), stage.ip(pod, v6)?);
            }
        }
        let names = PODS.iter().map(ToString::to_string);
        // A third in each state: every stroke moves five of them on.
        let states = [State::Ready, State::Leaving, State::Gone].into_iter().cycle();
        let state: BTreeMap<_, _> = names.zip(states).collect();
        Ok(Churn { stage, state, gone: BTreeMap::new(), left: BTreeMap::new(), strokes: 0, addresses })
    }

    /// These slices, of each family.
    fn slices(&self, numbers: &BTreeSet<usize>) -> Result<Vec<Value>> {
        let mut slices = Vec::new();
        for v6 in [false, true] {
            for &number in numbers {
                let mut endpoints = Vec::new();
                for pod in &PODS[number * IN_A_SLICE..][..IN_A_SLICE] {
                    let conditions = match self.state.get(*pod) {
                        Some(State::Ready) => json!({"ready": true, "serving": true, "terminating": false}),
                        Some(State::Leaving) => json!({"ready": false, "serving": true, "terminating": true}),
                        _ => continue,
                    };
                    let address = self.addresses[&(*pod, v6)].to_string();
                    endpoints
                        .push(json!({"addresses": [address], "nodeName": "n1", "conditions": conditions}));
                }
                slices.push(slice("churn", &number.to_string(), v6, endpoints));
            }
        }
        Ok(slices)
    }

    /// Moves five backends on at each stroke, evenly over time.
    fn go_on(&mut self, time: Duration) -> Result<()> {
        let names: Vec<String> = self.state.keys().filter(|name| *name != STEADY).cloned().collect();
        let mut turn = names.iter().cycle();
        let mut written = VecDeque::new();
        let started = Instant::now();
        while started.elapsed() < time {
            let (mut leaves, mut returns, mut changed) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
            for name in turn.by_ref().take(CHANGED as usize) {
                changed.extend(PODS.iter().position(|pod| pod == name).map(|number| number / IN_A_SLICE));
                let state = self.state.entry(name.clone()).or_insert(State::Ready);
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
                if let Some((_, until)) = self.gone.entry(name).or_default().last_mut() {
                    *until = before;
                }
            }
            let reply = self.stage.lab.apply_objects(self.slices(&changed)?)?;
            for name in &leaves {
                self.left.insert(name.clone(), reply.revision);
            }
            written.push_back((reply.revision, leaves));
            // Who asks learns of it later than it was: what began in between is nobody's fault.
            let programmed = self.stage.lab.status("n1")?.programmed_revision;
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
            self.strokes += 1;
            let due = started + Duration::from_micros(self.strokes * 1_000_000 / STROKES);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        Ok(())
    }

    /// Fails where a connection went to somebody who was gone before it began, and still when it was answered.
    fn was_there(&self, who: &str, began: u64, ended: u64) -> Result<()> {
        self.state.get(who).with_context(|| format!("{who} is nobody"))?;
        for (since, until) in self.gone.get(who).into_iter().flatten() {
            ensure!(
                began < *since || ended >= *until,
                "a connection from {began} to {ended} went to {who}, which was gone from {since} to {until}"
            );
        }
        Ok(())
    }
}
