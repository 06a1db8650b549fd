// SPDX-License-Identifier: Apache-2.0
//! A listing that would drop most of the cluster is not believed at once: a store that was emptied, restored from an old
//! backup or confused with another must not take every pod's routes and services with it.

use std::collections::BTreeMap;

use netd_store::MirrorState;

/// Smaller clusters may lose everything in one honest stroke.
const ITEMS_MIN: usize = 6;

/// What a relist would drop, in words; `None` when it may be applied. Deletions that the watch brings one by one are not
/// judged: somebody made them.
pub(crate) fn objection(
    known: &MirrorState,
    listed: &MirrorState,
    kind: impl Fn(&str) -> Option<&str>,
) -> Option<String> {
    if listed.listings == known.listings {
        return None;
    }
    let (before, after) = (counts(known, &kind), counts(listed, &kind));
    let lost: Vec<String> = before
        .into_iter()
        .map(|(kind, before)| (kind, before, after.get(kind).copied().unwrap_or(0)))
        .filter(|(_, before, after)| *before >= ITEMS_MIN && *after < before / 2)
        .map(|(kind, before, after)| format!("{after} of {before} {kind}"))
        .collect();
    (!lost.is_empty()).then(|| {
        format!(
            "the store came back with {}: not applied, the last known state stands; repair the store, or restart netd to \
             accept what it holds",
            lost.join(", ")
        )
    })
}

/// Kinds of keys below `root` that people or nodes decide on: leased keys come and go with their leases.
pub(crate) fn of_weft(root: &str) -> impl Fn(&str) -> Option<&str> + use<> {
    let root = root.to_owned();
    move |key| {
        let kind = key.strip_prefix(&root)?.split('/').next()?;
        matches!(kind, "dns" | "endpoints" | "ipam" | "nodes" | "pods" | "services").then_some(kind)
    }
}

/// Everything below a prefix.
pub(crate) fn of_skydns(prefix: &str) -> impl Fn(&str) -> Option<&str> + use<> {
    let prefix = prefix.to_owned();
    move |key| key.starts_with(&prefix).then_some("SkyDNS records")
}

fn counts<'a>(state: &'a MirrorState, kind: impl Fn(&'a str) -> Option<&'a str>) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    for kind in state.items.keys().filter_map(|key| kind(key)) {
        *counts.entry(kind).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use netd_store::{KeyValue, Mirror};

    use super::*;

    fn state(listings: u64, services: usize) -> MirrorState {
        of("services/default", listings, services)
    }

    fn of(kind: &str, listings: u64, count: usize) -> MirrorState {
        let item = |key: String| {
            let item =
                KeyValue { key: key.clone(), value: Bytes::new(), create_revision: 1, mod_revision: 1 };
            (key, Arc::new(item))
        };
        let mut mirror = Mirror::new();
        mirror.items = (0..count).map(|i| item(format!("/w/{kind}/s{i}"))).collect();
        MirrorState { mirror, listings, ..MirrorState::default() }
    }

    #[test]
    fn a_relist_that_drops_most_is_held_and_a_watch_that_does_is_not() {
        assert!(objection(&state(1, 20), &state(2, 2), of_weft("/w/")).unwrap().contains("2 of 20 services"));
        assert_eq!(objection(&state(1, 20), &state(1, 2), of_weft("/w/")), None);
        assert_eq!(objection(&state(1, 20), &state(2, 15), of_weft("/w/")), None);
        assert_eq!(objection(&state(1, 3), &state(2, 0), of_weft("/w/")), None);
        let names = objection(&of("dns/records", 1, 9), &of("dns/records", 2, 1), of_weft("/w/"));
        assert!(names.unwrap().contains("1 of 9 dns"));
        assert_eq!(objection(&of("alive", 1, 9), &of("alive", 2, 1), of_weft("/w/")), None);
        assert_eq!(objection(&state(0, 0), &state(1, 0), of_weft("/w/")), None);
    }
}
