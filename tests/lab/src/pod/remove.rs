// SPDX-License-Identifier: Apache-2.0
//! Removing a pod, or one of its interfaces.

use super::{add, cache, call, forget, pod_cgroup, resolv_conf};
use crate::members::Pod;
use crate::state::State;
use crate::{cgroup, topology, usage};
use anyhow::Result;
use std::fs;

/// Removes a pod: its processes, CNI DEL of each interface, the last one first, control group, namespace. A failed DEL
/// leaves it for another try.
pub(crate) fn remove(lab: &str, node: &str, name: &str) -> Result<()> {
    let pod = find(lab, node, name)?;
    cgroup::kill_all(&pod_cgroup(lab, &pod)?)?;
    for seen in pod.interfaces().iter().rev() {
        delete(lab, seen)?;
    }
    discard(lab, &pod)
}

/// Removes one interface of a pod.
pub(crate) fn remove_interface(lab: &str, node: &str, name: &str, ifname: &str) -> Result<()> {
    let pod = find(lab, node, name)?;
    let seen = pod.through(ifname).filter(|seen| !seen.bare());
    let seen = seen.ok_or_else(|| usage::usage(format!("pod {name} has no interface {ifname:?}")))?;
    delete(lab, &seen)?;
    add::release(lab, &seen)
}

/// Removes all that is ours of a pod.
pub(super) fn discard(lab: &str, pod: &Pod) -> Result<()> {
    cgroup::remove(&pod_cgroup(lab, pod)?)?;
    topology::remove_netns(lab, &pod.netns)?;
    if let Some(folder) = resolv_conf::path(lab, &pod.name).parent().filter(|folder| folder.exists()) {
        fs::remove_dir_all(folder)?;
    }
    forget(lab, &pod.name)
}

/// The pod of this name on this node.
pub(super) fn find(lab: &str, node: &str, name: &str) -> Result<Pod> {
    let mut state = State::read(lab)?;
    state.node(node)?;
    let pod = state.pods.remove(name).filter(|pod| pod.node == node);
    pod.ok_or_else(|| usage::usage(format!("no pod {name:?} on {node}")).into())
}

fn delete(lab: &str, seen: &Pod) -> Result<()> {
    call::cni(lab, seen, "DEL")?.text(&format!("DEL of pod {} ({})", seen.name, seen.ifname))?;
    cache::remove(State::read(lab)?.node(&seen.node)?, seen)
}
