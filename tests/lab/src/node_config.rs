// SPDX-License-Identifier: Apache-2.0
//! netd's configuration file.

use crate::families::{Families, StoreKind};
use crate::members::Node;
use crate::state::State;
use crate::{etcd, names};
use std::fmt::Write as _;

/// The text. The values need no quoting: names were checked, the rest is ours.
pub(crate) fn text(state: &State, node: &Node) -> String {
    let mut text = format!(
        "cluster = \"{cluster}\"\n\
         node-name = \"{name}\"\n\
         state-dir = \"{dir}/state\"\n\
         run-dir = \"{dir}/run\"\n\
         bpf-dir = \"{bpf}\"\n\
         cgroup-root = \"{cgroup}\"\n\
         cni-conf-dir = \"{conf}\"\n\
         cni-cache-dir = \"{cache}\"\n\
         overlay = \"{overlay}\"\n\
         dns-upstreams = [\"{upstream}\"]\n",
        cluster = state.cluster,
        name = node.name,
        dir = node.dir.display(),
        bpf = names::BPF_DIR,
        cgroup = node.cgroup.display(),
        conf = node.cni_conf_dir().display(),
        cache = node.cni_cache_dir().display(),
        overlay = state.overlay,
        upstream = upstream(state),
    );
    // Writing to a String cannot fail.
    if state.store == StoreKind::Etcd {
        let _ = writeln!(text, "store-endpoints = [{}]", quoted(&etcd::urls(state)));
    }
    if state.families != Families::V4 {
        let _ = writeln!(text, "pod-cidr = [{}]", quoted(state.families.pod_cidrs()));
    }
    if state.tunnel {
        let _ = writeln!(text, "wireguard-socket-dir = \"{}\"", node.wireguard_dir().display());
    }
    // Plain IPv6 routes need a gateway of their own family.
    let native6 = state.families == Families::V6 && state.overlay == "native";
    if let Some(ip) = node.underlay_ip6.filter(|_| native6 || state.underlay == Families::V6) {
        let _ = writeln!(text, "underlay-address = \"{ip}\"");
    }
    text
}

fn upstream(state: &State) -> String {
    match (state.families, state.outside.ip6) {
        (Families::V6, Some(ip)) => format!("[{ip}]:53"),
        _ => format!("{}:53", state.outside.ip),
    }
}

fn quoted<T: AsRef<str>>(items: &[T]) -> String {
    items.iter().map(|item| format!("\"{}\"", item.as_ref())).collect::<Vec<_>>().join(", ")
}
