// SPDX-License-Identifier: Apache-2.0
//! Links, addresses, routes, neighbours, FDB: observed against desired, the difference applied in order, what fails kept
//! pending with back-off.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netd_host::{Host, HostError, Underlay, UnderlayNow};
use netd_plan::{Backoff, HostObjects, HostOp, ObjectKey, plan};

use netd_api::PendingItem;

/// Operations of one pass: a pass gives way to new wishes after so many.
const OPS_MAX: usize = 4_096;

/// Keeps the kernel's objects as desired.
#[derive(Debug)]
pub(crate) struct HostSync {
    host: Host,
    observed: Option<HostObjects>,
    backoff: Backoff<ObjectKey>,
}

/// What one pass did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Applied {
    pub done: usize,
    pub failed: usize,
    /// More than [`OPS_MAX`] were needed: another pass is.
    pub more: bool,
}

impl HostSync {
    pub(crate) fn new(host: Host) -> Self {
        Self { host, observed: None, backoff: Backoff::default() }
    }

    /// As [`Host::underlay_now`].
    pub(crate) async fn underlay_now(&self, underlay: &Underlay) -> Result<UnderlayNow, HostError> {
        self.host.underlay_now(underlay).await
    }

    /// As [`Host::underlay_again`].
    pub(crate) async fn underlay_again(
        &self,
        former: &Underlay,
        configured: Option<IpAddr>,
        store: Option<IpAddr>,
    ) -> Result<Underlay, HostError> {
        self.host.underlay_again(former, configured, store).await
    }

    /// Pods' veths with a qdisc or filter that is not ours, and what it is.
    pub(crate) async fn traffic_control(&self) -> Result<BTreeMap<String, String>, HostError> {
        self.host.foreign_traffic_controls().await
    }

    /// Forget what was read back: the next pass reads the kernel again.
    pub(crate) fn suspect(&mut self) {
        self.observed = None;
    }

    /// Makes the kernel match, but for what stands on a busy device: there an ADD or DEL is at work. With `sweep` false
    /// nothing is removed (the store has not been in sync yet).
    ///
    /// `wishes` (desired objects and busy devices, of one moment) is called after the kernel was read back: a pod that
    /// comes meanwhile is then either wished for, or busy, or not seen at all.
    pub(crate) async fn pass(
        &mut self,
        wishes: impl FnOnce() -> (HostObjects, BTreeSet<String>),
        sweep: bool,
        now_ms: u64,
    ) -> anyhow::Result<Applied> {
        let mut observed = match self.observed.take() {
            Some(observed) => observed,
            None => self.host.observe().await?,
        };
        let (desired, busy) = wishes();
        let mut applied = Applied::default();
        let ops = plan(&desired, &observed);
        self.backoff.retain(|key| ops.iter().any(|op| op.key() == *key));
        for op in ops {
            let at_work = op.object().device().is_some_and(|device| busy.contains(device));
            if at_work || (!sweep && matches!(op, HostOp::Remove(_))) {
                continue;
            }
            if applied.done + applied.failed >= OPS_MAX {
                applied.more = true;
                break;
            }
            if !self.backoff.ready(&op.key(), now_ms) {
                continue;
            }
            match self.host.apply(&op).await {
                Ok(()) => {
                    tracing::info!(object = %op.key(), verb = op.verb(), "applied");
                    self.backoff.succeeded(&op.key());
                    observed.apply(&op);
                    applied.done += 1;
                }
                Err(error) => {
                    tracing::warn!(object = %op.key(), verb = op.verb(), %error, "not applied; will be tried again");
                    self.backoff.failed(op.key(), error.to_string(), now_ms, now_ms);
                    applied.failed += 1;
                }
            }
        }
        // After a failure the kernel is read back before the next try: what we believe may be why it failed.
        self.observed = (applied.failed == 0).then_some(observed);
        Ok(applied)
    }

    /// Something failed and is tried again.
    pub(crate) fn is_waiting(&self) -> bool {
        self.backoff.waiting().next().is_some()
    }

    /// What waits, for status and metrics.
    pub(crate) fn pending(&self) -> Vec<PendingItem> {
        self.backoff
            .waiting()
            .map(|(key, waiting)| PendingItem {
                object: key.to_string(),
                error: waiting.error.clone(),
                retries: waiting.failures,
            })
            .collect()
    }
}
