// SPDX-License-Identifier: Apache-2.0
//! The one way to spawn: a task has a name in the log, is aborted when its handle is dropped, and an error it returns is
//! reported.

use std::future::Future;

use tokio::task::JoinHandle;

/// A running task; dropping it aborts the task.
#[derive(Debug)]
pub(crate) struct Task {
    name: &'static str,
    handle: JoinHandle<()>,
}

impl Task {
    /// Spawns `work` under `name`.
    pub(crate) fn spawn(
        name: &'static str,
        work: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) -> Self {
        let handle = tokio::spawn(async move {
            match work.await {
                Ok(()) => tracing::debug!(task = name, "ended"),
                Err(error) => tracing::error!(task = name, "ended: {error:#}"),
            }
        });
        Self { name, handle }
    }

    /// Waits for the end of the task; a panic inside is reported, not passed on.
    pub(crate) async fn join(mut self) {
        if let Err(error) = (&mut self.handle).await
            && error.is_panic()
        {
            tracing::error!(task = self.name, "panicked; this is a bug in netd");
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}
