// SPDX-License-Identifier: Apache-2.0
//! Key generations: single decisions. Whole clusters: `rotation.rs`.

use std::collections::{BTreeMap, BTreeSet};

use netd_plan::generation::{
    CATCH_UP_MS, GENERATION_MAX, LATE_DEADLINES_MAX, ROTATION_DEADLINE_MS, ROTATION_SETTLE_MS,
};
use netd_plan::{GenerationInput, GenerationPlan, Generations, PeerGenerations, RotationRefused};
use uuid::Uuid;

pub(crate) fn uuid(n: usize) -> Uuid {
    Uuid::from_u128(u128::try_from(n).unwrap())
}

fn own(keys: &[(u64, u64)], peers: Vec<PeerGenerations>) -> GenerationInput {
    GenerationInput {
        own: keys.iter().copied().collect(),
        peers,
        deadline_ms: ROTATION_DEADLINE_MS,
        in_touch: true,
        told_ms: keys.last().map(|(_, made_ms)| *made_ms),
        ..GenerationInput::default()
    }
}

/// One step where both clocks show the same.
fn at(state: &mut Generations, input: &GenerationInput, now_ms: u64) -> GenerationPlan {
    state.step(&GenerationInput { uptime_ms: now_ms, ..input.clone() }, now_ms)
}

fn peer(n: usize, published: &[u64], sends: u64, handshakes: &[u64]) -> PeerGenerations {
    PeerGenerations {
        uuid: uuid(n),
        live: true,
        published: published.iter().copied().collect(),
        sends: Some(sends),
        handshakes: handshakes.iter().map(|generation| (*generation, 1_000)).collect(),
    }
}

fn step(input: &GenerationInput, now_ms: u64) -> GenerationPlan {
    at(&mut Generations::default(), input, now_ms)
}

#[test]
fn the_first_key_is_of_the_newest_generation_that_there_is() {
    assert_eq!(step(&own(&[], vec![]), 0).make, Some(1));
    assert_eq!(step(&own(&[], vec![peer(2, &[3, 4], 3, &[])]), 0).make, Some(4));
    let bad = PeerGenerations { published: BTreeSet::from([0, GENERATION_MAX + 1]), ..peer(3, &[], 0, &[]) };
    assert_eq!(step(&own(&[], vec![bad]), 0).make, Some(1), "what nobody can follow is not believed");
    assert_eq!(step(&own(&[(1, 0)], vec![peer(2, &[1], 1, &[])]), 0).make, None);
}

#[test]
fn a_pair_moves_on_a_handshake_and_never_back() {
    let mut state = Generations::default();
    let keys = [(1, 0), (2, 0)];
    let plan = at(&mut state, &own(&keys, vec![peer(2, &[1], 1, &[])]), 1_000);
    let tunnel = &plan.peers[&uuid(2)];
    assert_eq!((tunnel.path, tunnel.keepalive), (Some(1), None), "one in common needs no handshake");

    let plan = at(&mut state, &own(&keys, vec![peer(2, &[1, 2], 1, &[1])]), 2_000);
    let tunnel = &plan.peers[&uuid(2)];
    assert_eq!((tunnel.path, tunnel.keepalive, plan.sends), (Some(1), Some(2), Some(1)), "it waits");
    assert_eq!(tunnel.common, BTreeSet::from([1, 2]), "both devices take it");

    let plan = at(&mut state, &own(&keys, vec![peer(2, &[1, 2], 1, &[1, 2])]), 3_000);
    let tunnel = &plan.peers[&uuid(2)];
    assert_eq!((tunnel.path, tunnel.keepalive, plan.sends), (Some(2), None, Some(2)));

    let forgotten = own(&keys, vec![peer(2, &[1, 2], 1, &[])]);
    assert_eq!(at(&mut state, &forgotten, 4_000).peers[&uuid(2)].path, Some(2), "the device was restarted");
    assert_eq!(
        step(&forgotten, 4_000).peers[&uuid(2)].path,
        Some(1),
        "this node too: what the peer sends over"
    );
    assert_eq!(step(&own(&keys, vec![peer(2, &[1, 2], 2, &[])]), 4_000).peers[&uuid(2)].path, Some(2));
}

#[test]
fn the_old_key_goes_when_nobody_needs_it_or_at_the_deadline() {
    let keys = [(1, 0), (2, 100_000)];
    let moved = own(&keys, vec![peer(2, &[1, 2], 2, &[1, 2])]);
    let mut state = Generations::default();
    let plan = at(&mut state, &moved, 120_000);
    assert_eq!((plan.drop, plan.next_ms), (None, Some(120_000 + ROTATION_SETTLE_MS)));
    let plan = at(&mut state, &moved, 120_000 + ROTATION_SETTLE_MS);
    assert_eq!((plan.drop, plan.sends), (Some(1), Some(2)));
    let again = at(&mut state, &moved, 121_000 + ROTATION_SETTLE_MS);
    assert_eq!(again.drop, Some(1), "said until it is done: routes move first");
    assert_eq!(plan.peers[&uuid(2)].common, BTreeSet::from([2]), "nothing of the key that goes");

    // The other end still sends over the old key, as one whose netd was killed does.
    let stays = own(&keys, vec![peer(2, &[1, 2], 1, &[1, 2]), peer(3, &[2], 2, &[])]);
    let mut state = Generations::default();
    let plan = at(&mut state, &stays, 120_000);
    assert_eq!((plan.drop, plan.next_ms), (None, Some(100_000 + ROTATION_DEADLINE_MS)));
    assert_eq!(at(&mut state, &stays, 399_999).drop, None);
    assert_eq!(at(&mut state, &stays, 400_000).drop, Some(1));

    // A record without a word about it counts by its newest key.
    let silent = PeerGenerations { sends: None, ..peer(2, &[1, 2], 0, &[1, 2]) };
    let mut state = Generations::default();
    assert_eq!(at(&mut state, &own(&keys, vec![silent.clone()]), 120_000).drop, None);
    assert_eq!(at(&mut state, &own(&keys, vec![silent]), 130_000).drop, Some(1));
}

#[test]
fn one_without_a_lease_counts_as_long_as_packets_come_from_it() {
    let keys = [(1, 0), (2, 100_000)];
    let away = |handshake_ms| PeerGenerations {
        live: false,
        handshakes: BTreeMap::from([(1, handshake_ms)]),
        ..peer(2, &[1], 1, &[])
    };
    let mut state = Generations::default();
    at(&mut state, &own(&keys, vec![away(110_000)]), 200_000);
    assert_eq!(at(&mut state, &own(&keys, vec![away(110_000)]), 230_000).drop, None);
    // Not a word for three minutes.
    at(&mut state, &own(&keys, vec![away(110_000)]), 300_000);
    assert_eq!(at(&mut state, &own(&keys, vec![away(110_000)]), 310_000).drop, Some(1));
}

#[test]
fn a_clock_that_is_set_moves_no_deadline() {
    let stays = own(&[(1, 0), (2, 9_000_000_000)], vec![peer(2, &[1, 2], 1, &[1])]);
    let input = |uptime_ms| GenerationInput { told_ms: Some(500), uptime_ms, ..stays.clone() };
    let mut state = Generations::default();
    for now_ms in [1_000, 9_000_000_000_000] {
        let plan = state.step(&input(1_500), now_ms);
        assert_eq!((plan.drop, plan.next_ms), (None, Some(now_ms + ROTATION_DEADLINE_MS - 1_000)));
    }
    assert_eq!(state.step(&input(500 + ROTATION_DEADLINE_MS), 1_000).drop, Some(1));
}

#[test]
fn a_key_that_peers_could_not_read_of_sends_no_older_one_away() {
    let keys = [(1, 0), (2, 0)];
    let untold = |peer| GenerationInput { told_ms: None, ..own(&keys, vec![peer]) };
    let mut state = Generations::default();
    let plan = at(&mut state, &untold(peer(2, &[1], 1, &[1])), 10 * ROTATION_DEADLINE_MS);
    assert_eq!((plan.drop, plan.make, plan.peers[&uuid(2)].path), (None, None, Some(1)));
    let alone = |told_ms| GenerationInput { told_ms, ..own(&keys, vec![]) };
    at(&mut state, &alone(None), 0);
    assert_eq!(at(&mut state, &alone(None), ROTATION_SETTLE_MS).drop, None, "all who were there are away");
    let told = GenerationInput { told_ms: Some(10 * ROTATION_DEADLINE_MS), ..untold(peer(2, &[1], 1, &[1])) };
    assert_eq!(at(&mut state, &told, 10 * ROTATION_DEADLINE_MS).drop, None, "now they have their time");
    assert_eq!(at(&mut state, &told, 11 * ROTATION_DEADLINE_MS).drop, None, "and it lives");
    assert_eq!(at(&mut state, &told, 11 * ROTATION_DEADLINE_MS + CATCH_UP_MS).drop, Some(1));
}

#[test]
fn a_peer_that_comes_back_late_has_a_deadline_of_its_own() {
    let keys = [(1, 0), (2, 0)];
    let away = PeerGenerations { live: false, ..peer(2, &[1], 1, &[1]) };
    let mut state = Generations::default();
    let input = |peer| GenerationInput { told_ms: Some(0), ..own(&keys, vec![peer]) };
    assert_eq!(at(&mut state, &input(away.clone()), ROTATION_DEADLINE_MS - 1).drop, None);
    assert_eq!(
        at(&mut state.clone(), &input(away.clone()), ROTATION_DEADLINE_MS).drop,
        Some(1),
        "who is away is not waited for"
    );
    let back = peer(2, &[1], 1, &[1]);
    let until = 2 * ROTATION_DEADLINE_MS - 1 + CATCH_UP_MS;
    assert_eq!(at(&mut state, &input(back.clone()), ROTATION_DEADLINE_MS - 1).drop, None);
    assert_eq!(at(&mut state, &input(away), ROTATION_DEADLINE_MS - 1).drop, None);
    assert_eq!(at(&mut state, &input(back.clone()), until - 1).drop, None);
    assert_eq!(at(&mut state, &input(back), until).drop, Some(1), "once, not again after each absence");
}

#[test]
fn peers_that_come_back_one_after_the_other_keep_a_key_only_so_long() {
    let away = |n| PeerGenerations { live: false, ..peer(n, &[1], 1, &[]) };
    let moved = |n| peer(n, &[1, 2], 2, &[]);
    let back = |n| peer(n, &[1], 1, &[]);
    let input = |peers| GenerationInput { told_ms: Some(0), ..own(&[(1, 0), (2, 0)], peers) };

    // Two of them: each has its own time in full.
    let mut state = Generations::default();
    let first_ms = ROTATION_DEADLINE_MS - 1;
    let first_until = first_ms + ROTATION_DEADLINE_MS + CATCH_UP_MS;
    let plan = at(&mut state, &input(vec![back(2), away(3)]), first_ms);
    assert_eq!((plan.drop, plan.next_ms), (None, Some(first_until)));
    let second_ms = first_until - 1;
    let second_until = second_ms + ROTATION_DEADLINE_MS + CATCH_UP_MS;
    let plan = at(&mut state, &input(vec![moved(2), back(3)]), second_ms);
    assert_eq!((plan.drop, plan.next_ms), (None, Some(second_until)));
    assert_eq!(at(&mut state, &input(vec![moved(2), back(3)]), second_until - 1).drop, None);
    assert_eq!(at(&mut state, &input(vec![moved(2), back(3)]), second_until).drop, Some(1));

    // Fifty that reboot in turn, each a minute after the other: the cap, and not a moment more.
    let mut state = Generations::default();
    let dropped = (0..50).find_map(|n| {
        let peers = (0..50).map(|p| {
            if p < n {
                moved(p + 2)
            } else if p == n {
                back(p + 2)
            } else {
                away(p + 2)
            }
        });
        let now_ms = 60_000 * u64::try_from(n + 1).unwrap();
        at(&mut state, &input(peers.collect()), now_ms).drop.map(|gone| (gone, now_ms))
    });
    assert_eq!(dropped, Some((1, LATE_DEADLINES_MAX * ROTATION_DEADLINE_MS)));
}

#[test]
fn without_the_store_no_key_comes_or_goes() {
    let alone = |input| GenerationInput { in_touch: false, ..input };
    let plan = step(&alone(own(&[(1, 0), (2, 0)], vec![peer(2, &[1], 1, &[1])])), 2 * ROTATION_DEADLINE_MS);
    assert_eq!((plan.drop, plan.make), (None, None), "the deadline");
    let moved = alone(own(&[(1, 0), (2, 0)], vec![peer(2, &[1, 2], 2, &[2])]));
    let mut state = Generations::default();
    at(&mut state, &moved, 0);
    assert_eq!(at(&mut state, &moved, ROTATION_SETTLE_MS).drop, None, "an old word of the peers");
    let due = GenerationInput { rotation_ms: Some(1), ..alone(own(&[(1, 0)], vec![])) };
    let plan = step(&due, 10);
    assert_eq!((plan.make, plan.refused), (None, None), "the schedule waits and says nothing");
    let asked = GenerationInput { rotate: true, ..due };
    let plan = step(&asked, 10);
    assert_eq!((plan.make, plan.refused), (None, Some(RotationRefused::NoStore)));
    assert_eq!(step(&alone(own(&[(1, 0)], vec![peer(2, &[2], 2, &[])])), 0).make, None, "nobody would hear");
    assert_eq!(
        step(&alone(own(&[], vec![peer(2, &[2], 2, &[])])), 0).make,
        Some(2),
        "a first one harms nobody"
    );
}

#[test]
fn one_that_missed_rotations_catches_up_by_way_of_the_other_device() {
    // Device 0 is free for the newest.
    let plan = step(&own(&[(1, 0)], vec![peer(2, &[4], 4, &[])]), 0);
    assert_eq!((plan.drop, plan.make), (None, Some(4)));
    // It is not, but nobody else speaks what is there.
    let plan = step(&own(&[(2, 0)], vec![peer(2, &[4], 4, &[])]), 0);
    assert_eq!((plan.drop, plan.make), (Some(2), Some(4)));
    // Somebody does: both go by 3.
    let behind = || peer(3, &[2], 2, &[2]);
    let plan = step(&own(&[(2, 0)], vec![peer(2, &[4], 4, &[]), behind()]), 0);
    assert_eq!((plan.drop, plan.make), (None, Some(3)));
    let plan = step(&own(&[(2, 0), (3, 0)], vec![peer(2, &[4], 4, &[]), behind()]), 0);
    assert_eq!((plan.drop, plan.make), (None, None), "2 must go first");
    let gone = PeerGenerations { live: false, ..behind() };
    let plan = step(&own(&[(2, 0)], vec![peer(2, &[4], 4, &[]), gone]), 1_000_000);
    assert_eq!((plan.drop, plan.make), (Some(2), Some(4)), "who is away finds back alone");
    // Damage on the disk: two keys for one device.
    assert_eq!(step(&own(&[(2, 0), (4, 0)], vec![]), 0).drop, Some(2));
}

#[test]
fn a_rotation_is_asked_for_or_due_and_one_at_a_time() {
    let asked = |input: GenerationInput| step(&GenerationInput { rotate: true, ..input }, 1_000);
    assert_eq!(asked(own(&[(5, 0)], vec![peer(2, &[5], 5, &[])])).make, Some(6));
    let plan = asked(own(&[(5, 0), (6, 0)], vec![]));
    assert_eq!((plan.make, plan.refused), (None, Some(RotationRefused::Holding { older: 5, newer: 6 })));
    let plan = asked(own(&[(5, 0)], vec![peer(2, &[5, 6], 5, &[])]));
    assert_eq!((plan.make, plan.refused), (Some(6), Some(RotationRefused::Behind { own: 5, seen: 6 })));
    let plan = asked(own(&[(GENERATION_MAX, 0)], vec![]));
    assert_eq!(plan.refused, Some(RotationRefused::End(GENERATION_MAX)));

    let due = |now_ms| {
        let input = GenerationInput { rotation_ms: Some(60_000), ..own(&[(5, 1_000)], vec![]) };
        let plan = step(&input, now_ms);
        (plan.make, plan.next_ms, plan.refused)
    };
    assert_eq!(due(60_999), (None, Some(61_000), None));
    assert_eq!(due(61_000), (Some(6), None, None));
}
