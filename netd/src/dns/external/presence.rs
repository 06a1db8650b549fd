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
    seen: BTreeMap<Uuid, u64>,
}

impl Presence {
    /// The nodes that are alive, or were a moment ago. One that was never seen counts from now on. Where none is left it is our
    /// knowledge that ended, and not all nodes at once: then all of them.
    pub(super) fn look(&mut self, view: &View, now_ms: u64) -> BTreeSet<Uuid> {
        let members: BTreeSet<Uuid> =
            view.nodes.keys().filter(|uuid| !view.tombstones.contains_key(*uuid)).copied().collect();
        self.seen.retain(|uuid, _| members.contains(uuid));
        for uuid in &members {
            if view.alive.contains(uuid) || !self.seen.contains_key(uuid) {
                self.seen.insert(*uuid, now_ms);
            }
        }
        let is_there =
            |uuid: &Uuid| self.seen.get(uuid).is_some_and(|at| now_ms.saturating_sub(*at) < AWAY_MS);
        let present: BTreeSet<Uuid> = members.iter().filter(|uuid| is_there(uuid)).copied().collect();
        if present.is_empty() { members } else { present }
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

    #[test]
    fn a_node_that_is_away_for_a_moment_stays() {
        let mut presence = Presence::default();
        let mut look = |alive: &[u128], now| {
            presence.look(&view(alive), now).into_iter().map(|uuid| uuid.as_u128()).collect::<Vec<u128>>()
        };
        assert_eq!(look(&[1, 2], 1_000), [1, 2]);
        assert_eq!(look(&[1], 2_000), [1, 2]);
        assert_eq!(look(&[1], 61_000), [1]);
        assert_eq!(look(&[1, 2], 62_000), [1, 2]);
        assert_eq!(look(&[], 200_000), [1, 2], "not all of them at once");
        let mut restarted = Presence::default();
        assert_eq!(restarted.look(&view(&[1]), 0).len(), 2, "who has not looked yet does not know");
        assert_eq!(restarted.look(&view(&[1]), AWAY_MS).len(), 1);
    }
}
