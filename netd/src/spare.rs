// SPDX-License-Identifier: Apache-2.0
//! What this node needs from the store before it can serve, got ahead of need and away from the agent's pass: the cluster's
//! configuration, a first block, a spare one.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use netd_api::ApiError;

use crate::desired;
use crate::node::Node;

/// Pause after a refusal: pools do not grow by asking again.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// Addresses rest and come back without anyone waking us.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Runs until aborted.
pub(crate) async fn keep(node: Arc<Node>) -> Result<()> {
    let mut pause = Duration::ZERO;
    let mut compared = false;
    loop {
        tokio::select! {
            () = node.claim_wake.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        tokio::time::sleep(pause).await;
        compared = compared || tell_what_is_in_force(&node);
        let outcome = round(&node).await;
        pause = if outcome.is_err() { RETRY_AFTER } else { Duration::ZERO };
        let error = outcome.err().map(|error| Arc::new(error.to_string()));
        if let Some(error) = &error
            && node.claim_error.load().as_ref() != Some(error)
        {
            tracing::warn!("{error}");
        }
        let again = error.is_some();
        node.claim_error.store(error);
        if again {
            node.claim_wake.notify_one();
        }
    }
}

/// Once, as soon as the cluster's configuration is known: somebody who edits a file wants to hear that it changes nothing.
fn tell_what_is_in_force(node: &Node) -> bool {
    let view = node.view.load();
    if !view.in_sync || !view.configured {
        return false;
    }
    for line in desired::not_in_force(&node.config, &view.config, &view.pod_cidrs()) {
        tracing::warn!("{line}");
    }
    true
}

async fn round(node: &Arc<Node>) -> Result<(), ApiError> {
    let (view, mirror) = (node.view.load_full(), node.mirror.borrow().clone());
    let held = node.held.load_full();
    let present = held.as_deref().unwrap_or(&mirror);
    if !view.in_sync || !(mirror.connected || held.is_some()) {
        return Ok(());
    }
    if !present.items.contains_key(&node.keys.config()) {
        // The first node settles it for all; the watch brings it back to us. In a store that lost it, what was known last.
        let settled = netd_store::claim::ensure_config(node.store.as_ref(), &node.keys, &view.config).await;
        return settled.map(drop).map_err(|error| {
            ApiError::retry(format!("the cluster has no configuration, and writing one failed: {error}"))
        });
    }
    if held.is_some() {
        return Ok(());
    }
    let blocks = || node.addressing.addresses().blocks();
    let before = blocks();
    let claimed = node.addressing.keep_ahead().await;
    if claimed.is_err() || blocks() != before {
        node.changed();
    }
    claimed.map_err(|error| ApiError::retry(error.to_string()))
}
