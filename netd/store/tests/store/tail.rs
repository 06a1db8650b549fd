// SPDX-License-Identifier: Apache-2.0
//! A tail keeps in step through everything that happens to a store.

use std::sync::Arc;
use std::time::Duration;

use netd_store::{Memory, MirrorState, Store, Tail};
use proptest::prelude::*;
use tokio::sync::watch::Receiver;
use tokio::task::JoinHandle;

use crate::bench::{Bench, PATIENCE, text};

struct Running {
    states: Receiver<Arc<MirrorState>>,
    resync: Arc<tokio::sync::Notify>,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn follow(store: Arc<dyn Store>) -> Running {
    let (tail, states) = Tail::new(store, "/t/");
    Running { states, resync: tail.resync(), task: tokio::spawn(tail.run()) }
}

impl Running {
    async fn until(&mut self, what: &str, holds: impl FnMut(&Arc<MirrorState>) -> bool) -> Arc<MirrorState> {
        let state = tokio::time::timeout(PATIENCE, self.states.wait_for(holds)).await;
        state.unwrap_or_else(|_| panic!("not in time: {what}")).unwrap().clone()
    }
}

fn value(state: &MirrorState, key: &str) -> Option<String> {
    state.items.get(key).map(|item| String::from_utf8_lossy(&item.value).into_owned())
}

async fn through_an_outage_and_compaction(mut bench: Bench) {
    let store = bench.store();
    store.put("/t/a", text("1"), None).await.unwrap();
    store.put("/t/b", text("1"), None).await.unwrap();
    let mut tail = follow(store.clone());
    assert!(!tail.states.borrow().in_sync);
    let state = tail.until("the first listing", |state| state.in_sync).await;
    assert_eq!((state.items.len(), state.connected, state.listings), (2, true, 1));

    let revision = store.put("/t/a", text("2"), None).await.unwrap();
    let state = tail.until("the change", |state| state.revision >= revision).await;
    assert_eq!(value(&state, "/t/a").as_deref(), Some("2"));

    bench.stop();
    let state = tail.until("the outage", |state| !state.connected).await;
    assert!(state.in_sync && state.items.len() == 2, "what was known stands");
    assert!(state.last_error.is_some());

    bench.start();
    tail.until("the return", |state| state.connected && state.last_error.is_none()).await;
    let revision = store.delete("/t/b").await.unwrap();
    let state = tail.until("the deletion", |state| state.revision >= revision).await;
    assert_eq!(state.items.keys().collect::<Vec<_>>(), ["/t/a"]);

    bench.compact(revision).await;
    let revision = store.put("/t/c", text("3"), None).await.unwrap();
    let state = tail.until("the change after compaction", |state| state.revision >= revision).await;
    assert_eq!(state.items.len(), 2);

    let listings = state.listings;
    tail.resync.notify_one();
    tail.until("the resync", |state| state.listings > listings && state.connected).await;
}

#[tokio::test]
async fn a_tail_stays_in_step_on_memory() {
    through_an_outage_and_compaction(Bench::memory().await).await;
}

#[tokio::test]
async fn a_tail_stays_in_step_on_etcd() {
    through_an_outage_and_compaction(Bench::etcd().await).await;
}

#[tokio::test]
async fn a_tail_that_starts_before_the_store_says_why_it_waits() {
    let memory = Memory::new();
    memory.faults().outage(true);
    let mut tail = follow(Arc::new(memory.clone()));
    let state = tail.until("the reason", |state| state.last_error.is_some()).await;
    assert!(!state.in_sync && !state.connected);
    memory.faults().outage(false);
    tail.until("the first listing", |state| state.in_sync && state.connected).await;
}

#[tokio::test]
async fn a_watch_that_falls_behind_compaction_lists_again() {
    let memory = Memory::new();
    let mut tail = follow(Arc::new(memory.clone()));
    tail.until("the first listing", |state| state.in_sync).await;
    // The watch looks only after the history is gone.
    memory.faults().watch_delay(Duration::from_millis(50));
    memory.put("/t/a", text("1"), None).await.unwrap();
    memory.put("/t/b", text("1"), None).await.unwrap();
    memory.compact(memory.revision());
    let state = tail.until("both keys", |state| state.items.len() == 2).await;
    assert!(state.listings >= 2);
}

#[tokio::test]
async fn a_tail_ends_when_nobody_listens() {
    let (tail, states) = Tail::new(Arc::new(Memory::new()), "/t/");
    let task = tokio::spawn(tail.run());
    drop(states);
    tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
}

#[derive(Debug, Clone)]
enum Step {
    Compact,
    Delete(u8),
    Disconnect,
    Progress,
    Put(u8, u8),
    Yield,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => Just(Step::Compact),
        3 => (0u8..6).prop_map(Step::Delete),
        1 => Just(Step::Disconnect),
        1 => Just(Step::Progress),
        6 => (0u8..6, any::<u8>()).prop_map(|(key, value)| Step::Put(key, value)),
        4 => Just(Step::Yield),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever happens in between: in the end the mirror is what the store holds, and it never went back in time.
    #[test]
    fn a_mirror_ends_equal_to_the_store(steps in prop::collection::vec(step(), 1..60), duplicates: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let memory = Memory::new();
            memory.faults().duplicates(duplicates);
            let mut tail = follow(Arc::new(memory.clone()));
            let mut highest = 0;
            for step in steps {
                match step {
                    Step::Compact => memory.compact(memory.revision()),
                    Step::Delete(key) => { memory.delete(&format!("/t/{key}")).await.unwrap(); }
                    Step::Disconnect => memory.faults().disconnect(),
                    Step::Progress => memory.faults().progress(),
                    Step::Put(key, value) => {
                        memory.put(&format!("/t/{key}"), text(&value.to_string()), None).await.unwrap();
                    }
                    Step::Yield => tokio::task::yield_now().await,
                }
                let seen = tail.states.borrow().revision;
                assert!(seen >= highest, "went back from {highest} to {seen}");
                highest = seen;
            }
            let end = memory.put("/t/end", text(""), None).await.unwrap();
            let state = tail.until("the end", |state| state.revision >= end).await;
            let expected = memory.list("/t/").await.unwrap().items;
            assert!(state.items.values().map(AsRef::as_ref).eq(&expected), "{:?}, not {expected:?}", state.items);
        });
    }
}
