// SPDX-License-Identifier: Apache-2.0
//! Endpoints without Kubernetes: each node writes a slice of its own pods for every Service that selects them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::kubernetes::{LABEL_MANAGED_BY, LABEL_SERVICE_NAME, Metadata};
use crate::slice::{EndpointHints, HintTarget, TargetRef};
use crate::{Conditions, Endpoint, EndpointPort, EndpointSlice, Family, Port, Protocol, Service, TargetPort};

/// What a node knows of one of its pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// Namespace; `default` where the runtime names none.
    pub namespace: String,
    /// Name, unique in the namespace.
    pub name: String,
    /// What selectors look at.
    pub labels: BTreeMap<String, String>,
    /// Bare addresses, at most one of each family is used.
    pub ips: Vec<IpAddr>,
    /// Name of the node.
    pub node_name: String,
    /// Zone that the node is in.
    pub zone: Option<String>,
    /// Answers.
    pub ready: bool,
    /// Going away: withdrawn from new connections.
    pub terminating: bool,
    /// First label of the pod's own DNS name under a headless Service.
    pub hostname: Option<String>,
    /// What a `targetPort` given by name stands for in this pod.
    pub ports: Vec<NamedPort>,
}

/// A named port of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPort {
    /// As in `targetPort`.
    pub name: String,
    /// 1..=65535.
    pub port: u16,
    /// Must equal that of the Service's port.
    pub protocol: Protocol,
}

/// Whether `labels` has every pair of `selector`. An empty selector selects nothing.
#[must_use]
pub fn matches(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// The slices of one family that `source` (a node's UUID, say) contributes to `service`, named `SERVICE-SOURCE`, and
/// `SERVICE-SOURCE-v6` for IPv6. None where nothing is to be published: no selector, type ExternalName, another family than
/// the Service's, or no pod selected.
///
/// A slice has one number for each port, so pods for which a `targetPort` given by name means different numbers are in
/// different slices, as in Kubernetes: the second one is named `…-2`, and so on, in order of the numbers. A port that a pod lacks
/// is not in its slice.
///
/// With `trafficDistribution` the endpoints carry the hints that Kubernetes would give them.
#[must_use]
pub fn endpoints_for(
    service: &Service,
    pods: &[PodFacts],
    source: &str,
    family: Family,
) -> Vec<EndpointSlice> {
    if service.is_external_name() || !service.families().contains(&family) {
        return Vec::new();
    }
    let namespace = &service.metadata.namespace;
    let mut selected: Vec<(&PodFacts, IpAddr)> = pods
        .iter()
        .filter(|pod| pod.namespace == *namespace && matches(&service.spec.selector, &pod.labels))
        .filter_map(|pod| Some((pod, *pod.ips.iter().find(|ip| Family::of(**ip) == family)?)))
        .collect();
    selected.sort_by(|(a, a_ip), (b, b_ip)| (&a.name, a_ip).cmp(&(&b.name, b_ip)));
    let mut alike: BTreeMap<Vec<Option<u16>>, Vec<(&PodFacts, IpAddr)>> = BTreeMap::new();
    for (pod, ip) in selected {
        let numbers = service.spec.ports.iter().map(|port| target_number(port, pod));
        alike.entry(numbers.collect()).or_default().push((pod, ip));
    }

    let labels = [(LABEL_SERVICE_NAME, service.metadata.name.as_str()), (LABEL_MANAGED_BY, "netd.weft.dev")];
    let suffix = if family == Family::V6 { "-v6" } else { "" };
    let mut slices = Vec::with_capacity(alike.len());
    for (count, (numbers, pods)) in (1..).zip(alike) {
        let which = if count > 1 { format!("-{count}") } else { String::new() };
        let port = |(port, number): (&Port, Option<u16>)| EndpointPort {
            name: Some(port.name.clone()),
            protocol: port.protocol,
            port: number,
            ..EndpointPort::default()
        };
        let ports = service.spec.ports.iter().zip(numbers).filter(|(_, number)| number.is_some());
        slices.push(EndpointSlice {
            api_version: "discovery.k8s.io/v1".to_owned(),
            kind: "EndpointSlice".to_owned(),
            metadata: Metadata {
                name: format!("{}-{source}{suffix}{which}", service.metadata.name),
                namespace: namespace.clone(),
                labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
                ..Metadata::default()
            },
            address_type: family.as_str().to_owned(),
            endpoints: pods.iter().map(|(pod, ip)| endpoint(pod, *ip, service)).collect(),
            ports: ports.map(port).collect(),
            ..EndpointSlice::default()
        });
    }
    slices
}

fn endpoint(pod: &PodFacts, ip: IpAddr, service: &Service) -> Endpoint {
    let ready_anyway = service.spec.publish_not_ready_addresses;
    Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Conditions {
            ready: Some(ready_anyway || (pod.ready && !pod.terminating)),
            serving: Some(pod.ready),
            terminating: Some(pod.terminating),
        },
        hostname: pod.hostname.clone(),
        node_name: Some(pod.node_name.clone()),
        zone: pod.zone.clone(),
        hints: hints(pod, &service.spec.traffic_distribution),
        target_ref: Some(Box::new(TargetRef {
            kind: "Pod".to_owned(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            ..TargetRef::default()
        })),
        ..Endpoint::default()
    }
}

/// As the EndpointSlice controller gives them: to its own zone, and with `PreferSameNode` to its own node first.
fn hints(pod: &PodFacts, distribution: &str) -> Option<Box<EndpointHints>> {
    let target = |name: &String| HintTarget { name: name.clone(), ..HintTarget::default() };
    let near = !distribution.is_empty();
    let for_zones: Vec<HintTarget> = pod.zone.iter().filter(|_| near).map(target).collect();
    let same_node = distribution == "PreferSameNode";
    let for_nodes: Vec<HintTarget> = if same_node { vec![target(&pod.node_name)] } else { Vec::new() };
    let any = !for_zones.is_empty() || !for_nodes.is_empty();
    any.then(|| Box::new(EndpointHints { for_zones, for_nodes, ..EndpointHints::default() }))
}

fn target_number(port: &Port, pod: &PodFacts) -> Option<u16> {
    match &port.target_port {
        None => Some(port.port),
        Some(TargetPort::Number(number)) => Some(*number),
        Some(TargetPort::Name(name)) => {
            let named = pod.ports.iter().find(|p| p.name == *name && p.protocol == port.protocol);
            named.map(|p| p.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn pod(name: &str, ip: &str) -> PodFacts {
        PodFacts {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            labels: labels(&[("app", "web"), ("tier", "front")]),
            ips: vec![ip.parse().unwrap()],
            node_name: "n1".to_owned(),
            ready: true,
            ..PodFacts::default()
        }
    }

    fn service(target: Option<TargetPort>) -> Service {
        let mut service = Service::default();
        service.metadata.name = "web".to_owned();
        service.metadata.namespace = "default".to_owned();
        service.spec.selector = labels(&[("app", "web")]);
        service.spec.ports = vec![Port { port: 80, target_port: target, ..Port::default() }];
        service
    }

    fn one(mut slices: Vec<EndpointSlice>) -> EndpointSlice {
        assert_eq!(slices.len(), 1);
        slices.remove(0)
    }

    fn addresses(slice: &EndpointSlice) -> Vec<&str> {
        slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses).map(String::as_str).collect()
    }

    #[test]
    fn a_selector_needs_every_pair_and_an_empty_one_selects_nothing() {
        let have = labels(&[("app", "web"), ("tier", "front")]);
        assert!(matches(&labels(&[("app", "web")]), &have));
        assert!(!matches(&labels(&[("app", "web"), ("tier", "back")]), &have));
        assert!(!matches(&labels(&[]), &have));
    }

    #[test]
    fn only_selected_pods_of_the_namespace_are_published_in_order_of_name() {
        let mut elsewhere = pod("c", "10.244.0.4");
        elsewhere.namespace = "other".to_owned();
        let pods = [pod("b", "10.244.0.3"), pod("a", "10.244.0.2"), elsewhere];
        let slice = one(endpoints_for(&service(None), &pods, "n1", Family::V4));
        assert_eq!(addresses(&slice), ["10.244.0.2", "10.244.0.3"]);
        assert_eq!(slice.metadata.name, "web-n1");
        assert_eq!(slice.service_name(), Some("web"));
        assert_eq!(slice.ports[0].port, Some(80));
        assert!(endpoints_for(&service(None), &pods[2..], "n1", Family::V4).is_empty());
    }

    #[test]
    fn a_terminating_pod_keeps_serving_but_is_not_ready() {
        let mut going = pod("a", "10.244.0.2");
        going.terminating = true;
        let slice = one(endpoints_for(&service(None), &[going], "n1", Family::V4));
        let expected = Conditions { ready: Some(false), serving: Some(true), terminating: Some(true) };
        assert_eq!(slice.endpoints[0].conditions, expected);
    }

    #[test]
    fn pods_that_mean_different_numbers_by_a_name_are_in_different_slices() {
        let named = |name: &str, port| NamedPort { name: name.into(), port, protocol: Protocol::Tcp };
        let mut pods: Vec<PodFacts> = [("a", 2), ("b", 3), ("c", 4), ("d", 5)]
            .map(|(name, host)| pod(name, &format!("10.244.0.{host}")))
            .into();
        pods[0].ports = vec![named("http", 9090), named("admin", 1)];
        pods[1].ports = vec![named("http", 8080), named("admin", 1)];
        // This one has only one of the two, and the last one neither.
        pods[2].ports = vec![named("http", 8080)];
        let mut service = service(Some(TargetPort::Name("http".into())));
        let port = |name: &str, target: TargetPort| Port {
            name: name.into(),
            port: 81,
            target_port: Some(target),
            ..Port::default()
        };
        service.spec.ports.push(port("admin", TargetPort::Name("admin".into())));
        let slices = endpoints_for(&service, &pods, "n1", Family::V4);
        let found: Vec<_> = slices
            .iter()
            .map(|slice| {
                let ports =
                    slice.ports.iter().map(|port| (port.name.as_deref().unwrap(), port.port.unwrap()));
                (slice.metadata.name.as_str(), addresses(slice), ports.collect::<Vec<_>>())
            })
            .collect();
        let wished = [
            ("web-n1", vec!["10.244.0.5"], vec![]),
            ("web-n1-2", vec!["10.244.0.4"], vec![("", 8080)]),
            ("web-n1-3", vec!["10.244.0.3"], vec![("", 8080), ("admin", 1)]),
            ("web-n1-4", vec!["10.244.0.2"], vec![("", 9090), ("admin", 1)]),
        ];
        assert_eq!(found, wished);
        service.spec.ports[1] = port("admin", TargetPort::Number(70));
        service.spec.ports[0].target_port = Some(TargetPort::Number(80));
        assert_eq!(endpoints_for(&service, &pods, "n1", Family::V4).len(), 1, "a number is the same in all");
    }

    #[test]
    fn each_family_has_a_slice_of_its_own() {
        let mut dual = pod("a", "10.244.0.2");
        dual.ips.push("fd00:10:244::2".parse().unwrap());
        let mut service = service(None);
        let pods = [dual];
        assert!(endpoints_for(&service, &pods, "n1", Family::V6).is_empty(), "nobody asked for IPv6");
        service.spec.ip_families = vec!["IPv4".into(), "IPv6".into()];
        let slice = one(endpoints_for(&service, &pods, "n1", Family::V6));
        assert_eq!((slice.metadata.name.as_str(), slice.address_type.as_str()), ("web-n1-v6", "IPv6"));
        assert_eq!(addresses(&slice), ["fd00:10:244::2"]);
        assert_eq!(addresses(&one(endpoints_for(&service, &pods, "n1", Family::V4))), ["10.244.0.2"]);
    }

    #[test]
    fn traffic_distribution_becomes_hints() {
        let mut near = pod("a", "10.244.0.2");
        near.zone = Some("east".into());
        let pods = [near];
        let mut service = service(None);
        let hints = |service: &Service| {
            let slice = one(endpoints_for(service, &pods, "n1", Family::V4));
            let names = |targets: Vec<HintTarget>| targets.into_iter().map(|t| t.name).collect::<Vec<_>>();
            slice.endpoints[0].hints.clone().map(|hints| (names(hints.for_zones), names(hints.for_nodes)))
        };
        assert_eq!(hints(&service), None);
        service.spec.traffic_distribution = "PreferClose".into();
        assert_eq!(hints(&service), Some((vec!["east".into()], vec![])));
        service.spec.traffic_distribution = "PreferSameNode".into();
        assert_eq!(hints(&service), Some((vec!["east".into()], vec!["n1".into()])));
    }
}
