// SPDX-License-Identifier: Apache-2.0
//! What holds for every sequence of changes, restarts and failed writes.

use std::collections::{BTreeMap, BTreeSet};

use ebpf_abi::{AffinityBackendKey, BackendValue, FrontendKey, ServiceValue};
use lb::{Catalogue, Compiler, Image, Limits, NodeView, ServiceName, ServiceTable, Standing};
use proptest::prelude::*;

use crate::fixtures::{World, history, name_of, number_of, world};
use crate::kernel::Kernel;

/// One turn of the loop in netd.
#[derive(Clone, Copy, Debug)]
struct Turn {
    /// Time since the last turn.
    passed_ms: u64,
    /// How long the write takes.
    takes_ms: u64,
    /// How many changes get into the kernel before the write fails.
    written: usize,
    /// Whether netd starts anew before this turn and adopts what the kernel has.
    restarts: bool,
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let written = prop_oneof![4 => Just(usize::MAX), 1 => 0usize..40];
    let takes_ms = prop_oneof![2 => Just(0), 1 => 1u64..1_500];
    let turn = (0u64..1_500, takes_ms, written, prop::bool::weighted(0.1));
    let turn = turn.prop_map(|(passed_ms, takes_ms, written, restarts)| Turn {
        passed_ms,
        takes_ms,
        written,
        restarts,
    });
    prop::collection::vec(turn, 8)
}

/// The maps from scratch.
pub(crate) fn fresh(table: &ServiceTable, view: &NodeView) -> Image {
    let mut image = Image::default();
    image.apply(&Compiler::new(Limits::default()).update(table, view, None, 0));
    image
}

/// Identifiers are given out once, and nothing is left over or missing beside the frontends.
fn check_image(image: &Image) -> Result<(), TestCaseError> {
    let mut ids = BTreeMap::new();
    for (key, value) in &image.services {
        let twice = ids.insert(value.service_id, key);
        prop_assert!(value.service_id > 0 && twice.is_none(), "identifier {} twice", value.service_id);
    }
    let mut endpoints = BTreeMap::new();
    for backend in image.backends.values() {
        *endpoints.entry(backend.endpoint()).or_insert(0u32) += 1;
    }
    prop_assert_eq!(&endpoints, &image.endpoints);
    let affinities: Vec<u32> = image.services.values().map(|value| value.affinity_id).collect();
    for AffinityBackendKey { affinity_id, backend_id } in &image.affinity {
        prop_assert!(affinities.contains(affinity_id) && image.backends.contains_key(backend_id));
    }
    for range in &image.ranges {
        prop_assert!(ids.contains_key(&u32::from_be_bytes(range.service_id)));
    }
    Ok(())
}

/// The backends behind a frontend. Their values do not tell: what rests may be equal to one that is used.
fn ids(image: &Image, value: &ServiceValue) -> BTreeSet<u32> {
    let slots = value.slot_offset..value.slot_offset + value.slot_count;
    slots.filter_map(|slot| image.slots.get(&slot).copied()).collect()
}

/// What a frontend does, and its backends with their nodes.
type Seen = (String, Option<Vec<BackendValue>>);

fn look(image: &Image, key: &FrontendKey) -> Seen {
    (image.describe(key), image.resolve(key))
}

fn owner_of(compiler: &Compiler, image: &Image, key: &FrontendKey) -> Option<ServiceName> {
    compiler.frontend(image.services.get(key)?.service_id).map(|(owner, _)| owner.clone())
}

/// Nobody is sent to somebody else's pods.
fn check_owners(image: &Image, world: &World, compiler: &Compiler) -> Result<(), TestCaseError> {
    for (key, value) in &image.services {
        let (owner, found) = compiler.frontend(value.service_id).expect("a frontend of nobody");
        prop_assert_eq!(found, *key);
        let number = (0..5).find(|number| name_of(*number) == *owner).expect("a Service of no number");
        let allowed = world.may_use(number);
        for backend in image.resolve(key).unwrap_or_default() {
            let of = number_of(backend.address());
            prop_assert!(allowed.contains(&of), "{} of s{} leads to {} of s{}", key, number, backend, of);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 80, ..ProptestConfig::default() })]

    /// Whatever came before, the maps are as a fresh start would make them; no program is led astray in between; what did
    /// not change stays where it is; connections that lost their backend are named.
    #[test]
    fn change_by_change_equals_from_scratch_and_disturbs_nobody(worlds in history(8), turns in turns()) {
        let mut compiler = Compiler::new(Limits::default());
        let (mut catalogue, mut kernel, mut now_ms) = (Catalogue::new(), Kernel::default(), 0);
        let mut before: Option<&World> = None;
        // Who left before an adopted image was brought up to date is not known.
        let mut adopted = false;
        let mut settled: BTreeMap<FrontendKey, (ServiceName, ServiceValue, Seen)> = BTreeMap::new();
        for (world, turn) in worlds.iter().zip(turns) {
            now_ms += turn.passed_ms;
            if turn.restarts {
                compiler.adopt(&kernel.image);
                settled.clear();
                adopted = true;
            }
            let changed = world.put(&mut catalogue, before);
            before = Some(world);
            let (table, view) = (catalogue.table(1), world.node_view());
            prop_assert_eq!(&table, &world.table());
            let writes = compiler.update(&table, &view, Some(&changed), now_ms);
            prop_assert!(compiler.capacity().is_empty());
            let old = kernel.image.clone();
            let began_ms = now_ms;
            now_ms += turn.takes_ms;
            if !kernel.write(&writes, turn.written, began_ms, now_ms)? {
                // The compiler went on from there; what comes next may have moved twice.
                settled.clear();
                continue;
            }
            prop_assert_eq!(kernel.image.dump(), fresh(&table, &view).dump());
            prop_assert_eq!(compiler.image().dump(), kernel.image.dump());
            check_owners(&kernel.image, world, &compiler)?;
            for (key, (owner, value, seen)) in &settled {
                let same_owner = owner_of(&compiler, &kernel.image, key).as_ref() == Some(owner);
                if same_owner && look(&kernel.image, key) == *seen {
                    prop_assert_eq!(kernel.image.services.get(key), Some(value), "{} moved for nothing", key);
                }
            }
            for (key, value) in &old.services {
                let now = kernel.image.services.get(key);
                let same = now.is_some_and(|now| now.service_id == value.service_id);
                let used = now.map(|now| ids(&kernel.image, now)).unwrap_or_default();
                for id in ids(&old, value) {
                    let standing = compiler.standing(value.service_id, id);
                    if !same {
                        prop_assert_eq!(standing, Standing::ServiceGone);
                    } else if used.contains(&id) {
                        prop_assert_eq!(standing, Standing::Current);
                        continue;
                    }
                    if !adopted {
                        prop_assert!(writes.left.contains(&(value.service_id, id)), "{} left {} unseen", id, key);
                    }
                }
            }
            compiler.written(now_ms);
            adopted = false;
            let settle = |(key, value): (&FrontendKey, &ServiceValue)| {
                let owner = owner_of(&compiler, &kernel.image, key).expect("a frontend of nobody");
                (*key, (owner, *value, look(&kernel.image, key)))
            };
            settled = kernel.image.services.iter().map(settle).collect();
            prop_assert!(compiler.update(&table, &view, Some(&Default::default()), began_ms).is_empty(), "nothing new");
        }
        // At rest nothing is left over.
        let (table, view) = (catalogue.table(1), worlds[worlds.len().min(8) - 1].node_view());
        let writes = compiler.update(&table, &view, None, now_ms);
        kernel.write(&writes, usize::MAX, now_ms, now_ms)?;
        compiler.written(now_ms);
        while let Some(at) = compiler.next_deadline() {
            prop_assert!(at > now_ms);
            now_ms = at;
            let writes = compiler.update(&table, &view, Some(&Default::default()), now_ms);
            kernel.write(&writes, usize::MAX, now_ms, now_ms)?;
            compiler.written(now_ms);
        }
        prop_assert_eq!(kernel.image.dump(), fresh(&table, &view).dump());
        check_image(&kernel.image)?;
    }

    /// The order of changes, repeated ones, and several taken for one make no difference.
    #[test]
    fn reversed_repeated_and_squashed_histories_end_alike(worlds in history(5)) {
        let last = worlds.last().unwrap();
        let run = |steps: Vec<&World>| -> String {
            let mut compiler = Compiler::new(Limits::default());
            let (mut catalogue, mut image, mut now_ms) = (Catalogue::new(), Image::default(), 0);
            let mut before = None;
            for world in steps {
                now_ms += 700;
                let changed = world.put(&mut catalogue, before);
                before = Some(world);
                image.apply(&compiler.update(&catalogue.table(1), &world.node_view(), Some(&changed), now_ms));
                compiler.written(now_ms);
            }
            image.dump()
        };
        let expected = fresh(&last.table(), &last.node_view()).dump();
        let reversed: Vec<&World> = worlds.iter().rev().chain([last]).collect();
        prop_assert_eq!(run(worlds.iter().collect()), expected.clone());
        prop_assert_eq!(run(reversed), expected.clone());
        prop_assert_eq!(run(worlds.iter().flat_map(|world| [world, world]).collect()), expected.clone());
        prop_assert_eq!(run(vec![last]), expected);
    }

    /// netd restarted: the maps are as they should be, so nothing is written.
    #[test]
    fn adopting_an_image_and_the_same_table_changes_nothing(worlds in history(4)) {
        let mut compiler = Compiler::new(Limits::default());
        let (mut catalogue, mut image, mut before) = (Catalogue::new(), Image::default(), None);
        for world in &worlds {
            let changed = world.put(&mut catalogue, before);
            before = Some(world);
            let (table, view) = (catalogue.table(1), world.node_view());
            image.apply(&compiler.update(&table, &view, Some(&changed), 0));
            compiler.written(0);
            let mut heir = Compiler::new(Limits::default());
            heir.adopt(&image);
            let writes = heir.update(&table, &view, None, 0);
            prop_assert!(writes.is_empty(), "{:?}", writes);
            prop_assert_eq!(heir.names(), compiler.names());
        }
    }

    /// A Service with slow start leaves nothing to wait for when it is gone, and is as without it when all are warm.
    #[test]
    fn slow_start_ends(worlds in history(6), gone in any::<bool>()) {
        let mut compiler = Compiler::new(Limits::default());
        let (mut catalogue, mut image, mut now_ms, mut before) = (Catalogue::new(), Image::default(), 0, None);
        let last = worlds.last().unwrap();
        let worlds: Vec<World> = worlds.iter().map(World::with_slow_start).collect();
        for world in &worlds {
            now_ms += 700;
            let changed = world.put(&mut catalogue, before);
            before = Some(world);
            image.apply(&compiler.update(&catalogue.table(1), &world.node_view(), Some(&changed), now_ms));
            compiler.written(now_ms);
        }
        let nothing = last.without_services();
        let end = if gone { &nothing } else { last };
        if gone {
            let changed = end.put(&mut catalogue, before);
            image.apply(&compiler.update(&catalogue.table(1), &end.node_view(), Some(&changed), now_ms));
            compiler.written(now_ms);
        }
        for _ in 0..100 {
            let Some(at) = compiler.next_deadline() else { break };
            prop_assert!(at > now_ms);
            now_ms = at;
            let none = Default::default();
            image.apply(&compiler.update(&catalogue.table(1), &end.node_view(), Some(&none), now_ms));
            compiler.written(now_ms);
        }
        prop_assert_eq!(compiler.next_deadline(), None);
        prop_assert_eq!(image.dump(), fresh(&end.table(), &end.node_view()).dump());
        check_image(&image)?;
    }

    /// The record of a node goes and comes back, as where it does not parse for a while: nobody's connection notices.
    #[test]
    fn identifiers_stay_while_the_index_of_a_node_changes(world in world(), begins_known in any::<bool>()) {
        let mut compiler = Compiler::new(Limits::default());
        let (table, mut kernel, mut now_ms) = (world.table(), Kernel::default(), 0);
        let mut first: Option<BTreeMap<u32, BackendValue>> = None;
        for known in [begins_known, !begins_known, begins_known, !begins_known] {
            now_ms += 700;
            let view = world.with_second_node(known).node_view();
            let writes = compiler.update(&table, &view, Some(&Default::default()), now_ms);
            kernel.write(&writes, usize::MAX, now_ms, now_ms)?;
            compiler.written(now_ms);
            prop_assert_eq!(kernel.image.dump(), fresh(&table, &view).dump());
            let anywhere = kernel.image.backends.iter().map(|(id, value)| (*id, value.on_node(0, false))).collect();
            match &first {
                None => first = Some(anywhere),
                Some(first) => {
                    prop_assert_eq!(&anywhere, first);
                    prop_assert!(writes.left.is_empty(), "nobody left: {:?}", writes.left);
                    prop_assert!(writes.loads_reset.is_empty(), "connections are counted on: {:?}", writes.loads_reset);
                }
            }
        }
    }

    /// The same objects, the same maps, bit for bit.
    #[test]
    fn equal_inputs_give_equal_outputs(world in world()) {
        let (table, view) = (world.table(), world.node_view());
        prop_assert_eq!(fresh(&table, &view), fresh(&world.table(), &view));
    }
}
