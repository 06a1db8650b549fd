// SPDX-License-Identifier: Apache-2.0
//! What holds for every sequence of tables, restarts and late writes.

use std::collections::{BTreeMap, BTreeSet};

use ebpf_abi::v1::{BackendValue, ServiceKey, ServiceValue};
use lb::{Compiler, GRACE_MS, Image, Limits, ServiceTable, parse_object};
use proptest::prelude::*;
use serde_json::Value;

use crate::fixtures::table;

/// One turn of the loop in netd.
#[derive(Clone, Debug)]
struct Turn {
    table: ServiceTable,
    /// Time since the last turn.
    passed_ms: u64,
    /// Whether the image gets into the kernel (else the write failed).
    writes: bool,
    /// Whether netd starts anew before this turn and adopts what the kernel has.
    restarts: bool,
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let turn = (table(), 0u64..1_500, prop::bool::weighted(0.8), prop::bool::weighted(0.1));
    let turn =
        turn.prop_map(|(table, passed_ms, writes, restarts)| Turn { table, passed_ms, writes, restarts });
    prop::collection::vec(turn, 1..12)
}

/// What the maps hold, and since when nothing points at a slot or identifier any more.
#[derive(Default)]
struct Kernel {
    image: Image,
    slot_left_ms: BTreeMap<u32, u64>,
    backend_left_ms: BTreeMap<u32, (BackendValue, u64)>,
}

impl Kernel {
    fn write(&mut self, image: Image, now_ms: u64) {
        for value in self.image.services.values() {
            for slot in slot_range(value) {
                self.slot_left_ms.insert(slot, now_ms);
                let id = self.image.slots[&slot];
                self.backend_left_ms.insert(id, (self.image.backends[&id], now_ms));
            }
        }
        self.image = image;
    }

    /// Whether writing `image` at `now_ms` leads some program that read an old entry astray.
    fn check(&self, image: &Image, now_ms: u64) -> Result<(), TestCaseError> {
        let used: BTreeSet<u32> = self.image.services.values().flat_map(slot_range).collect();
        let recent = |left_ms: u64| left_ms + GRACE_MS > now_ms;
        for (key, value) in &image.services {
            let unchanged = self.image.services.get(key) == Some(value);
            for slot in slot_range(value).filter(|_| !unchanged) {
                prop_assert!(!used.contains(&slot), "slot {} is filled anew while in use", slot);
                let left = self.slot_left_ms.get(&slot).copied();
                prop_assert!(
                    !left.is_some_and(recent),
                    "slot {} is filled anew within the grace period",
                    slot
                );
            }
        }
        for slot in used {
            prop_assert_eq!(
                image.slots.get(&slot),
                self.image.slots.get(&slot),
                "slot {} in use changes",
                slot
            );
            let id = self.image.slots[&slot];
            prop_assert_eq!(
                image.backends.get(&id),
                self.image.backends.get(&id),
                "backend {} in use changes",
                id
            );
        }
        for (id, (value, left)) in self.backend_left_ms.iter().filter(|(_, (_, left))| recent(*left)) {
            let kept = image.backends.get(id) == Some(value);
            prop_assert!(kept, "backend {} left at {} changes within the grace period", id, left);
        }
        Ok(())
    }
}

fn slot_range(value: &ServiceValue) -> std::ops::Range<u32> {
    value.slot_offset..value.slot_offset + value.slot_count
}

/// What connections see: backends by frontend.
fn seen(image: &Image) -> BTreeMap<ServiceKey, Vec<BackendValue>> {
    let resolve = |key: &ServiceKey| (*key, image.resolve(key).expect("a slot leads nowhere"));
    image.services.keys().map(resolve).collect()
}

fn check_image(image: &Image, limits: Limits) -> Result<(), TestCaseError> {
    let mut live = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for value in image.services.values() {
        prop_assert!(ids.insert(value.service_id), "service identifier {} twice", value.service_id);
        prop_assert!(value.service_id > 0 && value.service_id < limits.services);
        for slot in slot_range(value) {
            prop_assert!(slot < limits.slots && live.insert(slot), "slot {} twice or out of range", slot);
        }
    }
    prop_assert!(image.backends.keys().all(|id| *id > 0 && *id < limits.backends));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever came before, connections see what a fresh compiler would give them; nothing that a running program
    /// may still follow is touched; what did not change stays where it is; the same steps give the same images.
    #[test]
    fn every_turn_equals_a_fresh_start_and_disturbs_nobody(turns in turns()) {
        let limits = Limits::default();
        let (mut compiler, mut twin) = (Compiler::new(limits), Compiler::new(limits));
        let (mut kernel, mut last, mut now_ms) = (Kernel::default(), Image::default(), 0);
        for turn in turns {
            now_ms += turn.passed_ms;
            if turn.restarts {
                // A start takes longer than a program runs, so nothing from before it counts.
                kernel.slot_left_ms.clear();
                kernel.backend_left_ms.clear();
                last = kernel.image.clone();
                compiler.adopt(&kernel.image);
                twin.adopt(&kernel.image);
            }
            let outcome = compiler.compile(&turn.table, now_ms);
            prop_assert_eq!(&twin.compile(&turn.table, now_ms), &outcome);
            prop_assert!(outcome.problems.is_empty() && outcome.capacity.is_empty());
            check_image(&outcome.image, limits)?;
            kernel.check(&outcome.image, now_ms)?;
            let fresh = Compiler::new(limits).compile(&turn.table, 0);
            prop_assert_eq!(seen(&outcome.image), seen(&fresh.image));
            for (key, value) in &last.services {
                if last.resolve(key) == outcome.image.resolve(key) {
                    prop_assert_eq!(outcome.image.services.get(key), Some(value), "{} moved for nothing", key);
                }
            }
            last = outcome.image.clone();
            prop_assert_eq!(&compiler.compile(&turn.table, now_ms).image, &outcome.image, "again, nothing new");
            twin.compile(&turn.table, now_ms);
            if turn.writes {
                kernel.write(outcome.image, now_ms);
                compiler.written(now_ms);
                twin.written(now_ms);
            }
        }
    }

    /// netd restarted: the maps are as they should be, so nothing is written.
    #[test]
    fn adopting_an_image_and_compiling_the_same_table_changes_nothing(turns in turns()) {
        let mut compiler = Compiler::new(Limits::default());
        let mut now_ms = 0;
        for turn in turns {
            now_ms += turn.passed_ms;
            let image = compiler.compile(&turn.table, now_ms).image;
            compiler.written(now_ms);
            let mut heir = Compiler::new(Limits::default());
            // The maps hold no names.
            heir.adopt(&Image { names: BTreeMap::new(), ..image.clone() });
            prop_assert_eq!(heir.compile(&turn.table, 0).image, image);
        }
    }

    /// Too small maps: a frontend has its wish, or there is an error and it has its last good value or nothing.
    #[test]
    fn what_does_not_fit_keeps_its_last_good_value(
        turns in turns(), services in 1u32..12, backends in 1u32..8, slots in 0u32..20,
    ) {
        let limits = Limits { services, backends, slots };
        let mut compiler = Compiler::new(limits);
        let (mut last, mut now_ms) = (BTreeMap::new(), 0);
        for turn in turns {
            now_ms += turn.passed_ms;
            let outcome = compiler.compile(&turn.table, now_ms);
            check_image(&outcome.image, limits)?;
            compiler.written(now_ms);
            let wishes = seen(&Compiler::new(Limits::default()).compile(&turn.table, 0).image);
            let found = seen(&outcome.image);
            let mut missing = 0;
            for (key, wish) in &wishes {
                if found.get(key) != Some(wish) {
                    missing += 1;
                    prop_assert_eq!(found.get(key), last.get(key));
                }
            }
            prop_assert!(found.keys().all(|key| wishes.contains_key(key)));
            prop_assert_eq!(missing, outcome.capacity.len());
            last = found;
        }
    }

    /// Maps that someone scribbled in: adopted as far as they make sense, and right after one image.
    #[test]
    fn a_broken_image_is_healed(
        table in table(),
        services in prop::collection::vec((0u8..6, 0usize..4, 0u32..40, 0u32..30, 0u32..6), 0..12),
        backends in prop::collection::btree_map(0u32..12, (0u8..8, 0u8..3), 0..12),
        slots in prop::collection::btree_map(0u32..40, 0u32..14, 0..40),
    ) {
        let limits = Limits { services: 40, backends: 200, slots: 400 };
        let key = |host: u8, port: usize| {
            let address = std::net::Ipv4Addr::new(10, 96, 0, host);
            match port {
                0 => ServiceKey::wildcard(address),
                1 => ServiceKey::new(address, 53, ebpf_abi::Protocol::Udp),
                2 => ServiceKey::new(address, 80, ebpf_abi::Protocol::Tcp),
                _ => ServiceKey::new(address, 443, ebpf_abi::Protocol::Tcp),
            }
        };
        let backend = |(host, kind): (u8, u8)| match kind {
            0 => BackendValue::default(),
            1 => BackendValue::new([10, 244, 0, host].into(), 8_053, ebpf_abi::Protocol::Udp),
            _ => BackendValue::new([10, 244, 0, host].into(), 8_080, ebpf_abi::Protocol::Tcp),
        };
        let broken = Image {
            services: services.iter().map(|&(host, port, service_id, slot_offset, slot_count)| {
                (key(host, port), ServiceValue { service_id, slot_offset, slot_count, flags: 0 })
            }).collect(),
            backends: backends.into_iter().map(|(id, value)| (id, backend(value))).collect(),
            slots,
            names: BTreeMap::new(),
        };
        let mut compiler = Compiler::new(limits);
        compiler.adopt(&broken);
        let outcome = compiler.compile(&table, 0);
        prop_assert!(outcome.capacity.is_empty());
        check_image(&outcome.image, limits)?;
        prop_assert_eq!(seen(&outcome.image), seen(&Compiler::new(limits).compile(&table, 0).image));
        let pointed: BTreeSet<u32> = broken.services.values().flat_map(slot_range).collect();
        for (key, value) in outcome.image.services.iter().filter(|(key, value)| broken.services.get(key) != Some(value)) {
            for slot in slot_range(value) {
                prop_assert!(!pointed.contains(&slot), "{} takes slot {} from another", key, slot);
            }
        }
    }

    /// Anything may stand in a manifest.
    #[test]
    fn any_json_is_an_object_or_an_error_that_says_where(json in any_object()) {
        if let Err(error) = parse_object(json) {
            prop_assert!(!error.object.is_empty() && !error.field.is_empty() && !error.reason.is_empty());
        }
    }
}

fn any_object() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0i64..70_000).prop_map(Value::from),
        "[a-z.0-9:-]{0,12}".prop_map(Value::from),
        Just(Value::from("None")),
        Just(Value::from("10.96.0.7")),
        Just(Value::from("TCP")),
    ];
    let names = prop::sample::select(vec![
        "name",
        "namespace",
        "labels",
        "annotations",
        "type",
        "clusterIP",
        "clusterIPs",
        "selector",
        "ports",
        "port",
        "targetPort",
        "protocol",
        "addresses",
        "conditions",
        "ready",
        "hostname",
        "weft.dev/x",
        "unknown",
    ]);
    let inner = leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(names.clone(), inner, 0..6)
                .prop_map(|map| map.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()),
        ]
    });
    (any::<bool>(), inner.clone(), inner.clone(), inner).prop_map(|(service, metadata, spec, ports)| {
        let (version, kind) =
            if service { ("v1", "Service") } else { ("discovery.k8s.io/v1", "EndpointSlice") };
        serde_json::json!({
            "apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec, "ports": ports,
            "addressType": "IPv4",
        })
    })
}
