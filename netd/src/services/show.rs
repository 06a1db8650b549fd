// SPDX-License-Identifier: Apache-2.0
//! `weft service ls|get`: services, where their connections go from this node, and why.

use std::collections::BTreeMap;

use ebpf_abi::FrontendKey;
use lb::{Algorithm, Forwarding, IpMode, ServiceEntry, ServiceName, TrafficPolicy};
use netd_api::{
    ApiError, BackendInfo, BackendShare, FrontendInfo, FrontendVerdict, PortInfo, ServiceDetail, ServiceInfo,
};
use netd_store::Keys;

use crate::node::{Node, lock};

/// `GET /v1/services`.
pub(crate) fn list(node: &Node) -> Vec<ServiceInfo> {
    let view = node.view.load();
    view.table.services.iter().map(|(name, entry)| info(node, name, entry)).collect()
}

/// `GET /v1/services/{namespace}/{name}`: with what the maps hold for it.
pub(crate) fn one(node: &Node, namespace: &str, name: &str) -> Result<ServiceDetail, ApiError> {
    let view = node.view.load();
    let name = ServiceName::new(namespace, name);
    let entry = view
        .table
        .services
        .get(&name)
        .ok_or_else(|| ApiError::not_found(format!("no Service {name}; `weft service ls` lists them")))?;
    let stored = view.services.values().find(|service| ServiceName::of(service) == name);
    let progress = node.progress.load();
    let problems =
        view.bad_values.iter().chain(&progress.problems).filter(|bad| is_about(&node.keys, &name, &bad.key));
    let problems = problems.map(|b| b.reason.clone()).collect();
    let (frontends, verdicts) = tokio::task::block_in_place(|| {
        let services = lock(&node.services);
        let verdicts = lb::explain(&view.table, services.node_view(), &name, None);
        (frontends(node, &services, &name, entry), verdicts)
    });
    let share = |backend: lb::ExplainedBackend| BackendShare {
        backend: backend.backend,
        local: backend.local,
        share: backend.share,
    };
    let verdict = |of: lb::ExplainedFrontend| FrontendVerdict {
        frontend: of.frontend,
        asked_by: of.asked_by.to_owned(),
        verdict: of.verdict.to_owned(),
        reason: of.reason,
        backends: of.backends.into_iter().map(share).collect(),
    };
    Ok(ServiceDetail {
        info: info(node, &name, entry),
        selector: stored.map(|s| s.spec.selector.clone()).unwrap_or_default(),
        external_name: entry.external_name.clone(),
        settings: settings(entry, stored.map(|service| &service.metadata.annotations)),
        frontends,
        verdicts: verdicts.into_iter().map(verdict).collect(),
        backends: backends(entry),
        problems,
    })
}

/// Whether what is wrong with the object, the store's key or the frontend of this name concerns a Service.
fn is_about(keys: &Keys, name: &ServiceName, bad: &str) -> bool {
    let (namespace, service) = (&name.namespace, &name.name);
    let frontend = bad.strip_prefix(&name.to_string());
    bad == format!("Service {name}")
        || frontend.is_some_and(|rest| rest.starts_with(':') || rest.starts_with(" at "))
        || bad == keys.service(namespace, service)
        || bad.starts_with(&keys.service_endpoints(namespace, service))
}

fn info(node: &Node, name: &ServiceName, entry: &ServiceEntry) -> ServiceInfo {
    let balanced = entry.load_balancer.ips.iter().filter(|ip| ip.mode == IpMode::Vip).map(|ip| ip.ip);
    let external = entry.external_ips.iter().filter(|_| node.config.services.external_ips).copied();
    ServiceInfo {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        kind: entry.kind.clone(),
        cluster_ips: entry.cluster_ips.clone(),
        external_ips: balanced.chain(external).collect(),
        ports: entry
            .ports
            .iter()
            .map(|p| PortInfo {
                name: p.name.clone(),
                protocol: p.protocol.to_string(),
                port: p.port,
                node_port: p.node_port,
                target_port: None,
            })
            .collect(),
        ready_backends: usable(entry),
        total_backends: entry.backends.len(),
    }
}

/// Backends that new connections go to: of the port that has fewest, for a service is as good as its worst port.
fn usable(entry: &ServiceEntry) -> usize {
    let by_port = entry.ports.iter().map(|port| entry.choose(port).len());
    by_port.min().unwrap_or_else(|| entry.published().count())
}

/// What a Service's annotations say about its names, as it was written; the table has none of it.
const OF_NAMES: [&str; 3] = ["weft.dev/dns-aliases", "weft.dev/dns-external", "weft.dev/dns-views"];

/// What differs from what a Service is without saying anything.
fn settings(
    entry: &ServiceEntry,
    annotations: Option<&BTreeMap<String, String>>,
) -> BTreeMap<String, String> {
    let written = |name: &&str| Some(((*name).to_owned(), annotations?.get(*name)?.clone()));
    let mut settings: BTreeMap<String, String> = OF_NAMES.iter().filter_map(written).collect();
    let mut set = |name: &str, value: Option<String>| {
        settings.extend(value.map(|value| (name.to_owned(), value)));
    };
    let local = |policy| (policy == TrafficPolicy::Local).then(|| "Local".to_owned());
    let extras = &entry.extras;
    let algorithm = match extras.algorithm {
        Algorithm::LeastConnections => Some("least-connections"),
        Algorithm::Maglev => Some("maglev"),
        Algorithm::Random => None,
    };
    let weights = extras.weights.iter().map(|(name, weight)| format!("{name}={weight}")).collect::<Vec<_>>();
    set("ipFamilyPolicy", Some(entry.ip_family_policy.clone()).filter(|policy| !policy.is_empty()));
    set("externalTrafficPolicy", local(entry.external_policy));
    set("internalTrafficPolicy", local(entry.internal_policy));
    set("sessionAffinity", entry.affinity_secs.map(|secs| format!("ClientIP {secs}s")));
    set("trafficDistribution", entry.traffic_distribution.clone());
    set("healthCheckNodePort", entry.health_check_node_port.map(|port| port.to_string()));
    set("publishNotReadyAddresses", entry.publish_not_ready.then(|| "true".to_owned()));
    let ranges = &entry.load_balancer.source_ranges;
    let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
    set("loadBalancerSourceRanges", (!ranges.is_empty()).then(|| ranges.join(",")));
    set("weft.dev/algorithm", algorithm.map(str::to_owned));
    set("weft.dev/fault", extras.fault.as_ref().map(ToString::to_string));
    set("weft.dev/forwarding", (extras.forwarding == Forwarding::Dsr).then(|| "dsr".to_owned()));
    set("weft.dev/slow-start", extras.slow_start.map(|time| format!("{}s", time.as_secs())));
    set("weft.dev/weights", (!weights.is_empty()).then(|| weights.join(",")));
    settings
}

/// The service's frontends in the maps, with their counters.
fn frontends(
    node: &Node,
    services: &super::ServiceSync,
    name: &ServiceName,
    entry: &ServiceEntry,
) -> Vec<FrontendInfo> {
    let compiler = services.compiler();
    let datapath = lock(&node.datapath);
    let of_port = |key: &FrontendKey| {
        let number = key.port_number();
        let is_it = |port: &&lb::ServicePort| {
            let same = if key.is_node_port() { port.node_port == Some(number) } else { port.port == number };
            same && Some(port.protocol.to_string())
                == key.protocol().map(|protocol| protocol.to_string().to_uppercase())
        };
        entry.ports.iter().find(is_it).and_then(|port| port.name.clone())
    };
    let ids = compiler.names().into_keys();
    let keys = ids.filter_map(|id| compiler.frontend(id)).filter(|(owner, _)| *owner == name);
    let mut found: Vec<(FrontendKey, FrontendInfo)> = keys
        .filter_map(|(_, key)| {
            let value = compiler.service(&key)?;
            let counted = datapath.counters_of(value.service_id).ok().flatten().unwrap_or_default();
            let info = FrontendInfo {
                frontend: key.to_string(),
                address: key.address(),
                port: key.port_number(),
                protocol: key.protocol().map(|p| p.to_string().to_uppercase()).unwrap_or_default(),
                name: of_port(&key),
                service_id: value.service_id,
                slot_offset: value.slot_offset,
                slot_count: value.slot_count,
                connections: counted.connections,
                refused: counted.refused,
            };
            Some((key, info))
        })
        .collect();
    // In the object's order: ClusterIPs first, wildcards last.
    found.sort_by_key(|(key, _)| {
        let place = entry.cluster_ips.iter().position(|ip| *ip == key.address()).unwrap_or(usize::MAX);
        (key.is_wildcard(), place, key.scope, *key)
    });
    found.into_iter().map(|(_, info)| info).collect()
}

fn backends(entry: &ServiceEntry) -> Vec<BackendInfo> {
    let of_backend = |backend: &lb::Backend| {
        let one = |port: &lb::BackendPort| BackendInfo {
            address: backend.address,
            port: port.port,
            protocol: port.protocol.to_string(),
            port_name: port.name.clone(),
            hostname: backend.hostname.clone(),
            node: backend.node.clone(),
            state: format!("{:?}", backend.verdict.state).to_lowercase(),
            source: backend.verdict.source.to_owned(),
        };
        backend.ports.iter().map(one).collect::<Vec<_>>()
    };
    entry.backends.iter().flat_map(of_backend).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_about_names_is_shown_as_it_was_written() {
        let entry = ServiceEntry::default();
        assert_eq!(settings(&entry, None), BTreeMap::new());
        let said = |name: &str, value: &str| (format!("weft.dev/{name}"), value.to_owned());
        let of_names = [
            said("dns-aliases", "db, sql.shop"),
            said("dns-external", "www.example.org"),
            said("dns-views", "app=a,b"),
        ];
        let mut annotations = BTreeMap::from(of_names.clone());
        annotations.insert("example.org/other".into(), "x".into());
        assert_eq!(settings(&entry, Some(&annotations)), BTreeMap::from(of_names));
    }

    #[test]
    fn what_concerns_a_service_is_shown_with_it() {
        let (keys, name) = (Keys::new("weft").unwrap(), ServiceName::new("default", "web"));
        for (bad, concerns) in [
            ("Service default/web", true),
            ("default/web:80/tcp", true),
            ("default/web:*", true),
            // Source ranges that do not fit: nobody is let in.
            ("default/web at 203.0.113.7:80/tcp external", true),
            (&keys.service("default", "web"), true),
            (&keys.endpoint("default", "web", "web-1"), true),
            ("Service default/web2", false),
            ("default/web2:80/tcp", false),
            (&keys.service("default", "web2"), false),
            (&keys.endpoint("default", "web2", "web-1"), false),
        ] {
            assert_eq!(is_about(&keys, &name, bad), concerns, "{bad}");
        }
    }
}
