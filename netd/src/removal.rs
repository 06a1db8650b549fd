// SPDX-License-Identifier: Apache-2.0
//! What this node answers for in the store beyond its own records: addresses that it lent or borrowed, sticky names, and
//! nodes that an operator removed.
//!
//! A removal is a tombstone. Every other node first drops the removed node's peer, FDB and routes, then confirms it; the
//! removed node, if it still runs, stops giving addresses and acknowledges. Only then are its blocks free: the fence is the
//! data plane, not a timer.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use ipam::AttachmentKey;
use netd_api::{ApiError, NodeRemoveReply, NodeRemoveRequest};
use netd_store::claim::{ChangeError, acknowledge_removal, confirm_fence, finish_removal, remove_node};
use netd_store::records::Tombstone;
use uuid::Uuid;

use crate::node::{Node, lock, now_ms};
use crate::pace::Pace;
use crate::sweep::link_exists;
use crate::view::View;

/// Nobody wakes us when a time-out elsewhere is over.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Pause after the store refused or did not answer.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// A burst of changes is handled together.
const COALESCE: Duration = Duration::from_millis(10);
/// A removal that needs no more than the nodes' own work is over within this; `weft node rm` asks again otherwise.
const REMOVE_WAIT: Duration = Duration::from_secs(2);

/// Runs until aborted.
pub(crate) async fn keep(node: Arc<Node>) -> Result<()> {
    let mut last_error = String::new();
    let mut pace = Pace::new(COALESCE);
    loop {
        tokio::select! {
            () = node.settle_wake.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        pace.wait().await;
        let start = Instant::now();
        let view = node.view.load_full();
        if !view.in_sync || !node.mirror.borrow().connected {
            continue;
        }
        let outcome = round(&node, &view).await;
        pace.ran(start.elapsed());
        match outcome {
            Ok(()) => last_error.clear(),
            Err(error) => {
                let error = error.to_string();
                if error != last_error {
                    tracing::warn!(error, "records that this node answers for are not settled; trying again");
                }
                last_error = error;
                tokio::time::sleep(RETRY_AFTER).await;
                node.settle_wake.notify_one();
            }
        }
    }
}

async fn round(node: &Arc<Node>, view: &View) -> Result<(), ChangeError> {
    let mirrors = || node.addressing.addresses().mirrors();
    let before = mirrors();
    // What cannot be settled stops no removal.
    // A pod whose record alone is lost still has its link, and its addresses with it.
    let known = |key: &AttachmentKey| lock(&node.attachments).get(key).is_some() || link_exists(key);
    let settled = node.addressing.settle(known).await;
    if mirrors() != before {
        // The change in the store that led to this may have been compared before it.
        node.publish_wake.notify_one();
    }
    for tombstone in view.tombstones.values().filter(|tombstone| tombstone.finished_ms.is_none()) {
        if tombstone.uuid == node.uuid {
            if tombstone.acknowledged_ms.is_none() {
                tracing::error!(
                    "this node was removed from the cluster: it gives no addresses and has no peers any more; to join again as a \
                     new node: {}",
                    join_again(&node.config.state_dir)
                );
                acknowledge_removal(node.store.as_ref(), &node.keys, node.uuid, now_ms()).await?;
            }
            continue;
        }
        // The kernel no longer has the node once the revision with its tombstone is programmed.
        let tunnel = node.tunnel.state.load();
        let programmed = node.progress.load().programmed_revision >= view.revision
            // Nor do its devices: a round without an error has done what the same view says.
            && !tunnel.peers.contains_key(&tombstone.uuid)
            && tunnel.errors.is_empty();
        if programmed && !tombstone.fenced.contains_key(&node.uuid) {
            confirm_fence(node.store.as_ref(), &node.keys, tombstone.uuid, node.uuid, now_ms()).await?;
        } else if waiting_for(view, tombstone).is_empty() {
            let others = must_confirm(view, tombstone.uuid);
            let progress =
                finish_removal(node.store.as_ref(), &node.keys, tombstone.uuid, &others, now_ms()).await?;
            tracing::info!(node = tombstone.name, uuid = %tombstone.uuid, ?progress, "removal");
        }
    }
    settled
}

/// The way back for a removed node. `netd clean` comes before the state directory is emptied: it needs the attachments and the
/// old values of sysctls that lie there.
pub(crate) fn join_again(state_dir: &Path) -> String {
    format!("drain it, stop netd, run `netd clean`, then empty {} and start netd", state_dir.display())
}

/// Nodes whose kernels must have forgotten the removed one: every other, also one whose record does not read here.
fn must_confirm(view: &View, removed: Uuid) -> BTreeSet<Uuid> {
    let others =
        view.node_keys.iter().filter(|uuid| **uuid != removed && !view.tombstones.contains_key(uuid));
    others.copied().collect()
}

/// What a removal still waits for, a line each.
fn waiting_for(view: &View, tombstone: &Tombstone) -> Vec<String> {
    let mut waiting = Vec::new();
    if !tombstone.forced && tombstone.acknowledged_ms.is_none() {
        waiting.push(format!(
            "{} has not acknowledged; if the machine is off for good, say so with --force",
            tombstone.name
        ));
    }
    let must = must_confirm(view, tombstone.uuid);
    waiting.extend(must.iter().filter(|uuid| !tombstone.fenced.contains_key(uuid)).map(|uuid| {
        let name = view.nodes.get(uuid).map_or_else(|| uuid.to_string(), |record| record.name.clone());
        let state =
            if view.alive.contains(uuid) { "" } else { " (its lease is gone: is netd running there?)" };
        format!("{name} has not confirmed that it dropped the node's routes{state}")
    }));
    waiting
}

/// `POST /v1/nodes/remove`: writes the tombstone, then tells how far it has come.
pub(crate) async fn remove(
    node: &Arc<Node>,
    request: &NodeRemoveRequest,
) -> Result<NodeRemoveReply, ApiError> {
    let view = node.view.load_full();
    let (uuid, name) = find(&view, &request.node)?;
    if uuid == node.uuid {
        return Err(ApiError::invalid(format!(
            "{name} is the node that answers: ask another one, which stays, to remove it"
        )));
    }
    remove_node(node.store.as_ref(), &node.keys, uuid, &name, request.force, now_ms())
        .await
        .map_err(|error| ApiError::retry(format!("removing {name}: {error}")))?;
    let deadline = tokio::time::Instant::now() + REMOVE_WAIT;
    loop {
        let view = node.view.load_full();
        let tombstone = view.tombstones.get(&uuid);
        let done = tombstone.is_some_and(|tombstone| tombstone.finished_ms.is_some());
        if done || tokio::time::Instant::now() >= deadline {
            let waiting_for = match tombstone {
                Some(tombstone) if !done => waiting_for(&view, tombstone),
                _ => Vec::new(),
            };
            return Ok(NodeRemoveReply { name, uuid: uuid.to_string(), done, waiting_for });
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// By name or UUID, among the nodes and those that are being removed.
fn find(view: &View, wanted: &str) -> Result<(Uuid, String), ApiError> {
    let nodes = view.nodes.values().map(|record| (record.uuid, record.name.clone()));
    let removed = view.tombstones.values().map(|tombstone| (tombstone.uuid, tombstone.name.clone()));
    let matches: BTreeSet<(Uuid, String)> =
        nodes.chain(removed).filter(|(uuid, name)| name == wanted || uuid.to_string() == wanted).collect();
    // A name may have been given again: the node that is there is meant.
    let living: Vec<_> = matches.iter().filter(|(uuid, _)| view.nodes.contains_key(uuid)).collect();
    match (living.as_slice(), matches.iter().next()) {
        ([one], _) => Ok((*one).clone()),
        ([], Some(one)) => Ok(one.clone()),
        ([], None) => Err(ApiError::not_found(format!("no node {wanted}; `weft node ls` lists them"))),
        (several, _) => {
            let uuids: Vec<String> = several.iter().map(|(uuid, _)| uuid.to_string()).collect();
            Err(ApiError::invalid(format!(
                "{wanted} names several nodes: give the UUID ({})",
                uuids.join(", ")
            )))
        }
    }
}
