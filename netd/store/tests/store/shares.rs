// SPDX-License-Identifier: Apache-2.0
//! What nodes have of each other: blocks around an address, borrowed addresses, sticky names, a removed node's share.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipam::{AttachmentKey, BlockRecord, Family, Owner, Pool, PoolState};
use netd_store::claim::{
    AddressClaimError, ClaimError, Progress, StickyError, StickyHolder, acknowledge_removal, claim_block,
    claim_block_containing, confirm_fence, deny_address, finish_removal, give_back_sticky, grant_address,
    release_address, remove_node, remove_sticky, request_address, take_sticky,
};
use netd_store::records::{AddressRecord, NodeRecord, StickyRecord, Tombstone, decode};
use netd_store::{Class, Keys, Memory, Store};
use proptest::prelude::*;
use uuid::Uuid;

use crate::bench::{Bench, text};

const A: Uuid = Uuid::from_u128(1);
const B: Uuid = Uuid::from_u128(2);
const C: Uuid = Uuid::from_u128(3);

macro_rules! on_each {
    ($($story:ident),* $(,)?) => {
        mod on_memory {
            $(#[tokio::test] async fn $story() { super::$story(super::Bench::memory().await).await; })*
        }
        mod on_file {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $story() { super::$story(super::Bench::file().await).await; })*
        }
        mod on_etcd {
            $(#[tokio::test] async fn $story() { super::$story(super::Bench::etcd().await).await; })*
        }
    };
}

on_each!(
    a_block_is_claimed_by_family_label_and_state_of_its_pool,
    a_borrowed_address_is_asked_for_granted_and_given_back,
    a_removed_node_leaves_nothing_but_what_others_have,
    a_sticky_name_has_one_holder,
    the_block_around_an_address_is_claimed_or_its_owner_named,
);

fn keys() -> Keys {
    Keys::new("weft").unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pools() -> Vec<Pool> {
    let pool = |name: &str, cidr: &str| Pool::new(name, cidr.parse().unwrap(), None);
    let mut zone = pool("zone", "10.245.0.0/25");
    zone.node_selector = [("zone".into(), "a".into())].into();
    vec![pool("four", "10.244.0.0/25"), zone, pool("six", "fd00:10:244::/56")]
}

fn attachment(name: &str) -> AttachmentKey {
    AttachmentKey::new("weft", name, "eth0")
}

fn holder(node: Uuid, name: &str) -> StickyHolder {
    StickyHolder { node, attachment: attachment(name) }
}

async fn read<T: serde::de::DeserializeOwned>(store: &dyn Store, key: &str) -> Option<T> {
    store.get(key).await.unwrap().map(|item| decode(key, &item.value).unwrap())
}

async fn a_block_is_claimed_by_family_label_and_state_of_its_pool(bench: Bench) {
    let (store, keys, mut pools) = (bench.store(), keys(), pools());
    let none = BTreeMap::new();
    let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
    let six = claim_block(&*store, &keys, &pools, A, &none, Family::V6).await.unwrap();
    assert_eq!((six.pool.as_str(), six.cidr.prefix_len()), ("six", 122));
    for _ in 0..2 {
        let four = claim_block(&*store, &keys, &pools, A, &labels, Family::V4).await.unwrap();
        assert_eq!(four.pool, "four");
    }
    let error = claim_block(&*store, &keys, &pools, A, &none, Family::V4).await.unwrap_err();
    assert!(
        error.to_string().starts_with("all IPv4 blocks of pool four (10.244.0.0/25) are claimed: "),
        "{error}"
    );
    assert_eq!(claim_block(&*store, &keys, &pools, A, &labels, Family::V4).await.unwrap().pool, "zone");
    pools[1].state = PoolState::Draining;
    let error = claim_block(&*store, &keys, &pools, A, &labels, Family::V4).await.unwrap_err();
    assert!(matches!(error, ClaimError::Exhausted { family: Family::V4, .. }), "{error}");
    pools.remove(2);
    let error = claim_block(&*store, &keys, &pools, A, &none, Family::V6).await.unwrap_err();
    assert!(error.to_string().starts_with("no IPv6 pool is in use for this node: "), "{error}");
}

async fn the_block_around_an_address_is_claimed_or_its_owner_named(bench: Bench) {
    let (store, keys, mut pools) = (bench.store(), keys(), pools());
    let none = BTreeMap::new();
    let wanted = ip("10.244.0.77");
    let block = claim_block_containing(&*store, &keys, &pools, A, &none, wanted).await.unwrap();
    assert_eq!(block.cidr, "10.244.0.64/26".parse().unwrap());
    let error = claim_block_containing(&*store, &keys, &pools, B, &none, wanted).await.unwrap_err();
    assert_eq!(error, ClaimError::Taken { ip: wanted, block: block.cidr, owner: A });
    let deep = ip("fd00:10:244:7f::1:2:3");
    let block = claim_block_containing(&*store, &keys, &pools, B, &none, deep).await.unwrap();
    assert!(block.cidr.contains(&deep), "{}", block.cidr);
    let error = claim_block_containing(&*store, &keys, &pools, A, &none, ip("192.0.2.1")).await.unwrap_err();
    assert_eq!(error, ClaimError::NotInPools(ip("192.0.2.1")));
    let zoned = ip("10.245.0.1");
    let error = claim_block_containing(&*store, &keys, &pools, A, &none, zoned).await.unwrap_err();
    assert!(error.to_string().contains("node selector"), "{error}");
    pools[0].state = PoolState::Draining;
    let error = claim_block_containing(&*store, &keys, &pools, A, &none, ip("10.244.0.1")).await.unwrap_err();
    assert!(error.to_string().contains("drains"), "{error}");
}

async fn a_borrowed_address_is_asked_for_granted_and_given_back(bench: Bench) {
    let (store, keys) = (bench.store(), keys());
    let (store, wanted) = (&*store, ip("10.244.0.77"));
    let (ours, theirs) = (Owner::from(attachment("b")), Owner::from(attachment("c")));
    let ask = async |owner: &Owner, node| request_address(store, &keys, wanted, owner, node).await;
    assert_eq!(ask(&ours, B).await, Err(AddressClaimError::NoBlock(wanted)));
    claim_block_containing(store, &keys, &pools(), A, &BTreeMap::new(), wanted).await.unwrap();
    assert_eq!(ask(&ours, A).await, Err(AddressClaimError::OwnBlock(wanted)));
    let asked = ask(&ours, B).await.unwrap();
    assert_eq!((asked.granted, asked.block_owner, asked.node), (false, A, Some(B)));
    assert_eq!(ask(&ours, B).await, Ok(asked.clone()), "asking again changes nothing");
    for (owner, node) in [(&theirs, B), (&ours, C)] {
        let error = ask(owner, node).await.unwrap_err();
        assert_eq!(
            (error.class(), error.to_string()),
            (Class::Conflict, format!("{wanted} belongs to {ours} on node {B}"))
        );
    }
    assert!(!grant_address(store, &keys, wanted, C).await.unwrap(), "the block is not C's");
    assert!(grant_address(store, &keys, wanted, A).await.unwrap());
    assert!(ask(&ours, B).await.unwrap().granted);
    assert!(!deny_address(store, &keys, wanted, A).await.unwrap(), "granted is granted");
    assert!(!release_address(store, &keys, wanted, &theirs, B).await.unwrap());
    assert!(release_address(store, &keys, wanted, &ours, B).await.unwrap());
    assert!(!grant_address(store, &keys, wanted, A).await.unwrap(), "it is gone");
    ask(&theirs, C).await.unwrap();
    assert!(deny_address(store, &keys, wanted, A).await.unwrap());
    assert_eq!(read::<AddressRecord>(store, &keys.address(wanted)).await, None);
    remove_node(store, &keys, A, "a", false, 1).await.unwrap();
    assert_eq!(ask(&theirs, C).await, Err(AddressClaimError::Removed(A)));
}

async fn a_sticky_name_has_one_holder(bench: Bench) {
    let (store, keys) = (bench.store(), keys());
    let (store, name, ips) = (&*store, "default/db-0", [ip("10.244.0.7"), ip("fd00::7")]);
    let (on_b, on_c) = (holder(B, "db-0.b"), holder(C, "db-0.c"));
    let take = async |holder: &StickyHolder, ips: &[IpAddr], now| {
        take_sticky(store, &keys, name, holder, ips, now).await
    };
    assert_eq!(take(&on_b, &[], 1).await, Err(StickyError::Unknown(name.into())));
    let record = take(&on_b, &ips, 5).await.unwrap();
    assert_eq!((record.ips.as_slice(), record.node, record.since_ms), (&ips[..], Some(B), 5));
    assert_eq!(take(&on_b, &[], 6).await.unwrap(), record, "the same holder again");
    let error = take(&on_c, &[], 7).await.unwrap_err();
    assert_eq!(error.class(), Class::Retry);
    assert!(
        error.to_string().contains(&format!("in use by attachment weft.db-0%2eb.eth0 on node {B}")),
        "{error}"
    );
    let other = holder(B, "another");
    assert!(matches!(take(&other, &ips, 7).await, Err(StickyError::HeldBy { since_ms: 5, .. })));
    assert!(matches!(remove_sticky(store, &keys, name).await, Err(StickyError::HeldBy { .. })));
    assert!(!give_back_sticky(store, &keys, name, &on_c, 8).await.unwrap());
    assert!(give_back_sticky(store, &keys, name, &on_b, 8).await.unwrap());
    let moved = take(&on_c, &[ip("10.244.9.9")], 9).await.unwrap();
    assert_eq!((moved.ips.as_slice(), moved.node), (&ips[..], Some(C)), "a name keeps its addresses");
    give_back_sticky(store, &keys, name, &on_c, 10).await.unwrap();
    assert_eq!(remove_sticky(store, &keys, name).await.unwrap().ips, ips);
    assert_eq!(remove_sticky(store, &keys, name).await, Err(StickyError::Unknown(name.into())));
}

/// Node A has a plain block, one with an address lent to C, one with the homes of two sticky names; it borrows from B; it
/// holds the name `here`; it has a pod and endpoints. `A` is gone then, and all it shared is told to `tell`.
async fn furnish(store: &dyn Store, keys: &Keys) {
    let pool = Pool::new("four", "10.244.0.0/16".parse().unwrap(), None);
    let pools = [pool.clone()];
    for (node, address) in [(A, "10.244.0.1"), (A, "10.244.1.1"), (A, "10.244.2.1"), (B, "10.244.3.1")] {
        claim_block_containing(store, keys, &pools, node, &BTreeMap::new(), ip(address)).await.unwrap();
    }
    let lent = Owner::from(attachment("c"));
    request_address(store, keys, ip("10.244.1.7"), &lent, C).await.unwrap();
    grant_address(store, keys, ip("10.244.1.7"), A).await.unwrap();
    request_address(store, keys, ip("10.244.0.8"), &lent, C).await.unwrap();
    request_address(store, keys, ip("10.244.3.9"), &Owner::from(attachment("a")), A).await.unwrap();
    take_sticky(store, keys, "here", &holder(A, "a"), &[ip("10.244.2.2")], 1).await.unwrap();
    take_sticky(store, keys, "free", &holder(A, "a"), &[ip("10.244.2.3")], 1).await.unwrap();
    give_back_sticky(store, keys, "free", &holder(A, "a"), 2).await.unwrap();
    for node in [A, B] {
        let record = format!(r#"{{"schema":1,"uuid":"{node}","name":"n","underlay":"192.0.2.1"}}"#);
        store.put(&keys.node(node), text(&record), None).await.unwrap();
        store.put(&keys.pod(node, &attachment("p")), text("{}"), None).await.unwrap();
        store.put(&keys.endpoint("default", "web", &node.to_string()), text("{}"), None).await.unwrap();
    }
}

async fn a_removed_node_leaves_nothing_but_what_others_have(bench: Bench) {
    let (store, keys) = (bench.store(), keys());
    let (store, live) = (&*store, BTreeSet::from([A, B, C]));
    furnish(store, &keys).await;
    let finish = async |now| finish_removal(store, &keys, A, &live, now).await.unwrap();
    assert_eq!(finish(1).await, Progress::Unknown);
    assert!(!confirm_fence(store, &keys, A, B, 1).await.unwrap());
    let revision = remove_node(store, &keys, A, "a", false, 10).await.unwrap();
    assert_eq!(store.get(&keys.tombstone(A)).await.unwrap().unwrap().mod_revision, revision);
    let pools = [Pool::new("four", "10.244.0.0/16".parse().unwrap(), None)];
    let claimed = claim_block(store, &keys, &pools, A, &BTreeMap::new(), Family::V4).await;
    assert_eq!(claimed, Err(ClaimError::Removed(A)));
    assert_eq!(finish(11).await, Progress::Waiting { acknowledgement: true, fences: vec![B, C] });
    assert!(confirm_fence(store, &keys, A, B, 12).await.unwrap());
    assert!(acknowledge_removal(store, &keys, A, 13).await.unwrap());
    assert_eq!(finish(14).await, Progress::Waiting { acknowledgement: false, fences: vec![C] });
    assert_eq!(blocks(store, &keys).await.len(), 4, "nothing is freed before the last fence");
    assert!(confirm_fence(store, &keys, A, C, 15).await.unwrap());
    assert_eq!(finish(16).await, Progress::Done);
    assert_eq!(finish(17).await, Progress::Done);
    is_left_clean(store, &keys).await;
    let tombstone: Tombstone = read(store, &keys.tombstone(A)).await.unwrap();
    assert_eq!((tombstone.acknowledged_ms, tombstone.finished_ms), (Some(13), Some(16)));
    assert_eq!(tombstone.fenced, BTreeMap::from([(B, 12), (C, 15)]));
}

async fn blocks(store: &dyn Store, keys: &Keys) -> BTreeMap<String, BlockRecord> {
    let items = store.list(&keys.blocks()).await.unwrap().items;
    let records = items.iter().map(|item| decode::<BlockRecord>(&item.key, &item.value).unwrap());
    records.map(|record| (record.cidr.to_string(), record)).collect()
}

async fn is_left_clean(store: &dyn Store, keys: &Keys) {
    let blocks = blocks(store, keys).await;
    let owners: Vec<_> = blocks.iter().map(|(cidr, block)| (cidr.as_str(), block.owner)).collect();
    assert_eq!(owners, [("10.244.1.0/26", C), ("10.244.2.0/26", B), ("10.244.3.0/26", B)]);
    let lent = &blocks["10.244.1.0/26"];
    assert_eq!(lent.allocations, BTreeMap::from([(7, Owner::granted(ip("10.244.1.7")))]));
    assert!(lent.epoch > 1);
    let names = [(2, Owner::Sticky("here".into())), (3, Owner::Sticky("free".into()))];
    assert_eq!(blocks["10.244.2.0/26"].allocations, BTreeMap::from(names));
    let borrowed: AddressRecord = read(store, &keys.address(ip("10.244.1.7"))).await.unwrap();
    assert_eq!((borrowed.block_owner, borrowed.node, borrowed.granted), (C, Some(C), true));
    assert_eq!(store.list(&keys.addresses()).await.unwrap().items.len(), 1);
    for name in ["here", "free"] {
        let record: StickyRecord = read(store, &keys.sticky(name)).await.unwrap();
        assert_eq!((record.node, record.attachment), (None, None), "{name}");
    }
    assert_eq!(read::<NodeRecord>(store, &keys.node(A)).await, None);
    assert!(read::<NodeRecord>(store, &keys.node(B)).await.is_some());
    assert_eq!(store.list(&keys.pods()).await.unwrap().items.len(), 1);
    assert_eq!(store.list(&keys.endpoints()).await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn the_last_node_takes_its_sticky_names_with_it() {
    let (memory, keys) = (Memory::new(), keys());
    furnish(&memory, &keys).await;
    remove_node(&memory, &keys, A, "a", true, 1).await.unwrap();
    let done = finish_removal(&memory, &keys, A, &BTreeSet::from([A]), 2).await.unwrap();
    assert_eq!(done, Progress::Done);
    assert_eq!(blocks(&memory, &keys).await.keys().collect::<Vec<_>>(), ["10.244.3.0/26"]);
    assert_eq!(memory.list(&keys.stickies()).await.unwrap().items, []);
    assert_eq!(memory.list(&keys.addresses()).await.unwrap().items, []);
}

#[tokio::test]
async fn force_can_be_added_later_and_nothing_else_changes() {
    let (memory, keys) = (Memory::new(), keys());
    remove_node(&memory, &keys, A, "a", false, 1).await.unwrap();
    remove_node(&memory, &keys, A, "other", true, 2).await.unwrap();
    remove_node(&memory, &keys, A, "other", false, 3).await.unwrap();
    let tombstone: Tombstone = read(&memory, &keys.tombstone(A)).await.unwrap();
    assert_eq!((tombstone.name.as_str(), tombstone.at_ms, tombstone.forced), ("a", 1, true));
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_not_written_over() {
    let (memory, keys) = (Memory::new(), keys());
    memory.put(&keys.sticky("x"), text("{"), None).await.unwrap();
    let error = take_sticky(&memory, &keys, "x", &holder(A, "a"), &[ip("10.0.0.1")], 1).await.unwrap_err();
    assert_eq!(error.class(), Class::Invalid);
    assert!(error.to_string().starts_with("bad value at /weft/v1/weft/ipam/sticky/x"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Requests fail, answers are lost, and several nodes end the removal at once: the end is the same.
    #[test]
    fn a_removal_that_is_cut_off_anywhere_ends_the_same(seed: u64, percent in 0_u64..40) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let (memory, keys) = (Memory::new(), keys());
            furnish(&memory, &keys).await;
            remove_node(&memory, &keys, A, "a", true, 1).await.unwrap();
            memory.faults().at_random(seed, percent);
            let ends = [B, C].map(|by| {
                let (memory, keys) = (memory.clone(), keys.clone());
                tokio::task::spawn_local(async move {
                    let live = BTreeSet::from([A, B, C]);
                    for _ in 0..10_000 {
                        let confirmed = confirm_fence(&memory, &keys, A, by, 2).await;
                        let done = finish_removal(&memory, &keys, A, &live, 3).await;
                        for error in [confirmed.err(), done.as_ref().err().cloned()].into_iter().flatten() {
                            assert_eq!(error.class(), Class::Retry, "{error}");
                        }
                        if done == Ok(Progress::Done) {
                            return;
                        }
                        tokio::task::yield_now().await;
                    }
                    panic!("the removal does not end");
                })
            });
            for end in ends {
                end.await.unwrap();
            }
            memory.faults().calm();
            is_left_clean(&memory, &keys).await;
        });
    }

    /// A sticky name and a borrowed address, wanted by several nodes whose requests fail and whose answers are lost.
    #[test]
    fn no_name_and_no_address_has_two_users(seed: u64, percent in 0_u64..40, nodes in 2_u128..6) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let (memory, keys, wanted) = (Memory::new(), keys(), ip("10.244.0.77"));
            let lender = Uuid::from_u128(99);
            claim_block_containing(&memory, &keys, &pools(), lender, &BTreeMap::new(), wanted).await.unwrap();
            memory.faults().at_random(seed, percent);
            let users = std::rc::Rc::new(std::cell::RefCell::new(BTreeMap::new()));
            let begin = |users: &std::cell::RefCell<BTreeMap<&'static str, Uuid>>, what, node| {
                assert_eq!(users.borrow_mut().insert(what, node), None, "{what} has two users");
            };
            let lives: Vec<_> = (1..=nodes).map(|number| {
                let (memory, keys, users) = (memory.clone(), keys.clone(), users.clone());
                tokio::task::spawn_local(async move {
                    let node = Uuid::from_u128(number);
                    let (who, owner) = (holder(node, "x"), Owner::from(attachment("x")));
                    for _ in 0..12 {
                        if take_sticky(&memory, &keys, "name", &who, &[wanted], 1).await.is_ok() {
                            begin(&users, "name", node);
                            tokio::task::yield_now().await;
                            users.borrow_mut().remove("name");
                            let _ = give_back_sticky(&memory, &keys, "name", &who, 2).await;
                        }
                        let _ = request_address(&memory, &keys, wanted, &owner, node).await;
                        // The lender's answer: yes to one, no to another.
                        let _ = match number % 2 {
                            0 => grant_address(&memory, &keys, wanted, lender).await,
                            _ => deny_address(&memory, &keys, wanted, lender).await,
                        };
                        let asked = request_address(&memory, &keys, wanted, &owner, node).await;
                        if asked.is_ok_and(|record| record.granted) {
                            begin(&users, "address", node);
                            tokio::task::yield_now().await;
                            users.borrow_mut().remove("address");
                        }
                        let _ = release_address(&memory, &keys, wanted, &owner, node).await;
                    }
                })
            }).collect();
            for life in lives {
                life.await.unwrap();
            }
        });
    }
}
