// SPDX-License-Identifier: Apache-2.0
//! Nodes: a namespace, a control group, a directory and a real netd.

use crate::interrupt::wait_until;
use crate::members::Node;
use crate::patience::patient;
use crate::place::Place;
use crate::process::{self, Process, log_tail};
use crate::run::{on_path, sibling, tool};
use crate::state::{self, State};
use crate::topology::netns_flag;
use crate::{cgroup, holder, node_config, tunnel};
use anyhow::{Context, Result, anyhow, bail};
use netd_api::{Client, ClientError, PeerInfo, Status};
use nix::sys::signal::Signal;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;
use uuid::Uuid;

/// Nodes that are ready hear of one another within this.
const KNOWN_LIMIT: Duration = Duration::from_secs(10);
/// Promised by `up`: all nodes are ready within this.
pub(crate) const READY_LIMIT: Duration = Duration::from_secs(30);
/// netd drains for a few seconds at most.
const STOP_LIMIT: Duration = Duration::from_secs(15);
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// Longer than netd waits for the store itself.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How many lines of a node's log a failure shows.
const LOG_LINES: usize = 15;

/// Writes what a node needs on disk and makes its control group.
pub(crate) fn prepare(state: &State, node: &Node) -> Result<()> {
    let [run, kept] = ["run", "state"].map(|folder| node.dir.join(folder));
    let folders =
        [run, kept, node.cni_conf_dir(), node.cni_cache_dir().join("results"), node.wireguard_dir()];
    for path in folders {
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
    }
    cgroup::create(&node.cgroup)?;
    fs::write(node.dir.join("resolv.conf"), format!("nameserver {}\n", state.outside.ip))?;
    fs::write(node.dir.join("netd.toml"), node_config::text(state, node))?;
    Ok(())
}

/// Starts a node's weft-wireguard, where it has one, what holds its DNS sockets, and its netd, unless they run; does not wait
/// for netd.
pub(crate) fn start(lab: &str, name: &str) -> Result<()> {
    let state = State::read(lab)?;
    if state.tunnel {
        tunnel::start(lab, name)?;
    }
    holder::start(lab, name)?;
    let node = state.node(name)?;
    if node.alive() {
        return Ok(());
    }
    let mut argv = vec![sibling("netd")?.into_os_string(), "--config".into()];
    argv.push(node.dir.join("netd.toml").into_os_string());
    argv.extend(state.netd_args.iter().map(Into::into));
    // The host's /etc/resolv.conf is not the node's: netd gets its upstreams from its configuration.
    let place =
        Place { netns: Some(node.netns.clone()), cgroup: Some(node.cgroup.clone()), ..Place::default() };
    let process = process::start(&place, &argv, &node.log())?;
    remember(lab, name, Some(process))
}

/// Ends a node's netd with SIGKILL and nothing else.
pub(crate) fn kill(lab: &str, name: &str) -> Result<()> {
    end(lab, name, Signal::SIGKILL, KILL_LIMIT)
}

/// Ends a node's netd with SIGTERM and waits for its orderly end.
pub(crate) fn stop(lab: &str, name: &str) -> Result<()> {
    end(lab, name, Signal::SIGTERM, STOP_LIMIT)
}

/// Has a node's netd do nothing from now on, or go on.
pub(crate) fn pause(lab: &str, name: &str, is_paused: bool) -> Result<()> {
    let state = State::read(lab)?;
    let process = state.node(name)?.process.as_ref().with_context(|| format!("{name}: no netd runs"))?;
    let signal = if is_paused { Signal::SIGSTOP } else { Signal::SIGCONT };
    if !process.signal(signal) {
        bail!("{name}: netd has ended");
    }
    Ok(())
}

/// Ends every process of the node and of its pods at once, as if the power failed.
pub(crate) fn crash(lab: &str, name: &str) -> Result<()> {
    let state = State::read(lab)?;
    let node = state.node(name)?;
    cgroup::kill_all(&node.cgroup)?;
    cgroup::kill_all(&node.guests_cgroup())?;
    for process in [node.process, node.tunnel, node.holder].into_iter().flatten() {
        process.wait_gone(KILL_LIMIT);
    }
    state::edit(lab, |state| {
        let node = state.node_mut(name)?;
        (node.process, node.tunnel, node.holder) = (None, None, None);
        Ok(())
    })
}

/// Waits until a node has a way to all others, and they answer on it: nodes that start at once are ready while each believes
/// to be alone, and a way may lead to a node that has not heard of this one yet. Where a story is about nodes that do not reach
/// one another it goes on after [`KNOWN_LIMIT`], and after `limit` in any case.
pub(crate) fn wait_known(state: &State, node: &Node, limit: Duration) -> Result<()> {
    let others = state.nodes.len() - 1;
    let has_way =
        |peer: &PeerInfo| peer.path.is_some() || peer.problem.is_some() && state.overlay == "native";
    wait_until(limit.min(KNOWN_LIMIT), || {
        let status = status(&node.socket());
        Ok(status.is_ok_and(|status| {
            let peers = &status.overlay.peers;
            status.ready
                && status.pending.is_empty()
                && peers.len() == others
                && peers.iter().all(|peer| has_way(peer) && answers(node, peer))
        }))
    })?;
    Ok(())
}

fn answers(node: &Node, peer: &PeerInfo) -> bool {
    let Some(to) = peer.overlay.filter(|_| peer.path.is_some() && on_path("ping")) else { return true };
    tool("nsenter", &[&netns_flag(&node.netns), "ping", "-n", "-c1", "-W1", &to.to_string()]).is_ok()
}

/// Waits until a node is ready. The error says why it is not, with the end of its log.
pub(crate) fn wait_ready(lab: &str, name: &str, limit: Duration) -> Result<Status> {
    let state = State::read(lab)?;
    let node = state.node(name)?;
    let mut ready = None;
    let mut why = "it did not answer".to_owned();
    let in_time = wait_until(limit, || {
        if !node.alive() {
            why = "netd ended".into();
            return Err(not_ready(node, &why));
        }
        match status(&node.socket()) {
            Ok(status) if status.ready => ready = Some(status),
            Ok(status) => why = status.reasons.join("; "),
            Err(error) => why = error.to_string(),
        }
        Ok(ready.is_some())
    })?;
    match ready {
        Some(status) if in_time => Ok(status),
        _ => Err(not_ready(node, &format!("after {limit:?}: {why}"))),
    }
}

/// Asks a netd how it is doing.
pub(crate) fn status(socket: &Path) -> Result<Status> {
    ask(socket, async |client| client.status().await)
}

/// Sends one request to a netd. Callable from anywhere, also from within another runtime.
pub(crate) fn ask<T: Send>(
    socket: &Path,
    request: impl AsyncFnOnce(Client) -> Result<T, ClientError> + Send,
) -> Result<T> {
    let client = Client::new(socket.to_owned(), patient(ANSWER_LIMIT));
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(request(client))?)
        });
        thread.join().map_err(|_| anyhow!("the request to {} panicked", socket.display()))?
    })
}

/// The identity netd keeps in its state directory, once it has one: names its pins.
pub(crate) fn uuid(node: &Node) -> Option<Uuid> {
    let text = fs::read_to_string(node.dir.join("state/node-id")).ok()?;
    text.trim().parse().ok()
}

fn end(lab: &str, name: &str, signal: Signal, limit: Duration) -> Result<()> {
    let state = State::read(lab)?;
    let node = state.node(name)?;
    if let Some(process) = node.process {
        process.signal(signal);
        if !process.wait_gone(limit) {
            bail!("{name}: netd outlives {signal} by {limit:?}:\n{}", log_tail(&node.log(), LOG_LINES));
        }
    }
    remember(lab, name, None)
}

fn remember(lab: &str, name: &str, process: Option<Process>) -> Result<()> {
    state::edit(lab, |state| {
        state.node_mut(name)?.process = process;
        Ok(())
    })
}

fn not_ready(node: &Node, why: &str) -> anyhow::Error {
    let log = log_tail(&node.log(), LOG_LINES);
    anyhow!("{} is not ready: {why}\nlast lines of {}:\n{log}", node.name, node.log().display())
}
