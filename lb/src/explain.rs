// SPDX-License-Identifier: Apache-2.0
//! Where connections to a Service would go on this node, and why.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ebpf_abi::service::{SERVICE_FAULT_CLIENTS, SERVICE_FAULT_RESET, SERVICE_SOURCE_RANGES};
use ebpf_abi::{BackendValue, FrontendKey, SCOPE_EXTERNAL, SCOPE_INTERNAL};
use serde::Serialize;

use crate::choose::Empty;
use crate::frontends::{self, FrontendWish, SetWish, Wishes};
use crate::{NodeView, ServiceName, ServiceTable};

/// One frontend and its backends.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExplainedFrontend {
    /// `10.96.0.10:53/udp`, `node:30080/tcp external`.
    pub frontend: String,
    /// Who asks there: `cluster`, `world`, `another node`.
    pub asked_by: &'static str,
    /// `forward`, `refuse` or `drop`.
    pub verdict: &'static str,
    /// Why just these backends, or none.
    pub reason: String,
    /// Those that new connections go to, with their share in percent; in order of address.
    pub backends: Vec<ExplainedBackend>,
}

/// A backend of a frontend.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExplainedBackend {
    /// `10.244.0.7:8080/tcp`.
    pub backend: String,
    /// Whether it runs on this node.
    pub local: bool,
    /// Of new connections, in percent.
    pub share: f64,
}

/// All frontends of a Service, as the maps have them where everything fits and nothing warms up. With `client` only those
/// of its family, and at frontends with source ranges whether it may ask. A Service that the table does not have, or that
/// is not served (headless, external, another proxy's), has none.
#[must_use]
pub fn explain(
    table: &ServiceTable,
    view: &NodeView,
    name: &ServiceName,
    client: Option<IpAddr>,
) -> Vec<ExplainedFrontend> {
    let Some(entry) = table.services.get(name) else { return Vec::new() };
    let wishes = frontends::wishes(name, entry, table, view, |_| 10);
    let same_family = |key: &FrontendKey| client.is_none_or(|ip| ip.is_ipv4() == key.address().is_ipv4());
    let frontends = wishes.frontends.iter().filter(|(key, _)| same_family(key));
    frontends.map(|(key, wish)| explain_one(key, wish, &wishes, client)).collect()
}

fn explain_one(
    key: &FrontendKey,
    wish: &FrontendWish,
    wishes: &Wishes,
    client: Option<IpAddr>,
) -> ExplainedFrontend {
    let asked_by = match key.scope {
        SCOPE_INTERNAL => "cluster",
        SCOPE_EXTERNAL => "world",
        _ => "another node",
    };
    let mut explained = ExplainedFrontend {
        frontend: key.to_string(),
        asked_by,
        verdict: "refuse",
        reason: "no such port: refused".to_owned(),
        backends: Vec::new(),
    };
    let Some(set) = wish.set.and_then(|set| wishes.sets.get(&set)) else { return explained };
    set.reason.clone_into(&mut explained.reason);
    explained.backends = shares(set);
    if !explained.backends.is_empty() {
        explained.verdict = "forward";
    } else if set.empty == Empty::Drop {
        explained.verdict = "drop";
    }
    if wish.flags & SERVICE_SOURCE_RANGES != 0 {
        let ranges: Vec<String> = wish.ranges.iter().map(ToString::to_string).collect();
        let shut_out = client.is_some_and(|client| !wish.ranges.iter().any(|range| range.contains(&client)));
        if shut_out {
            explained.verdict = "drop";
            explained.backends.clear();
        }
        let of_client = if shut_out { ", and the client is not of them" } else { "" };
        explained.reason += &format!("; only clients of {}{of_client}", ranges.join(", "));
    }
    if wish.fault_percent > 0 {
        let fate = if wish.flags & SERVICE_FAULT_RESET != 0 { "refused" } else { "dropped" };
        explained.reason += &format!("; a fault is injected: {} % are {fate}", wish.fault_percent);
        if wish.flags & SERVICE_FAULT_CLIENTS != 0 {
            let mut pods: Vec<String> = wish.ranges.iter().map(|pod| pod.addr().to_string()).collect();
            pods.retain(|pod| pod.contains(':') == key.address().is_ipv6());
            let pods = if pods.is_empty() { "nobody here".to_owned() } else { pods.join(", ") };
            explained.reason += &format!(", of {pods}");
        }
    }
    explained
}

fn shares(set: &SetWish) -> Vec<ExplainedBackend> {
    let slots = set.recipe.slots();
    let mut counts: BTreeMap<&BackendValue, usize> = BTreeMap::new();
    for index in &slots {
        if let Some((value, _)) = set.recipe.members.get(*index as usize) {
            *counts.entry(value).or_default() += 1;
        }
    }
    let share = |count: usize| count as f64 * 100.0 / slots.len() as f64;
    counts
        .into_iter()
        .map(|(value, count)| ExplainedBackend {
            backend: value.to_string(),
            local: value.is_local(),
            share: share(count),
        })
        .collect()
}
