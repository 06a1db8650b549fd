// SPDX-License-Identifier: Apache-2.0
//! What services are given, from their first object to their last.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipam::node_port::NodePortRange;
use ipam::service::{allocate, carry_over, is_complete, ports_of};
use ipam::{
    Family, FamilyError, FamilyPolicy, ServiceAllocateError, ServiceHoldings, ServiceKind, ServicePortWish,
    ServiceRange, ServiceRanges, ServiceWish,
};
use proptest::prelude::*;

use super::ip;

const TCP: u8 = 6;
const UDP: u8 = 17;
const LOCAL: ServiceKind = ServiceKind::LoadBalancer { node_ports: true, local: true };

fn ranges() -> ServiceRanges {
    let range = |cidr: &str, dns| ServiceRange { cidr: cidr.parse().unwrap(), reserved: vec![ip(dns)] };
    ServiceRanges {
        cidrs: vec![range("10.96.0.0/24", "10.96.0.10"), range("fd00:10:96::/112", "fd00:10:96::a")],
        node_ports: NodePortRange { first: 30_000, last: 30_063 },
    }
}

fn port(protocol: u8, port: u16, node_port: u16) -> ServicePortWish {
    ServicePortWish { protocol, port, node_port }
}

fn wish(kind: ServiceKind, ports: &[ServicePortWish]) -> ServiceWish {
    ServiceWish { kind, ports: ports.to_vec(), ..ServiceWish::default() }
}

/// A cluster's services, as the store would hold them.
#[derive(Default)]
struct Cluster(BTreeMap<String, ServiceWish>);

impl Cluster {
    fn apply(&mut self, name: &str, mut wish: ServiceWish) -> Result<ServiceWish, ServiceAllocateError> {
        let before = self.0.get(name);
        if let Some(before) = before {
            carry_over(&mut wish, before);
        }
        let all = self.0.values();
        let held = ServiceHoldings {
            addresses: all.clone().flat_map(|service| service.addresses.clone()).collect(),
            ports: all.flat_map(ports_of).collect(),
            own_addresses: before.iter().flat_map(|service| service.addresses.clone()).collect(),
            own_ports: before.map(ports_of).unwrap_or_default(),
        };
        let given = allocate(wish, before, &held, &ranges(), "default", name)?;
        assert!(is_complete(&given), "{given:?}");
        self.0.insert(name.to_owned(), given.clone());
        Ok(given)
    }
}

fn families(wish: &ServiceWish) -> Vec<Family> {
    wish.addresses.iter().map(Family::of).collect()
}

#[test]
fn the_second_family_comes_and_goes_and_the_first_address_stays() {
    let mut cluster = Cluster::default();
    let plain = wish(ServiceKind::ClusterIp, &[port(TCP, 80, 0)]);
    let first = cluster.apply("web", plain.clone()).unwrap();
    assert_eq!((families(&first), first.policy), (vec![Family::V4], Some(FamilyPolicy::Single)));

    let dual = ServiceWish { policy: Some(FamilyPolicy::PreferDual), ..plain.clone() };
    let both = cluster.apply("web", dual).unwrap();
    assert_eq!(families(&both), [Family::V4, Family::V6]);
    assert_eq!(both.addresses[0], first.addresses[0]);
    assert_eq!(
        cluster.apply("web", plain.clone()).unwrap(),
        both,
        "a manifest that says nothing changes nothing"
    );

    let one = ServiceWish { policy: Some(FamilyPolicy::Single), ..plain.clone() };
    assert_eq!(cluster.apply("web", one).unwrap().addresses, first.addresses);

    let other = ServiceWish { addresses: vec![ip("10.96.0.7")], ..plain.clone() };
    let error = cluster.apply("web", other).unwrap_err();
    assert!(error.to_string().contains(&first.addresses[0].to_string()), "{error}");
    let none = wish(ServiceKind::Headless, &[]);
    assert!(matches!(cluster.apply("web", none.clone()), Err(ServiceAllocateError::AddressChanged { .. })));
    let named = ServiceWish { policy: Some(FamilyPolicy::RequireDual), ..none };
    let api = cluster.apply("api", named).unwrap();
    assert_eq!(
        (api.addresses, api.families),
        (vec![], vec![Family::V4, Family::V6]),
        "names of both families"
    );
    assert_eq!(
        cluster.apply("api", plain.clone()),
        Err(ServiceAllocateError::AddressChanged { had: "None".into() })
    );

    // By way of a name for a name outside everything goes.
    cluster.apply("web", wish(ServiceKind::ExternalName, &[])).unwrap();
    let six = ServiceWish { families: vec![Family::V6], ..plain };
    assert_eq!(families(&cluster.apply("web", six).unwrap()), [Family::V6]);
}

#[test]
fn addresses_asked_for_have_their_order() {
    let mut cluster = Cluster::default();
    let asked = |addresses: &[&str]| ServiceWish {
        addresses: addresses.iter().copied().map(ip).collect(),
        ..wish(ServiceKind::ClusterIp, &[port(TCP, 80, 0)])
    };
    let six_first = cluster.apply("a", asked(&["fd00:10:96::5", "10.96.0.5"])).unwrap();
    assert_eq!(six_first.families, [Family::V6, Family::V4]);
    assert_eq!(six_first.policy, Some(FamilyPolicy::RequireDual));
    assert_eq!(families(&cluster.apply("b", asked(&["fd00:10:96::6"])).unwrap()), [Family::V6]);
    let error = cluster.apply("c", asked(&["10.96.0.5"])).unwrap_err();
    assert_eq!(error.to_string(), "ClusterIP 10.96.0.5 belongs to another service");
    let two = ServiceWish { policy: Some(FamilyPolicy::Single), ..asked(&["10.96.0.8", "fd00:10:96::8"]) };
    assert_eq!(cluster.apply("c", two), Err(FamilyError::TwoForSingle.into()));
}

#[test]
fn node_ports_are_kept_shared_between_protocols_and_given_back() {
    let mut cluster = Cluster::default();
    let dns = [port(UDP, 53, 0), port(TCP, 53, 0), port(TCP, 9153, 0)];
    let given = cluster.apply("dns", wish(ServiceKind::NodePort, &dns)).unwrap();
    assert_eq!(given.ports[0].node_port, given.ports[1].node_port, "one number for TCP and UDP");
    assert_ne!(given.ports[0].node_port, given.ports[2].node_port);
    assert!(given.ports.iter().all(|port| port.node_port >= 30_016), "above the static band");

    // Another order, and one port more.
    let more = [port(TCP, 9153, 0), port(TCP, 80, 30_001), port(UDP, 53, 0), port(TCP, 53, 0)];
    let again = cluster.apply("dns", wish(ServiceKind::NodePort, &more)).unwrap();
    assert_eq!(again.ports[0].node_port, given.ports[2].node_port);
    assert_eq!((again.ports[1].node_port, again.ports[2].node_port), (30_001, given.ports[0].node_port));

    let taken = wish(ServiceKind::NodePort, &[port(TCP, 80, 30_001)]);
    let error = cluster.apply("other", taken.clone()).unwrap_err().to_string();
    assert_eq!(error, "spec.ports[0].nodePort: node port 30001 belongs to another service");
    let error = cluster.apply("other", wish(ServiceKind::ClusterIp, &taken.ports)).unwrap_err();
    assert_eq!(error, ServiceAllocateError::NoNodePort { index: 0, port: 30_001 });
    let twice = [port(TCP, 80, 30_002), port(TCP, 81, 30_002)];
    let error = cluster.apply("other", wish(ServiceKind::NodePort, &twice)).unwrap_err();
    assert_eq!(error, ServiceAllocateError::NodePortTwice { index: 1, port: 30_002 });

    // The type changes; the object still has the numbers that it was given.
    let plain = cluster.apply("dns", ServiceWish { kind: ServiceKind::ClusterIp, ..again }).unwrap();
    assert_eq!(ports_of(&plain), BTreeSet::new());
    cluster.apply("other", taken).unwrap();
}

#[test]
fn a_load_balancer_with_policy_local_has_a_port_for_its_health_check() {
    let mut cluster = Cluster::default();
    let ports = [port(TCP, 80, 0)];
    let given = cluster.apply("web", wish(LOCAL, &ports)).unwrap();
    assert_ne!(given.health_port, 0);
    assert_eq!(ports_of(&given).len(), 2);
    assert_eq!(cluster.apply("web", wish(LOCAL, &ports)).unwrap(), given);
    let other = ServiceWish { health_port: 30_005, ..wish(LOCAL, &ports) };
    assert_eq!(
        cluster.apply("web", other.clone()),
        Err(ServiceAllocateError::HealthPortChanged(given.health_port))
    );
    assert_eq!(cluster.apply("api", other).unwrap().health_port, 30_005);

    let none = ServiceKind::LoadBalancer { node_ports: false, local: false };
    let without = cluster.apply("web", ServiceWish { kind: none, ..wish(LOCAL, &ports) }).unwrap();
    assert_eq!(ports_of(&without), BTreeSet::new(), "allocateLoadBalancerNodePorts: false");
    let asked = ServiceWish { health_port: 30_006, ..wish(none, &ports) };
    assert_eq!(cluster.apply("web", asked), Err(ServiceAllocateError::NoHealthPort(30_006)));
}

fn any_wish() -> impl Strategy<Value = ServiceWish> {
    let kind = prop_oneof![
        Just(ServiceKind::ClusterIp),
        Just(ServiceKind::NodePort),
        Just(ServiceKind::Headless),
        Just(ServiceKind::ExternalName),
        Just(LOCAL),
        Just(ServiceKind::LoadBalancer { node_ports: false, local: false }),
    ];
    let policy = prop_oneof![
        Just(None),
        Just(Some(FamilyPolicy::Single)),
        Just(Some(FamilyPolicy::PreferDual)),
        Just(Some(FamilyPolicy::RequireDual)),
    ];
    let family = prop_oneof![Just(Family::V4), Just(Family::V6)];
    let node_port = prop_oneof![4 => Just(0_u16), 1 => 30_000_u16..30_064];
    let one_port = (prop_oneof![Just(TCP), Just(UDP)], 1_u16..5, node_port)
        .prop_map(|(protocol, number, node_port)| port(protocol, number, node_port));
    let address = (1_u8..20).prop_map(|last| ip(&format!("10.96.0.{last}")));
    (
        kind,
        policy,
        prop::collection::vec(family, 0..2),
        prop::collection::vec(one_port, 0..4),
        prop::option::weighted(0.2, address),
    )
        .prop_map(|(kind, policy, families, ports, address)| ServiceWish {
            kind,
            policy,
            families,
            // Objects with one port twice are refused before.
            ports: ports
                .into_iter()
                .map(|port| ((port.protocol, port.port), port))
                .collect::<BTreeMap<_, _>>()
                .into_values()
                .collect(),
            addresses: address.into_iter().collect(),
            health_port: 0,
        })
}

proptest! {
    #[test]
    fn nobody_shares_what_was_given(steps in prop::collection::vec((0_u8..6, any_wish()), 1..40)) {
        let mut cluster = Cluster::default();
        for (name, wish) in steps {
            let name = format!("s{name}");
            let had = cluster.0.get(&name).cloned();
            let Ok(given) = cluster.apply(&name, wish.clone()) else {
                prop_assert_eq!(cluster.0.get(&name), had.as_ref(), "an error changes nothing");
                continue;
            };
            // The same manifest again changes nothing; but a node port that went with its type is an error then.
            if wish.kind.may_have_node_ports() || ports_of(&wish).is_empty() {
                prop_assert_eq!(&cluster.apply(&name, wish).unwrap(), &given);
            }
            let (mut addresses, mut ports): (BTreeSet<IpAddr>, BTreeSet<u16>) = Default::default();
            for service in cluster.0.values() {
                for address in &service.addresses {
                    prop_assert!(addresses.insert(*address), "{} twice", address);
                }
                for port in ports_of(service) {
                    prop_assert!(ranges().node_ports.contains(port) && ports.insert(port), "{} twice", port);
                }
            }
        }
    }
}
