// SPDX-License-Identifier: Apache-2.0
//! Names of chosen Services in a zone of others (`[dns.external]`, RFC 2136). One node does it, the one that has
//! `leader/dns-external`; what is to be done follows from the view and from the zone itself (`dns_zone::external`), so the
//! next leader, or the next netd, goes on where the last one was.
//!
//! `wishes.rs`: which Services want which names, and the addresses they have; `presence.rs`: nodes that are away for a
//! moment; `owner.rs`: whose names these are; `publisher.rs`: whether this node does it, one pass after the other;
//! `reconcile.rs`: what a pass does; `troubles.rs`: what does not go through; `client.rs`: the zone's server; `wire.rs`:
//! messages; `error.rs`: what to say.

mod client;
#[cfg(test)]
mod client_tests;
mod error;
mod owner;
mod presence;
mod publisher;
mod reconcile;
#[cfg(test)]
mod reconcile_tests;
mod troubles;
mod wire;
mod wishes;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use arc_swap::ArcSwap;
use dns_zone::external::Change;
use netd_api::{BadValue, PendingItem};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use crate::node::Node;

pub(crate) use wishes::check as check_annotations;

use publisher::Publisher;

/// What changed is looked at together after so long. Resolvers keep what they know for longer than that anyway.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What this node's publishing is at, for metrics and status.
#[derive(Debug, Default)]
pub(crate) struct External {
    pub updates: Family<ChangeLabels, Counter>,
    pub errors: Family<ReasonLabels, Counter>,
    now: ArcSwap<Shown>,
}

/// As of the last pass.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shown {
    /// This node does it.
    pub leads: bool,
    /// Names of ours in the zone.
    pub names: usize,
    /// Their addresses and aliases.
    pub records: usize,
    /// The zone is as wished.
    pub is_done: bool,
    /// Why the server does not do what we ask.
    pub pending: Vec<PendingItem>,
    /// What is not published as it was written.
    pub problems: Vec<BadValue>,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
pub(crate) struct ChangeLabels {
    pub change: &'static str,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
pub(crate) struct ReasonLabels {
    pub reason: &'static str,
}

impl External {
    /// As of the last pass.
    pub(crate) fn now(&self) -> Arc<Shown> {
        self.now.load_full()
    }

    fn show(&self, shown: Shown) {
        self.now.store(Arc::new(shown));
    }

    fn updated(&self, change: Change) {
        self.updates.get_or_create(&ChangeLabels { change: change.as_str() }).inc();
    }

    fn failed(&self, reason: &'static str) {
        self.errors.get_or_create(&ReasonLabels { reason }).inc();
    }
}

/// Publishes; runs until aborted.
pub(crate) async fn keep(node: Arc<Node>) -> Result<()> {
    let Some(options) = &node.config.external_dns else { return std::future::pending().await };
    let mut publisher =
        Publisher::new(options.clone(), u64::from(std::process::id()) ^ node.uuid.as_u64_pair().0);
    loop {
        publisher.pass(&node).await;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
