// SPDX-License-Identifier: Apache-2.0
//! From packet to packet without allocation.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use dns_zone::{
    Client, Name, PodNames, Rcode, RecordType, ReplyOptions, Response, SKYDNS_PREFIX, Transport, Views, Zone,
    ZoneEndpoint, ZoneKind, ZonePort, ZoneProtocol, ZoneService, ZoneSettings, parse_skydns,
};

use crate::wire::{OPTIONS, packet, query};

/// Counts what each thread allocates.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

#[allow(unsafe_code, reason = "an allocator is unsafe to write; this one counts and hands on")]
// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // At the end of a thread the counter is gone before the last allocation.
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: as promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as promised by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 0, 9));

fn zone() -> Zone {
    let settings = ZoneSettings {
        autopath: true,
        pod_names: PodNames::Verified,
        reverse_cidrs: vec!["10.96.0.0/16".parse().unwrap(), "10.244.0.0/16".parse().unwrap()],
        ..ZoneSettings::new("cluster.local")
    };
    let mut edit = Zone::new(settings).unwrap().edit();
    let labels = [("app".to_owned(), "web".to_owned())].into();
    let client = Client { namespace: "shop".into(), pod: "web-1".into(), labels: Arc::new(labels) };
    edit.set_client(CLIENT, Some(Arc::new(client)));
    let port = |port| ZonePort { name: Some("http".into()), protocol: ZoneProtocol::Tcp, port };
    let mut web = ZoneService::new("shop", "web", ZoneKind::ClusterIp(vec!["10.96.0.20".parse().unwrap()]));
    web.ports = vec![port(80)];
    web.views = Some(Views::parse("namespace=shop").unwrap());
    web.aliases = vec!["www".into()];
    let mut db = ZoneService::new("shop", "db", ZoneKind::Headless);
    db.endpoints = (1..40)
        .map(|number| ZoneEndpoint {
            addresses: vec![IpAddr::V4(Ipv4Addr::new(10, 244, 0, number))],
            hostname: (number % 2 == 0).then(|| format!("db-{number}")),
            ports: vec![port(5_432)],
        })
        .collect();
    let inside = ZoneKind::ExternalName("web.shop.svc.cluster.local".into());
    for service in [web, db, ZoneService::new("shop", "in", inside)] {
        edit.set_service(&service);
    }
    edit.finish(1)
}

#[test]
fn a_name_of_ours_is_answered_without_an_allocation() {
    let zone = zone();
    let mut out = [0; 4_096];
    for (name, record_type, rcode) in [
        ("web.shop.svc.cluster.local", RecordType::A, Rcode::NOERROR),
        ("WEB.shop.svc.Cluster.Local", RecordType::A, Rcode::NOERROR),
        ("web.shop.svc.cluster.local", RecordType::AAAA, Rcode::NOERROR),
        ("_http._tcp.web.shop.svc.cluster.local", RecordType::SRV, Rcode::NOERROR),
        ("db.shop.svc.cluster.local", RecordType::A, Rcode::NOERROR),
        ("db-2.db.shop.svc.cluster.local", RecordType::A, Rcode::NOERROR),
        ("10-244-0-3.db.shop.svc.cluster.local", RecordType::A, Rcode::NOERROR),
        ("_http._tcp.db.shop.svc.cluster.local", RecordType::SRV, Rcode::NOERROR),
        ("in.shop.svc.cluster.local", RecordType::A, Rcode::NOERROR),
        ("www.shop.svc.cluster.local", RecordType::A, Rcode::NOERROR),
        ("web.shop.shop.svc.cluster.local", RecordType::A, Rcode::NOERROR),
        ("10-244-0-9.shop.pod.cluster.local", RecordType::A, Rcode::NOERROR),
        ("20.0.96.10.in-addr.arpa", RecordType::PTR, Rcode::NOERROR),
        ("2.0.244.10.in-addr.arpa", RecordType::PTR, Rcode::NOERROR),
        ("shop.svc.cluster.local", RecordType::A, Rcode::NOERROR),
        ("cluster.local", RecordType::SOA, Rcode::NOERROR),
        ("nothing.shop.svc.cluster.local", RecordType::A, Rcode::NXDOMAIN),
    ] {
        let packet = packet(&Name::parse(name).unwrap(), record_type);
        let before = ALLOCATIONS.get();
        let query = query(&packet);
        let options = ReplyOptions { limit: query.limit(Transport::Udp, 1_232), ..OPTIONS };
        let response = zone.respond(&query, CLIENT, 7, &options, &mut out);
        let Response::Written(written) = response else { panic!("{name}: {response:?}") };
        let after = ALLOCATIONS.get();
        assert_eq!(written.rcode, rcode, "{name}");
        assert_eq!(after - before, 0, "allocations for {name} {record_type}");
    }
    let before = ALLOCATIONS.get();
    drop(vec![1u8; 9]);
    assert_eq!(ALLOCATIONS.get() - before, 1, "the counter counts");
}

#[test]
fn a_name_of_others_is_handed_on_without_an_allocation() {
    let (zone, mut out) = (zone(), [0; 512]);
    let packet = packet(&Name::parse("www.example.com").unwrap(), RecordType::A);
    let before = ALLOCATIONS.get();
    let query = query(&packet);
    let response = zone.respond(&query, CLIENT, 7, &OPTIONS, &mut out);
    assert_eq!(ALLOCATIONS.get() - before, 0);
    assert!(matches!(response, Response::Forward(forward) if forward == dns_zone::Forward::default()));
}

/// Of `count` SkyDNS records below `apps.example.org`.
fn own_zone(count: usize) -> Zone {
    let zones = vec![Name::parse("example.org").unwrap()];
    let mut edit = Zone::new(ZoneSettings { zones, ..ZoneSettings::new("cluster.local") }).unwrap().edit();
    for number in 0..count {
        let key = format!("/skydns/org/example/apps/x{number}");
        let value = format!(r#"{{"host": "10.0.{}.{}"}}"#, number / 256, number % 256);
        edit.set_records(&key, vec![parse_skydns(&key, value.as_bytes(), SKYDNS_PREFIX).unwrap()]);
    }
    edit.finish(1)
}

#[test]
fn a_question_about_many_records_of_ones_own_costs_no_more_than_they_are() {
    let mut out = vec![0; 65_535];
    for (count, record_type, transport, most) in [
        (1_500, RecordType::SRV, Transport::Tcp, 15 * 1_500),
        (20_000, RecordType::SRV, Transport::Tcp, 15 * 2_048),
        (20_000, RecordType::A, Transport::Udp, 2_048),
        (20_000, RecordType::TXT, Transport::Udp, 100),
    ] {
        let zone = own_zone(count);
        let packet = packet(&Name::parse("apps.example.org").unwrap(), record_type);
        let query = query(&packet);
        let options = ReplyOptions { limit: query.limit(transport, 1_232), ..OPTIONS };
        let before = ALLOCATIONS.get();
        let response = zone.respond(&query, CLIENT, 7, &options, &mut out);
        let allocations = ALLOCATIONS.get() - before;
        assert!(matches!(response, Response::Written(written) if written.rcode == Rcode::NOERROR));
        assert!(allocations <= most, "{allocations} for {count} records and {record_type}");
    }
    let told = own_zone(2_049).explain(&Name::parse("apps.example.org").unwrap(), RecordType::A, None);
    assert!(told.to_string().contains("more than 2048 records lie below the name"), "{told}");
}
