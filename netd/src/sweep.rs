// SPDX-License-Identifier: Apache-2.0
//! Attachments that nobody will finish: an ADD whose caller died before commit, a DEL that was cut off, a pod whose link is
//! gone without a DEL (a reboot, a namespace deleted by hand). Freed after two observations, never at first sight.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use ipam::{AttachmentKey, Owner, PendingWatch, Timestamp};
use netd_api::AttachmentId;

use crate::attachments::{Attachment, Phase};
use crate::attachments_api;
use crate::node::{Node, lock, now_ms};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(20);
/// A link that was missing this long ago and still is will not come back.
const MISSING_FOR: Duration = Duration::from_secs(60);

/// Runs until aborted.
pub(crate) async fn keep(node: Arc<Node>) -> Result<()> {
    let mut watch = PendingWatch::new();
    let mut missing = BTreeMap::new();
    loop {
        // Somebody asked for these: they need no second look, nor the store.
        resume_releases(&node).await;
        tokio::time::sleep(LOOK_EVERY).await;
        // Without a view of the cluster nothing is removed.
        if !node.view.load().in_sync {
            continue;
        }
        for key in expired(&node, &mut watch) {
            tracing::warn!(attachment = %key, "its ADD died before the end: releasing it");
            release(&node, &key, |a| a.phase == Phase::Pending).await;
        }
        for key in vanished(&node, &mut missing, Instant::now()) {
            tracing::warn!(attachment = %key, "its link is gone without a DEL: releasing it");
            release(&node, &key, is_gone).await;
        }
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
        let cut_off = |a: &Attachment| {
            let cut_off = a.phase == Phase::Releasing;
            if cut_off {
                tracing::info!(attachment = %key, "going on with a DEL that was cut off");
            }
            cut_off
        };
        release(node, &key, cut_off).await;
    }
}

/// `still` is asked when it is the key's turn: a DEL or a new ADD may have come first.
async fn release(node: &Arc<Node>, key: &AttachmentKey, still: impl Fn(&Attachment) -> bool) {
    let id = AttachmentId {
        network: key.network.clone(),
        container_id: key.container_id.clone(),
        ifname: key.ifname.clone(),
    };
    let known = |attachment: Option<&Attachment>| attachment.is_some_and(&still);
    if let Err(error) = attachments_api::release_when(node, id, known).await {
        tracing::warn!(attachment = %key, %error, "not released; will be tried again");
    }
}

/// Allocated, never committed, for too long, seen twice.
fn expired(node: &Node, watch: &mut PendingWatch) -> Vec<AttachmentKey> {
    let owners = watch.observe(lock(&node.addresses).allocator(), &BTreeSet::new(), Timestamp(now_ms()));
    let keys = owners.into_iter().filter_map(|owner| match owner {
        Owner::Attachment(key) => Some(key),
        Owner::Node(_) | Owner::Reserved(_) => None,
    });
    keys.collect()
}

/// Live by our books, but its link has been missing since an earlier look.
fn vanished(node: &Node, missing: &mut BTreeMap<AttachmentKey, Instant>, now: Instant) -> Vec<AttachmentKey> {
    let gone: BTreeSet<AttachmentKey> =
        lock(&node.attachments).iter().filter(|a| is_gone(a)).map(|a| a.key.clone()).collect();
    missing.retain(|key, _| gone.contains(key));
    for key in &gone {
        missing.entry(key.clone()).or_insert(now);
    }
    missing
        .iter()
        .filter(|(_, since)| now.duration_since(**since) >= MISSING_FOR)
        .map(|(key, _)| key.clone())
        .collect()
}

/// The attachment should have a link and has none.
pub(crate) fn is_gone(attachment: &Attachment) -> bool {
    attachment.phase == Phase::Committed
        && netd_host::interface_index(&attachment.host_ifname) != Some(attachment.host_index)
}
