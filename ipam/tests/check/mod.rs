// SPDX-License-Identifier: Apache-2.0
//! What `check` finds, and that what it calls proven mends it and takes nothing from anybody.

use std::net::IpAddr;

use ipam::check::{AddressWitness, AttachmentWitness, StickyWitness, check};
use ipam::gc::PENDING_AGE_MIN;
use ipam::{
    Action, Allocator, AttachmentKey, BlockRecord, Family, FindingKind, Owner, Sight, Want, Witnesses,
};
use proptest::prelude::*;
use uuid::Uuid;

use super::{NODE, NOW, block, give, ip, later, pod, with_block};

const OTHER: Uuid = Uuid::from_u128(2);

fn key(number: u32) -> AttachmentKey {
    AttachmentKey::new("weft", format!("c{number}"), "eth0")
}

fn attachment(number: u32, ips: Vec<IpAddr>) -> AttachmentWitness {
    AttachmentWitness {
        key: key(number),
        ips,
        host_ifname: format!("weft{number}"),
        sticky: None,
        settled: true,
        adopted: false,
        sight: Sight { link: true, netns: true, listed: true },
    }
}

/// A node with pods 1 and 2, all witnesses at one.
fn healthy() -> (Allocator, Witnesses) {
    let mut allocator = with_block("10.244.3.0/26");
    for number in [1, 2] {
        give(&mut allocator, &pod(number), NOW).unwrap();
        allocator.commit(&pod(number), NOW);
    }
    let witnesses = hear(&allocator);
    (allocator, witnesses)
}

/// Kernel, attachments and store say what the allocator says.
fn hear(allocator: &Allocator) -> Witnesses {
    let mut witnesses = Witnesses::of_allocator(allocator, later(1000));
    witnesses.in_sync = true;
    witnesses.nodes = [NODE, OTHER].into();
    witnesses.blocks = witnesses.own_blocks.clone();
    for number in 0..10 {
        let ips = allocator.addresses_of(&pod(number));
        if !ips.is_empty() {
            witnesses.observed.extend(ips.iter().map(|ip| (*ip, format!("weft{number}"))));
            witnesses.pods.push((NODE, key(number), ips.clone()));
            witnesses.attachments.push(attachment(number, ips));
        }
    }
    witnesses
}

#[test]
fn a_link_that_is_gone_is_told_and_left_to_the_second_look() {
    let (_, mut witnesses) = healthy();
    let address = witnesses.attachments[0].ips[0];
    witnesses.observed.retain(|(ip, _)| *ip != address);
    witnesses.lost_after = ipam::reconcile::LOST_AGE_MIN;
    for (sight, words, wait) in [
        (Sight::default(), "neither", " 60 s "),
        (Sight { listed: true, ..Sight::default() }, "the runtime still lists it", " 600 s "),
        (Sight { netns: true, ..Sight::default() }, "its network namespace is there", " 600 s "),
    ] {
        witnesses.attachments[0].sight = sight;
        let findings = check(&witnesses);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!((findings[0].kind, findings[0].address), (FindingKind::Leak, Some(address)));
        assert!(!findings[0].repairable && findings[0].explanation.contains(words), "{findings:?}");
        is_for_the_operator(&findings[0].action, wait);
    }
    witnesses.attachments[0].settled = false;
    assert_eq!(check(&witnesses), [], "its DEL is at work");
}

/// The one finding, as (kind, action).
fn only(witnesses: &Witnesses) -> (FindingKind, Action) {
    let findings = check(witnesses);
    assert_eq!(findings.len(), 1, "{findings:#?}");
    assert_eq!(findings[0].repairable, !matches!(findings[0].action, Action::Operator(_)));
    (findings[0].kind, findings[0].action.clone())
}

fn is_for_the_operator(action: &Action, part: &str) {
    assert!(matches!(action, Action::Operator(text) if text.contains(part)), "{action:?}");
}

#[test]
fn witnesses_at_one_give_no_finding() {
    let (_, witnesses) = healthy();
    assert_eq!(check(&witnesses), []);
    assert_eq!(check(&Witnesses { in_sync: false, blocks: vec![], ..witnesses.clone() }), []);
    assert_eq!(witnesses.compared()[0], "2 addresses in the journal");
}

#[test]
fn address_of_nobody_is_a_leak_and_freed_only_when_the_kernel_knows_nothing() {
    let (_, mut witnesses) = healthy();
    witnesses.attachments.retain(|it| it.key != key(2));
    let findings = check(&witnesses);
    assert_eq!(
        findings.iter().map(|it| it.kind).collect::<Vec<_>>(),
        [FindingKind::Leak, FindingKind::Orphan]
    );
    assert!(findings.iter().all(|it| !it.repairable), "{findings:#?}");
    witnesses.observed.retain(|(_, link)| link != "weft2");
    assert_eq!(only(&witnesses), (FindingKind::Leak, Action::Release(pod(2))));
    witnesses.in_flight.insert(pod(2));
    assert_eq!(check(&witnesses), [], "it is being given right now");
}

#[test]
fn a_lost_record_alone_frees_nothing_while_a_link_or_the_runtime_knows_the_pod() {
    let (_, mut witnesses) = healthy();
    witnesses.attachments.retain(|it| it.key != key(2));
    // The route went with the record: netd takes routes of links it knows nothing of away.
    witnesses.observed.retain(|(_, link)| link != "weft2");
    for (sight, words) in [
        (Sight { link: true, ..Sight::default() }, "its link is there"),
        (Sight { listed: true, ..Sight::default() }, "the runtime lists it"),
        (
            Sight { link: true, listed: true, ..Sight::default() },
            "its link is there, and the runtime lists it",
        ),
    ] {
        witnesses.unrecorded = [(key(2), sight)].into();
        let findings = check(&witnesses);
        assert_eq!(findings.len(), 1, "{findings:#?}");
        assert!(!findings[0].repairable && findings[0].explanation.contains(words), "{findings:#?}");
    }
    witnesses.unrecorded = [(key(2), Sight::default())].into();
    assert_eq!(only(&witnesses), (FindingKind::Leak, Action::Release(pod(2))));
}

#[test]
fn what_another_node_lent_and_a_sticky_name_outlive_a_lost_record_too() {
    let (_, mut witnesses) = healthy();
    witnesses.blocks.push(BlockRecord { owner: OTHER, ..block("10.244.9.0/26") });
    let borrowed = AddressWitness {
        ip: ip("10.244.9.5"),
        owner: pod(7),
        node: Some(NODE),
        granted: true,
        block_owner: OTHER,
    };
    witnesses.addresses.push(borrowed);
    assert_eq!(only(&witnesses), (FindingKind::Leak, Action::DeleteAddressRecord(ip("10.244.9.5"))));
    witnesses.unrecorded = [(key(7), Sight { link: true, ..Sight::default() })].into();
    is_for_the_operator(&only(&witnesses).1, "its link is there");
    witnesses.addresses.clear();
    let named = StickyWitness {
        name: "db".into(),
        ips: vec![ip("10.244.9.6")],
        node: Some(NODE),
        attachment: Some(key(7)),
    };
    witnesses.sticky.push(named);
    is_for_the_operator(&only(&witnesses).1, "its link is there");
    witnesses.unrecorded.clear();
    assert_eq!(only(&witnesses), (FindingKind::Leak, Action::GiveBackSticky("db".into())));
}

#[test]
fn pending_address_is_no_leak_while_it_is_young() {
    let mut allocator = with_block("10.244.3.0/26");
    give(&mut allocator, &pod(1), NOW).unwrap();
    let hear = |now| Witnesses::of_allocator(&allocator, now);
    assert_eq!(check(&hear(later(5))), []);
    assert_eq!(only(&hear(later(PENDING_AGE_MIN.as_secs()))).0, FindingKind::Leak);
}

#[test]
fn half_used_pair_is_not_freed() {
    let mut allocator = with_block("10.244.3.0/26");
    let six = ipam::Pool::new("six", "fd00::/64".parse().unwrap(), Some(122));
    allocator.add_block(BlockRecord::claimed(&six, "fd00::/122".parse().unwrap(), NODE)).unwrap();
    allocator.allocate(&pod(1), &Want::any([Family::V4, Family::V6]), NOW).unwrap();
    allocator.commit(&pod(1), NOW);
    let mut witnesses = hear(&allocator);
    witnesses.attachments.clear();
    witnesses.pods.clear();
    witnesses.observed.retain(|(ip, _)| ip.is_ipv6());
    let leaks: Vec<_> = check(&witnesses).into_iter().filter(|it| it.kind == FindingKind::Leak).collect();
    assert_eq!(leaks.len(), 2);
    assert!(leaks.iter().all(|it| !it.repairable && it.explanation.contains("fd00::")), "{leaks:#?}");
    witnesses.observed.clear();
    assert!(check(&witnesses).iter().all(|it| it.action == Action::Release(pod(1))));
}

#[test]
fn two_with_one_address_are_never_judged() {
    let (allocator, mut witnesses) = healthy();
    let address = allocator.addresses_of(&pod(1))[0];
    witnesses.attachments.push(attachment(7, vec![address]));
    witnesses.observed.push((address, "weft7".to_owned()));
    let findings = check(&witnesses);
    assert!(findings.iter().all(|it| it.kind == FindingKind::Double && !it.repairable), "{findings:#?}");
    assert!(findings.iter().any(|it| it.explanation.contains("weft.c1.eth0 and weft.c7.eth0")));
    assert!(findings.iter().any(|it| it.explanation.contains("weft1 and weft7")));
}

#[test]
fn address_that_the_journal_forgot_is_put_on_record_where_the_kernel_agrees() {
    let (_, mut witnesses) = healthy();
    witnesses.allocations.retain(|it| it.owner != pod(2));
    witnesses.own_blocks[0].allocations.remove(&1);
    witnesses.blocks = witnesses.own_blocks.clone();
    let restore = Action::Restore { ip: ip("10.244.3.1"), owner: pod(2) };
    assert_eq!(only(&witnesses), (FindingKind::MissingRecord, restore));
    witnesses.observed.retain(|(_, link)| link != "weft2");
    let (kind, action) = only(&witnesses);
    assert_eq!(kind, FindingKind::MissingRecord);
    is_for_the_operator(&action, "make it again");
    witnesses.attachments[1].settled = false;
    assert_eq!(check(&witnesses), [], "its DEL is under way");
}

#[test]
fn link_that_nobody_has_on_record_keeps_its_address_out_of_use() {
    let (mut allocator, mut witnesses) = healthy();
    witnesses.observed.push((ip("10.244.3.9"), "weft99".to_owned()));
    let (kind, action) = only(&witnesses);
    assert_eq!(kind, FindingKind::Orphan);
    let Action::Restore { ip: address, owner } = action else { panic!("{action:?}") };
    allocator.restore(&owner, address, NOW).unwrap();
    assert_eq!(
        allocator.lookup_address(&ip("10.244.3.9")).unwrap().owner.to_string(),
        "reserved/10.244.3.9: seen on weft99"
    );
}

#[test]
fn blocks_beside_their_records() {
    let (_, witnesses) = healthy();
    let cidr = witnesses.own_blocks[0].cidr;
    let with = |change: fn(&mut BlockRecord)| {
        let mut changed = witnesses.clone();
        change(&mut changed.blocks[0]);
        changed
    };
    let stale = only(&with(|record| drop(record.allocations.remove(&0))));
    assert_eq!(stale, (FindingKind::StaleMirror, Action::PublishMirror(cidr)));
    for changed in [with(|record| record.owner = OTHER), with(|record| record.epoch += 1)] {
        let (kind, action) = only(&changed);
        assert_eq!(kind, FindingKind::ForeignBlock);
        is_for_the_operator(&action, "delete the pods");
    }
    let gone = Witnesses { blocks: vec![], ..witnesses.clone() };
    assert_eq!(only(&gone), (FindingKind::MissingRecord, Action::CreateBlockRecord(cidr)));
    let mut empty = Witnesses {
        attachments: vec![],
        observed: vec![],
        pods: vec![],
        allocations: vec![],
        ..witnesses.clone()
    };
    empty.own_blocks[0].allocations.clear();
    empty.blocks[0].owner = OTHER;
    assert_eq!(only(&empty), (FindingKind::ForeignBlock, Action::DropBlock(cidr)));
    let mut stranger = witnesses.clone();
    stranger.blocks.push(BlockRecord { owner: Uuid::from_u128(9), ..block("10.244.8.0/26") });
    let (kind, action) = only(&stranger);
    assert_eq!(kind, FindingKind::Orphan);
    is_for_the_operator(&action, "weft node rm 00000000-0000-0000-0000-000000000009 --force");
    let mut unused = witnesses.clone();
    unused.blocks.push(block("10.244.8.0/26"));
    assert_eq!(only(&unused).0, FindingKind::Orphan);
    let mut overlap = witnesses;
    overlap.blocks.push(BlockRecord { owner: OTHER, ..block("10.244.3.0/27") });
    assert_eq!(only(&overlap).0, FindingKind::Double);
}

#[test]
fn address_in_a_foreign_block_needs_a_loan() {
    let (_, mut witnesses) = healthy();
    let foreign = ip("10.244.8.5");
    witnesses.blocks.push(BlockRecord { owner: OTHER, ..block("10.244.8.0/26") });
    witnesses.attachments.push(attachment(3, vec![foreign]));
    witnesses.observed.push((foreign, "weft3".to_owned()));
    let (kind, action) = only(&witnesses);
    assert_eq!(kind, FindingKind::ForeignBlock);
    is_for_the_operator(&action, "delete the pod");
    let mut lent =
        AddressWitness { ip: foreign, owner: pod(3), node: Some(NODE), granted: false, block_owner: OTHER };
    witnesses.addresses = vec![lent.clone()];
    assert_eq!(only(&witnesses).0, FindingKind::ForeignBlock, "asked is not granted");
    lent.granted = true;
    witnesses.addresses = vec![lent];
    assert_eq!(check(&witnesses), []);
    witnesses.attachments.pop();
    assert!(check(&witnesses).iter().all(|it| !it.repairable), "its link is still there");
    witnesses.observed.pop();
    assert_eq!(only(&witnesses), (FindingKind::Leak, Action::DeleteAddressRecord(foreign)));
}

#[test]
fn loan_of_ours_is_kept_exactly_while_there_is_a_record() {
    let mut allocator = with_block("10.244.3.0/26");
    let lent = ip("10.244.3.7");
    allocator.restore(&Owner::granted(lent), lent, NOW).unwrap();
    let mut witnesses = hear(&allocator);
    assert_eq!(only(&witnesses), (FindingKind::Leak, Action::Release(Owner::granted(lent))));
    witnesses.addresses =
        vec![AddressWitness { ip: lent, owner: pod(5), node: Some(OTHER), granted: true, block_owner: NODE }];
    assert_eq!(check(&witnesses), []);
    allocator.release(&Owner::granted(lent), NOW);
    let without = Witnesses { addresses: witnesses.addresses.clone(), ..hear(&allocator) };
    let restore = Action::Restore { ip: lent, owner: Owner::granted(lent) };
    assert_eq!(only(&without), (FindingKind::MissingRecord, restore));
    allocator.restore(&pod(1), lent, NOW).unwrap();
    let double = Witnesses { addresses: witnesses.addresses, ..hear(&allocator) };
    assert_eq!(only(&double).0, FindingKind::Double);
}

#[test]
fn sticky_names_are_held_by_attachments_that_exist() {
    let mut allocator = with_block("10.244.3.0/26");
    let (address, owner) = (ip("10.244.3.0"), Owner::Sticky("db-0".to_owned()));
    allocator.restore(&owner, address, NOW).unwrap();
    let mut witnesses = hear(&allocator);
    assert_eq!(only(&witnesses), (FindingKind::Leak, Action::Release(owner.clone())), "no such name");
    let name = StickyWitness { name: "db-0".to_owned(), ips: vec![address], node: None, attachment: None };
    witnesses.sticky = vec![name.clone()];
    assert_eq!(check(&witnesses), [], "in use nowhere, kept here");
    witnesses.sticky[0].node = Some(NODE);
    witnesses.sticky[0].attachment = Some(key(4));
    assert_eq!(only(&witnesses), (FindingKind::Leak, Action::GiveBackSticky("db-0".to_owned())));
    witnesses
        .attachments
        .push(AttachmentWitness { sticky: Some("db-0".to_owned()), ..attachment(4, vec![address]) });
    witnesses.observed.push((address, "weft4".to_owned()));
    assert_eq!(check(&witnesses), []);
    witnesses.sticky.push(StickyWitness { name: "db-1".to_owned(), ..name });
    let kinds: Vec<_> = check(&witnesses).iter().map(|it| (it.kind, it.repairable)).collect();
    assert_eq!(kinds, [(FindingKind::Double, false); 2]);
    allocator.release(&owner, NOW);
    let forgotten = Witnesses {
        sticky: witnesses.sticky[..1].to_vec(),
        attachments: witnesses.attachments,
        ..hear(&allocator)
    };
    assert!(
        check(&forgotten).iter().any(|it| it.action == Action::Restore { ip: address, owner: owner.clone() })
    );
}

#[test]
fn cluster_ips_and_their_claims() {
    let (_, mut witnesses) = healthy();
    let (a, b) = (ip("10.96.0.20"), ip("10.96.0.21"));
    witnesses.services = [("default/web".to_owned(), vec![a])].into();
    witnesses.service_claims = [(a, "default/web".to_owned())].into();
    assert_eq!(check(&witnesses), []);
    witnesses.service_claims.insert(b, "default/gone".to_owned());
    assert_eq!(only(&witnesses), (FindingKind::Leak, Action::DeleteServiceClaim(b)));
    witnesses.service_claims = [].into();
    assert_eq!(only(&witnesses).0, FindingKind::MissingRecord);
    witnesses.services.insert("default/web2".to_owned(), vec![a]);
    let (kind, action) = only(&witnesses);
    assert_eq!(kind, FindingKind::Double);
    is_for_the_operator(&action, "delete one");
}

#[test]
fn node_ports_and_their_claims() {
    let (_, mut witnesses) = healthy();
    witnesses.service_ports = [("default/web".to_owned(), [30_080].into())].into();
    witnesses.port_claims = [(30_080, "default/web".to_owned())].into();
    assert_eq!(check(&witnesses), []);
    witnesses.port_claims.insert(30_081, "default/gone".to_owned());
    assert_eq!(only(&witnesses), (FindingKind::Leak, Action::DeletePortClaim(30_081)));
    witnesses.port_claims = [].into();
    assert_eq!(only(&witnesses).0, FindingKind::MissingRecord);
    witnesses.service_ports.insert("default/web2".to_owned(), [30_080].into());
    assert_eq!(only(&witnesses).0, FindingKind::Double);
}

#[test]
fn one_address_of_pods_on_two_nodes_is_a_double() {
    let (_, mut witnesses) = healthy();
    witnesses.pods.push((OTHER, key(1), vec![ip("10.244.3.0")]));
    assert_eq!(only(&witnesses).0, FindingKind::Double);
}

/// A node's truth with pieces missing from this or that witness.
#[derive(Clone, Debug)]
struct Damage {
    no_allocation: Vec<bool>,
    no_attachment: Vec<bool>,
    no_link: Vec<bool>,
    moved_link: Vec<bool>,
}

fn damage() -> impl Strategy<Value = Damage> {
    let flags = || prop::collection::vec(prop::bool::weighted(0.3), 8);
    (flags(), flags(), flags(), flags()).prop_map(|(no_allocation, no_attachment, no_link, moved_link)| {
        Damage { no_allocation, no_attachment, no_link, moved_link }
    })
}

proptest! {
    /// Repairs never free an address that a link or an attachment has, and never give one to a second owner; afterwards
    /// nothing is left to repair.
    #[test]
    fn repair_is_safe_and_ends(damage in damage()) {
        let mut allocator = with_block("10.244.3.0/26");
        for number in 0..8 {
            give(&mut allocator, &pod(number), NOW).unwrap();
            allocator.commit(&pod(number), NOW);
        }
        let mut world = hear(&allocator);
        let hit = |flags: &[bool], number: &str| number.parse::<usize>().is_ok_and(|n| flags[n]);
        for number in 0..8_u32 {
            if damage.no_allocation[number as usize] {
                allocator.release(&pod(number), NOW);
            }
        }
        world.attachments.retain(|it| !hit(&damage.no_attachment, &it.host_ifname[4..]));
        world.observed.retain(|(_, link)| !hit(&damage.no_link, &link[4..]));
        for (_, link) in &mut world.observed {
            if hit(&damage.moved_link, &link[4..]) {
                *link = format!("foreign{link}");
            }
        }
        for round in 0..3 {
            let heard = Witnesses::of_allocator(&allocator, later(1000));
            let witnesses = Witnesses {
                attachments: world.attachments.clone(),
                observed: world.observed.clone(),
                pods: world.pods.clone(),
                in_sync: true,
                nodes: world.nodes.clone(),
                blocks: heard.own_blocks.clone(),
                ..heard
            };
            let actions: Vec<Action> =
                check(&witnesses).into_iter().filter(|it| it.repairable).map(|it| it.action).collect();
            prop_assert!(round == 0 || actions.is_empty(), "{:?}", actions);
            for action in actions {
                match action {
                    Action::Release(owner) => {
                        for address in allocator.addresses_of(&owner) {
                            prop_assert!(world.observed.iter().all(|(ip, _)| *ip != address));
                            prop_assert!(world.attachments.iter().all(|it| !it.ips.contains(&address)));
                        }
                        allocator.release(&owner, NOW);
                    }
                    Action::Restore { ip, owner } => {
                        prop_assert!(allocator.restore(&owner, ip, NOW).is_ok());
                    }
                    other => prop_assert!(false, "{other:?}"),
                }
            }
        }
    }
}
