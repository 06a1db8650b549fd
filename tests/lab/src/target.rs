// SPDX-License-Identifier: Apache-2.0
//! Where `exec` goes: a node, a pod, the outside host, or (for observers) the underlay itself.

use crate::place::Place;
use crate::state::State;
use crate::usage::usage;
use crate::{cgroup, names, pod};
use anyhow::Result;

/// The place of a node, a pod, `outside` or `net`.
///
/// Commands run in a control group of the lab, so that `down` ends what is left of them.
pub(crate) fn place(state: &State, target: &str) -> Result<Place> {
    if let Some(node) = state.nodes.iter().find(|node| node.name == target) {
        return Ok(Place {
            netns: Some(node.netns.clone()),
            cgroup: Some(node.cgroup.clone()),
            resolv_conf: Some(node.dir.join("resolv.conf")),
        });
    }
    if let Some(found) = state.pods.get(target).filter(|pod| pod.ready) {
        return Ok(Place {
            netns: Some(found.netns.clone()),
            cgroup: Some(pod::pod_cgroup(&state.name, found)?),
            resolv_conf: Some(pod::resolv_conf(&state.name, target)),
        });
    }
    if matches!(target, "outside" | "net") {
        let group = cgroup::lab(&state.name)?.join(target);
        cgroup::create(&group)?;
        return Ok(Place {
            netns: Some(names::netns(&state.name, target)),
            cgroup: Some(group),
            resolv_conf: None,
        });
    }
    Err(usage(format!("no node or pod {target:?} in lab {}", state.name)).into())
}
