// SPDX-License-Identifier: Apache-2.0
//! The store of one host without etcd: embedded, durable, one process at a time.
//!
//! The state is in memory; every change is a line of `store.log`, on the disk (fsync) before anyone hears of it. The log
//! begins with a snapshot and is written anew as one when it has grown. `lock` holds the directory for one process.
//!
//! Reads look at the state and never wait for the disk. A write runs on tokio's blocking threads under the log's mutex:
//! plan, append, fsync, apply, wake the watches. Leases live in memory, and a restart is the end of them. A lease whose time
//! is over is ended by whoever looks next, and a watch looks when the time comes; there is no task.

mod line;
mod lock;
mod log;
mod read;
mod watch;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use lock::DirLock;
use log::Log;
use watch::FileWatch;

use crate::state::{Change, State};
use crate::transaction::check_key;
use crate::{KeyValue, Lease, LeaseId, Listing, Store, StoreError, Transacted, Transaction, Watch};

/// A disk that takes longer for one request hangs; the caller has to hear of it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Changes kept for watches, in bytes: minutes of a busy host. A watch that is further behind lists again.
const HISTORY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Keys and values together, in bytes: 1,000 pods and services need some 10 MiB, and all of it is in memory.
const DATA_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Leases at once; a node has one.
const LEASES_MAX: usize = 10_000;

/// A store in a directory of this host. Clones share it; when the last one is dropped the directory is free again.
#[derive(Debug, Clone)]
pub struct FileStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Locked for as long as a write takes, before `state`.
    log: Mutex<Log>,
    /// What is durable. Locked for moments only.
    state: Mutex<State>,
    /// The log has to be written anew before anything is believed: see [`Log::is_broken`].
    broken: AtomicBool,
    /// Raised after every change and every grant, so that waiting watches look again.
    changed: tokio::sync::watch::Sender<()>,
    opened: Instant,
    endpoint: String,
    /// Dropped last.
    _lock: DirLock,
}

impl FileStore {
    /// Opens the store in `dir`, which is made where it does not exist (mode 0700). Blocks for the disk, and for a second
    /// where another has it.
    ///
    /// Errors: [`StoreError::Locked`] where another process (or another handle of this one) has it,
    /// [`StoreError::Damaged`] where the log is not what was written, [`StoreError::Unavailable`] where the system refuses.
    /// A last line that a crash cut off was never answered for; it is dropped with a warning.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, StoreError> {
        let dir = dir.as_ref();
        let lock = DirLock::take(dir)?;
        let (log, mut state) = Log::open(dir)?;
        // Lease numbers of another life must not fit leases of this one.
        let (random, _) = Uuid::new_v4().as_u64_pair();
        state.number_leases_from(i64::try_from(random >> 2).unwrap_or_default());
        state.end_restored_leases();
        state.bound_history(HISTORY_BYTES_MAX);
        let shared = Shared {
            endpoint: log.endpoint(),
            log: Mutex::new(log),
            state: Mutex::new(state),
            broken: AtomicBool::new(false),
            changed: tokio::sync::watch::Sender::new(()),
            opened: Instant::now(),
            _lock: lock,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Forgets the history before `revision`: a watch that is behind gets [`StoreError::Compacted`]. By itself the store
    /// forgets what is older than some MiB of changes.
    pub fn compact(&self, revision: u64) {
        self.shared.state().compact(revision);
        self.shared.wake();
    }

    /// Before a read: leases that are over take their keys, and a broken log is mended.
    async fn settle(&self) -> Result<(), StoreError> {
        if self.shared.broken.load(Ordering::Acquire) {
            return self.request("repair", |shared| shared.with_log(|_| Ok(()))).await;
        }
        let over = self.shared.state().lease_over();
        if let Some(lease) = over
            && let Err(error) = self.request("lease expiry", |shared| shared.with_log(|_| Ok(()))).await
        {
            // Nobody is promised that a lease ends to the second; what is stored is still right.
            tracing::debug!(%lease, %error, "a lease is over, and its keys cannot be deleted yet");
        }
        Ok(())
    }

    async fn request<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&Shared) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        request(self.shared.clone(), operation, work).await
    }
}

async fn request<T: Send + 'static>(
    shared: Arc<Shared>,
    operation: &'static str,
    work: impl FnOnce(&Shared) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let endpoint = shared.endpoint.clone();
    match timeout(REQUEST_TIMEOUT, spawn_blocking(move || work(&shared))).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(stopped)) => Err(StoreError::Unavailable { endpoint, reason: stopped.to_string() }),
        Err(_) => Err(StoreError::Timeout { operation, after: REQUEST_TIMEOUT, endpoint }),
    }
}

impl Shared {
    /// Runs `work` with the log held, after leases that are over have taken their keys.
    fn with_log<T>(&self, work: impl FnOnce(&mut Log) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        self.end_leases(&mut log)?;
        work(&mut log)
    }

    fn end_leases(&self, log: &mut Log) -> Result<(), StoreError> {
        self.mend(log)?;
        loop {
            let state = self.state();
            let Some(id) = state.lease_over() else { return Ok(()) };
            let change = state.plan_end(id)?;
            drop(state);
            self.commit(log, change)?;
            self.state().lease_forget(id);
        }
    }

    fn transact(&self, log: &mut Log, transaction: Transaction) -> Result<Transacted, StoreError> {
        let state = self.state();
        let (revision, bytes) = (state.revision, state.item_bytes());
        let planned = state.plan(transaction)?;
        drop(state);
        let Some(change) = planned else { return Ok(Transacted { succeeded: false, revision }) };
        let added: usize = change.puts.iter().map(|put| crate::state::weight(&put.key, &put.value)).sum();
        if added > 0 && bytes + added > DATA_BYTES_MAX {
            let reason =
                format!("it holds {bytes} bytes, and {DATA_BYTES_MAX} is the limit: delete something first");
            return Err(StoreError::Unavailable { endpoint: self.endpoint.clone(), reason });
        }
        self.commit(log, change)?;
        Ok(Transacted { succeeded: true, revision: self.state().revision })
    }

    /// Durable first, then visible.
    fn commit(&self, log: &mut Log, change: Change) -> Result<(), StoreError> {
        if change.is_empty() {
            return Ok(());
        }
        let appended = log.append(&change);
        self.broken.store(log.is_broken(), Ordering::Release);
        appended?;
        let mut state = self.state();
        state.apply(change);
        state.bound_history(HISTORY_BYTES_MAX);
        drop(state);
        self.wake();
        if log.is_long() {
            let snapshot = log::snapshot(&self.state());
            if let Err(error) = log.replace(&snapshot) {
                tracing::warn!(file = %self.endpoint, %error, "the store's log cannot be shortened; it grows until it can");
            }
            self.broken.store(log.is_broken(), Ordering::Release);
        }
        Ok(())
    }

    /// Writes the log anew where what is on the disk is not known.
    fn mend(&self, log: &mut Log) -> Result<(), StoreError> {
        if log.is_broken() {
            let snapshot = log::snapshot(&self.state());
            log.replace(&snapshot)?;
            self.broken.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// The state, with its clock set.
    fn state(&self) -> MutexGuard<'_, State> {
        // The state is changed by whole steps that do not panic, so a poisoned one is still right.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.now = self.opened.elapsed();
        state
    }

    fn wake(&self) {
        self.changed.send_replace(());
    }
}

#[async_trait]
impl Store for FileStore {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        check_key(key)?;
        self.settle().await?;
        Ok(self.shared.state().get(key))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        check_key(prefix)?;
        self.settle().await?;
        Ok(self.shared.state().list(prefix))
    }

    async fn watch(&self, prefix: &str, from_revision: u64) -> Result<Watch, StoreError> {
        check_key(prefix)?;
        self.settle().await?;
        let next = self.shared.state().revision + 1;
        let cursor = if from_revision == 0 { next } else { from_revision };
        Ok(Watch::new(FileWatch::new(&self.shared, prefix, cursor)))
    }

    async fn transact(&self, transaction: Transaction) -> Result<Transacted, StoreError> {
        transaction.check()?;
        self.request("transact", |shared| shared.with_log(|log| shared.transact(log, transaction))).await
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.settle().await?;
        let mut state = self.shared.state();
        if state.lease_count() >= LEASES_MAX {
            return Err(StoreError::InvalidRequest {
                reason: format!("there are {LEASES_MAX} leases already"),
            });
        }
        let lease = state.lease_grant(ttl);
        drop(state);
        self.shared.wake();
        Ok(lease)
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<(), StoreError> {
        self.shared.state().lease_keep_alive(id)
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        let revoke = move |shared: &Shared, log: &mut Log| {
            let change = shared.state().plan_end(id)?;
            shared.commit(log, change)?;
            shared.state().lease_forget(id);
            Ok(())
        };
        self.request("lease revoke", move |shared| shared.with_log(|log| revoke(shared, log))).await
    }
}
