// SPDX-License-Identifier: Apache-2.0
//! Pods: made and removed by the real weft-cni, with its environment and JSON on standard input, as a runtime does.

mod add;
mod cache;
mod call;
mod node_verbs;
mod remove;
mod resolv_conf;
mod spec;

pub(crate) use add::{add, bare};
pub use call::cni;
pub(crate) use node_verbs::{check, gc, status};
pub(crate) use remove::{remove, remove_interface};
pub(crate) use resolv_conf::path as resolv_conf;
pub use spec::{Bandwidth, NETWORK, PodSpec, PortMapping, network_config};

use crate::members::Pod;
use crate::state::{self, State};
use anyhow::Result;
use std::path::PathBuf;

/// The control group of a pod: below its node's, or beside it.
pub fn pod_cgroup(lab: &str, pod: &Pod) -> Result<PathBuf> {
    let state = State::read(lab)?;
    let node = state.node(&pod.node)?;
    let parent = if pod.outside_cgroup { node.guests_cgroup() } else { node.cgroup.clone() };
    Ok(parent.join(&pod.name))
}

fn forget(lab: &str, pod: &str) -> Result<()> {
    state::edit(lab, |state| {
        state.pods.remove(pod);
        Ok(())
    })
}
