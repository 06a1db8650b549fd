// SPDX-License-Identifier: Apache-2.0
//! What is known of the store: its states as they come, what the snapshot knew before the first one, and what was known before
//! a listing that is not believed (hold.rs).

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use arc_swap::ArcSwapOption;
use netd_store::{Items, Mirror, MirrorState};
use tokio::sync::watch;

use crate::hold;

/// What a key is counted as.
type Kind = Box<dyn Fn(&str) -> Option<&str> + Send + Sync>;

/// Of one prefix.
pub(crate) struct Relay {
    /// For the log.
    pub what: &'static str,
    pub from: watch::Receiver<Arc<MirrorState>>,
    pub to: watch::Sender<Arc<MirrorState>>,
    /// Last known good.
    pub known: Option<MirrorState>,
    /// It stands in after so long without the store.
    pub after: Duration,
    /// What the store really holds while it is not believed.
    pub held: Arc<ArcSwapOption<MirrorState>>,
    /// What is counted before a listing is believed.
    pub kind: Kind,
}

/// A mirror state that says what the cluster was, and that this is not known to be current.
pub(crate) fn stand_in(revision: u64, items: Items) -> MirrorState {
    let mut mirror = Mirror::new();
    mirror.revision = revision;
    mirror.items = items;
    MirrorState { mirror, ..MirrorState::default() }
}

impl Relay {
    /// Until the store's states end.
    pub(crate) async fn run(mut self) -> Result<()> {
        let deadline = tokio::time::sleep(self.after);
        tokio::pin!(deadline);
        let mut waiting = true;
        let mut last: Option<Arc<MirrorState>> = None;
        loop {
            tokio::select! {
                changed = self.from.changed() => if changed.is_err() { return Ok(()) },
                () = &mut deadline, if waiting => waiting = false,
            }
            let state = self.from.borrow_and_update().clone();
            if state.in_sync {
                (waiting, self.known) = (false, None);
                let objection = last.as_ref().and_then(|last| hold::objection(last, &state, &self.kind));
                let shown = match (objection, &last) {
                    (Some(objection), Some(last)) => {
                        self.held.store(Some(state.clone()));
                        if last.last_error.as_ref() != Some(&objection) {
                            tracing::error!("{objection}");
                        }
                        Arc::new(MirrorState {
                            last_error: Some(objection),
                            connected: false,
                            ..(**last).clone()
                        })
                    }
                    _ => {
                        self.held.store(None);
                        state
                    }
                };
                last = Some(shown.clone());
                self.to.send_replace(shown);
                continue;
            }
            // The reason why the store is not read goes along with whatever stands in for it.
            let mut shown = match &self.known {
                Some(known) if !waiting => known.clone(),
                _ => MirrorState::default(),
            };
            if shown.revision > 0 && self.to.borrow().revision == 0 && !self.after.is_zero() {
                tracing::warn!(
                    revision = shown.revision,
                    "the store does not answer: going on from the last-known-good snapshot of {}, adding and repairing only",
                    self.what
                );
            }
            shown.last_error.clone_from(&state.last_error);
            shown.is_denied = state.is_denied;
            self.to.send_replace(Arc::new(shown));
        }
    }
}

/// A change of what is followed; none where nothing is.
pub(crate) async fn changed(follow: &mut Option<watch::Receiver<Arc<MirrorState>>>) {
    if let Some(follow) = follow
        && follow.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use netd_store::KeyValue;

    use super::*;

    fn items(count: usize) -> Items {
        let item = |number: usize| {
            let (key, value) = (format!("/skydns/org/n{number}"), Bytes::new());
            (key.clone(), Arc::new(KeyValue { key, value, create_revision: 1, mod_revision: 1 }))
        };
        (0..count).map(item).collect()
    }

    fn listed(listings: u64, count: usize) -> Arc<MirrorState> {
        let mut state = MirrorState { connected: true, listings, ..stand_in(7, items(count)) };
        state.mirror.in_sync = true;
        Arc::new(state)
    }

    #[tokio::test]
    async fn what_was_known_stands_in_and_an_emptied_store_is_not_believed() {
        let (tell, from) = watch::channel(Arc::default());
        let (to, mut shown) = watch::channel(Arc::default());
        let held = Arc::new(ArcSwapOption::default());
        let relay = Relay {
            what: "SkyDNS records",
            from,
            to,
            known: Some(stand_in(3, items(9))),
            after: Duration::ZERO,
            held: held.clone(),
            kind: Box::new(hold::of_skydns("/skydns/")),
        };
        let story = async {
            let mut until = async |holds: &dyn Fn(&MirrorState) -> bool| {
                shown.wait_for(|state| holds(state)).await.unwrap().clone()
            };
            let known = until(&|state| state.revision == 3).await;
            assert!(!known.in_sync && known.items.len() == 9);
            tell.send_replace(listed(1, 20));
            assert_eq!(until(&|state| state.in_sync).await.items.len(), 20);
            tell.send_replace(listed(2, 1));
            let kept = until(&|state| state.last_error.is_some()).await;
            assert!(kept.in_sync && !kept.connected && kept.items.len() == 20);
            assert!(kept.last_error.as_ref().unwrap().contains("1 of 20 SkyDNS records"), "{kept:?}");
            assert!(held.load().is_some());
            tell.send_replace(listed(3, 19));
            assert_eq!(until(&|state| state.connected).await.items.len(), 19);
            assert!(held.load().is_none());
            drop(tell);
        };
        let both = async { tokio::join!(relay.run(), story).0 };
        tokio::time::timeout(Duration::from_secs(30), both).await.unwrap().unwrap();
    }
}
