// SPDX-License-Identifier: Apache-2.0
//! The store's records of blocks, borrowed addresses, sticky names and pods, beside this node's own books.

use std::collections::BTreeMap;
use std::net::IpAddr;

use uuid::Uuid;

use super::books::unused;
use super::{Action, AddressWitness, Finding, FindingKind, StickyWitness, Witnesses, operator};
use crate::allocator::Allocation;
use crate::block::BlockRecord;
use crate::owner::{AttachmentKey, Owner};

pub(super) fn check(witnesses: &Witnesses) -> Vec<Finding> {
    let mut findings = overlaps(&witnesses.blocks);
    findings.extend(witnesses.own_blocks.iter().filter_map(|block| own_block(witnesses, block)));
    findings.extend(witnesses.blocks.iter().filter_map(|block| ownerless(witnesses, block)));
    findings.extend(kept_for_records(witnesses));
    findings.extend(witnesses.addresses.iter().filter_map(|record| address(witnesses, record)));
    findings.extend(witnesses.sticky.iter().flat_map(|record| sticky(witnesses, record)));
    findings.extend(same_address(witnesses));
    findings.extend(elsewhere(witnesses));
    findings
}

fn overlaps(blocks: &[BlockRecord]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, second) in blocks.iter().enumerate() {
        for first in &blocks[..index] {
            if first.cidr.contains(&second.cidr) || second.cidr.contains(&first.cidr) {
                let subject = format!("{}, {}", first.cidr, second.cidr);
                let text = format!(
                    "blocks {} of node {} and {} of node {} share addresses",
                    first.cidr, first.owner, second.cidr, second.owner
                );
                let action = operator(
                    "drain the pool of one of them, and delete the pods that have addresses of both",
                );
                findings.push(Finding::of(FindingKind::Double, subject, text, action));
            }
        }
    }
    findings
}

/// A block that the journal has, beside its record.
fn own_block(witnesses: &Witnesses, block: &BlockRecord) -> Option<Finding> {
    let cidr = block.cidr;
    let foreign = |text: String| {
        let action = if block.allocations.is_empty() {
            Action::DropBlock(cidr)
        } else {
            operator("delete the pods that have its addresses on this node (`weft ipam show` lists them)")
        };
        Some(Finding::of(FindingKind::ForeignBlock, cidr, text, action))
    };
    let Some(record) = witnesses.blocks.iter().find(|record| record.cidr == cidr) else {
        let other = witnesses.blocks.iter().find(|it| it.cidr.contains(&cidr) || cidr.contains(&it.cidr));
        if let Some(other) = other {
            return foreign(format!(
                "the journal has {cidr}, but the store gives {} to node {}",
                other.cidr, other.owner
            ));
        }
        let text =
            format!("the journal has {cidr}, but the store has no record of it: another node could claim it");
        return Some(Finding::of(FindingKind::MissingRecord, cidr, text, Action::CreateBlockRecord(cidr)));
    };
    if record.owner != witnesses.node {
        return foreign(format!("the journal has {cidr}, but the store gives it to node {}", record.owner));
    }
    if record.epoch != block.epoch {
        let (ours, theirs) = (block.epoch, record.epoch);
        return foreign(format!(
            "the journal has {cidr} at epoch {ours}, the store at {theirs}: it changed hands meanwhile"
        ));
    }
    if record.allocations == block.allocations {
        return None;
    }
    let differ = |a: &BlockRecord, b: &BlockRecord| {
        a.allocations.iter().filter(|(at, owner)| b.allocations.get(at) != Some(owner)).count()
    };
    let text = format!(
        "the record of {cidr} lacks {} addresses that the journal has, and has {} that it has not",
        differ(block, record),
        differ(record, block)
    );
    Some(Finding::of(FindingKind::StaleMirror, cidr, text, Action::PublishMirror(cidr)))
}

/// A block of a node that is not there, or of this one and not used.
fn ownerless(witnesses: &Witnesses, block: &BlockRecord) -> Option<Finding> {
    let (cidr, owner) = (block.cidr, block.owner);
    if owner == witnesses.node {
        let known = witnesses.own_blocks.iter().any(|own| own.cidr == cidr);
        let text = format!("the store gives {cidr} to this node, which does not use it");
        let action = operator("see netd's log for the reason; it takes the block over when that is gone");
        return (!known).then(|| Finding::of(FindingKind::Orphan, cidr, text, action));
    }
    let text = format!("{cidr} belongs to node {owner}, which has no record");
    let action = operator(format!("if that node is gone for good: `weft node rm {owner} --force`"));
    (!witnesses.nodes.contains(&owner)).then(|| Finding::of(FindingKind::Orphan, cidr, text, action))
}

/// What the allocator keeps for sticky names and loans of which there is no record.
fn kept_for_records(witnesses: &Witnesses) -> Vec<Finding> {
    let mut by_owner: BTreeMap<&Owner, Vec<&Allocation>> = BTreeMap::new();
    for allocation in &witnesses.allocations {
        by_owner.entry(&allocation.owner).or_default().push(allocation);
    }
    let mut findings = Vec::new();
    for (owner, allocations) in by_owner {
        if witnesses.is_in_flight(owner) {
            continue;
        }
        let why = match owner {
            Owner::Sticky(name) => {
                let record = witnesses.sticky.iter().find(|record| record.name == *name);
                if record.is_some_and(|record| allocations.iter().any(|it| record.ips.contains(&it.ip))) {
                    continue;
                }
                "the store has no such name with it"
            }
            Owner::Reserved(_) => match owner.as_granted() {
                Some(ip) if !witnesses.addresses.iter().any(|record| record.ip == ip) => {
                    "the store has no record of the loan"
                }
                _ => continue,
            },
            Owner::Attachment(_) | Owner::Node(_) => continue,
        };
        findings.extend(unused(witnesses, owner, &allocations, why));
    }
    findings
}

fn address(witnesses: &Witnesses, record: &AddressWitness) -> Option<Finding> {
    let AddressWitness { ip, owner, .. } = record;
    let finding = |kind, text: String, action| Some(Finding::of_address(kind, owner, *ip, text, action));
    if record.node == Some(witnesses.node) && is_gone(witnesses, owner) {
        let text = format!("the store has {ip} in use on this node by {owner}, which is not on record here");
        let action = match still_used(witnesses, Some(owner), std::slice::from_ref(ip)) {
            None => Action::DeleteAddressRecord(*ip),
            Some(action) => action,
        };
        return finding(FindingKind::Leak, text, action);
    }
    if record.block_owner == witnesses.node && record.granted && witnesses.is_own(ip) {
        let loan = Owner::granted(*ip);
        return match witnesses.allocation_of(ip) {
            // A sticky name may have been kept here by its own name before it was lent.
            Some(known) if known.owner == loan || known.owner == *owner => None,
            Some(known) => finding(
                FindingKind::Double,
                format!("{ip} is lent to {owner}, but the journal gives it to {}", known.owner),
                operator("delete one of the two pods; it gets another address when it is made again"),
            ),
            None => finding(
                FindingKind::MissingRecord,
                format!("{ip} is lent to {owner}, which the journal does not know: it could be given again"),
                Action::Restore { ip: *ip, owner: loan },
            ),
        };
    }
    missing_node(witnesses, record.node, &format!("{ip} of {owner}"))
        .map(|(text, action)| Finding::of_address(FindingKind::Orphan, owner, *ip, text, action))
}

fn sticky(witnesses: &Witnesses, record: &StickyWitness) -> Vec<Finding> {
    let owner = Owner::Sticky(record.name.clone());
    if witnesses.is_in_flight(&owner) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let holder = record.attachment.clone().map(Owner::Attachment);
    let is_lost = holder.as_ref().is_some_and(|holder| is_gone(witnesses, holder));
    if record.node == Some(witnesses.node) && is_lost {
        let action = still_used(witnesses, holder.as_ref(), &record.ips)
            .unwrap_or_else(|| Action::GiveBackSticky(record.name.clone()));
        let holder = holder.map(|holder| holder.to_string()).unwrap_or_default();
        let text = format!(
            "sticky name {} is in use on this node by {holder}, which is not on record here",
            record.name
        );
        findings.push(Finding::of(FindingKind::Leak, &owner, text, action));
    }
    let orphan = missing_node(witnesses, record.node, &format!("sticky name {}", record.name));
    findings.extend(orphan.map(|(text, action)| Finding::of(FindingKind::Orphan, &owner, text, action)));
    for ip in &record.ips {
        let (kind, text, action) = match witnesses.allocation_of(ip) {
            Some(known) if known.owner == owner || known.owner.as_granted() == Some(*ip) => continue,
            Some(known) => (
                FindingKind::Double,
                format!("{ip} is sticky name {}'s, but the journal gives it to {}", record.name, known.owner),
                operator(format!(
                    "delete the pod of {}; it gets another address when it is made again",
                    known.owner
                )),
            ),
            None if witnesses.is_own(ip) => (
                FindingKind::MissingRecord,
                format!(
                    "{ip} is sticky name {}'s, which the journal does not know: it could be given again",
                    record.name
                ),
                Action::Restore { ip: *ip, owner: owner.clone() },
            ),
            None if witnesses.blocks.iter().any(|block| block.cidr.contains(ip)) => continue,
            None => (
                FindingKind::Orphan,
                format!(
                    "{ip} is sticky name {}'s, but in no node's block: another could get it",
                    record.name
                ),
                operator(format!("`weft ipam sticky rm {}`; the name gets others", record.name)),
            ),
        };
        findings.push(Finding::of_address(kind, &owner, *ip, text, action));
    }
    findings
}

/// Addresses of several pods or several sticky names.
fn same_address(witnesses: &Witnesses) -> Vec<Finding> {
    let mut users: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
    for (node, attachment, ips) in &witnesses.pods {
        for ip in ips {
            users.entry(*ip).or_default().push(format!("{attachment} on node {node}"));
        }
    }
    let mut names: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
    for record in &witnesses.sticky {
        for ip in &record.ips {
            names.entry(*ip).or_default().push(format!("sticky name {}", record.name));
        }
    }
    let several = users.into_iter().chain(names).filter(|(_, users)| users.len() > 1);
    let finding = |(ip, users): (IpAddr, Vec<String>)| {
        let users = users.join(" and ");
        let text = format!("the store has {ip} for {users}");
        let action = operator("delete all but one of them");
        Finding::of_address(FindingKind::Double, users, ip, text, action)
    };
    several.map(finding).collect()
}

/// Addresses of our attachments outside our blocks that no record lends us.
fn elsewhere(witnesses: &Witnesses) -> Vec<Finding> {
    let mut findings = Vec::new();
    for attachment in witnesses.attachments.iter().filter(|it| it.settled && !it.adopted) {
        let key = &attachment.key;
        let owner = Owner::Attachment(key.clone());
        for ip in attachment.ips.iter().filter(|ip| !witnesses.is_own(ip)) {
            let lent = witnesses.addresses.iter().any(|record| {
                record.ip == *ip
                    && record.granted
                    && record.node == Some(witnesses.node)
                    && record.owner == owner
            });
            let named = witnesses
                .sticky
                .iter()
                .any(|record| Some(&record.name) == attachment.sticky.as_ref() && record.ips.contains(ip));
            if lent || named || witnesses.is_in_flight(&owner) {
                continue;
            }
            let block = witnesses.blocks.iter().find(|block| block.cidr.contains(ip));
            let whose = block.map_or("in no node's block".to_owned(), |it| {
                format!("in block {} of node {}", it.cidr, it.owner)
            });
            let text =
                format!("{key} has {ip}, which is {whose}, and no record lends it: it could be given again");
            let action = operator("delete the pod; it gets another address when it is made again");
            findings.push(Finding::of_address(FindingKind::ForeignBlock, key, *ip, text, action));
        }
    }
    findings
}

/// What an operator can do where an attachment without a record may still use these addresses; none where nobody knows it.
fn still_used(witnesses: &Witnesses, owner: Option<&Owner>, ips: &[IpAddr]) -> Option<Action> {
    if ips.iter().any(|ip| !witnesses.links_of(ip).is_empty()) {
        return Some(operator("the kernel still leads its address to a link: delete the pod"));
    }
    let Some(Owner::Attachment(key)) = owner else { return None };
    let known = witnesses.known_elsewhere(key)?;
    Some(operator(format!("{known}: delete the pod and make it again")))
}

fn is_gone(witnesses: &Witnesses, owner: &Owner) -> bool {
    matches!(owner, Owner::Attachment(key) if is_unknown(witnesses, key)) && !witnesses.is_in_flight(owner)
}

fn is_unknown(witnesses: &Witnesses, key: &AttachmentKey) -> bool {
    !witnesses.knows(key)
}

fn missing_node(witnesses: &Witnesses, node: Option<Uuid>, what: &str) -> Option<(String, Action)> {
    let node = node.filter(|node| *node != witnesses.node && !witnesses.nodes.contains(node))?;
    let action = operator(format!("if that node is gone for good: `weft node rm {node} --force`"));
    Some((format!("{what} is in use on node {node}, which has no record"), action))
}
