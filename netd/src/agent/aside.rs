// SPDX-License-Identifier: Apache-2.0
//! Work that a pass begins after the maps and does not wait for long: with thousands of services the next change would have to
//! wait for it, too. Connections to backends that are gone.

use std::future::pending;
use std::time::Duration;

use anyhow::Result;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::timeout;

use super::Agent;
use crate::services::Ended;

/// What takes no longer is done when the pass is.
const WAIT: Duration = Duration::from_millis(10);

/// One piece of work that may outlive the pass.
#[derive(Debug)]
pub(super) struct Aside<T> {
    work: Option<JoinHandle<T>>,
    done: Option<Result<T, JoinError>>,
}

impl<T> Default for Aside<T> {
    fn default() -> Self {
        Self { work: None, done: None }
    }
}

impl<T> Aside<T> {
    /// At work, or finished and not looked at.
    fn is_busy(&self) -> bool {
        self.work.is_some() || self.done.is_some()
    }

    /// Waits for the end of what is at work, for ever where nothing is. Cancel-safe.
    pub(super) async fn finished(&mut self) {
        let Some(work) = &mut self.work else { return pending().await };
        let done = work.await;
        (self.work, self.done) = (None, Some(done));
    }

    fn begin(&mut self, work: JoinHandle<T>) {
        self.work = Some(work);
    }

    /// Waits a little.
    async fn wait(&mut self) {
        let _ = timeout(WAIT, self.finished()).await;
    }
}

/// Connections to backends that are gone.
#[derive(Default)]
pub(super) struct Ending {
    pub(super) work: Aside<(Ended, Result<()>)>,
    /// While nothing is at work.
    state: Ended,
    error: Option<String>,
}

impl Ending {
    /// Takes note of what was done.
    fn settle(&mut self) {
        match self.work.done.take() {
            None => {}
            Some(Ok((state, outcome))) => {
                self.state = state;
                self.error = outcome.err().map(|error| format!("{error:#}"));
            }
            Some(Err(error)) => self.error = Some(error.to_string()),
        }
    }

    /// When it is due by itself; what is at work says so when it is done.
    pub(super) fn due_ms(&self) -> Option<u64> {
        self.state.due_ms()
    }
}

impl Agent {
    /// Connections to backends that are gone, as the maps have it now.
    pub(super) async fn end_connections(&mut self, errors: &mut Vec<String>) {
        let ending = &mut self.ending;
        // What was left since it began is begun with now.
        ending.settle();
        if !ending.work.is_busy() && ending.state.is_due(&self.node) {
            let (node, mut state) = (self.node.clone(), std::mem::take(&mut ending.state));
            ending.work.begin(tokio::spawn(async move {
                let outcome = state.pass(&node).await;
                (state, outcome)
            }));
            ending.work.wait().await;
            ending.settle();
        }
        errors.extend(
            ending.error.iter().map(|error| format!("connections to backends that are gone: {error}")),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_takes_long_is_not_waited_for_and_not_lost() {
        let mut aside = Aside::default();
        assert!(!aside.is_busy());
        let (go, goes) = tokio::sync::oneshot::channel();
        aside.begin(tokio::spawn(async { goes.await.unwrap() }));
        aside.wait().await;
        assert!(aside.is_busy() && aside.done.is_none());
        go.send(2).unwrap();
        aside.finished().await;
        assert!(aside.is_busy(), "until it is looked at");
        assert_eq!(aside.done.take().unwrap().unwrap(), 2);
        assert!(!aside.is_busy());
    }
}
