// SPDX-License-Identifier: Apache-2.0
//! Two families, ranges, draining pools, sticky names: stories.

use std::collections::BTreeSet;

use ipam::{
    AddressRange, AllocateError, Allocator, BlockRecord, Family, JournalEntry, Owner, Pool, PoolState,
    ReplayError, Want, journal,
};

use super::{COOL_DOWN, NODE, NOW, block, give, ip, later, pod, with_block};

const BOTH: [Family; 2] = [Family::V4, Family::V6];

fn block6(cidr: &str) -> BlockRecord {
    let pool = Pool::new("six", "fd00:10:244::/56".parse().unwrap(), None);
    BlockRecord::claimed(&pool, cidr.parse().unwrap(), NODE)
}

fn dual() -> Allocator {
    let mut allocator = with_block("10.244.3.0/26");
    allocator.add_block(block6("fd00:10:244::40/122")).unwrap().unwrap();
    allocator
}

fn sticky(name: &str) -> Owner {
    Owner::Sticky(name.to_owned())
}

#[test]
fn dual_stack_pod_comes_and_goes_in_one_line_each() {
    let mut allocator = dual();
    let mut lines = Vec::new();
    let (ips, entries) = allocator.allocate(&pod(1), &Want::any(BOTH), NOW).unwrap();
    assert_eq!(ips, [ip("10.244.3.0"), ip("fd00:10:244::40")], "IPv4 first");
    lines.extend(entries);
    lines.extend(allocator.commit(&pod(1), NOW));
    let (released, entries) = allocator.release(&pod(1), NOW).unwrap();
    assert_eq!(released, ips);
    lines.extend(entries);
    assert_eq!(lines.len(), 3, "a crash between two lines leaves nobody with half");
    for line in &lines {
        assert_eq!(JournalEntry::decode(1, line.encode().as_bytes()).as_ref(), Ok(line));
    }
    let mut again = dual();
    for line in lines {
        again.replay(line).unwrap();
    }
    assert_eq!(again, allocator);
}

#[test]
fn one_family_is_given_back_and_the_other_stays() {
    let mut allocator = dual();
    let owner = Owner::Node(NODE);
    let mut lines = allocator.allocate_node_addresses(&BOTH.into(), NOW).unwrap().1;
    lines.extend(allocator.commit(&owner, NOW));
    let (released, entry) = allocator.release_family(&owner, Family::V6, NOW).unwrap();
    assert_eq!(released, ip("fd00:10:244::40"));
    lines.push(entry);
    assert_eq!(allocator.release_family(&owner, Family::V6, NOW), None);
    assert_eq!(allocator.addresses_of(&owner), [ip("10.244.3.0")], "it keeps the other one");
    assert_eq!(allocator.free_count(Family::V6, NOW), 63, "it rests like any other");
    let mut again = dual();
    for line in lines {
        again.replay(line).unwrap();
    }
    assert_eq!(again, allocator);
    allocator.release_family(&owner, Family::V4, NOW).unwrap();
    assert_eq!(allocator.addresses_of(&owner), Vec::<std::net::IpAddr>::new());
}

#[test]
fn one_family_that_is_exhausted_leaves_the_other_untouched() {
    let mut allocator = with_block("10.244.3.0/26");
    let before = allocator.clone();
    let error = allocator.allocate(&pod(1), &Want::any(BOTH), NOW).unwrap_err();
    assert!(error.to_string().contains("owns no IPv6 block"), "{error}");
    assert_eq!(allocator, before);
    allocator.add_block(block6("fd00:10:244::/126")).unwrap();
    for n in 0..4 {
        allocator.allocate(&pod(n), &Want::any(BOTH), NOW).unwrap();
    }
    let error = allocator.allocate(&pod(9), &Want::any(BOTH), NOW).unwrap_err();
    assert!(
        error.to_string().starts_with("no free IPv6 address in this node's blocks (blocks: 1, pools: six"),
        "{error}"
    );
    assert!(allocator.addresses_of(&pod(9)).is_empty());
    assert_eq!(allocator.free_count(Family::V4, NOW), 60);
    assert_eq!(allocator.needs_spare(&BOTH.into(), NOW), [Family::V6]);
}

#[test]
fn node_gets_the_family_that_came_later() {
    let mut allocator = with_block("10.244.3.0/26");
    let families = BTreeSet::from(BOTH);
    let error = allocator.allocate_node_addresses(&families, NOW).unwrap_err();
    assert!(matches!(error, AllocateError::Exhausted { family: Family::V6, .. }), "{error}");
    assert!(allocator.addresses_of(&Owner::Node(NODE)).is_empty());
    let (v4, _) = allocator.allocate_node_addresses(&[Family::V4].into(), NOW).unwrap();
    assert_eq!(allocator.commit(&Owner::Node(NODE), NOW).len(), 1);
    allocator.add_block(block6("fd00:10:244::40/122")).unwrap();
    let (v6, entries) = allocator.allocate_node_addresses(&families, NOW).unwrap();
    assert_eq!((v4, v6), (vec![ip("10.244.3.0")], vec![ip("fd00:10:244::40")]));
    let committed = allocator.commit(&Owner::Node(NODE), NOW);
    assert!(
        matches!(committed.as_slice(), [JournalEntry::Commit { ip, also, .. }] if ip.is_ipv6() && also.is_empty())
    );
    assert_eq!(entries.len(), 1);
}

#[test]
fn ranges_are_kept_to_or_the_family_that_fails_is_named() {
    let mut allocator = dual();
    let range = |first: &str, last: &str| AddressRange { first: ip(first), last: ip(last) };
    let want = |sets: Vec<Vec<AddressRange>>| Want { ranges: sets, ..Want::any(BOTH) };
    let narrow = want(vec![
        vec![range("10.244.9.0", "10.244.9.9"), range("10.244.3.8", "10.244.3.8")],
        vec![range("fd00:10:244::50", "fd00:10:244::51")],
    ]);
    let (ips, _) = allocator.allocate(&pod(1), &narrow, NOW).unwrap();
    assert_eq!(ips, [ip("10.244.3.8"), ip("fd00:10:244::50")]);
    let before = allocator.clone();
    assert!(!allocator.can_allocate(&narrow, NOW));
    let error = allocator.allocate(&pod(2), &narrow, NOW).unwrap_err();
    assert!(matches!(error, AllocateError::RangesUnmet { family: Family::V4, .. }));
    assert!(error.to_string().ends_with("10.244.9.0 to 10.244.9.9, 10.244.3.8"), "{error}");
    let only6 = want(vec![vec![range("fd00:10:244::50", "fd00:10:244::51")]]);
    assert!(allocator.can_allocate(&only6, NOW));
    assert_eq!(allocator, before);
    assert_eq!(
        allocator.allocate(&pod(2), &only6, NOW).unwrap().0,
        [ip("10.244.3.0"), ip("fd00:10:244::51")]
    );
}

#[test]
fn requested_pair_is_given_whole_or_not() {
    let mut allocator = dual();
    let pair = |v4: &str, v6: &str| Want::exactly([ip(v4), ip(v6)]);
    allocator.allocate(&pod(1), &pair("10.244.3.9", "fd00:10:244::49"), NOW).unwrap();
    let error = allocator.allocate(&pod(2), &pair("10.244.3.10", "fd00:10:244::49"), NOW).unwrap_err();
    assert_eq!(error.to_string(), "fd00:10:244::49 belongs to attachment/weft/c1/eth0");
    assert_eq!(allocator.lookup_address(&ip("10.244.3.10")), None);
}

#[test]
fn draining_pool_gives_nothing_new_and_keeps_what_is_used() {
    let mut allocator = dual();
    allocator.allocate(&pod(1), &Want::any(BOTH), NOW).unwrap();
    allocator.set_pool_state("six", PoolState::Draining);
    assert_eq!(allocator.free_count(Family::V6, NOW), 0);
    let error = allocator.allocate(&pod(2), &Want::any(BOTH), NOW).unwrap_err();
    assert!(error.to_string().contains("no free IPv6 address"), "{error}");
    assert!(error.to_string().contains("draining: six"), "{error}");
    let error = allocator.allocate(&pod(2), &Want::exactly([ip("fd00:10:244::41")]), NOW).unwrap_err();
    assert!(matches!(error, AllocateError::BlockCloses { .. }), "{error}");
    assert_eq!(allocator.addresses_of(&pod(1)).len(), 2);
    assert!(allocator.release(&pod(1), NOW).is_some());
    allocator.set_pool_state("six", PoolState::Active);
    assert!(allocator.allocate(&pod(2), &Want::any(BOTH), NOW).is_ok());
}

#[test]
fn address_turns_sticky_and_the_journal_knows() {
    let mut allocator = dual();
    let mut lines: Vec<JournalEntry> = [block("10.244.3.0/26"), block6("fd00:10:244::40/122")]
        .map(|record| JournalEntry::Block { record })
        .into();
    let (ips, entries) = allocator.allocate(&pod(1), &Want::any(BOTH), NOW).unwrap();
    lines.extend(entries);
    lines.extend(allocator.rename_owner(&pod(1), &sticky("db-0")));
    assert!(allocator.addresses_of(&pod(1)).is_empty());
    assert_eq!(allocator.addresses_of(&sticky("db-0")), ips);
    assert_eq!(allocator.rename_owner(&pod(1), &sticky("db-1")), [], "nothing is left to rename");
    lines.extend(allocator.commit(&sticky("db-0"), NOW));
    assert_eq!(lines.len(), 5);
    lines.extend(allocator.allocate(&pod(1), &Want::any(BOTH), NOW).unwrap().1);
    assert_eq!(allocator.rename_owner(&pod(1), &sticky("db-0")), [], "the name has addresses already");
    assert_eq!(Allocator::rebuild(NODE, COOL_DOWN, lines.clone()).as_ref(), Ok(&allocator));
    assert_eq!(Allocator::rebuild(NODE, COOL_DOWN, allocator.snapshot()).as_ref(), Ok(&allocator));
    let twice = JournalEntry::Rename { sequence: 99, from: pod(7), to: sticky("x") };
    assert!(matches!(allocator.replay(twice), Err(ReplayError::NotMovable(_))));
}

#[test]
fn restored_address_is_in_use_at_once_and_takes_nothing_from_anybody() {
    let mut allocator = dual();
    allocator.allocate(&pod(1), &Want::any([Family::V6]), NOW).unwrap();
    give(&mut allocator, &pod(2), NOW).unwrap();
    allocator.release(&pod(2), NOW).unwrap();
    allocator.set_pool_state("default", PoolState::Draining);
    let entries = allocator.restore(&pod(1), ip("10.244.3.0"), later(1)).unwrap();
    assert_eq!(entries.len(), 2, "given and committed, though it cools and its pool drains");
    assert_eq!(allocator.addresses_of(&pod(1)), [ip("10.244.3.0"), ip("fd00:10:244::40")]);
    assert_eq!(allocator.restore(&pod(1), ip("10.244.3.0"), later(2)), Ok(vec![]));
    assert!(matches!(allocator.restore(&pod(3), ip("10.244.3.0"), NOW), Err(AllocateError::InUse { .. })));
    assert!(matches!(
        allocator.restore(&pod(1), ip("10.244.3.5"), NOW),
        Err(AllocateError::AlreadyAllocated(_))
    ));
}

#[test]
fn journal_from_before_there_were_families_replays() {
    // Lines as the first version wrote them.
    let old = concat!(
        "{\"snapshot\":{\"node\":\"00000000-0000-0000-0000-000000000001\",\"next_sequence\":1}}\n",
        "{\"block\":{\"record\":{\"schema\":1,\"cidr\":\"10.244.0.0/26\",\"pool\":\"default\",\"owner\":",
        "\"00000000-0000-0000-0000-000000000001\",\"epoch\":3,\"state\":\"active\",\"allocations\":{\"5\":",
        "\"attachment/weft/c5/eth0\"}}}}\n",
        "{\"allocate\":{\"sequence\":1,\"at\":1000,\"ip\":\"10.244.0.0\",\"owner\":",
        "\"node/00000000-0000-0000-0000-000000000001\"}}\n",
        "{\"commit\":{\"sequence\":2,\"at\":1000,\"ip\":\"10.244.0.0\",\"owner\":",
        "\"node/00000000-0000-0000-0000-000000000001\"}}\n",
        "{\"allocate\":{\"sequence\":3,\"at\":1000,\"ip\":\"10.244.0.9\",\"owner\":\"attachment/weft/c0ffee/eth0\"}}\n",
        "{\"release\":{\"sequence\":4,\"at\":17,\"ip\":\"10.244.0.9\",\"owner\":\"attachment/weft/c0ffee/eth0\"}}\n",
    );
    let lines: String = old.lines().map(|json| format!("{:08x} {json}\n", crc32(json.as_bytes()))).collect();
    assert!(lines.contains("75ee14a6 {\"release\""), "the checksum that README.md shows");
    let read = journal::read(lines.as_bytes()).unwrap();
    assert_eq!(read.dropped, None);
    let written: String = read.entries.iter().map(JournalEntry::encode).collect();
    assert_eq!(written, lines, "the same lines are written today");
    let allocator = Allocator::rebuild(NODE, COOL_DOWN, read.entries).unwrap();
    assert_eq!(allocator.addresses_of(&Owner::Node(NODE)), [ip("10.244.0.0")]);
    assert_eq!(allocator.addresses_of(&pod(5)), [ip("10.244.0.5")]);
    assert_eq!(allocator.free_count(Family::V4, ipam::Timestamp(18)), 61, "one cools down");
}

/// CRC-32 (ISO-HDLC), bit by bit: the journal's own code is not asked.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}
