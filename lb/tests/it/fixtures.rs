// SPDX-License-Identifier: Apache-2.0
//! Random clusters, small enough that Services meet in frontends, slots and identifiers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lb::{Catalogue, EndpointSlice, NodeInfo, NodeView, Service, ServiceName, ServiceTable};
use proptest::prelude::*;
use serde_json::{Value, json};

/// What the store and the node say at one time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct World {
    pub(crate) services: BTreeMap<u8, Spec>,
    pub(crate) view: View,
}

/// What differs between nodes, and over a node's life.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct View {
    node: u8,
    /// External addresses are served, and faults injected.
    external_ips: bool,
    /// How many pods of this node are clients with a label.
    clients: u8,
    /// Whether the second node has its index already.
    all_known: bool,
}

/// One Service with its backends.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Spec {
    kind: Kind,
    dual: bool,
    two_ports: bool,
    /// Its ClusterIP and node port are also those of others.
    thief: bool,
    external_local: bool,
    internal_local: bool,
    affinity: Option<u16>,
    algorithm: &'static str,
    dsr: bool,
    weights: Weights,
    slow_start: bool,
    extra_addresses: bool,
    backends: Vec<(u8, State, u8)>,
    hints: bool,
    /// Of clients with a label.
    fault: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    ClusterIp,
    Headless,
    LoadBalancer,
    NodePort,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Weights {
    None,
    /// Two of its own backends.
    Backends,
    /// Itself and the next Service.
    Services,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Draining,
    NotReady,
    Ready,
}

/// Up to five Services.
pub(crate) fn world() -> impl Strategy<Value = World> {
    let view = (1u8..=2, any::<bool>(), 0u8..3, prop::bool::weighted(0.8));
    let view = view.prop_map(|(node, external_ips, clients, all_known)| View {
        node,
        external_ips,
        clients,
        all_known,
    });
    let services = prop::collection::btree_map(0u8..5, spec(), 0..5);
    (services, view).prop_map(|(services, view)| World { services, view })
}

/// Worlds on one node: what follows differs in some Services only.
pub(crate) fn history(length: usize) -> impl Strategy<Value = Vec<World>> {
    let change = (0u8..5, prop::option::weighted(0.8, spec()));
    let jump = prop::option::weighted(0.1, world());
    let step = (prop::collection::vec(change, 0..3), jump, prop::option::weighted(0.3, 0u8..3));
    (world(), prop::collection::vec(step, 0..length)).prop_map(|(first, steps)| {
        let mut worlds = vec![first];
        for (changes, jump, clients) in steps {
            let mut next = jump.unwrap_or_else(|| worlds[worlds.len() - 1].clone());
            next.view.clients = clients.unwrap_or(next.view.clients);
            for (number, spec) in changes {
                match spec {
                    None => drop(next.services.remove(&number)),
                    Some(spec) => drop(next.services.insert(number, spec)),
                }
            }
            worlds.push(next);
        }
        worlds
    })
}

fn spec() -> impl Strategy<Value = Spec> {
    let kind = prop_oneof![
        4 => Just(Kind::ClusterIp),
        1 => Just(Kind::Headless),
        2 => Just(Kind::LoadBalancer),
        2 => Just(Kind::NodePort),
    ];
    let state = prop_oneof![3 => Just(State::Ready), 1 => Just(State::NotReady), 1 => Just(State::Draining)];
    let backends = prop::collection::vec((1u8..5, state, 1u8..=2), 0..5);
    let algorithm = prop_oneof![
        16 => Just("random"),
        1 => Just("maglev"),
        3 => Just("least-connections"),
    ];
    let weights =
        prop_oneof![10 => Just(Weights::None), 1 => Just(Weights::Backends), 1 => Just(Weights::Services)];
    let flags = prop::array::uniform9(prop::bool::weighted(0.3));
    let affinity = prop::option::weighted(0.3, 1u16..3);
    (kind, flags, affinity, algorithm, weights, backends).prop_map(
        |(kind, flags, affinity, algorithm, weights, mut backends)| {
            backends.sort_by_key(|(host, _, _)| *host);
            backends.dedup_by_key(|(host, _, _)| *host);
            let [dual, two_ports, thief, external_local, internal_local, dsr, extra_addresses, hints, fault] =
                flags;
            Spec {
                kind,
                dual,
                two_ports,
                thief,
                external_local,
                internal_local,
                affinity,
                algorithm,
                dsr,
                weights,
                slow_start: false,
                extra_addresses,
                backends,
                hints,
                fault,
            }
        },
    )
}

impl World {
    pub(crate) fn node_view(&self) -> NodeView {
        let info = |index| NodeInfo { index };
        let mut nodes = BTreeMap::from([("n1".to_owned(), info(1))]);
        if self.view.all_known {
            nodes.insert("n2".to_owned(), info(2));
        }
        NodeView {
            name: format!("n{}", self.view.node),
            zone: Some(format!("z{}", self.view.node)),
            external_ips_enabled: self.view.external_ips,
            fault_injection_enabled: self.view.external_ips,
            pods: (1..=self.view.clients)
                .map(|host| ([10, 244, 100, host].into(), [("role".to_owned(), host.to_string())].into()))
                .collect(),
            nodes,
        }
    }

    /// The table from scratch.
    pub(crate) fn table(&self) -> ServiceTable {
        let mut catalogue = Catalogue::new();
        self.put(&mut catalogue, None);
        catalogue.table(1)
    }

    /// Tells the catalogue what differs from `before`; returns the names that it says have changed.
    pub(crate) fn put(&self, catalogue: &mut Catalogue, before: Option<&Self>) -> BTreeSet<ServiceName> {
        let mut changed = BTreeSet::new();
        for number in before.iter().flat_map(|before| before.services.keys()) {
            if !self.services.contains_key(number) {
                changed.extend(catalogue.remove_service(&name_of(*number)));
                changed.extend((0..2).flat_map(|part| catalogue.remove_slice(&format!("{number}-{part}"))));
            }
        }
        for (number, spec) in &self.services {
            changed.extend(catalogue.set_service(Arc::new(spec.service(*number))));
            for (part, slice) in spec.slices(*number).into_iter().enumerate() {
                changed.extend(catalogue.set_slice(&format!("{number}-{part}"), Arc::new(slice)));
            }
        }
        changed
    }

    /// The same, but that backends that come up warm up.
    pub(crate) fn with_slow_start(&self) -> Self {
        let mut world = self.clone();
        world.services.values_mut().for_each(|spec| spec.slow_start = true);
        world
    }

    /// The same, but that Services have fewer addresses outside of the cluster.
    pub(crate) fn without_extra_addresses(&self) -> Self {
        let mut world = self.clone();
        world.services.values_mut().for_each(|spec| spec.extra_addresses = false);
        world
    }

    /// The same node, and no Service.
    pub(crate) fn without_services(&self) -> Self {
        Self { services: BTreeMap::new(), ..self.clone() }
    }

    /// The same, but that the record of the second node is there or is not.
    pub(crate) fn with_second_node(&self, known: bool) -> Self {
        Self { view: View { all_known: known, ..self.view.clone() }, ..self.clone() }
    }

    /// Numbers of the Services whose backends a Service may use.
    pub(crate) fn may_use(&self, number: u8) -> BTreeSet<u8> {
        let mut numbers = BTreeSet::from([number]);
        if self.services.get(&number).is_some_and(|spec| spec.weights == Weights::Services) {
            numbers.insert((number + 1) % 5);
        }
        numbers
    }
}

/// `default/s3`.
pub(crate) fn name_of(number: u8) -> ServiceName {
    ServiceName::new("default", format!("s{number}"))
}

/// The Service that a backend's address belongs to.
pub(crate) fn number_of(address: std::net::IpAddr) -> u8 {
    match address {
        std::net::IpAddr::V4(v4) => v4.octets()[2],
        std::net::IpAddr::V6(v6) => v6.segments()[3] as u8,
    }
}

impl Spec {
    fn service(&self, number: u8) -> Service {
        let ip = if self.thief { 99 } else { number };
        let outside = matches!(self.kind, Kind::LoadBalancer | Kind::NodePort);
        let mut ports = vec![json!({"name": "a", "port": 80, "protocol": "TCP"})];
        if self.two_ports {
            ports.push(json!({"name": "b", "port": 80, "protocol": "UDP"}));
        }
        if outside {
            let base = if self.thief { 30_990 } else { 30_000 + 10 * u16::from(number) };
            ports.iter_mut().zip(base..).for_each(|(port, number)| port["nodePort"] = json!(number));
        }
        let families = if self.dual { json!(["IPv4", "IPv6"]) } else { json!(["IPv4"]) };
        let mut annotations = BTreeMap::from([("weft.dev/algorithm", self.algorithm.to_owned())]);
        match self.weights {
            Weights::None => {}
            Weights::Backends => drop(annotations.insert(
                "weft.dev/weights",
                format!("10.244.{number}.1=3,10.244.{number}.2=1,10.244.{number}.3=0"),
            )),
            Weights::Services => {
                let next = (number + 1) % 5;
                drop(annotations.insert("weft.dev/weights", format!("s{number}=9,s{next}=1")));
            }
        }
        if self.slow_start {
            annotations.insert("weft.dev/slow-start", "2s".to_owned());
        }
        if self.fault {
            annotations.insert("weft.dev/fault", "reset,percent=7,client=role".to_owned());
        }
        if self.dsr {
            annotations.insert("weft.dev/forwarding", "dsr".to_owned());
        }
        let mut object = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": format!("s{number}"), "namespace": "default", "annotations": annotations},
            "spec": {
                "ports": ports, "ipFamilies": families,
                "internalTrafficPolicy": if self.internal_local { "Local" } else { "Cluster" },
            },
        });
        let spec = &mut object["spec"];
        match self.kind {
            Kind::Headless => spec["clusterIP"] = json!("None"),
            _ if self.dual => {
                spec["clusterIPs"] = json!([format!("10.96.0.{ip}"), format!("fd00:10:96::{ip}")]);
            }
            _ => spec["clusterIP"] = json!(format!("10.96.0.{ip}")),
        }
        spec["type"] = match self.kind {
            Kind::ClusterIp | Kind::Headless => json!("ClusterIP"),
            Kind::LoadBalancer => json!("LoadBalancer"),
            Kind::NodePort => json!("NodePort"),
        };
        if let Some(secs) = self.affinity {
            spec["sessionAffinity"] = json!("ClientIP");
            spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": secs}});
        }
        if outside && self.external_local {
            spec["externalTrafficPolicy"] = json!("Local");
        }
        if self.extra_addresses && self.kind != Kind::Headless {
            spec["externalIPs"] = json!([format!("192.0.2.{ip}")]);
        }
        if self.kind == Kind::LoadBalancer {
            if self.extra_addresses {
                spec["loadBalancerSourceRanges"] = json!(["198.51.100.0/24", "2001:db8::/32"]);
            }
            let ingress = [format!("203.0.113.{ip}"), format!("2001:db8:1::{ip}")];
            object["status"] = json!({"loadBalancer": {"ingress": [{"ip": ingress[0]}, {"ip": ingress[1]}]}});
        }
        read(object)
    }

    /// Two slices of each family's half: what is named twice is one backend.
    fn slices(&self, number: u8) -> [EndpointSlice; 2] {
        let part = |v6: bool| -> EndpointSlice {
            let endpoints: Vec<Value> = self
                .backends
                .iter()
                .map(|(host, state, node)| {
                    let address = if v6 {
                        format!("fd00:10:244:{number:x}::{host}")
                    } else {
                        format!("10.244.{number}.{host}")
                    };
                    let conditions = match state {
                        State::Draining => json!({"ready": false, "serving": true, "terminating": true}),
                        State::NotReady => json!({"ready": false}),
                        State::Ready => json!({}),
                    };
                    let mut endpoint = json!({
                        "addresses": [address], "conditions": conditions, "nodeName": format!("n{node}"),
                    });
                    if self.hints {
                        endpoint["hints"] = json!({"forZones": [{"name": format!("z{node}")}]});
                    }
                    endpoint
                })
                .collect();
            read(json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("s{number}-{v6}"), "namespace": "default",
                    "labels": {"kubernetes.io/service-name": format!("s{number}")},
                },
                "addressType": if v6 { "IPv6" } else { "IPv4" },
                "endpoints": endpoints,
                "ports": [
                    {"name": "a", "port": 8_080, "protocol": "TCP"}, {"name": "b", "port": 8_053, "protocol": "UDP"},
                ],
            }))
        };
        [part(false), part(true)]
    }
}

fn read<T: serde::de::DeserializeOwned>(object: Value) -> T {
    serde_json::from_value(object).unwrap()
}
