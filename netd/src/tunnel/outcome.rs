// SPDX-License-Identifier: Apache-2.0
//! What a round of the tunnel's task means for everybody else, and when the next one is due: pure.

use netd_plan::generation::HANDSHAKE_FRESH_MS;
use uuid::Uuid;

use super::state::TunnelState;

/// What follows from a round.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Outcome {
    /// Agent and publisher have something to do.
    pub changed: bool,
    /// The next round is due soon: something moves, or does not answer.
    pub soon: bool,
    /// The devices may still hold something of ours: the next round looks at them even where nobody wants WireGuard.
    pub to_be_seen: bool,
}

/// `used`: WireGuard is wanted or kept. `awaited`: a path waits for a handshake.
pub(super) fn outcome(
    last: &TunnelState,
    state: &TunnelState,
    (used, awaited): (bool, bool),
    now_ms: u64,
) -> Outcome {
    let moving = awaited
        || state.generations.len() > 1
        || state.plan.peers.values().any(|peer| peer.keepalive.is_some());
    let failed = !state.errors.is_empty();
    let changed = !last.looked
        || last.keys != state.keys
        || last.generations != state.generations
        || last.plan != state.plan
        || last.member_generations() != state.member_generations()
        || last.errors != state.errors
        || last.answers != state.answers
        // Removal waits for peers to be gone from the devices.
        || !last.peers.keys().eq(state.peers.keys())
        || shaken(last, now_ms) != shaken(state, now_ms);
    Outcome { changed, soon: moving || failed, to_be_seen: used || failed }
}

/// Who has had a handshake of late, by generation: routes may move when this changes.
fn shaken(state: &TunnelState, now_ms: u64) -> Vec<(Uuid, u64)> {
    let links = state.peers.iter().flat_map(|(uuid, links)| links.iter().map(move |link| (*uuid, link)));
    let is_fresh = |at: u64| now_ms.saturating_sub(at) < HANDSHAKE_FRESH_MS;
    let fresh = links.filter(|(_, link)| link.handshake_ms.is_some_and(is_fresh));
    fresh.map(|(uuid, link)| (uuid, link.generation)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::state::PeerLink;
    use super::*;

    const NOW_MS: u64 = 1_000_000_000;
    const USED: (bool, bool) = (true, false);

    fn state(handshake_ms: Option<u64>) -> TunnelState {
        let link = PeerLink {
            generation: 1,
            endpoint: None,
            handshake_ms,
            rx_bytes: 0,
            tx_bytes: 0,
            rx_bits_per_sec: 0,
            tx_bits_per_sec: 0,
        };
        TunnelState {
            looked: true,
            generations: BTreeSet::from([1]),
            peers: BTreeMap::from([(Uuid::from_u128(2), vec![link])]),
            ..TunnelState::default()
        }
    }

    #[test]
    fn a_round_like_the_last_one_wakes_nobody() {
        let quiet = Outcome { changed: false, soon: false, to_be_seen: true };
        let (before, after) = (state(Some(NOW_MS - 130_000)), state(Some(NOW_MS - 1_000)));
        assert_eq!(outcome(&before, &after, USED, NOW_MS), quiet, "a session that was renewed");
        assert!(outcome(&TunnelState::default(), &after, USED, NOW_MS).changed, "the first one");
    }

    #[test]
    fn an_old_handshake_that_is_followed_by_a_new_one_is_news() {
        let (none, old, new) = (state(None), state(Some(NOW_MS - HANDSHAKE_FRESH_MS)), state(Some(NOW_MS)));
        assert!(outcome(&old, &new, USED, NOW_MS).changed, "a path may have waited for it");
        assert!(outcome(&none, &new, USED, NOW_MS).changed);
        assert!(!outcome(&none, &old, USED, NOW_MS).changed, "it proves nothing");
    }

    #[test]
    fn a_device_that_could_not_be_emptied_is_looked_at_again() {
        let failed = TunnelState { errors: vec!["no answer".into()], ..TunnelState::default() };
        let unused = (false, false);
        assert_eq!(
            outcome(&failed, &failed, unused, NOW_MS),
            Outcome { changed: true, soon: true, to_be_seen: true }
        );
        let emptied = TunnelState { looked: true, ..TunnelState::default() };
        let after = outcome(&state(None), &emptied, unused, NOW_MS);
        assert_eq!(after, Outcome { changed: true, soon: false, to_be_seen: false });
    }

    #[test]
    fn peers_that_left_the_devices_are_news_for_who_removes_a_node() {
        let gone = TunnelState { peers: BTreeMap::new(), ..state(None) };
        assert!(outcome(&state(None), &gone, USED, NOW_MS).changed);
    }

    #[test]
    fn two_keys_or_a_path_that_waits_are_watched_closely() {
        let two = TunnelState { generations: BTreeSet::from([1, 2]), ..state(None) };
        assert!(outcome(&two, &two, USED, NOW_MS).soon);
        assert!(outcome(&state(None), &state(None), (true, true), NOW_MS).soon);
    }
}
