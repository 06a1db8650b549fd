// SPDX-License-Identifier: Apache-2.0
//! Work that a pass begins after the maps and does not wait for long: with thousands of services the next change would have to
//! wait for it, too. Connections to backends that are gone.

use std::future::pending;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::timeout;

use super::{Agent, RETRY_AFTER};
use crate::node::{Node, lock};
use crate::services::{Ended, Left};

/// What takes no longer is done when the pass is.
const WAIT: Duration = Duration::from_millis(10);
/// After so many panics in a row nothing is looked for again until other connections are to end.
const PANICS_MAX: u8 = 3;

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

    /// Waits a little, and says how long that was.
    async fn wait(&mut self) -> Duration {
        let start = Instant::now();
        let _ = timeout(WAIT, self.finished()).await;
        start.elapsed()
    }
}

/// Connections to backends that are gone.
#[derive(Default)]
pub(super) struct Ending {
    pub(super) work: Aside<(Ended, Result<()>)>,
    /// While nothing is at work.
    state: Ended,
    error: Option<String>,
    /// Panics in a row.
    panics: u8,
    /// After a panic: not sooner again.
    rested: Option<Instant>,
}

impl Ending {
    /// Takes note of what was done.
    fn settle(&mut self, node: &Node) {
        if let Some(lost) = self.note() {
            let mut services = lock(&node.services);
            services.searched();
            services.give_back(lost);
        }
    }

    /// What is not known to have been looked for, of work that came to no end.
    fn note(&mut self) -> Option<Left> {
        match self.work.done.take()? {
            Ok((state, outcome)) => {
                self.state = state;
                self.error = outcome.err().map(|error| format!("{error:#}"));
                (self.panics, self.rested) = (0, None);
                None
            }
            Err(error) => {
                self.error = Some(error.to_string());
                self.panics = self.panics.saturating_add(1);
                self.rested = Some(Instant::now() + RETRY_AFTER);
                Some(Left { all: self.panics < PANICS_MAX, ..Left::default() })
            }
        }
    }

    /// It is too soon after a panic.
    fn rests(&self) -> bool {
        self.rested.is_some_and(|at| at > Instant::now())
    }

    /// What went wrong; once more, and not again, when everything is over.
    fn tell(&mut self, is_over: bool) -> Option<String> {
        if is_over { self.error.take() } else { self.error.clone() }
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
        ending.settle(&self.node);
        if !ending.work.is_busy() && !ending.rests() && ending.state.is_due(&self.node) {
            let (node, mut state) = (self.node.clone(), std::mem::take(&mut ending.state));
            ending.work.begin(tokio::spawn(async move {
                let outcome = state.pass(&node).await;
                (state, outcome)
            }));
            self.waited += ending.work.wait().await;
            ending.settle(&self.node);
        }
        let is_over =
            !ending.work.is_busy() && ending.due_ms().is_none() && !lock(&self.node.services).has_left();
        let error = ending.tell(is_over);
        errors.extend(error.map(|error| format!("connections to backends that are gone: {error}")));
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
        assert!(aside.wait().await >= WAIT);
        assert!(aside.is_busy() && aside.done.is_none());
        go.send(2).unwrap();
        aside.finished().await;
        assert!(aside.is_busy(), "until it is looked at");
        assert_eq!(aside.done.take().unwrap().unwrap(), 2);
        assert!(!aside.is_busy());
    }

    #[tokio::test]
    async fn work_that_panics_is_done_again_and_not_for_ever() {
        let mut ending = Ending::default();
        for panics in 1..=PANICS_MAX {
            ending.work.begin(tokio::spawn(async { panic!("a bug") }));
            ending.work.finished().await;
            let lost = ending.note().unwrap();
            assert_eq!(lost.all, panics < PANICS_MAX);
            assert!(ending.rests() && !ending.work.is_busy());
        }
        assert!(ending.tell(false).is_some(), "there is something to do yet");
        assert!(ending.tell(true).is_some());
        assert_eq!(ending.tell(true), None, "nothing is done any more that could clear it");
        ending.work.begin(tokio::spawn(async { (Ended::default(), Ok(())) }));
        ending.work.finished().await;
        assert!(ending.note().is_none() && ending.panics == 0 && !ending.rests());
    }
}
