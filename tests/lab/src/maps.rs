// SPDX-License-Identifier: Apache-2.0
//! What is in a node's pinned maps, read from the kernel: a witness that does not ask netd.

use crate::names::BPF_DIR;
use crate::node;
use crate::state::State;
use anyhow::{Context, Result};
use std::net::IpAddr;
use std::path::PathBuf;

/// Addresses in a node's maps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Maps {
    /// Of the node's pods, once for each entry.
    pub pods: Vec<IpAddr>,
    /// Of backends, once for each entry.
    pub backends: Vec<IpAddr>,
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
    let pins = pin_dir(state, node)?.join(ebpf_abi::ABI_VERSION.to_string());
    let pinned = ebpf_loader::look(&pins).with_context(|| pins.display().to_string())?;
    Ok(Maps {
        pods: pinned.pods,
        backends: pinned.image.backends.values().map(|backend| backend.address()).collect(),
        frontends: pinned.image.services.len(),
    })
}
