// SPDX-License-Identifier: Apache-2.0
//! Where `exec` goes: a node, a pod, the outside host, or (for observers) the underlay itself or a node's NAT.

use crate::place::Place;
use crate::state::State;
use crate::usage::usage;
use crate::{cgroup, names, pod};
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;

/// The place of a node, a pod, `outside`, `net` or `<node>-nat`.
///
/// Commands run in a control group of the lab, so that `down` ends what is left of them.
pub(crate) fn place(state: &State, target: &str) -> Result<Place> {
    if let Some(node) = state.nodes.iter().find(|node| node.name == target) {
        return Ok(Place {
            netns: Some(node.netns.clone()),
            cgroup: Some(node.cgroup.clone()),
            resolv_conf: Some(node.dir.join("resolv.conf")),
            wireguard_dir: Some(made(node.wireguard_dir())?),
        });
    }
    if let Some(found) = state.pods.get(target).filter(|pod| pod.ready) {
        return Ok(Place {
            netns: Some(found.netns.clone()),
            cgroup: Some(pod::pod_cgroup(&state.name, found)?),
            resolv_conf: Some(pod::resolv_conf(&state.name, target)),
            wireguard_dir: None,
        });
    }
    let router = || state.nodes.iter().any(|node| node.nat.is_some() && names::nat(&node.name) == target);
    if matches!(target, "outside" | "net") || router() {
        let group = cgroup::lab(&state.name)?.join(target);
        cgroup::create(&group)?;
        let wireguard = names::lab_dir(&state.name).join("outside/wireguard");
        return Ok(Place {
            netns: Some(names::netns(&state.name, target)),
            cgroup: Some(group),
            resolv_conf: None,
            wireguard_dir: if target == "outside" { Some(made(wireguard)?) } else { None },
        });
    }
    Err(usage(format!("no node or pod {target:?} in lab {}", state.name)).into())
}

fn made(folder: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Ok(folder)
}
