// SPDX-License-Identifier: Apache-2.0
//! Which nodes are there. One whose netd starts anew goes on serving node ports meanwhile: its address stays.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use crate::view::View;

/// An upgrade, or a reboot of a small machine, is over by then.
const AWAY_MS: u64 = 60_000;

/// When nodes were last known to be alive, in monotonic milliseconds.
#[derive(Debug, Default)]
pub(super) struct Presence {
    seen: BTreeMap<Uuid, Seen>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    /// Alive; before that, known of.
    at_ms: u64,
    alive_once: bool,
}

/// Who is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Present {
    /// Alive now or a moment ago.
    pub sure: BTreeSet<Uuid>,
    /// Away for as long as we have looked, which is not long: what they have stays, and they get nothing new.
    pub doubtful: BTreeSet<Uuid>,
}

impl Presence {
    /// Who is there now. Where nobody is left it is our knowledge that ended, and not all nodes at once: then all of them are.
    pub(super) fn look(&mut self, view: &View, now_ms: u64) -> Present {
        let members: BTreeSet<Uuid> =
            view.nodes.keys().filter(|uuid| !view.tombstones.contains_key(*uuid)).copied().collect();
        self.seen.retain(|uuid, _| members.contains(uuid));
        let mut present = Present::default();
        for uuid in &members {
            let is_alive = view.alive.contains(uuid);
            let seen = self.seen.entry(*uuid).or_insert(Seen { at_ms: now_ms, alive_once: false });
            if is_alive {
                *seen = Seen { at_ms: now_ms, alive_once: true };
            }
            if now_ms.saturating_sub(seen.at_ms) < AWAY_MS {
                let of = if seen.alive_once { &mut present.sure } else { &mut present.doubtful };
                of.insert(*uuid);
            }
        }
        if present.sure.is_empty() && present.doubtful.is_empty() {
            present.sure = members;
        }
        present
    }
}

#[cfg(test)]
mod tests {
    use netd_store::records::NodeRecord;
    use serde_json::json;

    use super::*;

    fn view(alive: &[u128]) -> View {
        let node = |number: u128| {
            let uuid = Uuid::from_u128(number);
            let record =
                json!({"schema": 1, "uuid": uuid, "name": format!("n{number}"), "underlay": "192.0.2.1"});
            (uuid, serde_json::from_value::<NodeRecord>(record).unwrap())
        };
        View {
            nodes: [1, 2].into_iter().map(node).collect(),
            alive: alive.iter().map(|number| Uuid::from_u128(*number)).collect(),
            ..View::default()
        }
    }

    fn look(presence: &mut Presence, alive: &[u128], now: u64) -> (Vec<u128>, Vec<u128>) {
        let Present { sure, doubtful } = presence.look(&view(alive), now);
        let numbers = |of: BTreeSet<Uuid>| of.into_iter().map(|uuid| uuid.as_u128()).collect();
        (numbers(sure), numbers(doubtful))
    }

    #[test]
    fn a_node_that_is_away_for_a_moment_stays() {
        let mut presence = Presence::default();
        assert_eq!(look(&mut presence, &[1, 2], 1_000), (vec![1, 2], vec![]));
        assert_eq!(look(&mut presence, &[1], 2_000), (vec![1, 2], vec![]));
        assert_eq!(look(&mut presence, &[1], 61_000), (vec![1], vec![]));
        assert_eq!(look(&mut presence, &[1, 2], 62_000), (vec![1, 2], vec![]));
        assert_eq!(look(&mut presence, &[], 200_000), (vec![1, 2], vec![]), "not all of them at once");
    }

    #[test]
    fn who_has_not_looked_for_long_does_not_know() {
        let mut restarted = Presence::default();
        assert_eq!(look(&mut restarted, &[1], 0), (vec![1], vec![2]));
        assert_eq!(look(&mut restarted, &[1], AWAY_MS), (vec![1], vec![]));
        assert_eq!(look(&mut restarted, &[1, 2], AWAY_MS + 1), (vec![1, 2], vec![]));
        assert_eq!(look(&mut restarted, &[1], AWAY_MS + 2), (vec![1, 2], vec![]));
    }
}
