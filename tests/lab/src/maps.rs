// SPDX-License-Identifier: Apache-2.0
//! What is in a node's pinned maps, read from the kernel: a witness that does not ask netd.

use crate::names::BPF_DIR;
use crate::node;
use crate::state::State;
use anyhow::{Context, Result};
use ebpf_loader::{AttachMode, Datapath, DatapathConfig};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

/// Addresses in a node's maps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Maps {
    /// Of the node's pods, once for each entry.
    pub pods: Vec<IpAddr>,
    /// Of backends, once for each entry.
    pub backends: Vec<Ipv4Addr>,
    /// Number of frontends.
    pub frontends: usize,
}

/// Where a node's pins lie; none before netd made its identity.
pub(crate) fn pin_dir(state: &State, node: &str) -> Result<PathBuf> {
    let uuid = node::uuid(state.node(node)?).with_context(|| format!("{node} has no identity yet"))?;
    Ok(PathBuf::from(BPF_DIR).join(&state.cluster).join(uuid.to_string()))
}

/// Reads a node's maps.
pub(crate) fn read(state: &State, node: &str) -> Result<Maps> {
    let dir = pin_dir(state, node)?;
    let mut versions = fs::read_dir(&dir).with_context(|| dir.display().to_string())?.flatten();
    let pin_dir = versions.next().with_context(|| format!("{} is empty", dir.display()))?.path();
    let cgroup_root = state.node(node)?.cgroup.clone();
    let mut datapath = Datapath::open(DatapathConfig { pin_dir, cgroup_root, attach: AttachMode::Auto })?;
    let image = datapath.observed_image()?;
    Ok(Maps {
        pods: datapath.pods()?.into_values().flat_map(|pod| pod.addresses).collect(),
        backends: image.backends.values().map(|backend| backend.address()).collect(),
        frontends: image.services.len(),
    })
}
