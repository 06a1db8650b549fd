// SPDX-License-Identifier: Apache-2.0
//! `alive/<uuid>` on this node's one lease, with what this node does for all (leader.rs). Losing it makes the node suspect to
//! others, never gone: addresses and endpoints do not hang on it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use netd_store::LeaseId;
use nix::time::{ClockId, clock_gettime};

use crate::node::Node;

/// How long a silent node still counts as alive.
const LEASE_TTL: Duration = Duration::from_secs(15);
/// Three tries fit into a lease's life.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(5);

/// The lease as the store confirmed it last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Confirmed {
    pub id: LeaseId,
    /// From then on the store may have ended it, in time since boot.
    until: Duration,
}

impl Confirmed {
    /// Nobody else can have what hangs on it.
    pub(crate) fn stands(&self) -> bool {
        since_boot().is_some_and(|now| now < self.until)
    }
}

/// With the time in which the machine was suspended: the store's clock went on.
fn since_boot() -> Option<Duration> {
    clock_gettime(ClockId::CLOCK_BOOTTIME).ok().map(Duration::from)
}

/// Keeps the key; ends only when aborted.
pub(crate) async fn keep(node: Arc<Node>) -> Result<()> {
    let mut lease = None;
    loop {
        // The store counts from when it hears of us, which is later.
        let asked = since_boot().unwrap_or_default();
        lease = match beat(&node, lease).await {
            Ok(id) => {
                node.lease.store(Some(Arc::new(Confirmed { id, until: asked + LEASE_TTL })));
                Some(id)
            }
            Err(error) => {
                tracing::debug!(%error, "the alive key was not refreshed");
                None
            }
        };
        tokio::time::sleep(KEEP_ALIVE_EVERY).await;
    }
}

async fn beat(node: &Node, lease: Option<LeaseId>) -> Result<LeaseId, netd_store::StoreError> {
    if let Some(id) = lease {
        match node.store.lease_keep_alive(id).await {
            Ok(()) => return Ok(id),
            Err(netd_store::StoreError::LeaseNotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let granted = node.store.lease_grant(LEASE_TTL).await?;
    let value = Bytes::from(format!("{{\"schema\":1,\"name\":{:?}}}", node.config.node_name));
    node.store.put(&node.keys.alive(node.uuid), value, Some(granted.id)).await?;
    Ok(granted.id)
}

/// A graceful end says so at once instead of after the lease's time.
pub(crate) async fn withdraw(node: &Node) {
    if let Err(error) = node.store.delete(&node.keys.alive(node.uuid)).await {
        tracing::debug!(%error, "the alive key was not withdrawn; it ends with its lease");
    }
}
