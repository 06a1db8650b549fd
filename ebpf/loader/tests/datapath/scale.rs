// SPDX-License-Identifier: Apache-2.0
//! Many services, and more than fit.

use std::{net::Ipv4Addr, time::Instant};

use ebpf_abi::{BackendValue, FrontendKey, Protocol, SCOPE_INTERNAL, ServiceValue, names};
use ebpf_loader::{AttachMode, Datapath, MapAccessError, MapSizes, OpenOptions, WriteError};
use lb::Writes;

use crate::{
    client::{answer, tcp},
    lab::{VIP, backend, difference, image, in_lab, serve, write},
};

const SERVICES: u32 = 50_000;

/// Services with one port, two backends each, and the wildcard of their addresses.
fn many(services: u32) -> Writes {
    let mut writes = Writes::default();
    for number in 0..services {
        let [_, high, middle, low] = number.to_be_bytes();
        let vip = Ipv4Addr::new(10, 97 + high, middle, low);
        let (first, slot) = (1 + 2 * number, 1 + 2 * number);
        let key = FrontendKey::new(vip.into(), 80, Protocol::Tcp, SCOPE_INTERNAL);
        let value = ServiceValue {
            service_id: 1 + 2 * number,
            slot_offset: slot,
            slot_count: 2,
            ..ServiceValue::default()
        };
        writes.services_put.insert(key, value);
        let wildcard = ServiceValue { service_id: 2 + 2 * number, ..ServiceValue::default() };
        writes.services_put.insert(FrontendKey::wildcard(vip.into(), SCOPE_INTERNAL), wildcard);
        for id in [first, first + 1] {
            let [_, high, middle, low] = id.to_be_bytes();
            let value =
                BackendValue::new(Ipv4Addr::new(10, 128 + high, middle, low).into(), 8080, Protocol::Tcp);
            writes.backends_put.insert(id, value);
            writes.endpoints_put.insert(value.endpoint(), 1);
        }
        writes.slots_put.insert(slot, vec![first, first + 1]);
    }
    writes.counters_reset = writes.services_put.values().map(|value| value.service_id).collect();
    writes.loads_reset = writes.backends_put.keys().copied().collect();
    writes
}

#[test]
fn fifty_thousand_services_are_written_at_once_and_one_among_them_in_no_time() {
    in_lab(|lab| {
        let mut datapath = lab.open(AttachMode::Auto);
        let writes = many(SERVICES);
        let start = Instant::now();
        let stats = datapath.write(&writes).unwrap();
        let all = start.elapsed();
        assert_eq!((stats.services, stats.backends), (2 * SERVICES as usize, 2 * SERVICES as usize));

        let (key, value) = writes.services_put.iter().next().unwrap();
        let one = Writes {
            slots_put: [(900_000, vec![1])].into(),
            services_put: [(*key, ServiceValue { slot_offset: 900_000, slot_count: 1, ..*value })].into(),
            ..Writes::default()
        };
        let start = Instant::now();
        datapath.write(&one).unwrap();
        let single = start.elapsed();
        let start = Instant::now();
        let image = datapath.read_image().unwrap();
        let read = start.elapsed();
        assert_eq!((image.services.len(), image.backends.len()), (100_000, 100_000));
        assert_eq!(image.services[key].slot_offset, 900_000);
        let bytes: u64 = datapath.usage().iter().map(|usage| usage.bytes).sum();
        eprintln!(
            "{SERVICES} services of two backends: written in {all:?}, one in {single:?}, read back in {read:?}; maps take {} MiB",
            bytes >> 20
        );
        // Far above what it takes, also where everything is slow: what one system call for each entry would be near.
        assert!(all.as_secs_f64() < 10.0 && single.as_millis() < 100, "{all:?} {single:?}");
    });
}

#[test]
fn a_full_map_is_named_and_what_was_there_goes_on() {
    in_lab(|lab| {
        serve(backend(1), "one");
        let sizes = MapSizes { services: 0, ..MapSizes::default() };
        let options = OpenOptions { sizes, ..lab.options("node", &lab.cgroup, AttachMode::Auto) };
        let mut datapath = Datapath::open(options).unwrap();
        let before = image(&[(VIP, 80, &[backend(1)])]);
        write(&mut datapath, &before);
        datapath.attach_cgroup().unwrap();

        let room = ebpf_abi::limits::FRONTENDS_MIN;
        let mut writes = many(room);
        for value in writes.services_put.values_mut() {
            // Identifiers are fewer than frontends here: counters are not what this is about.
            value.service_id = value.service_id % (room - 10) + 5;
            value.slot_offset += 100;
        }
        writes.slots_put =
            std::mem::take(&mut writes.slots_put).into_iter().map(|(at, ids)| (at + 100, ids)).collect();
        writes.backends_put = std::mem::take(&mut writes.backends_put)
            .into_iter()
            .map(|(id, value)| (id + 10, value))
            .collect();
        writes.counters_reset.clear();
        let error = datapath.write(&writes).unwrap_err();
        let WriteError::Map(full @ MapAccessError::Full { .. }) = &error else { panic!("{error}") };
        assert_eq!(full.full_map(), Some(names::SERVICES));
        assert!(error.to_string().contains("SERVICES is full (1024 entries)"), "{error}");
        assert_eq!(tcp(&lab.cgroup, "10.96.0.1:80", 1), [answer("10.96.0.1:80", "one")]);

        // What is in the maps is whole; taken back, there is room again.
        let now = datapath.read_image().unwrap();
        assert!(now.services.iter().filter(|(key, _)| !before.services.contains_key(key)).count() > 100);
        let back = difference(&now, &before);
        datapath.write(&back).unwrap();
        assert_eq!(datapath.read_image().unwrap(), before);
    });
}

#[test]
fn removing_what_is_not_there_is_no_error() {
    in_lab(|lab| {
        let mut datapath = lab.open(AttachMode::Auto);
        let all = image(&[(VIP, 80, &[backend(1), backend(2)])]);
        write(&mut datapath, &all);
        let mut back = difference(&all, &lb::Image::default());
        // Every second one is gone already, and some were never there.
        let first = *back.services_del.iter().nth(1).unwrap();
        datapath.write(&Writes { services_del: [first].into(), ..Writes::default() }).unwrap();
        back.services_del.insert(FrontendKey::wildcard(Ipv4Addr::LOCALHOST.into(), SCOPE_INTERNAL));
        let stats = datapath.write(&back).unwrap();
        assert_eq!(stats.services_removed, 2);
        assert_eq!(datapath.read_image().unwrap(), lb::Image::default());
        datapath.write(&back).unwrap();
    });
}
