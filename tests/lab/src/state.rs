// SPDX-License-Identifier: Apache-2.0
//! What a lab consists of, on disk: `/run/weft-lab/<lab>/lab.json`.
//!
//! Every object is written down before it is made, so that whatever stops a verb half-way, `down` finds it.
//! Verbs hold the lab's directory lock shared, `up` and `down` alone; changes of the file are serialised by a
//! lock of their own and atomic.

use crate::families::{Families, StoreKind};
use crate::members::{EtcdMember, Node, Outside, Pod};
use crate::names;
use crate::process::Process;
use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

const FILE: &str = "lab.json";
/// A verb that holds the directory longer than this hangs; `down` goes on without it.
pub(crate) const LOCK_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// A whole lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// The lab's name.
    pub name: String,
    /// The cluster name given to netd: the lab's name unless a test wants otherwise.
    pub cluster: String,
    /// The process that takes the lab down when it ends (tests, demo); none for `weft-lab up`.
    pub owner: Option<Process>,
    /// Whether `up` came to its end.
    pub complete: bool,
    /// Address families of pods.
    pub families: Families,
    /// Where the cluster's state lies.
    pub store: StoreKind,
    /// Overlay backend given to netd.
    pub overlay: String,
    /// More arguments for netd.
    pub netd_args: Vec<String>,
    /// Whether each node has a weft-wireguard.
    #[serde(default)]
    pub tunnel: bool,
    /// More arguments for weft-wireguard.
    #[serde(default)]
    pub tunnel_args: Vec<String>,
    /// Address families of the underlay: whether nodes have IPv6 there, and whether they talk over it.
    #[serde(default)]
    pub underlay: Families,
    /// Network namespaces, by name.
    pub netns: BTreeSet<String>,
    /// The store's members; none where the store is a file.
    pub etcd: Vec<EtcdMember>,
    /// The host that is no member.
    pub outside: Outside,
    /// Nodes in their order: n1, n2, …
    pub nodes: Vec<Node>,
    /// Pods by name.
    pub pods: BTreeMap<String, Pod>,
    /// Cut connections: node and what it is cut from (`all`, `store` or a node).
    pub partitions: BTreeSet<(String, String)>,
}

impl State {
    /// Reads the state of a lab.
    pub fn read(lab: &str) -> Result<State> {
        let path = names::lab_dir(lab).join(FILE);
        let text = fs::read_to_string(&path)
            .map_err(|error| anyhow!("lab {lab} is not there ({}: {error}): weft-lab up", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{}: damaged: weft-lab down", path.display()))
    }

    /// Writes the state for the first time.
    pub fn create(&self) -> Result<()> {
        write(&names::lab_dir(&self.name), self)
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        let known = || self.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(", ");
        let found = self.nodes.iter().find(|node| node.name == name);
        found.ok_or_else(|| {
            crate::usage::usage(format!("no node {name:?} in this lab (nodes: {})", known())).into()
        })
    }

    /// Like [`State::node`], to change it.
    pub fn node_mut(&mut self, name: &str) -> Result<&mut Node> {
        self.node(name)?;
        self.nodes.iter_mut().find(|node| node.name == name).context("the node was there")
    }
}

/// Changes the state of a lab under its lock; the new state is on disk when this returns.
pub(crate) fn edit<T>(lab: &str, change: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
    let dir = names::lab_dir(lab);
    let path = dir.join("lab.lock");
    let file = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(|error| anyhow!("lab {lab} is not there ({}: {error}): weft-lab up", path.display()))?;
    let _lock = lock(file, FlockArg::LockExclusiveNonblock, &path)?;
    let mut state = State::read(lab)?;
    let value = change(&mut state)?;
    write(&dir, &state)?;
    Ok(value)
}

/// Holds a lab in place: shared for verbs, alone for `up` and `down`. Errors when the lab is not there.
pub(crate) fn hold(lab: &str, alone: bool) -> Result<Flock<File>> {
    let dir = names::lab_dir(lab);
    let mode = if alone { FlockArg::LockExclusiveNonblock } else { FlockArg::LockSharedNonblock };
    let open = || File::open(&dir).map_err(|error| anyhow!("lab {lab} is not there ({error}): weft-lab up"));
    let lock = lock(open()?, mode, &dir)?;
    // While we waited, `down` may have removed the directory, and `up` made another.
    let same = fs::metadata(&dir).is_ok_and(|now| lock.metadata().is_ok_and(|held| held.ino() == now.ino()));
    if !same {
        bail!("lab {lab} was taken down meanwhile");
    }
    Ok(lock)
}

fn lock(mut file: File, mode: FlockArg, path: &Path) -> Result<Flock<File>> {
    let end = Instant::now() + LOCK_LIMIT;
    loop {
        match Flock::lock(file, mode) {
            Ok(lock) => return Ok(lock),
            Err((_, error)) if Instant::now() >= end => {
                bail!("{}: another weft-lab holds it for more than {LOCK_LIMIT:?} ({error})", path.display())
            }
            Err((back, _)) => file = back,
        }
        thread::sleep(POLL);
    }
}

fn write(dir: &Path, state: &State) -> Result<()> {
    let (new, path) = (dir.join("lab.json.new"), dir.join(FILE));
    fs::write(&new, serde_json::to_vec_pretty(state)?).with_context(|| new.display().to_string())?;
    fs::rename(&new, &path).with_context(|| path.display().to_string())
}
