// SPDX-License-Identifier: Apache-2.0
//! Work that a pass begins after the maps and does not wait for long: with thousands of services the next change would have to
//! wait for it, too. The DNS zone, and connections to backends that are gone.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::timeout;

use super::{Agent, RETRY_AFTER};
use crate::desired;
use crate::node::{Node, lock};
use crate::services::{Ended, Left};
use crate::view::View;

/// What takes no longer is done when the pass is.
const WAIT: Duration = Duration::from_millis(10);
/// After a zone rests its making for so many times what it took: a fifth of one CPU at most.
const ZONE_REST: u32 = 4;
/// After so many panics in a row nothing is looked for again until other connections are to end.
const PANICS_MAX: u8 = 3;
/// What names say is not older than that all the same.
const ZONE_REST_MAX: Duration = Duration::from_millis(500);

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

/// The DNS zone, made from one view after the other.
#[derive(Default)]
pub(super) struct Zoning {
    pub(super) work: Aside<Zoned>,
    /// What the zone was made from.
    of: Option<Arc<View>>,
    /// Not sooner again.
    rested: Option<Instant>,
    error: Option<String>,
    /// When it is to be made without any change.
    pub(super) due: Option<Instant>,
}

/// A zone that was made, or could not be.
pub(super) struct Zoned {
    of: Arc<View>,
    took: Duration,
    outcome: Result<(), String>,
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

impl Zoning {
    /// Takes note of what was done.
    fn settle(&mut self) {
        match self.work.done.take() {
            None => {}
            Some(Ok(zoned)) => {
                self.rested = Some(Instant::now() + (zoned.took * ZONE_REST).min(ZONE_REST_MAX));
                self.error = zoned.outcome.err();
                self.of = self.error.is_none().then_some(zoned.of);
            }
            Some(Err(error)) => self.error = Some(error.to_string()),
        }
    }
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
    /// The zone, and who may ask: the cluster's pods and this node.
    pub(super) async fn keep_dns(&mut self, view: &Arc<View>, errors: &mut Vec<String>) {
        let clients = desired::dns_clients(&self.node, view);
        if **self.node.dns_clients.load() != clients {
            self.node.dns_clients.store(Arc::new(clients));
        }
        let zoning = &mut self.zoning;
        zoning.settle();
        let is_of = |of: &Option<Arc<View>>| of.as_ref().is_some_and(|of| Arc::ptr_eq(of, view));
        let now = Instant::now();
        if !is_of(&zoning.of) && !zoning.work.is_busy() && zoning.rested.is_none_or(|at| at <= now) {
            let (node, of) = (self.node.clone(), view.clone());
            zoning.work.begin(tokio::task::spawn_blocking(move || {
                let start = Instant::now();
                let zone = desired::zone(&of).map_err(|error| error.to_string());
                let outcome = zone.map(|zone| {
                    node.zone.store(Some(Arc::new(zone)));
                    node.named_revision.store(of.revision, Ordering::Release);
                });
                Zoned { of, took: start.elapsed(), outcome }
            }));
            self.waited += zoning.work.wait().await;
            zoning.settle();
        }
        let waits = !is_of(&zoning.of) && !zoning.work.is_busy();
        zoning.due = zoning.rested.filter(|_| waits && zoning.error.is_none());
        let name = &view.config.dns_zone;
        errors.extend(
            zoning.error.iter().map(|error| format!("the DNS zone {name:?} of the cluster: {error}")),
        );
    }

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
