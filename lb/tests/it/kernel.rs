// SPDX-License-Identifier: Apache-2.0
//! Maps as the kernel has them, with programs that may be running in between.

use std::collections::BTreeMap;

use ebpf_abi::{BackendValue, FrontendKey, ServiceValue};
use lb::{GRACE_MS, Image, Writes};
use proptest::prelude::*;

/// The maps, and the entries that a program may have read and not followed to the end.
#[derive(Default)]
pub(crate) struct Kernel {
    pub(crate) image: Image,
    /// Service entries that are gone, what they led to, and since when.
    left: Vec<(FrontendKey, ServiceValue, Vec<BackendValue>, u64)>,
}

impl Kernel {
    /// Writes change by change, as far as `count`, and looks at the maps after each as a program would. Until `ended_ms` a program
    /// may have read what was there before.
    pub(crate) fn write(
        &mut self,
        writes: &Writes,
        count: usize,
        began_ms: u64,
        ended_ms: u64,
    ) -> Result<bool, TestCaseError> {
        self.left.retain(|(.., left)| left + GRACE_MS > began_ms);
        let before = self.image.clone();
        let mut after = before.clone();
        after.apply(writes);
        let seen = |image: &Image| -> BTreeMap<FrontendKey, (ServiceValue, Vec<BackendValue>)> {
            let look = |(key, value): (&FrontendKey, &ServiceValue)| {
                (*key, (*value, translations(image.resolve(key).expect("a frontend leads nowhere"))))
            };
            image.services.iter().map(look).collect()
        };
        let (old, new) = (seen(&before), seen(&after));
        let total = writes.len();
        for done in cuts(total).chain([count.min(total)]) {
            if done > count {
                continue;
            }
            let mut image = before.clone();
            image.apply_first(writes, done);
            for (key, value) in &image.services {
                let now = image.resolve(key).map(|slots| (*value, translations(slots)));
                prop_assert!(now.is_some(), "{} leads nowhere after {} changes", key, done);
                let known = [old.get(key), new.get(key)].contains(&now.as_ref());
                prop_assert!(known, "{} is neither as before nor as after, after {} changes", key, done);
            }
            for key in old.keys().filter(|key| new.contains_key(key)) {
                prop_assert!(image.services.contains_key(key), "{} is away for a moment", key);
            }
            // A program that read an entry before this write, or in an earlier one, still finds what it led to.
            let recent = self.left.iter().map(|(key, value, slots, _)| (key, value, slots));
            for (key, value, slots) in
                recent.chain(old.iter().map(|(key, (value, slots))| (key, value, slots)))
            {
                let end = value.slot_offset + value.slot_count;
                let followed = (value.slot_offset..end)
                    .map(|slot| image.slots.get(&slot).and_then(|id| image.backends.get(id)).copied())
                    .collect::<Option<Vec<_>>>()
                    .map(translations);
                prop_assert_eq!(
                    followed.as_ref(),
                    Some(slots),
                    "{} is pulled away from under a program",
                    key
                );
            }
            self.image = image;
        }
        for (key, (value, slots)) in old {
            if self.image.services.get(&key) != Some(&value) {
                self.left.push((key, value, slots, ended_ms));
            }
        }
        Ok(count >= total)
    }
}

/// What becomes of an address. Where a backend runs may change under a program: it decides on the way there, not on where to.
pub(crate) fn translations(slots: Vec<BackendValue>) -> Vec<BackendValue> {
    slots.into_iter().map(|value| value.on_node(0, false)).collect()
}

/// Where to stop and look: after every change, or where a table has thousands, here and there among them.
fn cuts(total: usize) -> impl Iterator<Item = usize> {
    const CLOSELY: usize = 24;
    let stride = (total / 8).max(1);
    (0..=total).filter(move |done| total <= 3 * CLOSELY || done + CLOSELY > total || done % stride == 0)
}
