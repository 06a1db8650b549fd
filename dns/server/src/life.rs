// SPDX-License-Identifier: Apache-2.0
//! What part of its life a server is in, and whether all that should live does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tokio::sync::{Notify, watch};
use tracing::error;

use crate::respond::Core;

/// From begin to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Answering,
    /// Nothing new is taken; what was taken is answered.
    Closing,
    /// There is no time left: what still waits gets what there is.
    Ending,
}

/// The life of one server.
pub(crate) struct Life {
    phase: watch::Sender<Phase>,
    is_closing: AtomicBool,
    lost: Notify,
}

/// A part without which a server is no server. Where it ends by itself (a panic), the whole server is to end: its socket goes on
/// taking questions, also when others hold it, and nobody would answer them.
pub(crate) struct Part {
    core: Arc<Core>,
    stop: Arc<AtomicBool>,
    what: &'static str,
}

impl Life {
    pub(crate) fn new() -> Self {
        Life {
            phase: watch::Sender::new(Phase::Answering),
            is_closing: AtomicBool::new(false),
            lost: Notify::new(),
        }
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.is_closing.store(phase >= Phase::Closing, Relaxed);
        self.phase.send_replace(phase);
    }

    /// Returns once it is there.
    pub(crate) async fn reached(&self, phase: Phase) {
        // The sender lives in self, so there is no error.
        let _ = self.phase.subscribe().wait_for(|now| *now >= phase).await;
    }

    /// The same as [`Phase::Closing`] or later, at the cost of a load.
    pub(crate) fn is_closing(&self) -> bool {
        self.is_closing.load(Relaxed)
    }

    /// Returns once a [`Part`] has ended by itself.
    pub(crate) async fn lost_a_part(&self) {
        self.lost.notified().await;
    }
}

impl Part {
    /// `stop`: this part is told to end.
    pub(crate) fn new(core: Arc<Core>, stop: Arc<AtomicBool>, what: &'static str) -> Self {
        Part { core, stop, what }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.stop.load(Relaxed) && !self.core.life.is_closing() {
            error!(
                what = self.what,
                "a part of the DNS server ended by itself: the server stops, to be started anew"
            );
            self.core.life.lost.notify_one();
        }
    }
}
