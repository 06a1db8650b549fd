// SPDX-License-Identifier: Apache-2.0
//! A watch of the file store. It does not keep the store open: when the last handle is dropped it ends.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::{Shared, request};
use crate::watch::WatchSource;
use crate::{Event, StoreError, WatchBatch};

/// A lease that could not be ended (the disk is full) is tried again so often.
const LEASE_RETRY: Duration = Duration::from_secs(1);

pub(super) struct FileWatch {
    shared: Weak<Shared>,
    changed: watch::Receiver<()>,
    prefix: String,
    /// The next revision to look at.
    cursor: u64,
    /// No look for leases before this.
    lease_pause: Instant,
}

impl FileWatch {
    pub(super) fn new(shared: &Arc<Shared>, prefix: &str, cursor: u64) -> Self {
        Self {
            shared: Arc::downgrade(shared),
            changed: shared.changed.subscribe(),
            prefix: prefix.to_owned(),
            cursor,
            lease_pause: shared.opened,
        }
    }

    fn poll(&mut self, shared: &Shared) -> Result<Option<WatchBatch>, StoreError> {
        let state = shared.state();
        if self.cursor < state.compacted {
            return Err(StoreError::Compacted { revision: state.compacted });
        }
        let events = state.history(&self.prefix, self.cursor);
        self.cursor = self.cursor.max(state.revision + 1);
        Ok(events.last().map(Event::revision).map(|revision| WatchBatch { revision, events }))
    }

    /// Waits for a change (false) or for the end of a lease (true).
    async fn wait(&mut self, lease_end: Option<Instant>) -> Result<bool, StoreError> {
        let lease_end = lease_end.map(|end| end.max(self.lease_pause));
        let gone = |_| StoreError::Disconnected { reason: "the store was closed".into() };
        tokio::select! {
            changed = self.changed.changed() => changed.map(|()| false).map_err(gone),
            () = sleep_until(lease_end.unwrap_or_else(Instant::now)), if lease_end.is_some() => Ok(true),
        }
    }
}

#[async_trait]
impl WatchSource for FileWatch {
    async fn next(&mut self) -> Result<WatchBatch, StoreError> {
        loop {
            self.changed.mark_unchanged();
            let Some(shared) = self.shared.upgrade() else {
                return Err(StoreError::Disconnected { reason: "the store was closed".into() });
            };
            if let Some(batch) = self.poll(&shared)? {
                return Ok(batch);
            }
            let lease_end = shared.state().next_lease_end().and_then(|end| shared.opened.checked_add(end));
            drop(shared);
            if self.wait(lease_end).await?
                && let Some(shared) = self.shared.upgrade()
                && let Err(error) =
                    request(shared, "lease expiry", |shared| shared.with_log(|_| Ok(()))).await
            {
                tracing::debug!(%error, "a lease is over, and its keys cannot be deleted yet");
                self.lease_pause = Instant::now() + LEASE_RETRY;
            }
        }
    }
}
