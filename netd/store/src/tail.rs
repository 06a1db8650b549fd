// SPDX-License-Identifier: Apache-2.0
//! Keeps a mirror of a prefix in step with the store and publishes it.
//!
//! ```text
//!   list ──► publish ──► watch from R+1 ──► batch ──► publish ─┐
//!    ▲                                        ▲                │
//!    │ back-off                               └────────────────┘
//!    └── compacted, disconnected, failed, resync asked for
//! ```
//!
//! One task ([`Tail::run`], spawned by the caller), one channel that holds the newest state only.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{info, warn};
use uuid::Uuid;

use crate::{Applied, Mirror, Store, StoreError, Watch, WatchBatch};

/// Batches that come closer together are published together: a reader copies or recomputes at most this often.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(20);

/// Batches published together at most, so that a store that never pauses is published too.
const GATHERED_BATCHES_MAX: usize = 256;

/// The first wait after a failure; doubled up to [`BACKOFF_MAX`], each shortened at random by up to half.
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// Long enough for 1,000 nodes not to hold down a store that comes back.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// A watch that stood this long was a good one: the next failure waits [`BACKOFF_MIN`] again.
const GOOD_WATCH: Duration = Duration::from_secs(10);

/// What a [`Tail`] publishes. Fields of the [`Mirror`] are reached directly: `state.items`, `state.in_sync`.
///
/// `in_sync` stays true once the first listing was read: `items` are what the cluster wished last, also while the store
/// is away. `connected` says whether they are followed now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MirrorState {
    /// Items and revision.
    pub mirror: Mirror,
    /// The store is being followed: the last listing or watch has not failed.
    pub connected: bool,
    /// Why not, or why not before the first listing.
    pub last_error: Option<String>,
    /// The store refuses to tell who we are: it will until somebody changes that.
    pub is_denied: bool,
    /// How often the prefix was listed.
    pub listings: u64,
}

impl Deref for MirrorState {
    type Target = Mirror;

    fn deref(&self) -> &Mirror {
        &self.mirror
    }
}

/// Follows one prefix.
pub struct Tail {
    store: Arc<dyn Store>,
    prefix: String,
    state: watch::Sender<Arc<MirrorState>>,
    resync: Arc<Notify>,
    is_optional: bool,
}

/// Why following ended.
enum Ended {
    Closed,
    Failed(StoreError),
    Resync,
}

impl Tail {
    /// A tail and the receiver of its states; nothing happens before [`Tail::run`].
    pub fn new(
        store: Arc<dyn Store>,
        prefix: impl Into<String>,
    ) -> (Self, watch::Receiver<Arc<MirrorState>>) {
        let (state, receiver) = watch::channel(Arc::default());
        (Self { store, prefix: prefix.into(), state, resync: Arc::default(), is_optional: false }, receiver)
    }

    /// The same of a prefix that may be withheld from us: that is not warned of.
    #[must_use]
    pub fn optional(self) -> Self {
        Self { is_optional: true, ..self }
    }

    /// Asks for a fresh listing with `notify_one`; the watch is opened again too.
    pub fn resync(&self) -> Arc<Notify> {
        self.resync.clone()
    }

    /// Follows the prefix until the last receiver is dropped. Errors are published, never returned.
    pub async fn run(self) {
        let mut failures = 0;
        loop {
            let started = Instant::now();
            let error = match self.follow().await {
                Ended::Closed => return,
                Ended::Resync => continue,
                Ended::Failed(error) => error,
            };
            if started.elapsed() >= GOOD_WATCH {
                failures = 0;
            }
            let wait = backoff(failures);
            // Once per outage; the state tells the rest.
            let is_denied = matches!(error, StoreError::Denied { is_final: true, .. });
            if failures == 0 && !(is_denied && self.is_optional) {
                warn!(prefix = %self.prefix, %error, "lost step with the store; going on with what is known");
            }
            failures += 1;
            self.state.send_modify(|state| {
                let state = Arc::make_mut(state);
                state.connected = false;
                state.last_error = Some(error.to_string());
                state.is_denied = is_denied;
            });
            tokio::select! {
                () = sleep(wait) => {}
                () = self.resync.notified() => {}
                () = self.state.closed() => return,
            }
        }
    }

    async fn follow(&self) -> Ended {
        tokio::select! {
            () = self.state.closed() => Ended::Closed,
            () = self.resync.notified() => Ended::Resync,
            Err(error) = self.list_and_watch() => Ended::Failed(error),
        }
    }

    /// Dropping it may lose what was received and not yet published; a listing follows in every case.
    async fn list_and_watch(&self) -> Result<Never, StoreError> {
        let listing = self.store.list(&self.prefix).await?;
        let revision = listing.revision;
        let mut state = MirrorState::clone(&self.state.borrow());
        let applied = state.mirror.apply_listing(listing);
        if applied == Applied::Regressed {
            warn!(prefix = %self.prefix, revision, "the store went back in time: restored from a backup, or another store");
        }
        if !state.connected {
            info!(prefix = %self.prefix, revision, keys = state.items.len(), "in step with the store");
        }
        state.connected = true;
        (state.last_error, state.is_denied) = (None, false);
        state.listings += 1;
        self.state.send_replace(Arc::new(state));

        let mut watch = self.store.watch(&self.prefix, revision + 1).await?;
        let mut published = Instant::now();
        loop {
            let first = watch.next().await?;
            let (batches, failed) = gather(&mut watch, first, published + PUBLISH_INTERVAL).await;
            self.state.send_modify(|state| {
                let mirror = &mut Arc::make_mut(state).mirror;
                for batch in batches {
                    mirror.apply_batch(batch);
                }
            });
            published = Instant::now();
            if let Some(error) = failed {
                return Err(error);
            }
        }
    }
}

enum Never {}

/// The first batch and what else comes before the deadline, and the error that ended it early.
async fn gather(
    watch: &mut Watch,
    first: WatchBatch,
    deadline: Instant,
) -> (Vec<WatchBatch>, Option<StoreError>) {
    let mut batches = vec![first];
    while batches.len() < GATHERED_BATCHES_MAX
        && let Ok(next) = timeout_at(deadline, watch.next()).await
    {
        match next {
            Ok(batch) => batches.push(batch),
            Err(error) => return (batches, Some(error)),
        }
    }
    (batches, None)
}

fn backoff(failures: u32) -> Duration {
    let full = BACKOFF_MIN.saturating_mul(1 << failures.min(16)).min(BACKOFF_MAX);
    let (_, low) = Uuid::new_v4().as_u64_pair();
    let share = (low % 1000) as u32;
    full / 2 + full / 2 * share / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_grows_to_its_maximum() {
        for (failures, full) in
            [(0, BACKOFF_MIN), (1, BACKOFF_MIN * 2), (9, BACKOFF_MAX), (u32::MAX, BACKOFF_MAX)]
        {
            let wait = backoff(failures);
            assert!(wait >= full / 2 && wait <= full, "{failures}: {wait:?}");
        }
    }
}
