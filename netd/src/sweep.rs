// SPDX-License-Identifier: Apache-2.0
//! Attachments that nobody will finish: an ADD whose caller died before commit, a DEL that was cut off, a pod whose link is
//! gone without a DEL (a reboot, a namespace deleted by hand). Freed after two observations, never at first sight; who the
//! witnesses are and how long each is waited for is `ipam::reconcile`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use ipam::gc::PENDING_AGE_MIN;
use ipam::{AttachmentKey, LostWatch, Owner, PendingWatch, Sight, Timestamp};
use netd_api::AttachmentId;

use crate::attach;
use crate::attachments::{Attachment, Phase};
use crate::node::{Node, lock};
use crate::witness::{netns_exists, runtime_cache, sight};

/// Between two looks, at most and at least.
const LOOK_EVERY: Duration = Duration::from_secs(20);
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// So many looks at least at a pod that has lost its link, before its addresses are freed.
const LOOKS_MIN: u32 = 3;

/// Runs until aborted.
pub(crate) async fn keep(node: Arc<Node>) -> Result<()> {
    let (mut pending, mut lost) = (PendingWatch::new(), LostWatch::new(node.config.lost_after));
    let mut unfinished = BTreeMap::new();
    loop {
        // Somebody asked for these: they need no second look, nor the store.
        resume_releases(&node).await;
        // Without a view of the cluster nothing is removed.
        if node.view.load().in_sync {
            for key in expired(&node, &mut pending) {
                tracing::warn!(attachment = %key, "its ADD died before the end: releasing it");
                release(&node, &key, |a| a.is_none_or(|a| is_late(&node, a))).await;
            }
            for key in unfinished_adds(&node, &mut unfinished) {
                tracing::warn!(attachment = %key, "its ADD died before the end: releasing it");
                release(&node, &key, |a| a.is_some_and(|a| is_late(&node, a))).await;
            }
            for key in vanished(&node, &mut lost) {
                tracing::warn!(attachment = %key, "its link is gone without a DEL: releasing it");
                release(&node, &key, |a| a.map_or_else(|| !link_exists(&key), |a| !has_link(a))).await;
            }
        }
        let look_every = LOOK_EVERY.min(node.config.lost_after / LOOKS_MIN).max(LOOK_PAUSE);
        tokio::time::sleep(look_every).await;
    }
}

/// DELs that were cut off: by the end of a netd, or of a caller that did not come back.
async fn resume_releases(node: &Arc<Node>) {
    let halves: Vec<AttachmentKey> = lock(&node.attachments)
        .iter()
        .filter(|a| a.phase == Phase::Releasing)
        .map(|a| a.key.clone())
        .collect();
    for key in halves {
        // A DEL that is merely under way is over when it is this one's turn.
        let cut_off = |a: Option<&Attachment>| {
            let cut_off = a.is_some_and(|a| a.phase == Phase::Releasing);
            if cut_off {
                tracing::info!(attachment = %key, "going on with a DEL that was cut off");
            }
            cut_off
        };
        release(node, &key, cut_off).await;
    }
}

/// `still` is asked when it is the key's turn: a DEL or a new ADD may have come first.
async fn release(node: &Arc<Node>, key: &AttachmentKey, still: impl Fn(Option<&Attachment>) -> bool) {
    let id = AttachmentId {
        network: key.network.clone(),
        container_id: key.container_id.clone(),
        ifname: key.ifname.clone(),
    };
    if let Err(error) = attach::release_when(node, id, still).await {
        tracing::warn!(attachment = %key, %error, "not released; will be tried again");
    }
}

/// Addresses given, never in use, for too long, seen twice: with an attachment on record or without one.
fn expired(node: &Node, watch: &mut PendingWatch) -> Vec<AttachmentKey> {
    let (now, in_flight) = (node.addressing.now(), node.addressing.in_flight());
    let owners = watch.observe(node.addressing.addresses().allocator(), &in_flight, now);
    let keys = owners.into_iter().filter_map(|owner| match owner {
        Owner::Attachment(key) => Some(key),
        Owner::Node(_) | Owner::Reserved(_) | Owner::Sticky(_) => None,
    });
    keys.collect()
}

/// The same for attachments whose addresses are not pending in the journal: sticky, borrowed or another plugin's.
/// `suspects`: when each was allocated and when it was first seen to be late.
fn unfinished_adds(
    node: &Node,
    suspects: &mut BTreeMap<AttachmentKey, (u64, Timestamp)>,
) -> Vec<AttachmentKey> {
    let now = node.addressing.now();
    let late: BTreeMap<AttachmentKey, u64> = lock(&node.attachments)
        .iter()
        .filter(|a| is_late(node, a))
        .map(|a| (a.key.clone(), a.allocated_at_ms))
        .collect();
    suspects.retain(|key, (allocated, _)| late.get(key) == Some(allocated));
    let mut dead = Vec::new();
    for (key, allocated) in late {
        let (_, first) = suspects.entry(key.clone()).or_insert((allocated, now));
        if now.since(*first) >= PENDING_AGE_MIN {
            dead.push(key);
        }
    }
    dead
}

/// Its ADD should have ended long ago. Asked again when its turn has come: a new ADD of the same key may be under way.
fn is_late(node: &Node, attachment: &Attachment) -> bool {
    let age = node.addressing.now().since(Timestamp(attachment.allocated_at_ms));
    attachment.phase == Phase::Pending && age >= PENDING_AGE_MIN
}

/// An adopted link is another plugin's; its namespace is all that we can see of it.
pub(crate) fn has_link(attachment: &Attachment) -> bool {
    if attachment.adopted { netns_exists(&attachment.netns) } else { !is_gone(attachment) }
}

/// Live by our books, but its link has been missing since an earlier look.
fn vanished(node: &Node, watch: &mut LostWatch) -> Vec<AttachmentKey> {
    let cache = runtime_cache(&node.config.cni_cache_dir);
    let live: Vec<Attachment> =
        lock(&node.attachments).iter().filter(|a| a.phase == Phase::Committed).cloned().collect();
    let mut sights: BTreeMap<AttachmentKey, Sight> =
        live.iter().map(|attachment| (attachment.key.clone(), sight(attachment, cache.as_ref()))).collect();
    for key in without_record(node) {
        let seen = sight_by_name(&key, cache.as_ref());
        sights.insert(key, seen);
    }
    watch.observe(&sights, node.addressing.now())
}

/// Addresses in use by the journal of attachments that nobody has on record: the machine crashed before the record was on
/// disk, or it was damaged and set aside. Pending ones are [`expired`]'s.
fn without_record(node: &Node) -> Vec<AttachmentKey> {
    let in_flight = node.addressing.in_flight();
    let allocations: Vec<ipam::Allocation> = node.addressing.addresses().allocations().collect();
    let attachments = lock(&node.attachments);
    let keys = allocations.into_iter().filter_map(|allocation| match &allocation.owner {
        Owner::Attachment(key)
            if allocation.phase == ipam::Phase::Committed
                && attachments.get(key).is_none()
                && !in_flight.contains(&allocation.owner) =>
        {
            Some(key.clone())
        }
        _ => None,
    });
    keys.collect()
}

/// What is seen of an attachment that has no record.
pub(crate) fn sight_by_name(key: &AttachmentKey, cache: Option<&BTreeSet<AttachmentKey>>) -> Sight {
    let listed = cache.is_some_and(|cache| cache.contains(key));
    Sight { link: link_exists(key), netns: false, listed }
}

/// Whether the link that an attachment of this name would have is there.
pub(crate) fn link_exists(key: &AttachmentKey) -> bool {
    let name = netd_plan::host_veth_name(&key.network, &key.container_id, &key.ifname);
    netd_host::interface_index(&name).is_some()
}

/// Host ends that should be there and are not. A look at each: they need no lock in the kernel, while a list of all links
/// is read out under the one that every ADD and DEL waits for.
pub(crate) fn gone_links(attachments: &[Arc<Attachment>]) -> BTreeSet<String> {
    attachments.iter().filter(|a| is_gone(a)).map(|a| a.host_ifname.clone()).collect()
}

/// The attachment should have a link and has none.
pub(crate) fn is_gone(attachment: &Attachment) -> bool {
    attachment.phase == Phase::Committed
        && !attachment.adopted
        && netd_host::interface_index(&attachment.host_ifname) != Some(attachment.host_index)
}
