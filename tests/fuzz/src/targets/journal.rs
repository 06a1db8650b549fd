// SPDX-License-Identifier: Apache-2.0
//! The address journal: any bytes are read or refused; entries are written as they were read; after every entry, taken or
//! refused, no address has two owners and no owner two addresses of a family.

use std::collections::BTreeSet;
use std::time::Duration;

use ipam::{Allocator, AttachmentKey, Family, JournalEntry, Owner, Timestamp, Want, journal};
use uuid::Uuid;

const COOL_DOWN: Duration = Duration::from_secs(30);

/// Later than most of what a corpus tells, earlier than some.
const NOW: Timestamp = Timestamp(1_000_000);

pub(super) fn check(input: &[u8]) -> String {
    let sealed = super::resealed(input, |json| {
        let head = format!("{:08x} ", crc32fast::hash(json));
        [head.as_bytes(), json, b"\n"].concat()
    });
    check_bytes(input);
    check_bytes(&sealed)
}

fn check_bytes(bytes: &[u8]) -> String {
    let read = match journal::read(bytes) {
        Ok(read) => read,
        Err(error) => {
            let lines = bytes.split_inclusive(|byte| *byte == b'\n').count();
            assert!((1..=lines).contains(&error.line), "line {} of {lines}", error.line);
            return error.reason;
        }
    };
    assert!(read.valid_bytes <= bytes.len());
    let good = journal::read(&bytes[..read.valid_bytes]).expect("the good part is good");
    assert_eq!((&good.entries, good.dropped), (&read.entries, None));
    let text: String = read.entries.iter().map(JournalEntry::encode).collect();
    let again = journal::read(text.as_bytes()).expect("what was written can be read");
    assert_eq!((&again.entries, &again.dropped), (&read.entries, &None), "read again");
    replay(read.entries)
}

fn replay(entries: Vec<JournalEntry>) -> String {
    let node = entries.iter().find_map(|entry| match entry {
        JournalEntry::Snapshot { node, .. } => Some(*node),
        JournalEntry::Block { record } => Some(record.owner),
        _ => None,
    });
    let mut allocator = Allocator::new(node.unwrap_or(Uuid::nil()), COOL_DOWN);
    let (mut taken, mut refused) = (0, String::new());
    for entry in entries {
        let before = allocator.clone();
        match allocator.replay(entry) {
            Ok(()) => taken += 1,
            Err(error) => {
                assert_eq!(allocator, before, "a refused entry changes nothing: {error}");
                refused = error.to_string();
            }
        }
        check_invariants(&allocator);
    }
    let short = allocator.snapshot();
    let rebuilt = Allocator::rebuild(allocator.node(), COOL_DOWN, short).expect("a snapshot can be replayed");
    assert_eq!(rebuilt, allocator, "a snapshot gives the same allocator");
    go_on(allocator);
    format!("{taken} taken, {refused}")
}

/// Work goes on after the replay, and is journalled so that it can be replayed too.
fn go_on(mut allocator: Allocator) {
    let owner = |id: &str| Owner::from(AttachmentKey::new("weft", id, "eth0"));
    let (one, other) = (owner("fuzz-1"), owner("fuzz-2"));
    let families: BTreeSet<Family> = allocator.blocks().map(|(cidr, _)| Family::of_net(&cidr)).collect();
    let mut replayed = allocator.clone();
    let mut step = |allocator: &Allocator, entries: Vec<JournalEntry>| {
        for entry in entries {
            replayed.replay(entry).expect("what was done can be replayed");
        }
        assert_eq!(replayed, *allocator);
        check_invariants(allocator);
    };
    if let Ok((ips, entries)) = allocator.allocate(&one, &Want::any(families), NOW) {
        step(&allocator, entries);
        let entries = allocator.commit(&one, NOW);
        step(&allocator, entries);
        let entries = allocator.rename_owner(&one, &other);
        step(&allocator, entries);
        if let Some((released, entries)) = allocator.release(&other, NOW) {
            assert_eq!(released, ips);
            step(&allocator, entries);
        }
    }
}

fn check_invariants(allocator: &Allocator) {
    let (mut ips, mut owners) = (BTreeSet::new(), BTreeSet::new());
    for allocation in allocator.allocations() {
        let (ip, owner) = (allocation.ip, allocation.owner.to_string());
        assert!(allocator.block_of(&ip).is_some(), "{ip} is in no block");
        assert!(ips.insert(ip), "{ip} has two owners");
        assert!(owners.insert((owner.clone(), Family::of(&ip))), "{owner} has two addresses of a family");
        assert!(allocator.addresses_of(&allocation.owner).contains(&ip), "{owner} does not know {ip}");
    }
}
