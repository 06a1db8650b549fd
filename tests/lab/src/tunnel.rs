// SPDX-License-Identifier: Apache-2.0
//! A node's weft-wireguard: a process of its own beside netd, so that tunnels outlive a netd and a netd its tunnels.

use crate::interrupt::wait_until;
use crate::members::Node;
use crate::place::Place;
use crate::process::{self, Process, log_tail};
use crate::run::{sibling, tool};
use crate::state::{self, State};
use crate::usage::usage;
use anyhow::{Result, bail};
use nix::sys::signal::Signal;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// The devices it serves; netd knows them by these names.
pub const TUNNEL_DEVICES: [&str; 2] = ["weft.wg0", "weft.wg1"];
/// It needs some milliseconds; more means something is wrong.
const READY_LIMIT: Duration = Duration::from_secs(10);
/// Descriptors and configurations change hands within milliseconds; an old one that does not let go is stuck.
const HANDOVER_LIMIT: Duration = Duration::from_secs(15);
const KILL_LIMIT: Duration = Duration::from_secs(5);
const LOG_LINES: usize = 15;

/// Starts it unless it runs, and waits until its control sockets answer, those of devices that the kernel has excepted.
pub(crate) fn start(lab: &str, name: &str) -> Result<()> {
    let state = having(lab, name)?;
    let node = state.node(name)?;
    if node.tunnel_alive() {
        return Ok(());
    }
    let process = launch(&state, node)?;
    remember(lab, name, Some(process))?;
    wait_ready(node, process)
}

/// Ends it with SIGKILL and nothing else.
pub(crate) fn kill(lab: &str, name: &str) -> Result<()> {
    let state = having(lab, name)?;
    let node = state.node(name)?;
    if let Some(process) = node.tunnel {
        process.signal(Signal::SIGKILL);
        if !process.wait_gone(KILL_LIMIT) {
            bail!("{name}: weft-wireguard outlives SIGKILL by {KILL_LIMIT:?}");
        }
    }
    remember(lab, name, None)
}

/// Starts a second one, as an upgrade does: it takes devices, sockets and keys over, and the first one ends.
pub(crate) fn restart(lab: &str, name: &str) -> Result<()> {
    let state = having(lab, name)?;
    let node = state.node(name)?;
    let Some(old) = node.tunnel.filter(Process::alive) else {
        return start(lab, name);
    };
    let new = launch(&state, node)?;
    let over = wait_until(HANDOVER_LIMIT, || {
        if !new.alive() {
            new.wait_gone(KILL_LIMIT);
            bail!("{name}: the new weft-wireguard ended, the old one goes on:\n{}", said(node));
        }
        Ok(!old.alive())
    })?;
    if !over {
        new.signal(Signal::SIGKILL);
        new.wait_gone(KILL_LIMIT);
        bail!("{name}: the old weft-wireguard did not hand over in {HANDOVER_LIMIT:?}:\n{}", said(node));
    }
    old.wait_gone(KILL_LIMIT);
    remember(lab, name, Some(new))?;
    wait_ready(node, new)
}

/// The state of a lab whose nodes have a weft-wireguard.
fn having(lab: &str, name: &str) -> Result<State> {
    let state = State::read(lab)?;
    state.node(name)?;
    if !state.tunnel {
        let what = format!("the nodes of lab {lab} have no weft-wireguard: weft-lab up --tunnel");
        return Err(usage(what).into());
    }
    Ok(state)
}

fn launch(state: &State, node: &Node) -> Result<Process> {
    let mut argv = vec![sibling("weft-wireguard")?.into_os_string()];
    argv.extend(["--socket-dir".into(), node.wireguard_dir().into_os_string()]);
    argv.extend(["--run-dir".into(), node.dir.join("run").into_os_string()]);
    argv.extend(state.tunnel_args.iter().map(Into::into));
    argv.extend(TUNNEL_DEVICES.map(Into::into));
    let place =
        Place { netns: Some(node.netns.clone()), cgroup: Some(node.cgroup.clone()), ..Place::default() };
    process::start(&place, &argv, &node.tunnel_log())
}

fn wait_ready(node: &Node, process: Process) -> Result<()> {
    let answers = |device: &str| {
        // What a killed one left behind refuses connections.
        UnixStream::connect(node.wireguard_dir().join(format!("{device}.sock"))).is_ok()
    };
    let ready = wait_until(READY_LIMIT, || {
        if !process.alive() {
            bail!("{}: weft-wireguard ended:\n{}", node.name, said(node));
        }
        if TUNNEL_DEVICES.into_iter().all(answers) {
            return Ok(true);
        }
        // Those that netd made in the kernel are not its business.
        let kernels = tool("ip", &["-n", &node.netns, "-o", "link", "show", "type", "wireguard"]);
        let kernels = kernels.unwrap_or_default();
        Ok(TUNNEL_DEVICES.into_iter().all(|device| kernels.contains(device) || answers(device)))
    })?;
    if !ready {
        bail!("{}: weft-wireguard does not answer after {READY_LIMIT:?}:\n{}", node.name, said(node));
    }
    Ok(())
}

fn said(node: &Node) -> String {
    log_tail(&node.tunnel_log(), LOG_LINES)
}

fn remember(lab: &str, name: &str, process: Option<Process>) -> Result<()> {
    state::edit(lab, |state| {
        state.node_mut(name)?.tunnel = process;
        Ok(())
    })
}
