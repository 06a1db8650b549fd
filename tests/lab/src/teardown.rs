// SPDX-License-Identifier: Apache-2.0
//! Taking a lab down: all of it, whatever state it is in, and nothing of others.

use crate::members::Node;
use crate::names::{self, BPF_DIR, LABS_DIR};
use crate::state::{self, State};
use crate::{cgroup, node, topology};
use anyhow::{Error, Result, anyhow};
use nix::sys::signal::Signal;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Takes a lab down; false when there was none. Goes on after errors and reports them all.
pub fn down(lab: &str) -> Result<bool> {
    if !names::lab_dir(lab).exists() {
        return Ok(false);
    }
    // A hanging verb must not keep the lab alive: after the lock's own time limit we go on.
    let _alone = state::hold(lab, true);
    let errors = take_down(lab);
    if errors.is_empty() {
        return Ok(true);
    }
    Err(anyhow!("lab {lab} is not fully down:\n{}", errors.join("\n")))
}

/// Takes down the labs whose owner died without doing it.
pub fn remove_orphans() {
    for lab in labs() {
        let owner = State::read(&lab).ok().and_then(|state| state.owner);
        if owner.is_some_and(|owner| !owner.alive()) {
            // Best effort: what stays is found by the next one, and by `weft-lab down`.
            let _ = down(&lab);
        }
    }
}

/// Names of the labs on this machine.
pub fn labs() -> Vec<String> {
    let entries = fs::read_dir(LABS_DIR).into_iter().flatten().flatten();
    let mut labs: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    labs.sort();
    labs
}

fn take_down(lab: &str) -> Vec<String> {
    let state = State::read(lab).ok();
    let mut errors = Vec::new();
    let mut step = |what: &str, result: Result<()>| {
        if let Err(error) = result {
            errors.push(format!("{what}: {error:#}"));
        }
    };
    // Processes first: they hold everything else. One write ends them all.
    step("processes", cgroup::lab(lab).and_then(|group| cgroup::remove(&group)));
    if let Some(state) = &state {
        step("processes", end_recorded(state));
    }
    // While their namespaces are there: pins name them.
    let pins: Vec<PathBuf> = state.iter().flat_map(pins_of).collect();
    for netns in netns_of(lab, state.as_ref()) {
        step(&netns, topology::delete_netns(&netns));
    }
    for pin in pins {
        step("pins", remove_tree(&pin));
    }
    remove_shared_parents(lab, state.as_ref());
    // The directory last: as long as it is there, `down` can be tried again.
    if errors.is_empty() {
        match remove_tree(&names::lab_dir(lab)) {
            Ok(()) => remove_if_empty(Path::new(LABS_DIR)),
            Err(error) => errors.push(format!("files: {error:#}")),
        }
    }
    errors
}

/// Processes that never reached their control group.
fn end_recorded(state: &State) -> Result<()> {
    let nodes = state.nodes.iter().flat_map(|node| [node.process, node.tunnel, node.holder]);
    let etcd = state.etcd.iter().map(|member| member.process);
    for process in nodes.chain(etcd).chain([state.outside.process]).flatten() {
        process.signal(Signal::SIGKILL);
        process.wait_gone(KILL_LIMIT);
    }
    Ok(())
}

/// What the state lists; without a readable state the names that every lab has.
fn netns_of(lab: &str, state: Option<&State>) -> Vec<String> {
    if let Some(state) = state {
        return state.netns.iter().cloned().collect();
    }
    let etcd = (1..=3).map(|index| format!("etcd{index}"));
    let nodes = (1..=names::NODES_MAX).map(names::node).flat_map(|node| [names::nat(&node), node]);
    let members = ["net".to_owned(), "outside".to_owned()].into_iter().chain(etcd).chain(nodes);
    members.map(|member| names::netns(lab, &member)).collect()
}

/// The pins of the nodes' identities, also of those that they had before: each has a mark `netns-INODE-UUID` beside it.
fn pins_of(state: &State) -> Vec<PathBuf> {
    let cluster = Path::new(BPF_DIR).join(&state.cluster);
    let mut pins: Vec<PathBuf> =
        state.nodes.iter().filter_map(node::uuid).map(|uuid| cluster.join(uuid.to_string())).collect();
    let inode = |node: &Node| fs::metadata(names::netns_path(&node.netns)).ok().map(|found| found.ino());
    let ours: Vec<u64> = state.nodes.iter().filter_map(inode).collect();
    for mark in fs::read_dir(&cluster).into_iter().flatten().flatten() {
        let name = mark.file_name();
        let parts = name.to_str().and_then(|name| name.strip_prefix("netns-")?.split_once('-'));
        if let Some((netns, uuid)) = parts
            && netns.parse().is_ok_and(|netns| ours.contains(&netns))
        {
            pins.extend([cluster.join(uuid), mark.path()]);
        }
    }
    pins
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::new(error).context(path.display().to_string()))
        }
        _ => Ok(()),
    }
}

/// What several labs share goes with the last one: another lab may be about to make something inside.
fn remove_shared_parents(lab: &str, state: Option<&State>) {
    let others: Vec<_> = labs().into_iter().filter(|other| other != lab).collect();
    if let Some(state) = state {
        let same_cluster =
            |other: &String| State::read(other).is_ok_and(|other| other.cluster == state.cluster);
        if !others.iter().any(same_cluster) {
            remove_if_empty(&Path::new(BPF_DIR).join(&state.cluster));
        }
    }
    if others.is_empty() {
        remove_if_empty(Path::new(BPF_DIR));
        if let Ok(mount) = cgroup::v2_mount() {
            remove_if_empty(&mount.join("weft"));
        }
    }
}

fn remove_if_empty(path: &Path) {
    let _ = fs::remove_dir(path);
}
