// SPDX-License-Identifier: Apache-2.0
//! Attachments that are gone without a DEL: a reboot, a namespace deleted by hand, a runtime that forgot.
//!
//! Three witnesses are heard for each attachment: its link, its network namespace, and the runtime's cache of CNI results.
//! While the link is there, nothing is freed. Without it the address is of no use to anybody, but a namespace that exists or
//! an entry in the cache announces a DEL, so these wait longer for it. The cache alone proves no life: it lies on disk and
//! outlives a reboot.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::owner::AttachmentKey;
use crate::time::Timestamp;

/// An attachment of which nothing is left is freed when this much lies between two observations, unless the caller says
/// otherwise: one that is being made or deleted right now is done by then.
pub const LOST_AGE_MIN: Duration = Duration::from_secs(60);

/// So many times as long waits one that the runtime still lists or whose namespace exists: a runtime that starts after a
/// reboot deletes what it has lost, within minutes.
pub const LISTED_AGE_FACTOR: u32 = 10;

/// What is seen of an attachment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    /// Its link exists, with the index that it was made with.
    pub link: bool,
    /// The network namespace that the runtime named exists.
    pub netns: bool,
    /// The runtime's result cache has it.
    pub listed: bool,
}

/// Watches attachments. The memory is not durable: after a restart two new observations are needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostWatch {
    /// How long one of which nothing is left waits.
    age_min: Duration,
    /// Since when each was seen without a link.
    lost: BTreeMap<AttachmentKey, Timestamp>,
}

impl LostWatch {
    /// Nothing is suspected yet. `age_min` is usually [`LOST_AGE_MIN`].
    pub fn new(age_min: Duration) -> LostWatch {
        LostWatch { age_min, lost: BTreeMap::new() }
    }

    /// One observation of all attachments that are on record. Returns those to free now: lost in this observation and in
    /// every one since another that lies long enough back. One that is not among `sights` is forgotten.
    pub fn observe(&mut self, sights: &BTreeMap<AttachmentKey, Sight>, now: Timestamp) -> Vec<AttachmentKey> {
        let mut lost = BTreeMap::new();
        let mut free = Vec::new();
        for (key, sight) in sights.iter().filter(|(_, sight)| !sight.link) {
            // A first sight that lies ahead was dated by a clock that has been set back since.
            let first = self.lost.get(key).copied().filter(|first| *first <= now);
            let factor = if sight.netns || sight.listed { LISTED_AGE_FACTOR } else { 1 };
            let wait = self.age_min.saturating_mul(factor);
            if first.is_some_and(|first| now.since(first) >= wait) {
                free.push(key.clone());
            }
            // It stays suspected until it is off the record: freeing may fail.
            lost.insert(key.clone(), first.unwrap_or(now));
        }
        self.lost = lost;
        free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GONE: Sight = Sight { link: false, netns: false, listed: false };

    fn key(id: &str) -> AttachmentKey {
        AttachmentKey::new("weft", id, "eth0")
    }

    fn at(secs: u64) -> Timestamp {
        Timestamp(1_000_000 + secs * 1000)
    }

    fn names(keys: Vec<AttachmentKey>) -> Vec<String> {
        keys.into_iter().map(|key| key.container_id).collect()
    }

    #[test]
    fn after_a_reboot_what_nobody_knows_is_freed_first_and_what_the_runtime_lists_later() {
        let mut watch = LostWatch::new(LOST_AGE_MIN);
        let sights = BTreeMap::from([
            (key("forgotten"), GONE),
            (key("listed"), Sight { listed: true, ..GONE }),
            (key("netns"), Sight { netns: true, ..GONE }),
            (key("running"), Sight { link: true, netns: true, listed: true }),
            (key("unlisted"), Sight { link: true, ..GONE }),
        ]);
        assert!(watch.observe(&sights, at(0)).is_empty(), "one observation frees nothing");
        assert!(watch.observe(&sights, at(LOST_AGE_MIN.as_secs() - 1)).is_empty(), "too soon");
        assert_eq!(names(watch.observe(&sights, at(60))), ["forgotten"]);
        assert_eq!(names(watch.observe(&sights, at(600))), ["forgotten", "listed", "netns"]);
    }

    #[test]
    fn a_link_that_was_seen_between_begins_anew() {
        let mut watch = LostWatch::new(LOST_AGE_MIN);
        let lost = BTreeMap::from([(key("a"), GONE)]);
        let there = BTreeMap::from([(key("a"), Sight { link: true, ..GONE })]);
        watch.observe(&lost, at(0));
        watch.observe(&there, at(30));
        assert!(watch.observe(&lost, at(100)).is_empty());
        watch.observe(&BTreeMap::new(), at(110));
        assert!(watch.observe(&lost, at(200)).is_empty(), "off the record between: another attachment");
        assert_eq!(names(watch.observe(&lost, at(260))), ["a"]);
    }

    #[test]
    fn a_clock_set_back_makes_it_wait_once_more_and_not_for_ever() {
        let mut watch = LostWatch::new(LOST_AGE_MIN);
        let lost = BTreeMap::from([(key("a"), GONE)]);
        watch.observe(&lost, at(1_000_000));
        assert!(watch.observe(&lost, at(0)).is_empty());
        assert!(watch.observe(&lost, at(59)).is_empty());
        assert_eq!(names(watch.observe(&lost, at(60))), ["a"]);
    }
}
