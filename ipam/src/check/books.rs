// SPDX-License-Identifier: Apache-2.0
//! This node's own books: the allocator, the attachments and the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::{Action, AttachmentWitness, Finding, FindingKind, Witnesses, operator};
use crate::allocator::{Allocation, Phase};
use crate::gc::PENDING_AGE_MIN;
use crate::owner::Owner;
use crate::reconcile::{LISTED_AGE_FACTOR, Sight};

pub(super) fn check(witnesses: &Witnesses) -> Vec<Finding> {
    let mut findings = doubles(witnesses);
    findings.extend(leaks(witnesses));
    findings.extend(witnesses.attachments.iter().flat_map(|attachment| missing(witnesses, attachment)));
    findings
        .extend(witnesses.attachments.iter().flat_map(|attachment| lost(attachment, witnesses.lost_after)));
    findings.extend(orphans(witnesses));
    findings
}

/// Addresses with several attachments, or that the kernel leads to several links.
fn doubles(witnesses: &Witnesses) -> Vec<Finding> {
    let all: BTreeSet<IpAddr> = witnesses
        .attachments
        .iter()
        .flat_map(|attachment| attachment.ips.iter().copied())
        .chain(witnesses.observed.iter().map(|(ip, _)| *ip))
        .collect();
    let mut findings = Vec::new();
    for ip in all {
        let users: Vec<String> =
            witnesses.users_of(&ip).iter().map(|attachment| attachment.key.to_string()).collect();
        if users.len() > 1 {
            let text = format!("{ip} is on record for {}: their traffic mixes", users.join(" and "));
            let action = operator("delete one of these pods; it gets another address when it is made again");
            findings.push(Finding::of_address(FindingKind::Double, users.join(", "), ip, text, action));
        }
        let links: Vec<&str> = witnesses.links_of(&ip).into_iter().collect();
        if links.len() > 1 {
            let text = format!("the kernel leads {ip} to {}", links.join(" and "));
            let action =
                operator("look at these links with `ip route`; delete the pod that should not have it");
            findings.push(Finding::of_address(FindingKind::Double, links.join(", "), ip, text, action));
        }
    }
    findings
}

/// Allocations of attachments that are not on record. (Those of sticky names and loans are the store's to judge.)
fn leaks(witnesses: &Witnesses) -> Vec<Finding> {
    let mut by_owner: BTreeMap<&Owner, Vec<&Allocation>> = BTreeMap::new();
    for allocation in &witnesses.allocations {
        by_owner.entry(&allocation.owner).or_default().push(allocation);
    }
    let mut findings = Vec::new();
    for (owner, allocations) in by_owner {
        let Owner::Attachment(key) = owner else { continue };
        let young =
            |it: &&Allocation| it.phase == Phase::Pending && witnesses.now.since(it.since) < PENDING_AGE_MIN;
        if witnesses.knows(key) || witnesses.is_in_flight(owner) || allocations.iter().any(young) {
            continue;
        }
        if let Some(known) = witnesses.known_elsewhere(key) {
            findings.extend(allocations.iter().map(|it| lost_record(owner, it.ip, known)));
            continue;
        }
        findings.extend(unused(witnesses, owner, &allocations, "no such attachment is on record"));
    }
    findings
}

/// An address whose attachment has lost its record, and perhaps nothing else.
fn lost_record(owner: &Owner, ip: IpAddr, known: &str) -> Finding {
    let text = format!(
        "{ip} is kept for {owner}, of which no attachment is on record; still {known}: the pod may run with this address"
    );
    let action = operator("delete the pod and make it again; its DEL frees the address");
    Finding::of_address(FindingKind::Leak, owner, ip, text, action)
}

/// A finding for each address of an owner that nobody uses. They are freed together, so one that the kernel still knows
/// keeps all.
pub(super) fn unused(
    witnesses: &Witnesses,
    owner: &Owner,
    allocations: &[&Allocation],
    why: &str,
) -> Vec<Finding> {
    let is_used = |ip: &IpAddr| !witnesses.links_of(ip).is_empty() || !witnesses.users_of(ip).is_empty();
    let used: Vec<String> =
        allocations.iter().filter(|it| is_used(&it.ip)).map(|it| it.ip.to_string()).collect();
    let finding = |it: &&Allocation| {
        let text = format!("{} is kept for {owner}, but {why}", it.ip);
        let (text, action) = if used.is_empty() {
            (format!("{text}, and the kernel leads it nowhere"), Action::Release(owner.clone()))
        } else {
            let used = used.join(", ");
            let action = operator(format!("delete the pod that uses {used}; then it is freed"));
            (format!("{text}; still a link or an attachment of this node has {used}"), action)
        };
        Finding::of_address(FindingKind::Leak, owner, it.ip, text, action)
    };
    allocations.iter().map(finding).collect()
}

/// Addresses of an attachment that the allocator does not know as its own.
fn missing(witnesses: &Witnesses, attachment: &AttachmentWitness) -> Vec<Finding> {
    let owner = match &attachment.sticky {
        Some(name) => Owner::Sticky(name.clone()),
        None => Owner::Attachment(attachment.key.clone()),
    };
    let busy = !attachment.settled || witnesses.is_in_flight(&owner) || attachment.adopted;
    let own = attachment.ips.iter().filter(|ip| !busy && witnesses.is_own(ip));
    own.filter_map(|ip| {
        let key = &attachment.key;
        let Some(allocation) = witnesses.allocation_of(ip) else {
            let proven = witnesses.links_of(ip) == BTreeSet::from([attachment.host_ifname.as_str()])
                && witnesses.users_of(ip).len() == 1;
            let text = format!("{key} has {ip}, which the journal does not know: it could be given again");
            let action = if proven {
                Action::Restore { ip: *ip, owner: owner.clone() }
            } else {
                operator("the kernel does not lead it to this attachment's link alone: delete the pod and make it again")
            };
            return Some(Finding::of_address(FindingKind::MissingRecord, key, *ip, text, action));
        };
        // A borrower that inherited the lender's block holds the address as a loan from itself.
        let inherited = allocation.owner.as_granted() == Some(*ip)
            && witnesses.addresses.iter().any(|record| {
                record.ip == *ip && record.node == Some(witnesses.node) && record.owner == Owner::Attachment(key.clone())
            });
        let accepted =
            allocation.owner == owner || allocation.owner == Owner::Attachment(key.clone()) || inherited;
        if accepted || witnesses.is_in_flight(&allocation.owner) {
            return None;
        }
        let text = format!("{key} has {ip}, but the journal gives it to {}", allocation.owner);
        let action = operator(format!("delete the pod of {key}; it gets another address when it is made again"));
        Some(Finding::of_address(FindingKind::Double, key, *ip, text, action))
    })
    .collect()
}

/// Addresses of an attachment whose link is gone. Two looks that lie well apart free them, not this one.
fn lost(attachment: &AttachmentWitness, lost_after: Duration) -> Vec<Finding> {
    let Sight { link, netns, listed } = attachment.sight;
    if link || !attachment.settled || attachment.adopted {
        return Vec::new();
    }
    let known = match (netns, listed) {
        (false, false) => "neither is its network namespace there, nor does the runtime list it",
        (false, true) => "its network namespace is gone, but the runtime still lists it",
        (true, false) => "its network namespace is there, but the runtime does not list it",
        (true, true) => "its network namespace is there, and the runtime lists it",
    };
    let finding = |ip: &IpAddr| {
        let key = &attachment.key;
        let text = format!("{key} has {ip}, but its link is gone; {known}");
        let wait = if netns || listed { lost_after.saturating_mul(LISTED_AGE_FACTOR) } else { lost_after };
        let action = operator(format!(
            "wait: netd frees it {} s after it missed the link first, if that does not come back; a DEL or GC does it now",
            wait.as_secs()
        ));
        Finding::of_address(FindingKind::Leak, key, *ip, text, action)
    };
    attachment.ips.iter().map(finding).collect()
}

/// Addresses that the kernel leads to a link of which no attachment is on record.
fn orphans(witnesses: &Witnesses) -> Vec<Finding> {
    let seen: BTreeSet<&(IpAddr, String)> = witnesses.observed.iter().collect();
    let mut findings = Vec::new();
    for (ip, link) in seen {
        let allocation = witnesses.allocation_of(ip);
        let in_flight = allocation.is_some_and(|it| witnesses.is_in_flight(&it.owner));
        let on_link = witnesses.attachments.iter().any(|it| it.host_ifname == *link && it.ips.contains(ip));
        if on_link || in_flight {
            continue;
        }
        let users = witnesses.users_of(ip);
        let (text, action) = match (users.first(), allocation) {
            (Some(user), _) => (
                format!("the kernel leads {ip} to {link}, but {} has it on {}", user.key, user.host_ifname),
                operator("delete the link that no attachment has; netd puts the route right"),
            ),
            (None, Some(allocation)) => (
                format!(
                    "the kernel leads {ip} to {link}, of which no attachment is on record; the journal keeps it for {}",
                    allocation.owner
                ),
                operator(format!("delete the container behind {link}, or the link")),
            ),
            (None, None) if witnesses.is_own(ip) => (
                format!(
                    "the kernel leads {ip} to {link}, and neither an attachment nor the journal knows it: it could be given again"
                ),
                // Keeping it out of use takes nothing from anybody.
                Action::Restore { ip: *ip, owner: Owner::Reserved(format!("{ip}: seen on {link}")) },
            ),
            (None, None) => (
                format!(
                    "the kernel leads {ip} to {link}; it is in no block of this node, and no attachment has it"
                ),
                operator(format!("delete the container behind {link}, or the link")),
            ),
        };
        findings.push(Finding::of_address(FindingKind::Orphan, link, *ip, text, action));
    }
    findings
}
