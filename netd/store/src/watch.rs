// SPDX-License-Identifier: Apache-2.0
//! A watch as its consumer sees it.

use std::fmt;

use async_trait::async_trait;

use crate::{StoreError, WatchBatch};

/// Where a watch's batches come from.
#[async_trait]
pub(crate) trait WatchSource: Send {
    /// The next batch. Must be cancel-safe: a batch is never lost when the future is dropped.
    async fn next(&mut self) -> Result<WatchBatch, StoreError>;
}

/// Changes of a prefix. Dropping it ends the watch.
pub struct Watch {
    source: Box<dyn WatchSource>,
    ended: Option<StoreError>,
}

impl Watch {
    pub(crate) fn new(source: impl WatchSource + 'static) -> Self {
        Self { source: Box::new(source), ended: None }
    }

    /// The next batch; waits for it. Cancel-safe.
    ///
    /// [`StoreError::Compacted`] or [`StoreError::Disconnected`] (or [`StoreError::Denied`]) end the watch, and are
    /// returned again by every later call: list again and open another one.
    pub async fn next(&mut self) -> Result<WatchBatch, StoreError> {
        if let Some(error) = &self.ended {
            return Err(error.clone());
        }
        let next = self.source.next().await;
        if let Err(error) = &next {
            self.ended = Some(error.clone());
        }
        next
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("ended", &self.ended).finish_non_exhaustive()
    }
}
