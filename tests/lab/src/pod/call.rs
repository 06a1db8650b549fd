// SPDX-License-Identifier: Apache-2.0
//! One call of weft-cni for a pod.

use crate::members::{Node, Pod};
use crate::run::{Output, output, output_always, sibling};
use crate::state::State;
use crate::{names, place};
use anyhow::Result;
use serde_json::Value;
use std::process::Command;
use std::time::Duration;

/// A runtime gives a plugin minutes; here nothing may take that long.
const CNI_LIMIT: Duration = Duration::from_secs(30);

/// Runs weft-cni for a pod once, whatever its answer; for a further interface of the pod see [`Pod::through`].
///
/// `command` is what CNI_COMMAND says: ADD, DEL, CHECK, … ADD gets the earlier plugin's result where there is one, all
/// others get what ADD answered.
pub fn cni(lab: &str, pod: &Pod, command: &str) -> Result<Output> {
    let state = State::read(lab)?;
    let node = state.node(&pod.node)?;
    let mut config = pod.config.clone();
    let prev_result = if command == "ADD" { &pod.prev_result } else { &pod.result };
    if let Some(result) = prev_result {
        config["prevResult"] = result.clone();
    }
    let netns = names::netns_path(&pod.netns).display().to_string();
    let args =
        cni_args(pod).into_iter().map(|[key, value]| format!("{key}={value}")).collect::<Vec<_>>().join(";");
    let env = [
        ("CNI_CONTAINERID", pod.container_id.as_str()),
        ("CNI_NETNS", &netns),
        ("CNI_IFNAME", &pod.ifname),
        ("CNI_ARGS", &args),
    ];
    call(node, command, &env, &config)
}

/// What a runtime says of the pod in CNI_ARGS.
pub(super) fn cni_args(pod: &Pod) -> [[&str; 2]; 3] {
    [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", &pod.namespace], ["K8S_POD_NAME", &pod.name]]
}

/// Runs weft-cni in a node.
pub(super) fn call(node: &Node, command: &str, env: &[(&str, &str)], config: &Value) -> Result<Output> {
    let program = sibling("weft-cni")?;
    let mut plugin = Command::new(&program);
    plugin
        .env("CNI_COMMAND", command)
        .env("CNI_PATH", program.parent().unwrap_or(&program))
        .envs(env.iter().copied());
    let stdin = serde_json::to_vec(config)?;
    // A runtime runs in the node's own network namespace. Only ADD gives way to Ctrl-C: DEL is how we clean up.
    place::in_netns(&node.netns, || match command {
        "ADD" => output(&mut plugin, &stdin, CNI_LIMIT),
        _ => output_always(&mut plugin, &stdin, CNI_LIMIT),
    })
}
