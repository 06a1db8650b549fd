// SPDX-License-Identifier: Apache-2.0
//! A node's `netd hold-sockets`: a process of its own beside netd, so that DNS questions wait while netd is away.

use crate::interrupt::wait_until;
use crate::members::Node;
use crate::place::Place;
use crate::process::{self, Process, log_tail};
use crate::run::sibling;
use crate::state::{self, State};
use anyhow::{Result, bail};
use nix::sys::signal::Signal;
use socket2::{Domain, SockAddr, Socket, Type};
use std::path::Path;
use std::time::Duration;

/// It opens one socket; more means something is wrong.
const READY_LIMIT: Duration = Duration::from_secs(10);
const KILL_LIMIT: Duration = Duration::from_secs(5);
const LOG_LINES: usize = 15;

/// Starts it unless it runs, and waits until it answers.
pub(crate) fn start(lab: &str, name: &str) -> Result<()> {
    let state = State::read(lab)?;
    let node = state.node(name)?;
    if node.holder.is_some_and(|process| process.alive()) {
        return Ok(());
    }
    let mut argv = vec![sibling("netd")?.into_os_string(), "--config".into()];
    argv.extend([node.dir.join("netd.toml").into_os_string(), "hold-sockets".into()]);
    let place =
        Place { netns: Some(node.netns.clone()), cgroup: Some(node.cgroup.clone()), ..Place::default() };
    let process = process::start(&place, &argv, &node.holder_log())?;
    remember(lab, name, Some(process))?;
    wait_ready(node, process)
}

/// Ends it with SIGKILL and nothing else: what it held is closed unless netd has it, too.
pub(crate) fn kill(lab: &str, name: &str) -> Result<()> {
    let state = State::read(lab)?;
    if let Some(process) = state.node(name)?.holder {
        process.signal(Signal::SIGKILL);
        if !process.wait_gone(KILL_LIMIT) {
            bail!("{name}: netd hold-sockets outlives SIGKILL by {KILL_LIMIT:?}");
        }
    }
    remember(lab, name, None)
}

fn wait_ready(node: &Node, process: Process) -> Result<()> {
    let socket = node.dir.join("run/dns-holder.sock");
    let said = || log_tail(&node.holder_log(), LOG_LINES);
    let ready = wait_until(READY_LIMIT, || {
        if !process.alive() {
            bail!("{}: netd hold-sockets ended:\n{}", node.name, said());
        }
        Ok(answers(&socket))
    })?;
    if !ready {
        bail!("{}: netd hold-sockets does not answer after {READY_LIMIT:?}:\n{}", node.name, said());
    }
    Ok(())
}

/// What a killed one left behind refuses connections.
fn answers(path: &Path) -> bool {
    let connect = || Socket::new(Domain::UNIX, Type::SEQPACKET, None)?.connect(&SockAddr::unix(path)?);
    connect().is_ok()
}

fn remember(lab: &str, name: &str, process: Option<Process>) -> Result<()> {
    state::edit(lab, |state| {
        state.node_mut(name)?.holder = process;
        Ok(())
    })
}
