// SPDX-License-Identifier: Apache-2.0
//! What holds for every zone and every question.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dns_zone::{
    Name, Outcome, Record, RecordData, RecordType, Zone, ZoneEndpoint, ZoneKind, ZonePort, ZoneProtocol,
    ZoneService,
};
use proptest::prelude::*;

pub(crate) const TYPES: [RecordType; 9] = [
    RecordType::A,
    RecordType::AAAA,
    RecordType::ANY,
    RecordType::CNAME,
    RecordType::NS,
    RecordType::PTR,
    RecordType::SOA,
    RecordType::SRV,
    RecordType::TXT,
];

pub(crate) fn services() -> impl Strategy<Value = Vec<ZoneService>> {
    let ip = (any::<bool>(), 0u8..6).prop_map(|(v4, host)| match v4 {
        true => IpAddr::V4(Ipv4Addr::new(10, 96, 0, host)),
        false => IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(host))),
    });
    let label = || {
        prop::sample::select(vec!["a", "b", "B", "svc", "_tcp", "x.y", "", "10-96-0-1"])
            .prop_map(str::to_owned)
    };
    let port = (prop::option::of(label()), 1u16..4).prop_map(|(name, port)| ZonePort {
        name,
        protocol: ZoneProtocol::Tcp,
        port,
    });
    let ports = prop::collection::vec(port, 0..3);
    let endpoint = (prop::collection::vec(ip.clone(), 0..3), prop::option::of(label()), ports.clone())
        .prop_map(|(addresses, hostname, ports)| ZoneEndpoint { addresses, hostname, ports });
    let target = prop::sample::select(vec![
        "example.com",
        "a.b.svc.cluster.local",
        "b.a.svc.cluster.local",
        "nothing.svc.cluster.local",
        "",
    ]);
    let kind = prop_oneof![
        prop::collection::vec(ip, 0..3).prop_map(ZoneKind::ClusterIp),
        Just(ZoneKind::Headless),
        target.prop_map(|target| ZoneKind::ExternalName(target.to_owned())),
    ];
    let alias =
        prop::sample::select(vec!["a", "c", "C.a", "b.b", "c.only", "x.y.z", ""]).prop_map(str::to_owned);
    let aliases = prop::collection::vec(alias, 0..3);
    let service = (label(), label(), kind, ports, prop::collection::vec(endpoint, 0..4), aliases);
    let service = service.prop_map(|(namespace, name, kind, ports, endpoints, aliases)| ZoneService {
        ports,
        endpoints,
        aliases,
        ..ZoneService::new(namespace, name, kind)
    });
    prop::collection::vec(service, 0..6)
}

pub(crate) fn zone(services: Vec<ZoneService>) -> Zone {
    let cidrs = ["10.96.0.0/16".parse().unwrap(), "fd00::/112".parse().unwrap()];
    Zone::build("cluster.local", 5, 1, services, &cidrs).unwrap()
}

/// Every name that an answer can lead to, found by asking.
pub(crate) fn questions(services: &[ZoneService]) -> Vec<Name> {
    let mut names = vec!["cluster.local", "svc.cluster.local", "dns.cluster.local", "ns.dns.cluster.local"]
        .into_iter()
        .map(|text| Name::parse(text).unwrap())
        .collect::<Vec<_>>();
    for service in services {
        let below = names[1].child(&service.namespace).and_then(|namespace| namespace.child(&service.name));
        let Ok(name) = below else { continue };
        for label in ["a", "b", "_tcp", "_a", "10-96-0-1"] {
            names.extend(name.child(label));
            names.extend(name.child("_tcp").and_then(|name| name.child(label)));
        }
        names.extend(name.parent());
        names.push(name);
        for alias in &service.aliases {
            let (own, namespace) = alias.split_once('.').unwrap_or((alias, &service.namespace));
            let namespace = names[1].child(namespace);
            names.extend(
                namespace.iter().filter_map(|namespace| namespace.child(own).ok()).collect::<Vec<_>>(),
            );
            names.extend(namespace);
        }
    }
    names
}

fn sorted(mut records: Vec<Record>) -> Vec<Record> {
    records.sort();
    records
}

proptest! {
    /// Whatever the services are called and whatever is asked: an answer is about the question and of its type;
    /// every target inside the zone exists; NXDOMAIN is said only where nothing lies below.
    #[test]
    fn answers_are_about_the_question(services in services(), seed: u64) {
        let questions = questions(&services);
        let zone = zone(services);
        let mut existing = BTreeSet::new();
        let mut missing = BTreeSet::new();
        for question in &questions {
            for record_type in TYPES {
                match zone.answer(question, record_type, seed) {
                    Outcome::Answer { records, .. } => {
                        existing.insert(question.clone());
                        prop_assert_eq!(&records[0].name, question);
                        crate::wire::check(&zone, question, record_type, None, seed);
                        let last = records.last().unwrap().data.record_type();
                        let right = [record_type, RecordType::CNAME].contains(&last) || record_type == RecordType::ANY;
                        prop_assert!(right, "{} {}: {:?}", question, record_type, records);
                        for record in &records {
                            let target = match &record.data {
                                RecordData::Ptr(target) => target,
                                RecordData::Srv(srv) => &srv.target,
                                _ => continue,
                            };
                            let missing = matches!(zone.answer(target, RecordType::A, 0), Outcome::NxDomain { .. });
                            prop_assert!(!missing, "{} leads nowhere", record);
                        }
                    }
                    Outcome::NoData { .. } => {
                        existing.insert(question.clone());
                    }
                    // An alias that leads nowhere exists itself.
                    Outcome::NxDomain { records, .. } if !records.is_empty() => {
                        existing.insert(question.clone());
                    }
                    Outcome::NxDomain { .. } => {
                        missing.insert(question.clone());
                    }
                    Outcome::Forward(forward) if !forward.prefix.is_empty() => {
                        existing.insert(question.clone());
                    }
                    Outcome::Forward(_) => prop_assert!(!question.is_at_or_below(zone.origin())),
                }
            }
        }
        prop_assert!(existing.is_disjoint(&missing), "a name exists for all types or for none");
        for name in &missing {
            prop_assert!(!existing.iter().any(|other| other.is_at_or_below(name)), "{} has names below it", name);
        }
    }

    /// The seed changes the order and nothing else; so does the order of the services.
    #[test]
    fn seed_and_order_of_services_do_not_change_what_is_said(services in services(), one: u64, other: u64) {
        let mut distinct = services;
        let mut seen = BTreeSet::new();
        distinct.retain(|service| seen.insert((service.namespace.clone(), service.name.clone())));
        let questions = questions(&distinct);
        let (forwards, backwards) = (zone(distinct.clone()), zone(distinct.into_iter().rev().collect()));
        for question in &questions {
            for record_type in TYPES {
                let (a, b) = (forwards.answer(question, record_type, one), backwards.answer(question, record_type, other));
                match (a, b) {
                    (Outcome::Answer { records: a, additional: c }, Outcome::Answer { records: b, additional: d }) => {
                        prop_assert_eq!(sorted(a), sorted(b));
                        prop_assert_eq!(sorted(c), sorted(d));
                    }
                    (a, b) => prop_assert_eq!(a, b),
                }
            }
        }
    }

    /// Nobody outside can make the zone panic.
    #[test]
    fn any_name_and_type_gets_an_outcome(
        services in services(),
        labels in prop::collection::vec("[a-zA-Z0-9_.]{1,9}", 0..8),
        suffix in prop::sample::select(vec!["cluster.LOCAL", "96.10.in-addr.arpa", "0.0.d.f.ip6.arpa", "com"]),
        code: u16,
    ) {
        let labels = labels.iter().map(String::as_bytes).chain(suffix.split('.').map(str::as_bytes));
        if let Ok(name) = Name::from_labels(labels) {
            let outcome = zone(services).answer(&name, RecordType(code), 0);
            prop_assert!(suffix != "com" || matches!(outcome, Outcome::Forward(_)));
        }
    }
}
