// SPDX-License-Identifier: Apache-2.0
//! Adding a pod, or one more interface to it.

use super::spec::PodSpec;
use super::{cache, call, forget, pod_cgroup, remove, resolv_conf};
use crate::members::{Attachment, Node, Pod};
use crate::state::{self, State};
use crate::{cgroup, names, topology};
use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use std::net::IpAddr;
use uuid::Uuid;

/// Adds a pod: namespace, control group, CNI ADD. Where the pod is there already, without this interface: CNI ADD.
/// Undone when ADD fails.
pub(crate) fn add(lab: &str, spec: &PodSpec) -> Result<Pod> {
    let (pod, new) = reserve(lab, spec, |node| spec.config(node))?;
    if new {
        make_room(lab, &pod)?;
    }
    attach(lab, &pod).or_else(|error| {
        // Runtimes answer a failed ADD with DEL. It cannot add to what the message already says.
        let _ = call::cni(lab, &pod, "DEL");
        if new {
            remove::discard(lab, &pod)?
        } else {
            release(lab, &pod)?
        }
        Err(error)
    })
}

/// Makes a pod's namespace and control group, without any ADD: for what an earlier plugin of a chain would make.
pub(crate) fn bare(lab: &str, spec: &PodSpec) -> Result<Pod> {
    let (pod, new) = reserve(lab, spec, |_| Value::Null)?;
    if !new {
        return Err(exists(&pod));
    }
    make_room(lab, &pod)?;
    state::edit(lab, |state| {
        let pod = state.pods.get_mut(&pod.name).context("the pod was taken down meanwhile")?;
        pod.ready = true;
        Ok(pod.clone())
    })
}

/// Writes the interface down before it is made. The pod as seen through it, and whether it is a new pod.
fn reserve(lab: &str, spec: &PodSpec, config: impl FnOnce(&Node) -> Value) -> Result<(Pod, bool)> {
    state::edit(lab, |state| {
        let node = state.node(&spec.node)?.clone();
        names::check_pod(&spec.name, state.nodes.iter().map(|node| node.name.as_str()))?;
        let config = config(&node);
        if let Some(pod) = state.pods.get_mut(&spec.name) {
            return join(pod, spec, config).map(|pod| (pod, false));
        }
        let pod = Pod {
            name: spec.name.clone(),
            node: spec.node.clone(),
            namespace: spec.namespace.clone(),
            netns: names::netns(lab, &spec.name),
            container_id: Uuid::new_v4().simple().to_string(),
            ready: false,
            ifname: spec.ifname.clone(),
            config,
            prev_result: spec.prev_result.clone(),
            ips: Vec::new(),
            result: None,
            further: Vec::new(),
            outside_cgroup: spec.outside_cgroup,
        };
        state.pods.insert(pod.name.clone(), pod.clone());
        Ok((pod, true))
    })
}

fn join(pod: &mut Pod, spec: &PodSpec, config: Value) -> Result<Pod> {
    if pod.node != spec.node || !pod.ready {
        return Err(exists(pod));
    }
    if pod.bare() {
        pod.ifname.clone_from(&spec.ifname);
        pod.config = config;
        pod.prev_result.clone_from(&spec.prev_result);
        return Ok(pod.clone());
    }
    if pod.through(&spec.ifname).is_some() {
        bail!("pod {} exists already, on {}, with an interface {}", pod.name, pod.node, spec.ifname);
    }
    pod.further.push(Attachment {
        ifname: spec.ifname.clone(),
        config,
        prev_result: spec.prev_result.clone(),
        ips: Vec::new(),
        result: None,
    });
    pod.through(&spec.ifname).context("the interface was just written down")
}

fn exists(pod: &Pod) -> anyhow::Error {
    anyhow!("pod {} exists already, on {}", pod.name, pod.node)
}

/// Gives up an interface that was written down and did not come to be.
pub(super) fn release(lab: &str, seen: &Pod) -> Result<()> {
    state::edit(lab, |state| {
        if let Some(pod) = state.pods.get_mut(&seen.name) {
            if pod.ifname == seen.ifname {
                (pod.config, pod.prev_result, pod.result) = (Value::Null, None, None);
                pod.ips.clear();
            } else {
                pod.further.retain(|further| further.ifname != seen.ifname);
            }
        }
        Ok(())
    })
}

fn make_room(lab: &str, pod: &Pod) -> Result<()> {
    // Until the namespace is ours there is nothing to undo but the entry.
    if let Err(error) = topology::add_netns(lab, &pod.netns) {
        forget(lab, &pod.name)?;
        return Err(error);
    }
    cgroup::create(&pod_cgroup(lab, pod)?)
        .and_then(|()| resolv_conf::write(lab, &pod.name, &Value::Null))
        .or_else(|error| {
            remove::discard(lab, pod)?;
            Err(error)
        })
}

fn attach(lab: &str, seen: &Pod) -> Result<Pod> {
    let answer = call::cni(lab, seen, "ADD")?;
    if !answer.ok() {
        let said = [answer.stdout.trim(), answer.stderr.trim()].join("\n");
        let Pod { name, node, ifname, .. } = seen;
        bail!("ADD of pod {name} ({ifname}) on {node} failed (exit code {:?}): {}", answer.code, said.trim());
    }
    let result: Value = answer.json("the result of ADD")?;
    let ips = result_ips(&result)?;
    cache::store(State::read(lab)?.node(&seen.node)?, seen, &result)?;
    state::edit(lab, |state| {
        let pod = state.pods.get_mut(&seen.name).context("the pod was taken down meanwhile")?;
        if pod.ifname == seen.ifname {
            resolv_conf::write(lab, &pod.name, &result["dns"])?;
            (pod.ready, pod.ips, pod.result) = (true, ips, Some(result));
        } else {
            let further = pod.further.iter_mut().find(|further| further.ifname == seen.ifname);
            let further = further.context("the interface was removed meanwhile")?;
            (further.ips, further.result) = (ips, Some(result));
        }
        pod.through(&seen.ifname).context("the interface was removed meanwhile")
    })
}

/// The bare addresses of a CNI result: `ips[].address` are written with a prefix length.
fn result_ips(result: &Value) -> Result<Vec<IpAddr>> {
    let bare = |entry: &Value| {
        let address = entry["address"].as_str()?.split('/').next()?;
        address.parse().ok()
    };
    let ips = result["ips"].as_array().map(|ips| ips.iter().map(bare).collect::<Option<Vec<_>>>());
    ips.flatten()
        .filter(|ips| !ips.is_empty())
        .ok_or_else(|| anyhow!("a CNI result without addresses: {result}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_result_s_addresses_lose_their_prefix_length() {
        let result = json!({ "ips": [{ "address": "10.244.0.5/32" }, { "address": "fd00:10:244::5/128" }] });
        let wanted: Vec<IpAddr> = ["10.244.0.5", "fd00:10:244::5"].map(|ip| ip.parse().unwrap()).to_vec();
        assert_eq!(result_ips(&result).unwrap(), wanted);
        assert!(result_ips(&json!({ "ips": [] })).is_err());
        assert!(result_ips(&json!({ "ips": [{ "address": "x" }] })).is_err());
    }
}
