// SPDX-License-Identifier: Apache-2.0
//! The deterministic twin of a real store: one process, no clock of its own, faults on demand.
//!
//! It keeps etcd's rules: one revision per transaction, history until compacted, a watch from any revision that is not
//! compacted, leases (whose time passes only by [`Memory::advance`]).

mod faults;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use faults::FaultPlan;
pub use faults::Faults;

use crate::state::State;
use crate::transaction::check_key;
use crate::watch::WatchSource;
use crate::{
    KeyValue, Lease, LeaseId, Listing, Store, StoreError, Transacted, Transaction, Watch, WatchBatch,
};

/// What errors name as the endpoint.
const ENDPOINT: &str = "memory";

/// A store in memory. Clones share one content.
#[derive(Debug, Clone)]
pub struct Memory {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    /// Raised after every change, so that waiting watches look again.
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Inner {
    state: State,
    plan: FaultPlan,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// An empty store at revision 1, without faults.
    pub fn new() -> Self {
        Self { shared: Arc::new(Shared { inner: Mutex::default(), changed: watch::Sender::new(()) }) }
    }

    /// The handle that injects faults.
    pub fn faults(&self) -> Faults {
        Faults { shared: self.shared.clone() }
    }

    /// Lets time pass for the leases; those whose time is over end and take their keys with them.
    pub fn advance(&self, by: Duration) {
        {
            let state = &mut self.shared.lock().state;
            state.now = state.now.saturating_add(by);
            while let Some(id) = state.lease_over() {
                // Cannot fail: the lease was just seen.
                let _ = state.lease_revoke(id);
            }
        }
        self.shared.wake();
    }

    /// Forgets the history before `revision`: a watch that is behind gets [`StoreError::Compacted`].
    pub fn compact(&self, revision: u64) {
        self.shared.lock().state.compact(revision);
        self.shared.wake();
    }

    /// The revision now.
    pub fn revision(&self) -> u64 {
        self.shared.lock().state.revision
    }

    async fn request<T>(
        &self,
        operation: &'static str,
        serve: impl FnOnce(&mut State) -> Result<T, StoreError> + Send,
    ) -> Result<T, StoreError> {
        let (delay, yields) = {
            let mut inner = self.shared.lock();
            (inner.plan.delay, inner.plan.yields())
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        for _ in 0..yields {
            tokio::task::yield_now().await;
        }
        let answer = {
            let mut inner = self.shared.lock();
            let loses_reply = inner.plan.admit()?;
            let answer = serve(&mut inner.state);
            if loses_reply {
                Err(StoreError::Timeout { operation, after: delay, endpoint: ENDPOINT.into() })
            } else {
                answer
            }
        };
        self.shared.wake();
        answer
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The state is changed by whole steps that do not panic, so a poisoned one is still right.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.changed.send_replace(());
    }
}

#[async_trait]
impl Store for Memory {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        check_key(key)?;
        self.request("get", |state| Ok(state.get(key))).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        check_key(prefix)?;
        self.request("list", |state| Ok(state.list(prefix))).await
    }

    async fn watch(&self, prefix: &str, from_revision: u64) -> Result<Watch, StoreError> {
        check_key(prefix)?;
        let now = self.request("watch", |state| Ok(state.revision)).await?;
        let inner = self.shared.lock();
        Ok(Watch::new(MemoryWatch {
            shared: self.shared.clone(),
            changed: self.shared.changed.subscribe(),
            prefix: prefix.to_owned(),
            cursor: if from_revision == 0 { now + 1 } else { from_revision },
            epoch: inner.plan.epoch,
            progress: inner.plan.progress,
            again: None,
        }))
    }

    async fn transact(&self, transaction: Transaction) -> Result<Transacted, StoreError> {
        transaction.check()?;
        self.request("transact", |state| state.transact(transaction)).await
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.request("lease grant", |state| Ok(state.lease_grant(ttl))).await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<(), StoreError> {
        self.request("lease keep-alive", |state| state.lease_keep_alive(id)).await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        self.request("lease revoke", |state| state.lease_revoke(id)).await
    }
}

struct MemoryWatch {
    shared: Arc<Shared>,
    changed: watch::Receiver<()>,
    prefix: String,
    /// The next revision to look at.
    cursor: u64,
    epoch: u64,
    progress: u64,
    /// A batch to deliver a second time.
    again: Option<WatchBatch>,
}

impl MemoryWatch {
    fn poll(&mut self) -> Result<Option<WatchBatch>, StoreError> {
        let inner = self.shared.lock();
        if inner.plan.outage || inner.plan.epoch != self.epoch {
            return Err(StoreError::Disconnected { reason: "injected".into() });
        }
        if let Some(batch) = self.again.take() {
            return Ok(Some(batch));
        }
        if self.cursor < inner.state.compacted {
            return Err(StoreError::Compacted { revision: inner.state.compacted });
        }
        let revision = inner.state.revision;
        let events = inner.state.history(&self.prefix, self.cursor);
        self.cursor = self.cursor.max(revision + 1);
        if let Some(last) = events.last() {
            let batch = WatchBatch { revision: last.revision(), events };
            self.again = inner.plan.duplicates.then(|| batch.clone());
            return Ok(Some(batch));
        }
        if inner.plan.progress != self.progress {
            self.progress = inner.plan.progress;
            return Ok(Some(WatchBatch { revision, events }));
        }
        Ok(None)
    }
}

#[async_trait]
impl WatchSource for MemoryWatch {
    async fn next(&mut self) -> Result<WatchBatch, StoreError> {
        loop {
            self.changed.mark_unchanged();
            let delay = self.shared.lock().plan.watch_delay;
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            if let Some(batch) = self.poll()? {
                return Ok(batch);
            }
            if self.changed.changed().await.is_err() {
                return Err(StoreError::Disconnected { reason: "the store is gone".into() });
            }
        }
    }
}
