// SPDX-License-Identifier: Apache-2.0
//! A zone that came about by changes is the one that would be built from what they left.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use dns_zone::{Client, Name, OwnRecord, Zone, ZoneService};
use proptest::prelude::*;

use crate::properties::{TYPES, questions, services, zone};

#[derive(Clone, Debug)]
enum Step {
    Client(u8, Option<u8>),
    Records(u8, Vec<u8>),
    Remove(usize),
    Set(ZoneService),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let set = services().prop_map(|services| services.into_iter().map(Step::Set).collect::<Vec<_>>());
    let step = prop_oneof![
        set,
        (0usize..8).prop_map(|index| vec![Step::Remove(index)]),
        (0u8..4, prop::option::of(0u8..3)).prop_map(|(ip, pod)| vec![Step::Client(ip, pod)]),
        (0u8..3, prop::collection::vec(0u8..4, 0..3))
            .prop_map(|(source, names)| vec![Step::Records(source, names)]),
    ];
    prop::collection::vec(step, 1..12).prop_map(|steps| steps.concat())
}

fn client(pod: u8) -> Arc<Client> {
    let namespace = ["a", "b", "pods"][usize::from(pod)];
    Arc::new(Client { namespace: namespace.into(), pod: "p".into(), labels: Arc::default() })
}

fn record(number: u8) -> OwnRecord {
    let name = ["x.example.com", "own.cluster.local", "a.b.svc.cluster.local", "deep.own.cluster.local"];
    OwnRecord::address(Name::parse(name[usize::from(number)]).unwrap(), ip(number))
}

fn ip(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 96, 0, number))
}

proptest! {
    #[test]
    fn incremental_equals_from_scratch(steps in steps()) {
        let mut zone = zone(Vec::new());
        let mut known: BTreeMap<(String, String), ZoneService> = BTreeMap::new();
        let (mut clients, mut records) = (BTreeMap::new(), BTreeMap::new());
        let mut seen = Vec::new();
        for step in steps {
            let mut edit = zone.edit();
            match step {
                Step::Client(number, pod) => {
                    edit.set_client(ip(number), pod.map(client));
                    clients.insert(number, pod);
                }
                Step::Records(source, names) => {
                    edit.set_records(&source.to_string(), names.iter().copied().map(record).collect());
                    records.insert(source, names);
                }
                Step::Remove(index) => {
                    let Some(name) = known.keys().nth(index).cloned() else { continue };
                    known.remove(&name);
                    edit.remove_service(&name.0, &name.1);
                }
                Step::Set(service) => {
                    edit.set_service(&service);
                    known.insert((service.namespace.clone(), service.name.clone()), service);
                }
            }
            zone = edit.finish(1);
            seen.push((zone.clone(), known.clone()));
        }
        let mut edit = Zone::new(zone.settings().clone()).unwrap().edit();
        known.values().rev().for_each(|service| edit.set_service(service));
        for (number, pod) in clients {
            edit.set_client(ip(number), pod.map(client));
        }
        for (source, names) in records {
            edit.set_records(&source.to_string(), names.into_iter().map(record).collect());
        }
        let scratch = edit.finish(1);
        prop_assert_eq!(&zone, &scratch);
        let all: Vec<ZoneService> = known.values().cloned().collect();
        for question in questions(&all) {
            for record_type in TYPES {
                let (one, other) = (zone.ask(&question, record_type, None, 3), scratch.ask(&question, record_type, None, 3));
                prop_assert_eq!(one, other, "{} {}", question, record_type);
            }
        }
        // Snapshots that readers hold stay as they were.
        for (snapshot, known) in seen.into_iter().step_by(3) {
            for service in known.values() {
                let mut again = snapshot.edit();
                again.set_service(service);
                prop_assert_eq!(&again.finish(1), &snapshot);
            }
        }
    }
}
