// SPDX-License-Identifier: Apache-2.0
//! The one way to spawn: a task has a name in the log and is aborted when its handle is dropped; that it ended, by an error
//! or a panic, never goes unnoticed.

use std::future::Future;

use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;

/// A running task; dropping it aborts the task.
#[derive(Debug)]
pub(crate) struct Task {
    work: AbortHandle,
    watcher: JoinHandle<()>,
}

impl Task {
    /// Spawns `work` under `name`. When it ends, however it ends, `ended` is cancelled: a netd without one of its tasks
    /// would look alive and do nothing.
    pub(crate) fn spawn(
        name: &'static str,
        ended: CancellationToken,
        work: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) -> Self {
        let handle = tokio::spawn(work);
        let work = handle.abort_handle();
        let watcher = tokio::spawn(async move {
            match handle.await {
                Ok(Ok(())) => tracing::debug!(task = name, "ended"),
                Ok(Err(error)) => tracing::error!(task = name, "ended: {error:#}"),
                Err(error) if error.is_panic() => {
                    tracing::error!(task = name, "panicked: this is a bug in netd")
                }
                // Aborted by us.
                Err(_) => return,
            }
            ended.cancel();
        });
        Self { work, watcher }
    }

    /// Waits for the end of the task.
    pub(crate) async fn join(mut self) {
        // The watcher itself neither fails nor panics.
        let _ = (&mut self.watcher).await;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.work.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_end_a_failure_and_a_panic_are_noticed() {
        for kind in 0..3 {
            let ended = CancellationToken::new();
            let _task = Task::spawn("test", ended.clone(), async move {
                assert!(kind != 2, "as the test wants it");
                anyhow::ensure!(kind != 1, "as the test wants it");
                Ok(())
            });
            ended.cancelled().await;
        }
    }
}
