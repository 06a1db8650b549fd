// SPDX-License-Identifier: Apache-2.0
//! Stories and random steps of the allocator, its journal and its garbage collection.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod check;
mod families;
mod model;
mod services;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipam::gc::PENDING_AGE_MIN;
use ipam::journal::{self, JournalEntry};
use ipam::{
    AddBlockError, AddressRange, AllocateError, Allocator, AttachmentKey, BlockRecord, BlockState, Family,
    Owner, PendingWatch, Phase, Pool, ReplayError, SPARE_MIN, Timestamp, Want,
};
use uuid::Uuid;

const NODE: Uuid = Uuid::from_u128(1);
const COOL_DOWN: Duration = Duration::from_secs(30);
const NOW: Timestamp = Timestamp(1_000_000);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pod(number: u32) -> Owner {
    AttachmentKey::new("weft", format!("c{number}"), "eth0").into()
}

fn block(cidr: &str) -> BlockRecord {
    let pool = Pool::new("default", "10.244.0.0/16".parse().unwrap(), None);
    BlockRecord::claimed(&pool, cidr.parse().unwrap(), NODE)
}

/// Any IPv4 address.
fn give(
    allocator: &mut Allocator,
    owner: &Owner,
    now: Timestamp,
) -> Result<(IpAddr, JournalEntry), AllocateError> {
    one(allocator.allocate(owner, &Want::any([Family::V4]), now))
}

fn give_this(
    allocator: &mut Allocator,
    owner: &Owner,
    ip: IpAddr,
    now: Timestamp,
) -> Result<(IpAddr, JournalEntry), AllocateError> {
    one(allocator.allocate(owner, &Want::exactly([ip]), now))
}

fn give_node(allocator: &mut Allocator) -> Result<(IpAddr, JournalEntry), AllocateError> {
    one(allocator.allocate_node_addresses(&[Family::V4].into(), NOW))
}

fn one(
    outcome: Result<(Vec<IpAddr>, Vec<JournalEntry>), AllocateError>,
) -> Result<(IpAddr, JournalEntry), AllocateError> {
    outcome.map(|(ips, entries)| {
        assert_eq!((ips.len(), entries.len()), (1, 1));
        (ips[0], entries[0].clone())
    })
}

fn with_block(cidr: &str) -> Allocator {
    let mut allocator = Allocator::new(NODE, COOL_DOWN);
    allocator.add_block(block(cidr)).unwrap().unwrap();
    allocator
}

fn later(seconds: u64) -> Timestamp {
    NOW.plus(Duration::from_secs(seconds))
}

#[test]
fn pod_comes_and_goes() {
    let mut allocator = with_block("10.244.3.0/26");
    let (address, _) = give(&mut allocator, &pod(1), NOW).unwrap();
    assert_eq!(address, ip("10.244.3.0"));
    assert_eq!(allocator.lookup(&pod(1))[0].phase, Phase::Pending);
    assert_eq!(give(&mut allocator, &pod(1), NOW), Err(AllocateError::AlreadyAllocated(vec![address])));
    assert_eq!(allocator.commit(&pod(1), NOW).len(), 1);
    assert_eq!(allocator.commit(&pod(1), NOW), [], "the second commit changes nothing");
    assert_eq!(allocator.lookup_address(&address).unwrap().owner, pod(1));
    assert_eq!(allocator.release(&pod(1), NOW).unwrap().0, [address]);
    assert_eq!(allocator.release(&pod(1), NOW), None, "the second release changes nothing");
    assert_eq!(allocator.commit(&pod(1), NOW), [], "nothing is left to commit");
}

#[test]
fn address_released_longest_ago_comes_first_and_only_when_it_rested() {
    let mut allocator = with_block("10.244.3.0/30");
    let addresses: Vec<IpAddr> = (0..4).map(|n| give(&mut allocator, &pod(n), NOW).unwrap().0).collect();
    for (second, n) in [(1, 2), (2, 0), (3, 3)] {
        allocator.release(&pod(n), later(second)).unwrap();
    }
    let error = give(&mut allocator, &pod(10), later(30)).unwrap_err();
    assert!(matches!(error, AllocateError::Exhausted { cooling_down: 3, blocks: 1, .. }), "{error}");
    let mut given = Vec::new();
    for n in 10..13 {
        given.push(give(&mut allocator, &pod(n), later(40)).unwrap().0);
    }
    assert_eq!(given, [addresses[2], addresses[0], addresses[3]]);
}

#[test]
fn clock_set_back_does_not_lock_addresses_for_ever() {
    let mut allocator = with_block("10.244.3.0/30");
    for n in 0..4 {
        give(&mut allocator, &pod(n), later(1_000_000)).unwrap();
    }
    allocator.release(&pod(0), later(1_000_000)).unwrap();
    assert!(give(&mut allocator, &pod(9), NOW).is_ok());
}

#[test]
fn node_keeps_its_address_when_a_lower_block_comes() {
    let mut allocator = with_block("10.244.3.0/26");
    let (address, _) = give_node(&mut allocator).unwrap();
    assert_eq!(address, ip("10.244.3.0"));
    allocator.add_block(block("10.244.1.0/26")).unwrap();
    assert_eq!(
        allocator.allocate_node_addresses(&[Family::V4].into(), NOW),
        Ok((vec![], vec![])),
        "nothing is missing"
    );
    assert_eq!(allocator.addresses_of(&Owner::Node(NODE)), [address]);
}

#[test]
fn node_takes_another_address_where_the_first_is_in_use() {
    let mut allocator = with_block("10.244.3.0/26");
    give(&mut allocator, &pod(1), NOW).unwrap();
    assert_eq!(give_node(&mut allocator).unwrap().0, ip("10.244.3.1"));
}

#[test]
fn requested_address_is_given_or_the_reason_named() {
    let mut allocator = with_block("10.244.3.0/26");
    let wanted = ip("10.244.3.9");
    assert_eq!(give_this(&mut allocator, &pod(1), wanted, NOW).unwrap().0, wanted);
    let in_use = give_this(&mut allocator, &pod(2), wanted, NOW).unwrap_err();
    assert_eq!(in_use.to_string(), "10.244.3.9 belongs to attachment/weft/c1/eth0");
    allocator.release(&pod(1), NOW).unwrap();
    let cooling = give_this(&mut allocator, &pod(2), wanted, later(10)).unwrap_err();
    assert_eq!(cooling, AllocateError::CoolingDown { ip: wanted, wait: Duration::from_secs(20) });
    let outside = ip("10.244.4.0");
    let error = give_this(&mut allocator, &pod(2), outside, NOW).unwrap_err();
    let wanted = vec![AddressRange::only(outside)];
    assert_eq!(error, AllocateError::RangesUnmet { family: Family::V4, wanted });
}

#[test]
fn nothing_new_from_a_block_on_its_way_back() {
    let mut allocator = with_block("10.244.3.0/26");
    give(&mut allocator, &pod(1), NOW).unwrap();
    let releasing = BlockRecord { state: BlockState::Releasing, ..block("10.244.3.0/26") };
    assert!(allocator.add_block(releasing).unwrap().is_some());
    let error = give(&mut allocator, &pod(2), NOW).unwrap_err();
    assert!(error.to_string().contains("no free IPv4 address"), "{error}");
    assert_eq!(allocator.free_count(Family::V4, NOW), 0);
    assert!(allocator.release(&pod(1), NOW).is_some(), "but what is in use can be given back");
}

#[test]
fn spare_is_wanted_before_the_last_address() {
    let families = BTreeSet::from([Family::V4]);
    let mut allocator = with_block("10.244.3.0/26");
    for n in 0..48 {
        assert_eq!(allocator.needs_spare(&families, NOW), [], "after {n}");
        give(&mut allocator, &pod(n), NOW).unwrap();
    }
    assert_eq!(allocator.free_count(Family::V4, NOW), SPARE_MIN);
    give(&mut allocator, &pod(48), NOW).unwrap();
    assert_eq!(allocator.needs_spare(&families, NOW), [Family::V4]);
}

#[test]
fn journal_wins_over_the_mirror_but_epoch_and_owner_of_the_store_over_the_journal() {
    let mut allocator = with_block("10.244.3.0/26");
    give(&mut allocator, &pod(1), NOW).unwrap();
    let stale = BlockRecord { allocations: [(7, pod(7))].into(), ..block("10.244.3.0/26") };
    assert_eq!(allocator.add_block(stale), Ok(None));
    assert_eq!(allocator.lookup(&pod(7)), []);
    let reclaimed = BlockRecord { epoch: 2, ..block("10.244.3.0/26") };
    assert!(matches!(allocator.add_block(reclaimed), Err(AddBlockError::Epoch { ours: 1, theirs: 2, .. })));
    let foreign = BlockRecord { owner: Uuid::from_u128(2), ..block("10.244.3.0/26") };
    assert!(matches!(allocator.add_block(foreign), Err(AddBlockError::ForeignOwner { .. })));
}

#[test]
fn block_records_that_make_no_sense_are_refused() {
    let mut allocator = with_block("10.244.3.0/26");
    for (record, part) in [
        (block("10.244.3.0/27"), "overlaps block 10.244.3.0/26"),
        (block("10.244.0.0/20"), "too large"),
        (block("10.244.4.1/26"), "host bits"),
        (BlockRecord { schema: 9, ..block("10.244.4.0/26") }, "schema 9"),
        (BlockRecord { allocations: [(64, pod(1))].into(), ..block("10.244.4.0/26") }, "64 lies outside"),
    ] {
        let text = allocator.add_block(record).unwrap_err().to_string();
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn second_address_of_an_owner_in_a_taken_over_block_is_kept_out_of_use() {
    let mut allocator = with_block("10.244.3.0/26");
    give(&mut allocator, &pod(1), NOW).unwrap();
    let doubled = BlockRecord { allocations: [(0, pod(1)), (1, pod(1))].into(), ..block("10.244.4.0/26") };
    allocator.add_block(doubled).unwrap();
    assert_eq!(allocator.addresses_of(&pod(1)), [ip("10.244.3.0")]);
    let reserved = allocator.lookup_address(&ip("10.244.4.1")).unwrap().owner;
    assert_eq!(reserved.to_string(), "reserved/10.244.4.1: attachment/weft/c1/eth0 already has 10.244.3.0");
    assert_eq!(Allocator::rebuild(NODE, COOL_DOWN, allocator.snapshot()), Ok(allocator));
}

#[test]
fn mirror_keeps_fields_of_later_versions() {
    let mut record = block("10.244.3.0/26");
    record.extra.insert("colour".to_owned(), "blue".into());
    let mut allocator = Allocator::new(NODE, COOL_DOWN);
    allocator.add_block(record.clone()).unwrap();
    give(&mut allocator, &pod(1), NOW).unwrap();
    record.allocations.insert(0, pod(1));
    assert_eq!(allocator.mirror(&record.cidr), Some(record));
}

#[test]
fn journal_that_contradicts_itself_is_refused() {
    let entries =
        |owner, address| JournalEntry::Allocate { sequence: 1, at: NOW, ip: address, also: vec![], owner };
    let mut allocator = with_block("10.244.3.0/26");
    allocator.replay(entries(pod(1), ip("10.244.3.0"))).unwrap();
    let before = allocator.clone();
    for entry in [entries(pod(2), ip("10.244.3.0")), entries(pod(1), ip("10.244.3.1"))] {
        assert!(matches!(allocator.replay(entry), Err(ReplayError::Taken { .. })));
    }
    let no_block = allocator.replay(entries(pod(2), ip("10.244.9.0"))).unwrap_err();
    assert_eq!(no_block, ReplayError::NoBlock(ip("10.244.9.0")));
    let foreign = JournalEntry::Snapshot { node: Uuid::from_u128(2), next_sequence: 1 };
    assert!(allocator.replay(foreign).unwrap_err().to_string().contains("state directory was copied"));
    assert_eq!(allocator, before);
}

#[test]
fn a_change_number_that_nobody_counts_to_is_refused_and_one_before_it_is_not_passed() {
    let last = 1 << 62;
    let begin = |next_sequence| JournalEntry::Snapshot { node: NODE, next_sequence };
    let mut allocator = with_block("10.244.1.0/26");
    let before = allocator.clone();
    let owner = pod(1);
    let taken = JournalEntry::Allocate {
        sequence: u64::MAX,
        at: later(0),
        ip: ip("10.244.1.9"),
        also: Vec::new(),
        owner: owner.clone(),
    };
    for (entry, number) in [(begin(u64::MAX), u64::MAX), (begin(last + 1), last + 1), (taken, u64::MAX)] {
        let error = allocator.replay(entry).unwrap_err();
        assert_eq!(error, ReplayError::Sequence(number));
        assert!(error.to_string().contains(&format!("change number {number} is beyond {last}")), "{error}");
        assert_eq!(allocator, before);
    }
    allocator.replay(begin(last)).unwrap();
    let mut replayed = allocator.clone();
    let want = Want::any([Family::V4]);
    let mut entries = allocator.allocate(&owner, &want, later(0)).unwrap().1;
    entries.extend(allocator.commit(&owner, later(1)));
    entries.extend(allocator.rename_owner(&owner, &pod(2)));
    entries.extend(allocator.release(&pod(2), later(2)).unwrap().1);
    assert_eq!(entries.len(), 4);
    for entry in entries {
        replayed.replay(entry).unwrap();
    }
    assert_eq!(replayed, allocator);
}

#[test]
fn answered_entry_is_not_lost_with_a_damaged_newline() {
    let mut allocator = with_block("10.244.3.0/26");
    let lines: Vec<String> = (0..2).map(|n| give(&mut allocator, &pod(n), NOW).unwrap().1.encode()).collect();
    let merged = lines.concat().replacen('\n', "\r", 1);
    assert_eq!(journal::read(merged.as_bytes()).unwrap_err().line, 1);
}

#[test]
fn pending_address_is_given_up_after_two_observations_only() {
    let mut allocator = with_block("10.244.3.0/26");
    let mut watch = PendingWatch::new();
    let nothing = BTreeSet::new();
    for n in 0..3 {
        give(&mut allocator, &pod(n), NOW).unwrap();
    }
    allocator.commit(&pod(0), NOW);
    let age = PENDING_AGE_MIN.as_secs();
    assert!(watch.observe(&allocator, &nothing, later(1)).is_empty(), "too young");
    assert!(watch.observe(&allocator, &nothing, later(age)).is_empty(), "first observation");
    assert!(watch.observe(&allocator, &nothing, later(age + 1)).is_empty(), "too soon after it");
    let present = BTreeSet::from([pod(2)]);
    assert_eq!(watch.observe(&allocator, &present, later(2 * age)), [pod(1)]);
    assert!(watch.observe(&allocator, &nothing, later(3 * age)).is_empty(), "pod 2 was seen: from the start");
}

#[test]
fn suspicion_does_not_pass_to_the_next_allocation_of_an_owner() {
    let mut allocator = with_block("10.244.3.0/26");
    let mut watch = PendingWatch::new();
    let age = PENDING_AGE_MIN.as_secs();
    give(&mut allocator, &pod(1), NOW).unwrap();
    watch.observe(&allocator, &BTreeSet::new(), later(age));
    allocator.release(&pod(1), later(age)).unwrap();
    give(&mut allocator, &pod(1), later(age + 1)).unwrap();
    assert!(watch.observe(&allocator, &BTreeSet::new(), later(2 * age + 1)).is_empty());
}
