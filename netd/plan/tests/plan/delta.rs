// SPDX-License-Identifier: Apache-2.0
//! The delta tracker beside two plain maps.

use std::collections::BTreeMap;

use netd_plan::DeltaTracker;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Do {
    ApplyAll,
    ApplyDeletion(u8),
    ApplyUpdate(u8),
    Desire(u8, u8),
    Observe(u8, u8),
    ObserveAbsent(u8),
    SetDesired(BTreeMap<u8, u8>),
    SetObserved(BTreeMap<u8, u8>),
    Undesire(u8),
}

fn steps() -> impl Strategy<Value = Vec<Do>> {
    let (key, value) = (0_u8..8, 0_u8..3);
    let map = prop::collection::btree_map(key.clone(), value.clone(), 0..6);
    let step = prop_oneof![
        1 => Just(Do::ApplyAll),
        3 => key.clone().prop_map(Do::ApplyDeletion),
        3 => key.clone().prop_map(Do::ApplyUpdate),
        5 => (key.clone(), value.clone()).prop_map(|(k, v)| Do::Desire(k, v)),
        5 => (key.clone(), value).prop_map(|(k, v)| Do::Observe(k, v)),
        2 => key.clone().prop_map(Do::ObserveAbsent),
        1 => map.clone().prop_map(Do::SetDesired),
        1 => map.prop_map(Do::SetObserved),
        3 => key.prop_map(Do::Undesire),
    ];
    prop::collection::vec(step, 0..60)
}

type Maps = (BTreeMap<u8, u8>, BTreeMap<u8, u8>);

fn step(tracker: &mut DeltaTracker<u8, u8>, (desired, observed): &mut Maps, step: Do) {
    match step {
        Do::ApplyAll => apply_all(tracker, observed),
        Do::ApplyDeletion(key) => {
            tracker.applied_deletion(&key);
            if !desired.contains_key(&key) {
                observed.remove(&key);
            }
        }
        Do::ApplyUpdate(key) => {
            tracker.applied_update(&key);
            observed.extend(desired.get(&key).map(|value| (key, *value)));
        }
        Do::Desire(key, value) => {
            tracker.desire(key, value);
            desired.insert(key, value);
        }
        Do::Observe(key, value) => {
            tracker.observe(key, value);
            observed.insert(key, value);
        }
        Do::ObserveAbsent(key) => {
            tracker.observe_absent(&key);
            observed.remove(&key);
        }
        Do::SetDesired(map) => {
            tracker.set_desired(map.clone());
            *desired = map;
        }
        Do::SetObserved(map) => {
            tracker.set_observed(map.clone());
            *observed = map;
        }
        Do::Undesire(key) => {
            tracker.undesire(&key);
            desired.remove(&key);
        }
    }
}

/// Writes what is pending to a kernel of one map, as a driver does.
fn apply_all(tracker: &mut DeltaTracker<u8, u8>, kernel: &mut BTreeMap<u8, u8>) {
    let updates: Vec<(u8, u8)> = tracker.pending_updates().map(|(k, v)| (*k, *v)).collect();
    let deletions: Vec<u8> = tracker.pending_deletions().map(|(k, _)| *k).collect();
    for (key, value) in updates {
        kernel.insert(key, value);
        tracker.applied_update(&key);
    }
    for key in deletions {
        kernel.remove(&key);
        tracker.applied_deletion(&key);
    }
}

proptest! {
    #[test]
    fn pending_is_the_difference_after_every_step(steps in steps()) {
        let mut tracker = DeltaTracker::new();
        let mut maps = Maps::default();
        for one in steps {
            step(&mut tracker, &mut maps, one);
            let (desired, observed) = &maps;
            let updates: BTreeMap<u8, u8> = tracker.pending_updates().map(|(k, v)| (*k, *v)).collect();
            let mut expected = desired.clone();
            expected.retain(|key, value| observed.get(key) != Some(value));
            prop_assert_eq!(updates, expected);
            let deletions: BTreeMap<u8, u8> = tracker.pending_deletions().map(|(k, v)| (*k, *v)).collect();
            let mut expected = observed.clone();
            expected.retain(|key, _| !desired.contains_key(key));
            prop_assert_eq!(deletions, expected);
        }
        apply_all(&mut tracker, &mut maps.1);
        prop_assert!(tracker.in_sync());
        prop_assert_eq!(&maps.0, &maps.1, "applying what is pending makes both sides equal");
    }
}
