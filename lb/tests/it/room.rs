// SPDX-License-Identifier: Apache-2.0
//! Maps that are too small, and maps that somebody scribbled in.

use std::collections::BTreeMap;

use ebpf_abi::service::SERVICE_KEEP_SOURCE;
use ebpf_abi::{AffinityBackendKey, BackendValue, FrontendKey, Protocol, ServiceValue};
use lb::{Catalogue, Compiler, GRACE_MS, Image, Limits, ServiceName};
use proptest::prelude::*;

use crate::fixtures::{history, world};
use crate::kernel::{Kernel, translations};
use crate::properties::fresh;

/// Whose each frontend is, whether it is for this node's backends only, and to which it leads.
type Frontends = BTreeMap<FrontendKey, (ServiceName, bool, Vec<BackendValue>)>;

fn frontends(compiler: &Compiler, image: &Image) -> Frontends {
    let look = |(key, value): (&FrontendKey, &ServiceValue)| {
        let (owner, _) = compiler.frontend(value.service_id).expect("a frontend of nobody");
        let mut backends = translations(image.resolve(key).expect("a frontend leads nowhere"));
        backends.sort();
        (*key, (owner.clone(), value.flags & SERVICE_KEEP_SOURCE != 0, backends))
    };
    image.services.iter().map(look).collect()
}

/// Frontends that stay with their Service have what they should or what they had; none goes.
fn check_last_good(
    last: &Frontends,
    wished: &Frontends,
    now: &Frontends,
    restarted: bool,
) -> Result<(), TestCaseError> {
    // Where frontends change the set that they choose from, they may have what others had.
    let shape = |of: &Frontends, service: &ServiceName| -> BTreeMap<FrontendKey, bool> {
        let own = of.iter().filter(|(_, (owner, ..))| owner == service);
        own.map(|(key, (_, local, _))| (*key, *local)).collect()
    };
    for (key, (owner, _, had)) in last {
        let Some((_, _, wish)) = wished.get(key).filter(|(of, ..)| of == owner) else { continue };
        let is_steady = shape(last, owner) == shape(wished, owner);
        match now.get(key) {
            Some((_, _, has)) => prop_assert!(
                !is_steady || has == had || has == wish,
                "{} is neither as it was nor as it should be",
                key
            ),
            // Whose an entry was is not known after a restart: without any backend of its Service it is not kept.
            None => prop_assert!(
                restarted && (!is_steady || !had.iter().any(|backend| wish.contains(backend))),
                "{} is gone",
                key
            ),
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// A frontend has what it should, or there is an error, and then it is as it was, after a restart, too, or it is new and
    /// is not there.
    #[test]
    fn what_does_not_fit_keeps_its_last_good_value(
        worlds in history(8), restarts in prop::collection::vec(prop::bool::weighted(0.3), 8), services in 1u32..30, backends in 1u32..12, slots in 0u32..20_000,
        affinity_backends in 0u32..8, source_ranges in 0u32..6,
    ) {
        let limits = Limits { services, backends, slots, affinity_backends, source_ranges };
        let mut compiler = Compiler::new(limits);
        let (mut catalogue, mut kernel, mut now_ms, mut before) = (Catalogue::new(), Kernel::default(), 0, None);
        let mut last = Frontends::new();
        for (world, restarts) in worlds.iter().zip(restarts) {
            now_ms += 700;
            if restarts {
                compiler = Compiler::new(limits);
                compiler.adopt(&kernel.image);
            }
            let changed = world.put(&mut catalogue, before);
            before = Some(world);
            let (table, view) = (catalogue.table(1), world.node_view());
            let writes = compiler.update(&table, &view, Some(&changed), now_ms);
            kernel.write(&writes, usize::MAX, now_ms, now_ms)?;
            compiler.written(now_ms);
            let image = &kernel.image;
            prop_assert!(image.services.len() < services as usize && image.affinity.len() <= affinity_backends as usize);
            prop_assert!(image.ranges.len() <= source_ranges as usize);
            prop_assert!(image.backends.keys().all(|id| *id < backends) && image.slots.keys().all(|slot| *slot < slots));
            let wishes = fresh(&table, &view);
            prop_assert!(image.services.keys().all(|key| wishes.services.contains_key(key)));
            if compiler.capacity().is_empty() {
                prop_assert_eq!(image.dump(), wishes.dump());
            }
            let mut whole = Compiler::new(Limits::default());
            whole.update(&table, &view, None, 0);
            let wished = frontends(&whole, &wishes);
            let now = frontends(&compiler, image);
            check_last_good(&last, &wished, &now, restarts)?;
            last = now;
        }
        // Room again: after the grace periods whatever is wanted is there if it fits at all.
        let empty = Catalogue::new().table(1);
        let view = worlds[0].node_view();
        compiler.update(&empty, &view, None, now_ms);
        compiler.written(now_ms);
        compiler.update(&empty, &view, Some(&Default::default()), now_ms + 1_000);
        compiler.written(now_ms + 1_000);
        let table = worlds[0].table();
        let writes = compiler.update(&table, &view, None, now_ms + 1_000);
        let mut alone = Compiler::new(limits);
        alone.update(&table, &view, None, 0);
        let (mut image, text) = (Image::default(), alone.image().dump());
        image.apply(&writes);
        prop_assert_eq!(compiler.capacity().len(), alone.capacity().len());
        prop_assert_eq!(compiler.image().dump(), text);
    }

    /// What connections go by has no other meaning before it has rested.
    #[test]
    fn identifiers_that_connections_go_by_rest_after_a_restart(world in world(), connections in prop::collection::btree_set((0u32..9, 0u32..9), 0..5)) {
        let (table, view) = (world.table(), world.node_view());
        let mut compiler = Compiler::new(Limits::default());
        compiler.adopt(&Image::default());
        compiler.spare(&connections);
        let mut image = Image::default();
        image.apply(&compiler.update(&table, &view, None, 0));
        compiler.written(0);
        prop_assert_eq!(image.dump(), fresh(&table, &view).dump());
        let is_free = |(service_id, backend_id): &(u32, u32)| {
            image.services.values().all(|value| value.service_id != *service_id) && !image.backends.contains_key(backend_id)
        };
        prop_assert!(connections.iter().all(is_free), "{:?} in {:?}", connections, image);
        // As long as there are others it stays so; and all can be had again.
        let [services, backends] = [9 + image.services.len() as u32, 9 + image.backends.len() as u32];
        let mut small = Compiler::new(Limits { services, backends, ..Limits::default() });
        small.adopt(&Image::default());
        small.spare(&(1..9).map(|id| (id, id)).collect());
        small.update(&Catalogue::new().table(1), &view, None, 0);
        small.written(0);
        small.update(&table, &view, None, GRACE_MS);
        prop_assert!(small.capacity().is_empty());
    }

    /// Adopted as far as it makes sense, and right after one write.
    #[test]
    fn a_broken_image_is_healed(
        world in world(),
        services in prop::collection::vec((0u8..6, 0usize..4, 0u32..40, 0u32..30, 0u32..6, 0u32..4), 0..12),
        backends in prop::collection::btree_map(0u32..12, (0u8..5, 0u8..3), 0..12),
        slots in prop::collection::btree_map(0u32..40, 1u32..14, 0..40),
        affinity in prop::collection::btree_set((1u32..5, 1u32..9), 0..5),
    ) {
        let key = |host: u8, port: usize| {
            let address = std::net::Ipv4Addr::new(10, 96, 0, host).into();
            match port {
                0 => FrontendKey::wildcard(address, 0),
                1 => FrontendKey::new(address, 80, Protocol::Udp, 0),
                2 => FrontendKey::new(address, 80, Protocol::Tcp, 0),
                _ => FrontendKey::new(address, 443, Protocol::Tcp, 1),
            }
        };
        let backend = |(host, kind): (u8, u8)| {
            let address = std::net::Ipv4Addr::new(10, 244, kind, host).into();
            BackendValue::new(address, 8_080, Protocol::Tcp).on_node(1, true)
        };
        let broken = Image {
            services: services.iter().map(|&(host, port, service_id, slot_offset, slot_count, affinity_id)| {
                let value = ServiceValue { service_id, slot_offset, slot_count, affinity_id, ..ServiceValue::default() };
                (key(host, port), value)
            }).collect(),
            backends: backends.into_iter().filter(|(id, _)| *id > 0).map(|(id, value)| (id, backend(value))).collect(),
            slots,
            endpoints: BTreeMap::from([(backend((9, 9)).endpoint(), 3)]),
            affinity: affinity.into_iter().map(|(affinity_id, backend_id)| AffinityBackendKey { affinity_id, backend_id }).collect(),
            ..Image::default()
        };
        let mut compiler = Compiler::new(Limits::default());
        compiler.adopt(&broken);
        let (table, view) = (world.table(), world.node_view());
        let writes = compiler.update(&table, &view, None, 0);
        prop_assert!(compiler.capacity().is_empty());
        // Slots that an entry in the kernel points at are nobody's to write.
        for value in broken.services.values() {
            for slot in value.slot_offset..value.slot_offset + value.slot_count {
                let written = writes.slots_put.iter().any(|(at, ids)| (*at..*at + ids.len() as u32).contains(&slot));
                prop_assert!(!written, "slot {} is in use and written", slot);
            }
        }
        let mut image = broken;
        image.apply(&writes);
        prop_assert_eq!(image.dump(), fresh(&table, &view).dump());
    }

    /// What an older version wrote knows no nodes. Connections go by its identifiers, so these stay.
    #[test]
    fn identifiers_stay_where_only_the_nodes_were_not_known(world in world()) {
        let (table, view) = (world.table(), world.node_view());
        let mut now = Image::default();
        now.apply(&Compiler::new(Limits::default()).update(&table, &view, None, 0));
        let mut older = now.clone();
        older.backends.values_mut().for_each(|value| *value = value.on_node(0, false));
        let mut compiler = Compiler::new(Limits::default());
        compiler.adopt(&older);
        let writes = compiler.update(&table, &view, None, 0);
        older.apply(&writes);
        prop_assert_eq!(&older.backends, &now.backends);
        prop_assert_eq!(older.dump(), now.dump());
    }
}
