// SPDX-License-Identifier: Apache-2.0
//! Backends and services that go, under clients that keep their sockets. One node, both families, both paths.

use crate::service_stage::{ENDLESS, Given, LINE, Stage, UDP, checked, conditions, service, spec};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;
use weft_lab::{Running, Said, monotonic_us, patient};

/// A client's socket is told within this of its backend's end, or its datagrams go elsewhere. Longer than an answer may take,
/// so that a question to a backend that is dead is followed by another in time.
const AT_ONCE: Duration = Duration::from_secs(8);
/// Time enough for what must not happen.
const LATER: Duration = Duration::from_millis(1_500);
/// How long an answer may take.
const ANSWER: &str = "3s";
const CLIENTS: [&str; 3] = ["c1", "g1", "n1"];
const OLD: &str = "b1";
const NEW: &str = "b2";

#[test]
fn removal_of_backend_udp_at_once_tcp_reset_or_let_finish_and_deleted_service() -> Result<()> {
    let Some(mut stage) = Stage::alone("svcremoval", &[])? else { return Ok(()) };
    for name in [OLD, NEW] {
        stage.backend("n1", name, "web")?;
    }
    stage.client("n1", "c1")?;
    stage.guest("n1", "g1")?;
    checked("terminating: TCP finishes, UDP moves", terminating(&stage))?;
    checked("removed: TCP is reset, a direct connection lives", removed(&stage))?;
    checked("removed and dead: the next datagram reaches a live one", datagrams(&mut stage))?;
    checked("deleted service: nothing of it is left, UDP included", deleted(&stage))?;
    stage.lab.down()
}

/// A service without a selector, node ports too.
fn put(stage: &Stage, name: &str, backends: &[(&str, Value)]) -> Result<Given> {
    let objects =
        [vec![service(name, spec(json!({"type": "NodePort"})))], stage.slices(name, "a", backends)?];
    let reply = stage.put(&objects.concat())?;
    Ok(Given(reply.results.into_iter().next().context("no answer")?))
}

/// Where each client asks: who is inside at the ClusterIP, the world at the node port.
fn ways_in(stage: &Stage, given: &Given, protocol: &str) -> Result<Vec<(&'static str, SocketAddr)>> {
    let mut ways = Vec::new();
    for v6 in [false, true] {
        for from in CLIENTS {
            ways.push((from, given.vip(v6)?));
        }
        ways.push(("outside", SocketAddr::new(stage.node_ip("n1", v6)?, given.node_port(protocol)?)));
    }
    Ok(ways)
}

/// A client that keeps its socket.
struct Talk {
    what: String,
    running: Running,
}

impl Talk {
    fn start(stage: &Stage, from: &str, to: SocketAddr, how: &[&str]) -> Result<Talk> {
        let address = to.to_string();
        let args = [&["talk", "--to", &address, "--timeout", ANSWER, "--for", ENDLESS], how].concat();
        let talk =
            Talk { what: format!("{from} to {to} {how:?}"), running: stage.lab.worker_start(from, &args)? };
        let first = talk.next()?;
        ensure!(first.error.is_none(), "{}: {first:?}", talk.what);
        Ok(talk)
    }

    fn next(&self) -> Result<Said> {
        let line = self.running.wait_line(LINE).with_context(|| self.what.clone())?;
        serde_json::from_str(&line).with_context(|| line.clone())
    }

    /// The first question after `since`.
    fn after(&self, since: u64) -> Result<Said> {
        loop {
            let said = self.next()?;
            if said.at_us > since {
                return Ok(said);
            }
        }
    }

    /// The next five answers are all this one's.
    fn stays_with(&self, since: u64, server: &str) -> Result<()> {
        let mut said = self.after(since)?;
        for _ in 0..5 {
            ensure!(said.server.as_deref() == Some(server), "{}: {said:?} instead of {server}", self.what);
            said = self.next()?;
        }
        Ok(())
    }

    /// Soon all answers are this one's.
    fn moves_to(&self, since: u64, server: &str) -> Result<()> {
        let until = since + micros(AT_ONCE);
        loop {
            let said = self.after(since)?;
            if said.server.as_deref() == Some(server) {
                return self.stays_with(said.at_us, server);
            }
            ensure!(said.at_us < until, "{}: {said:?} {AT_ONCE:?} after the change, not {server}", self.what);
        }
    }

    /// Soon a question has no answer.
    fn hears(&self, since: u64) -> Result<()> {
        let until = since + micros(AT_ONCE);
        loop {
            let said = self.next()?;
            if said.error.is_some() {
                return Ok(());
            }
            ensure!(said.at_us < until, "{}: {said:?} {AT_ONCE:?} after the change", self.what);
        }
    }

    /// Soon the socket has an error of this kind.
    fn breaks(&self, since: u64, kinds: &[&str]) -> Result<()> {
        let until = since + micros(AT_ONCE);
        loop {
            let said = self.next()?;
            match said.error {
                Some(error) if kinds.contains(&error.as_str()) => return Ok(()),
                Some(error) => bail!("{}: {error} instead of {kinds:?}", self.what),
                None => ensure!(said.at_us < until, "{}: lives on {AT_ONCE:?} after the change", self.what),
            }
        }
    }
}

/// A limit in the clock of what clients said.
fn micros(limit: Duration) -> u64 {
    patient(limit).as_micros() as u64
}

fn terminating(stage: &Stage) -> Result<()> {
    let given = put(stage, "drain", &[(OLD, json!({}))])?;
    let start = |protocol: &str, how: &[&str]| -> Result<Vec<Talk>> {
        let ways = ways_in(stage, &given, protocol)?;
        ways.into_iter().map(|(from, to)| Talk::start(stage, from, to, how)).collect()
    };
    let connections = start("TCP", &[])?;
    let datagrams = start("UDP", &["--udp"])?;
    put(stage, "drain", &[(OLD, conditions(false, true, true)), (NEW, json!({}))])?;
    let since = monotonic_us();
    for talk in &datagrams {
        talk.moves_to(since, NEW)?;
    }
    for talk in &connections {
        talk.stays_with(since + micros(LATER / 3), OLD)?;
    }
    for (from, to) in ways_in(stage, &given, "TCP")? {
        stage.reaches(from, to, &[], &[NEW])?;
    }
    Ok(())
}

fn removed(stage: &Stage) -> Result<()> {
    let given = put(stage, "gone", &[(OLD, json!({}))])?;
    let ways = ways_in(stage, &given, "TCP")?;
    let talks: Result<Vec<_>> =
        ways.into_iter().map(|(from, to)| Talk::start(stage, from, to, &[])).collect();
    let mut direct = Vec::new();
    for v6 in [false, true] {
        let to = SocketAddr::new(stage.ip(OLD, v6)?, crate::service_stage::TCP);
        for from in CLIENTS {
            direct.push(Talk::start(stage, from, to, &[])?);
        }
    }
    put(stage, "gone", &[(NEW, json!({}))])?;
    let since = monotonic_us();
    for talk in talks? {
        talk.breaks(since, &["aborted", "reset", "refused", "closed"])?;
    }
    for talk in &direct {
        talk.stays_with(since + micros(LATER), OLD)?;
    }
    Ok(())
}

fn datagrams(stage: &mut Stage) -> Result<()> {
    let given = put(stage, "dns", &[(OLD, json!({}))])?;
    let (mut talks, mut of_host) = (Vec::new(), Vec::new());
    for (from, to) in ways_in(stage, &given, "UDP")? {
        talks.push(Talk::start(stage, from, to, &["--udp"])?);
        let connected = Talk::start(stage, from, to, &["--udp", "--connected"])?;
        // A process of the host has no link of its own where packets could be translated: its socket is told, and a resolver
        // opens another.
        if from == "n1" { of_host.push(connected) } else { talks.push(connected) }
    }
    stage.silence(OLD);
    put(stage, "dns", &[(NEW, json!({}))])?;
    let since = monotonic_us();
    for talk in &talks {
        talk.moves_to(since, NEW)?;
    }
    for talk in &of_host {
        talk.hears(since)?;
    }
    stage.serve(OLD, &[crate::service_stage::TCP], &[UDP])
}

fn deleted(stage: &Stage) -> Result<()> {
    let given = put(stage, "del", &[(OLD, json!({}))])?;
    let connections: Result<Vec<_>> = ways_in(stage, &given, "TCP")?
        .into_iter()
        .map(|(from, to)| Talk::start(stage, from, to, &[]))
        .collect();
    let connections = connections?;
    let mut talks = Vec::new();
    for (from, to) in ways_in(stage, &given, "UDP")? {
        talks.push(Talk::start(stage, from, to, &["--udp"])?);
        if from != "n1" {
            talks.push(Talk::start(stage, from, to, &["--udp", "--connected"])?);
        }
    }
    stage.delete("Service", "del")?;
    let since = monotonic_us();
    for talk in &talks {
        talk.hears(since).context("a service that is gone answers")?;
    }
    // A connection may finish: its backend is there.
    for talk in &connections {
        talk.stays_with(since, OLD)?;
    }
    // The same addresses with somebody else behind them: no flow remembers.
    let mut again = service("del", spec(json!({"type": "NodePort"})));
    again["spec"]["clusterIPs"] = given.0.cluster_ips.iter().map(ToString::to_string).collect();
    for (port, protocol) in ["TCP", "UDP"].iter().enumerate() {
        again["spec"]["ports"][port]["nodePort"] = given.node_port(protocol)?.into();
    }
    stage.delete("EndpointSlice", "del-a-ipv4")?;
    stage.delete("EndpointSlice", "del-a-ipv6")?;
    stage.put(&[vec![again], stage.slices("del", "b", &[(NEW, json!({}))])?].concat())?;
    let since = monotonic_us();
    for talk in &talks {
        talk.moves_to(since, NEW)?;
    }
    Ok(())
}
