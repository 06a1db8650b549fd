// SPDX-License-Identifier: Apache-2.0
//! Clusters that rotate their keys while records come late, handshakes get lost, and nodes restart, vanish and come back.

use netd_plan::generation::ROTATION_DEADLINE_MS;
use proptest::prelude::*;

use super::rotation_cluster::{Cluster, Event, STEP_MS};

#[test]
fn a_quiet_cluster_rotates_in_less_than_a_minute() {
    let mut cluster = Cluster::new(4, 7);
    cluster.seconds(30);
    assert_eq!(cluster.assert_settled(), 1);
    for generation in 2..6 {
        cluster.happen(&Event::Rotate(1));
        cluster.happen(&Event::Rotate(2));
        cluster.seconds(60);
        assert_eq!(cluster.assert_settled(), generation, "two who rotate at once make one generation");
    }
    assert_eq!(cluster.joined.len(), 6);
}

#[test]
fn a_node_that_slept_through_rotations_finds_back_alone() {
    let mut cluster = Cluster::new(3, 11);
    cluster.seconds(30);
    for rotations in 1..4 {
        cluster.happen(&Event::Off(2));
        for _ in 0..rotations {
            cluster.happen(&Event::Rotate(0));
            cluster.seconds(240);
        }
        cluster.happen(&Event::On(2));
        cluster.seconds(30);
        assert!(cluster.reaches(0, 2) && cluster.reaches(2, 0), "{}", cluster.picture());
        cluster.seconds(400);
        cluster.assert_settled();
    }
}

#[test]
fn two_that_both_missed_rotations_keep_each_other_while_they_catch_up() {
    let mut cluster = Cluster::new(4, 13);
    cluster.seconds(30);
    // They have no store, but speak with each other all the time.
    cluster.happen(&Event::CutStore(2));
    cluster.happen(&Event::CutStore(3));
    for _ in 0..2 {
        cluster.happen(&Event::Rotate(0));
        cluster.seconds(400);
    }
    cluster.happen(&Event::HealStore(2));
    for second in 0..600 {
        if second == 20 {
            cluster.happen(&Event::HealStore(3));
        }
        cluster.seconds(1);
        assert!(cluster.reaches(2, 3) && cluster.reaches(3, 2), "{second} s\n{}", cluster.picture());
    }
    assert_eq!(cluster.assert_settled(), 3);
}

#[test]
fn a_node_that_is_to_rotate_while_it_has_no_store_keeps_all_its_peers() {
    let mut cluster = Cluster::new(3, 17);
    cluster.seconds(30);
    cluster.happen(&Event::CutStore(0));
    cluster.happen(&Event::Rotate(0));
    for _ in 0..2 {
        cluster.seconds(2 * ROTATION_DEADLINE_MS / STEP_MS);
        for (a, b) in cluster.all_pairs() {
            assert!(cluster.reaches(a, b) && cluster.reaches(b, a), "{}", cluster.picture());
        }
        // The same after a restart of its netd, from what it knew last.
        cluster.happen(&Event::KillNetd(0));
        cluster.happen(&Event::StartNetd(0));
    }
    cluster.happen(&Event::HealStore(0));
    cluster.seconds(60);
    assert_eq!(cluster.assert_settled(), 1, "the wish was refused, not kept");
}

#[test]
fn a_netd_killed_right_after_it_made_a_key_gives_its_peers_their_time_all_the_same() {
    let mut cluster = Cluster::new(3, 19);
    cluster.seconds(30);
    // On the disk, and nobody ever read of it.
    cluster.last_key += 1;
    let (key, now_ms) = (cluster.last_key, cluster.now_ms);
    cluster.nodes[0].keys.insert(2, (key, now_ms));
    cluster.happen(&Event::KillNetd(0));
    cluster.seconds(2 * ROTATION_DEADLINE_MS / STEP_MS);
    cluster.happen(&Event::StartNetd(0));
    for _ in 0..60 {
        cluster.seconds(1);
        for (a, b) in cluster.all_pairs() {
            assert!(cluster.reaches(a, b) && cluster.reaches(b, a), "{}", cluster.picture());
        }
    }
    assert_eq!(cluster.assert_settled(), 2);
}

fn events() -> impl Strategy<Value = Vec<(u64, Event)>> {
    let n = || 0..5_usize;
    let event = prop_oneof![
        6 => n().prop_map(Event::Rotate),
        2 => n().prop_map(Event::KillNetd),
        3 => n().prop_map(Event::StartNetd),
        1 => n().prop_map(Event::Off),
        2 => n().prop_map(Event::On),
        1 => n().prop_map(Event::Wipe),
        1 => n().prop_map(Event::RestartDevices),
        1 => n().prop_map(Event::CutStore),
        2 => n().prop_map(Event::HealStore),
        1 => (n(), n()).prop_map(|(a, b)| Event::CutNet(a, b)),
        1 => Just(Event::HealNet),
    ];
    prop::collection::vec((prop_oneof![3 => 0..15_u64, 2 => 15..120_u64, 1 => 120..400_u64], event), 0..25)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever happens in whatever order: nobody who is there and heard of things in time loses a peer, nobody holds a
    /// third key, and after a quiet time all speak with one generation of keys.
    #[test]
    fn rotations_lose_nobody(seed in 1..u64::MAX, nodes in 2..6_usize, events in events()) {
        let mut cluster = Cluster::new(nodes, seed);
        cluster.seconds(20);
        for (seconds, event) in &events {
            cluster.seconds(*seconds);
            cluster.happen(event);
        }
        cluster.heal();
        cluster.seconds(1_200);
        cluster.assert_settled();
        prop_assert_eq!(cluster.joined.len(), nodes * (nodes - 1) / 2);
    }
}
