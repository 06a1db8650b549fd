// SPDX-License-Identifier: Apache-2.0
//! CHECK, GC and STATUS, as a runtime asks for them.

use super::remove::find;
use super::spec::{NETWORK, network_config};
use super::{cache, call};
use crate::members::Pod;
use crate::run::Output;
use crate::state::State;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// CHECK of each interface of a pod, with the results from the runtime's cache. The error is that of the first that
/// fails.
pub(crate) fn check(lab: &str, node: &str, name: &str) -> Result<()> {
    let pod = find(lab, node, name)?;
    for seen in pod.interfaces() {
        let result = cache::load(State::read(lab)?.node(node)?, &seen)?;
        let ifname = seen.ifname.clone();
        call::cni(lab, &Pod { result: Some(result), ..seen }, "CHECK")?
            .text(&format!("CHECK of pod {name} ({ifname})"))?;
    }
    Ok(())
}

/// GC of each network of a node: what the lab's pods have is valid, save for the pods in `without`.
pub(crate) fn gc(lab: &str, node: &str, without: &[&str]) -> Result<()> {
    let state = State::read(lab)?;
    let own = state.node(node)?;
    let attachments: Vec<Pod> =
        state.pods.values().filter(|pod| pod.node == node).flat_map(Pod::interfaces).collect();
    let networks: BTreeSet<&str> = attachments.iter().map(Pod::network).chain([NETWORK]).collect();
    for network in networks {
        let valid: Vec<Value> = attachments
            .iter()
            .filter(|pod| pod.network() == network && !without.contains(&pod.name.as_str()))
            .map(|pod| json!({ "containerID": pod.container_id, "ifname": pod.ifname }))
            .collect();
        let mut config = network_config(own);
        config["name"] = network.into();
        config["cni.dev/valid-attachments"] = valid.into();
        call::call(own, "GC", &[], &config)?.text(&format!("GC of network {network} on {node}"))?;
    }
    Ok(())
}

/// STATUS, whatever its answer.
pub(crate) fn status(lab: &str, node: &str) -> Result<Output> {
    let state = State::read(lab)?;
    let node = state.node(node)?;
    call::call(node, "STATUS", &[], &network_config(node)).context("STATUS")
}
