// SPDX-License-Identifier: Apache-2.0
//! The backends of a Service, from all of its slices.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::entry::non_empty;
use crate::slice::HintTarget;
use crate::{Backend, BackendPort, EndpointSlice, Hints, Problem, Protocol, Verdict};

/// Sorted by address; the order of the slices does not matter.
pub(crate) fn backends<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    ready_anyway: bool,
    problems: &mut Vec<Problem>,
) -> Vec<Backend> {
    let mut backends = BTreeMap::new();
    for slice in slices {
        add_slice(&mut backends, slice, ready_anyway, problems);
    }
    let mut backends: Vec<Backend> = backends.into_values().collect();
    for backend in backends.iter_mut().filter(|backend| !backend.port_verdicts.is_empty()) {
        let (of_all, all) = (backend.verdict, std::mem::take(&mut backend.port_verdicts));
        backend.port_verdicts = all.into_iter().filter(|(_, verdict)| *verdict != of_all).collect();
    }
    backends
}

fn add_slice(
    backends: &mut BTreeMap<IpAddr, Backend>,
    slice: &EndpointSlice,
    ready_anyway: bool,
    problems: &mut Vec<Problem>,
) {
    if slice.address_type == "FQDN" {
        problems.push(Problem {
            object: slice.display_name(),
            field: "addressType".to_owned(),
            reason: "FQDN endpoints are not used; give addresses, or use a Service of type ExternalName"
                .to_owned(),
        });
        return;
    }
    let ports = slice.ports.iter().filter_map(|port| {
        let name = port.name.as_deref().and_then(non_empty);
        Some(BackendPort { name, protocol: port.protocol, port: port.port? })
    });
    let ports: Arc<[BackendPort]> = ports.collect::<BTreeSet<_>>().into_iter().collect();
    for endpoint in &slice.endpoints {
        let pod = endpoint.target_ref.as_ref().filter(|target| target.kind == "Pod");
        let names = |targets: &[HintTarget]| -> Vec<String> {
            targets.iter().map(|target| target.name.clone()).collect::<BTreeSet<_>>().into_iter().collect()
        };
        // All addresses of an endpoint reach the same backend: a second one would only give it a double share.
        let Some(address) = endpoint.addresses.first().and_then(|text| text.parse().ok()) else { continue };
        let verdict = Verdict::from_conditions(&endpoint.conditions, ready_anyway);
        let found = Backend {
            address,
            ports: ports.clone(),
            port_verdicts: BTreeMap::new(),
            hostname: endpoint.hostname.as_deref().and_then(non_empty),
            node: endpoint.node_name.as_deref().and_then(non_empty),
            zone: endpoint.zone.as_deref().and_then(non_empty),
            hints: endpoint.hints.as_ref().map(|hints| {
                Box::new(Hints { zones: names(&hints.for_zones), nodes: names(&hints.for_nodes) })
            }),
            pod: pod.map(|target| format!("{}/{}", target.namespace, target.name)),
            verdict,
            of_agent: false,
        };
        let merged = match backends.remove(&address) {
            None => found,
            Some(known) => merge(known, found),
        };
        backends.insert(address, merged);
    }
}

/// The same address in two slices, as happens while an endpoint moves between them. The better verdict wins, for each port
/// among the slices that have it; ports and hints are united, and neither depends on which slice came first.
fn merge(one: Backend, other: Backend) -> Backend {
    let union = |a: Vec<String>, b: Vec<String>| -> Vec<String> {
        a.into_iter().chain(b).collect::<BTreeSet<_>>().into_iter().collect()
    };
    let mut port_verdicts = by_port(&one);
    for (port, verdict) in by_port(&other) {
        port_verdicts.entry(port).and_modify(|known| *known = (*known).min(verdict)).or_insert(verdict);
    }
    Backend {
        address: one.address,
        ports: one.ports.iter().chain(&*other.ports).cloned().collect::<BTreeSet<_>>().into_iter().collect(),
        port_verdicts,
        hostname: first(one.hostname, other.hostname),
        node: first(one.node, other.node),
        zone: first(one.zone, other.zone),
        hints: match (one.hints, other.hints) {
            (Some(one), Some(other)) => Some(Box::new(Hints {
                zones: union(one.zones, other.zones),
                nodes: union(one.nodes, other.nodes),
            })),
            (one, other) => one.or(other),
        },
        pod: first(one.pod, other.pod),
        verdict: one.verdict.min(other.verdict),
        of_agent: false,
    }
}

/// The opinion about each of its ports; one that was not merged yet has the same of all.
fn by_port(backend: &Backend) -> BTreeMap<(Protocol, u16), Verdict> {
    if !backend.port_verdicts.is_empty() {
        return backend.port_verdicts.clone();
    }
    backend.ports.iter().map(|port| ((port.protocol, port.port), backend.verdict)).collect()
}

fn first(one: Option<String>, other: Option<String>) -> Option<String> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
