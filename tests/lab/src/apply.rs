// SPDX-License-Identifier: Apache-2.0
//! `apply`: objects go in through one node, and every live node has programmed them and answers their names when it returns.

use crate::interrupt::wait_until;
use crate::node;
use crate::patience::slow;
use crate::place::in_netns;
use crate::run::{output, sibling};
use crate::state::State;
use anyhow::{Context, Result, bail};
use netd_api::ApplyReply;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Writing objects takes a few transactions; the rest of the time is for waiting.
const WRITE_LIMIT: Duration = Duration::from_secs(30);

/// Applies a file through the first live node; with `wait`, returns when every live node has programmed it.
pub(crate) fn apply(lab: &str, file: &Path, wait: Option<Duration>) -> Result<ApplyReply> {
    let started = Instant::now();
    let state = State::read(lab)?;
    let node = state
        .nodes
        .iter()
        .find(|node| node.alive())
        .context("no node's netd runs: weft-lab node start n1")?;
    // The CLI names file, line and field of an error; nobody needs to do that twice.
    let mut command = Command::new(sibling("weft")?);
    command.arg("--socket").arg(node.socket()).args(["--json", "apply", "-f"]).arg(file);
    let answer =
        in_netns(&node.netns, || output(&mut command, b"", wait.unwrap_or(WRITE_LIMIT).max(WRITE_LIMIT)))?;
    let reply: ApplyReply = answer.json(&format!("apply on {}", node.name))?;
    if let Some(limit) = wait {
        wait_programmed(lab, reply.revision, limit.saturating_sub(started.elapsed() / slow()))?;
    }
    Ok(reply)
}

/// Waits until every live node has programmed a revision and answers its names, and what the nodes' own pods add to it.
///
/// A node answers a new service with endpoints of its own, which get a revision of their own: the first revision at
/// which a node owes nothing more to `revision` is waited for too.
pub(crate) fn wait_programmed(lab: &str, revision: u64, limit: Duration) -> Result<()> {
    let mut settled_at = BTreeMap::new();
    let mut late = Vec::new();
    let done = wait_until(limit, || {
        late.clear();
        let mut reached = BTreeMap::new();
        for node in State::read(lab)?.nodes.iter().filter(|node| node.alive()) {
            match node::status(&node.socket()) {
                Ok(status) => {
                    reached.insert(node.name.clone(), (status.programmed_revision, status.named_revision));
                    if status.published_revision >= revision {
                        settled_at.entry(node.name.clone()).or_insert(status.published_revision);
                    } else {
                        late.push(format!("{} has published up to {}", node.name, status.published_revision));
                    }
                }
                Err(error) => late.push(format!("{}: {error:#}", node.name)),
            }
        }
        let wanted = settled_at.values().copied().max().unwrap_or_default().max(revision);
        late.extend(reached.iter().filter_map(|(node, (programmed, named))| {
            let is_behind = (*programmed).min(*named) < wanted;
            is_behind.then(|| format!("{node} has programmed {programmed} and named {named} of {wanted}"))
        }));
        Ok(late.is_empty())
    })?;
    if !done {
        bail!("revision {revision} is not programmed everywhere after {limit:?}: {}", late.join(", "));
    }
    Ok(())
}
