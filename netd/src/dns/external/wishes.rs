// SPDX-License-Identifier: Apache-2.0
//! Which names Services want to have outside, and what is to be found there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dns_zone::external::{Domain, Found, HostName, NAMES_MAX, Wish};
use dns_zone::{Name, RecordData};
use lb::{Family, Service, ServiceEntry, ServiceName, TrafficPolicy};
use netd_api::BadValue;
use netd_store::records::NodeRecord;

use super::presence::Present;
use crate::view::View;

/// Names that a Service has outside, between commas.
const ANNOTATION: &str = "weft.dev/dns-external";
/// Clients try one or two. BIND takes 100 of a name and type, and an answer over UDP has room for about as many.
const ADDRESSES_MAX: usize = 64;

/// Of all Services.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    pub candidates: Vec<Candidate>,
    /// Services (`NAMESPACE/NAME`) of which it is not known what they want: what they have stays.
    pub unread: BTreeSet<String>,
    pub problems: Vec<BadValue>,
}

#[cfg(test)]
impl Wishes {
    /// An address, for tests.
    pub(super) fn push(&mut self, host: HostName, service: &str, ip: IpAddr) {
        let (service, target) = (service.to_owned(), Target::Addresses(vec![ip]));
        self.candidates.push(Candidate { host, service, target });
    }
}

/// A name that a Service wants.
#[derive(Debug)]
pub(super) struct Candidate {
    pub host: HostName,
    /// `NAMESPACE/NAME`.
    service: String,
    target: Target,
}

impl Candidate {
    /// What it is to have now; what it has already decides about nodes that may be away.
    pub(super) fn wish(&self, domain: &Domain, found: Option<&Found>) -> Option<Wish> {
        let has = |ip: IpAddr| {
            let found = found.filter(|found| found.service(domain) == Some(self.service.as_str()));
            found.is_some_and(|found| found.records.contains_key(&RecordData::from(ip)))
        };
        match &self.target {
            Target::Addresses(ips) => Wish::addresses(&self.service, ips.iter().copied()),
            Target::Alias(to) => Some(Wish::alias(&self.service, to.clone())),
            Target::Nodes(sets) => sets.iter().find_map(|nodes| {
                let there = nodes.iter().filter(|node| node.is_sure || has(node.ip));
                Wish::addresses(&self.service, there.map(|node| node.ip).take(ADDRESSES_MAX))
            }),
            Target::None(_) => None,
        }
    }
}

/// What the annotation says that cannot be a name anywhere, for who applies an object.
///
/// # Errors
/// The field, and why.
pub(crate) fn check(annotations: &BTreeMap<String, String>) -> Result<(), String> {
    let Some(text) = annotations.get(ANNOTATION) else { return Ok(()) };
    // Which names may be published is up to the nodes that publish: anywhere, for now.
    let anywhere = Domain::new(Name::root(), Name::root(), "weft", 1).map_err(|error| error.to_string())?;
    match words(text).find_map(|word| anywhere.host(word).err()) {
        Some(error) => Err(format!("metadata.annotations[{ANNOTATION:?}]: {error}")),
        None => Ok(()),
    }
}

/// Reads the annotations. `external_ips` says whether nodes answer at those; `present` which nodes are there.
pub(super) fn wishes(domain: &Domain, view: &View, external_ips: bool, present: &Present) -> Wishes {
    let mut wishes = Wishes { unread: unread(view), ..Wishes::default() };
    let mut names = BTreeSet::new();
    for service in view.services.values() {
        let Some(text) = service.metadata.annotations.get(ANNOTATION) else { continue };
        let name = ServiceName::of(service);
        let Some(entry) = view.table.services.get(&name) else { continue };
        let title = format!("{}/{}", name.namespace, name.name);
        let mut problem = |reason: String| {
            let reason = format!("{ANNOTATION}: {reason}");
            wishes.problems.push(BadValue { key: service.display_name(), reason });
        };
        let target = target(service, entry, view, external_ips, present);
        if let Target::None(why) = &target {
            problem(format!("nothing to publish: {why}"));
        }
        for word in words(text) {
            let host = match domain.host(word) {
                Ok(host) => host,
                Err(error) => {
                    problem(error.to_string());
                    wishes.unread.insert(title.clone());
                    continue;
                }
            };
            match &target {
                Target::Alias(to) if to == host.name() => {
                    problem(format!("{host} is what its load balancer is called: an alias of itself"));
                    continue;
                }
                Target::None(_) => continue,
                _ => {}
            }
            names.insert(host.clone());
            if names.len() > NAMES_MAX {
                names.remove(&host);
                problem(format!("{host} is one too many: {NAMES_MAX} names of a cluster fit into the zone"));
                wishes.unread.insert(title.clone());
                continue;
            }
            let (service, target) = (title.clone(), target.clone());
            wishes.candidates.push(Candidate { host, service, target });
        }
    }
    wishes
}

/// What a Service is reached at from outside.
#[derive(Clone, Debug)]
enum Target {
    Addresses(Vec<IpAddr>),
    Alias(Name),
    /// The first of these of which one is there.
    Nodes([Vec<NodeAddress>; 2]),
    None(&'static str),
}

#[derive(Clone, Debug)]
struct NodeAddress {
    ip: IpAddr,
    /// The node is there; else it has its place only where it has it already.
    is_sure: bool,
}

/// What somebody gave it; else the nodes, at whose ports it answers.
fn target(
    service: &Service,
    entry: &ServiceEntry,
    view: &View,
    external_ips: bool,
    present: &Present,
) -> Target {
    let given = entry.external_ips.iter().copied().filter(|_| external_ips);
    let given: Vec<IpAddr> = entry.load_balancer.ips.iter().map(|ip| ip.ip).chain(given).collect();
    if !given.is_empty() {
        return Target::Addresses(given.into_iter().take(ADDRESSES_MAX).collect());
    }
    let balanced = entry.kind == "LoadBalancer";
    let ingress = service.status.load_balancer.ingress.iter().filter(|_| balanced);
    let alias =
        ingress.filter_map(|ingress| Name::parse(&ingress.hostname).ok()).find(|name| *name != Name::root());
    if let Some(alias) = alias {
        return Target::Alias(alias.to_lower());
    }
    if balanced {
        return Target::None("its load balancer has not said where it is (status.loadBalancer)");
    }
    if entry.kind == "NodePort" {
        let nodes = nodes(entry, view, present);
        let why = "no node has an address of its families";
        return if nodes[1].is_empty() { Target::None(why) } else { Target::Nodes(nodes) };
    }
    if entry.external_ips.is_empty() {
        Target::None("it has no address outside: type LoadBalancer or NodePort, or spec.externalIPs")
    } else {
        Target::None("its spec.externalIPs are not served: see external-ips")
    }
}

/// Where it answers at its node ports. With policy `Local` only nodes with backends do, unless none has any: a name that goes and
/// comes back is kept as missing by resolvers for longer than its backends are gone.
fn nodes(entry: &ServiceEntry, view: &View, present: &Present) -> [Vec<NodeAddress>; 2] {
    let chosen = |wanted: &dyn Fn(&NodeRecord) -> bool| {
        let wanted =
            |node: &&NodeRecord| entry.ip_families.contains(&Family::of(node.underlay)) && wanted(node);
        let place = |node: &NodeRecord| {
            let is_sure = present.sure.contains(&node.uuid);
            let is_there = is_sure || present.doubtful.contains(&node.uuid);
            is_there.then_some(NodeAddress { ip: node.underlay, is_sure })
        };
        view.nodes.values().filter(wanted).filter_map(place).collect()
    };
    let is_local = entry.external_policy == TrafficPolicy::Local;
    [chosen(&|node| is_local && entry.ready_local(&node.name) > 0), chosen(&|_| true)]
}

/// Services whose value in the store does not read or is refused.
fn unread(view: &View) -> BTreeSet<String> {
    view.doubted.iter().map(|name| format!("{}/{}", name.namespace, name.name)).collect()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lb::{EndpointSlice, Object, ServiceTable, parse_object};
    use serde_json::{Value, json};
    use uuid::Uuid;

    use super::*;

    fn service(name: &str, names: &str, mut spec: Value, ingress: Value) -> Arc<Service> {
        spec["clusterIP"] = format!("10.96.0.{}", name.as_bytes()[0]).into();
        let metadata = json!({"namespace": "default", "name": name, "annotations": {ANNOTATION: names}});
        let status = json!({"loadBalancer": {"ingress": ingress}});
        let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec, "status": status});
        match parse_object(object).unwrap().0 {
            Object::Service(service) => Arc::new(service),
            other => panic!("{other:?}"),
        }
    }

    fn ports(more: Value) -> Value {
        let mut spec = json!({"ports": [{"port": 80, "nodePort": 30_080}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    }

    fn slice(of: &str, node: &str) -> EndpointSlice {
        let metadata = json!({"namespace": "default", "name": format!("{of}-1"), "labels": {"kubernetes.io/service-name": of}});
        let endpoint = json!({"addresses": ["10.244.0.2"], "nodeName": node, "conditions": {"ready": true}});
        let object = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata,
            "addressType": "IPv4", "endpoints": [endpoint], "ports": [{"port": 8080}]});
        match parse_object(object).unwrap().0 {
            Object::EndpointSlice(slice) => slice,
            other => panic!("{other:?}"),
        }
    }

    fn view(services: &[Arc<Service>], slices: &[EndpointSlice]) -> View {
        let node = |(number, underlay): (u128, &str)| {
            let uuid = Uuid::from_u128(number);
            let record =
                json!({"schema": 1, "uuid": uuid, "name": format!("n{number}"), "underlay": underlay});
            (uuid, serde_json::from_value::<NodeRecord>(record).unwrap())
        };
        let (table, problems) = ServiceTable::build(7, services.iter().map(|service| &**service), slices);
        assert_eq!(problems, []);
        let nodes = [(1, "192.0.2.1"), (2, "192.0.2.2"), (3, "2001:db8::3")].map(node);
        let services = services.iter().map(|one| (one.display_name(), one.clone())).collect();
        View { table, services, nodes: nodes.into(), ..View::default() }
    }

    fn look(view: &View, external_ips: bool) -> Wishes {
        let domain = domain();
        let present = view.nodes.keys().copied().collect();
        wishes(&domain, view, external_ips, &Present { sure: present, ..Present::default() })
    }

    fn domain() -> Domain {
        let name = |text: &str| Name::parse(text).unwrap();
        Domain::new(name("example.org"), name("example.org"), "prod", 60).unwrap()
    }

    fn records(wish: Option<Wish>) -> String {
        let records = wish.iter().flat_map(Wish::records).map(ToString::to_string);
        records.collect::<Vec<_>>().join(" ")
    }

    fn shown(wishes: &Wishes) -> Vec<String> {
        let candidates = wishes.candidates.iter();
        candidates.map(|one| format!("{} {}", one.host, records(one.wish(&domain(), None)))).collect()
    }

    #[test]
    fn each_kind_of_service_has_its_addresses() {
        let balanced = json!({"type": "LoadBalancer", "externalIPs": ["198.51.100.9"]});
        let all = [
            service(
                "a",
                "a.example.org, www.a.example.org",
                ports(balanced.clone()),
                json!([{"ip": "203.0.113.1"}, {"ip": "2001:db8::1"}]),
            ),
            service(
                "b",
                "b.example.org",
                ports(json!({"type": "LoadBalancer"})),
                json!([{"hostname": "LB.example.net"}]),
            ),
            service("c", "c.example.org", ports(json!({"type": "NodePort"})), json!([])),
            service(
                "d",
                "d.example.org",
                ports(json!({"type": "NodePort", "externalTrafficPolicy": "Local"})),
                json!([]),
            ),
            service(
                "e",
                "e.example.org",
                ports(json!({"type": "NodePort", "externalTrafficPolicy": "Local"})),
                json!([]),
            ),
            service(
                "f",
                "f.example.org",
                json!({"ports": [{"port": 80}], "externalIPs": ["198.51.100.8"]}),
                json!([]),
            ),
            service("g", "g.example.org", json!({"ports": [{"port": 80}]}), json!([])),
            service(
                "h",
                "lb.example.org",
                ports(json!({"type": "LoadBalancer"})),
                json!([{"hostname": "lb.example.org"}]),
            ),
            service("i", "i.example.org", ports(json!({"type": "LoadBalancer"})), json!([])),
        ];
        let view = view(&all, &[slice("d", "n2")]);
        let without = look(&view, false);
        assert_eq!(
            shown(&without),
            [
                "a.example.org 203.0.113.1 2001:db8::1",
                "www.a.example.org 203.0.113.1 2001:db8::1",
                "b.example.org lb.example.net.",
                "c.example.org 192.0.2.1 192.0.2.2",
                "d.example.org 192.0.2.2",
                "e.example.org 192.0.2.1 192.0.2.2",
            ]
        );
        let told: Vec<(&str, bool)> = without
            .problems
            .iter()
            .map(|bad| (bad.key.as_str(), bad.reason.starts_with("weft.dev/dns-external: ")))
            .collect();
        let services = ["f", "g", "h", "i"].map(|name| (format!("Service default/{name}"), true));
        assert_eq!(told, services.iter().map(|(key, said)| (key.as_str(), *said)).collect::<Vec<_>>());
        let with = shown(&look(&view, true));
        assert_eq!(with[0], "a.example.org 198.51.100.9 203.0.113.1 2001:db8::1");
        assert_eq!(with[6], "f.example.org 198.51.100.8");
    }

    #[test]
    fn names_that_may_not_be_are_told_and_what_their_service_has_stays() {
        let given = json!([{"ip": "203.0.113.1"}]);
        let spec = ports(json!({"type": "LoadBalancer"}));
        let all = [service("a", "a.example.net, a.example.org", spec, given)];
        let mut view = view(&all, &[]);
        // One that was refused has no value of before where netd was started since.
        view.doubted.insert(ServiceName::new("default", "z"));
        let found = look(&view, false);
        assert_eq!(shown(&found), ["a.example.org 203.0.113.1"]);
        assert_eq!(found.unread, ["default/a".to_owned(), "default/z".to_owned()].into());
        assert!(
            found.problems[0].reason.contains("a.example.net is not at or below example.org"),
            "{:?}",
            found.problems
        );
    }

    #[test]
    fn a_node_that_may_be_away_keeps_its_place_and_gets_none() {
        let spec = ports(json!({"type": "NodePort", "externalTrafficPolicy": "Local"}));
        let all = [service("d", "d.example.org", spec, json!([]))];
        let view = view(&all, &[slice("d", "n2")]);
        let [n1, n2] = [1, 2].map(Uuid::from_u128);
        let present = Present { sure: [n1].into(), doubtful: [n2].into() };
        let wishes = wishes(&domain(), &view, false, &present);
        let wish = |found: Option<&Found>| records(wishes.candidates[0].wish(&domain(), found));
        let had = |ip: &str| {
            let before = Wish::addresses("default/d", [ip.parse().unwrap()]).unwrap();
            Found::fulfilled(&domain(), &before)
        };
        assert_eq!(wish(None), "192.0.2.1", "the only one that has a backend may be away");
        assert_eq!(wish(Some(&had("192.0.2.2"))), "192.0.2.2");
        assert_eq!(wish(Some(&had("192.0.2.1"))), "192.0.2.1");
        let others = Wish::addresses("default/x", ["192.0.2.2".parse().unwrap()]).unwrap();
        assert_eq!(wish(Some(&Found::fulfilled(&domain(), &others))), "192.0.2.1");
    }

    #[test]
    fn who_applies_a_service_hears_of_what_is_no_name() {
        let told = |text: &str| check(&BTreeMap::from([(ANNOTATION.to_owned(), text.to_owned())]));
        assert_eq!(told("shop.example.org, *.shop.example.org,"), Ok(()));
        assert_eq!(check(&BTreeMap::new()), Ok(()));
        let error = told("shop.example.org, a_b.example.org").unwrap_err();
        assert!(
            error.starts_with("metadata.annotations[\"weft.dev/dns-external\"]: \"a_b.example.org\""),
            "{error}"
        );
    }
}
