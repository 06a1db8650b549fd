// SPDX-License-Identifier: Apache-2.0
//! One battery for every back end: the same stories on the memory twin, on files and on a real etcd.

use std::time::{Duration, Instant};

use netd_store::{Class, LeaseId, MAX_TRANSACTION_OPERATIONS, StoreError, Transaction};

use crate::bench::{Bench, PATIENCE, events, eventually, text};

macro_rules! battery {
    ($($story:ident),* $(,)?) => {
        mod on_memory {
            $(#[tokio::test] async fn $story() { super::$story(super::Bench::memory().await).await; })*
        }
        mod on_file {
            $(#[tokio::test] async fn $story() { super::$story(super::Bench::file().await).await; })*
        }
        mod on_etcd {
            $(#[tokio::test] async fn $story() { super::$story(super::Bench::etcd().await).await; })*
        }
    };
}

battery!(
    a_broken_request_is_refused_before_it_is_sent,
    a_key_is_there_after_its_put_and_gone_after_its_delete,
    a_lease_is_never_shorter_than_asked,
    a_lease_takes_its_keys_when_it_ends,
    a_list_is_of_one_revision_also_when_it_takes_pages,
    a_put_without_a_lease_lets_go_of_the_lease,
    a_revoked_lease_takes_its_keys_at_once,
    a_transaction_writes_all_or_nothing,
    a_watch_tells_changes_in_order_from_its_revision,
    a_watch_without_a_revision_begins_with_the_next_change,
    after_compaction_an_old_watch_ends_and_a_young_one_goes_on,
    after_the_store_was_away_requests_and_watches_recover,
    of_many_who_create_one_key_one_succeeds,
);

async fn a_key_is_there_after_its_put_and_gone_after_its_delete(bench: Bench) {
    let store = bench.store();
    assert_eq!(store.get("/t/a").await.unwrap(), None);
    let first = store.put("/t/a", text("1"), None).await.unwrap();
    let second = store.put("/t/a", text("2"), None).await.unwrap();
    assert_eq!(second, first + 1);
    let item = store.get("/t/a").await.unwrap().unwrap();
    assert_eq!((item.create_revision, item.mod_revision, item.value), (first, second, text("2")));

    store.put("/t0", text("a neighbour of the prefix"), None).await.unwrap();
    store.put("/t/b", text("3"), None).await.unwrap();
    let listing = store.list("/t/").await.unwrap();
    assert_eq!(listing.revision, second + 2);
    assert_eq!(listing.items.iter().map(|item| item.key.as_str()).collect::<Vec<_>>(), ["/t/a", "/t/b"]);

    assert_eq!(store.delete("/t/a").await.unwrap(), second + 3);
    assert_eq!(store.delete("/t/a").await.unwrap(), second + 3, "nothing was there, so nothing changed");
    assert_eq!(store.get("/t/a").await.unwrap(), None);
    assert_eq!(store.list("/nothing/").await.unwrap().items, []);
}

async fn a_transaction_writes_all_or_nothing(bench: Bench) {
    let store = bench.store();
    let create = Transaction::new().absent("/t/a").put("/t/a", "1").put("/t/b", "1");
    let created = store.transact(create.clone()).await.unwrap();
    assert!(created.succeeded);
    let again = store.transact(create).await.unwrap();
    assert_eq!((again.succeeded, again.revision), (false, created.revision));
    for item in store.list("/t/").await.unwrap().items {
        assert_eq!((item.create_revision, item.mod_revision), (created.revision, created.revision));
    }

    let swap = Transaction::new().unchanged("/t/a", created.revision).put("/t/a", "2").delete("/t/b");
    let swapped = store.transact(swap.clone()).await.unwrap();
    assert!(swapped.succeeded);
    assert!(!store.transact(swap).await.unwrap().succeeded, "the key has changed since");
    assert_eq!(store.get("/t/b").await.unwrap(), None);

    let one_wrong =
        Transaction::new().unchanged("/t/a", swapped.revision).unchanged("/t/b", 7).delete("/t/a");
    assert!(!store.transact(one_wrong).await.unwrap().succeeded);
    let both_right = Transaction::new().unchanged("/t/a", swapped.revision).absent("/t/b").delete("/t/a");
    assert!(store.transact(both_right).await.unwrap().succeeded);
    assert_eq!(store.list("/t/").await.unwrap().items, []);
}

async fn of_many_who_create_one_key_one_succeeds(bench: Bench) {
    let tasks: Vec<_> = (0..8)
        .map(|number| {
            let store = bench.store();
            tokio::spawn(async move {
                let create = Transaction::new().absent("/t/one").put("/t/one", format!("{number}"));
                store.transact(create).await.unwrap().succeeded
            })
        })
        .collect();
    let mut winners = vec![];
    for (number, task) in tasks.into_iter().enumerate() {
        if task.await.unwrap() {
            winners.push(number.to_string());
        }
    }
    let value = bench.store().get("/t/one").await.unwrap().unwrap().value;
    assert_eq!(winners, [String::from_utf8_lossy(&value)]);
}

async fn a_broken_request_is_refused_before_it_is_sent(bench: Bench) {
    let store = bench.store();
    let many =
        (0..=MAX_TRANSACTION_OPERATIONS).fold(Transaction::new(), |txn, n| txn.put(format!("/t/{n}"), ""));
    let twice = Transaction::new().put("/t/a", "1").delete("/t/a");
    let large = Transaction::new().put("/t/a", vec![b'x'; 2 << 20]);
    let empty = Transaction::new().put("", "1");
    for broken in [many, twice, large, empty] {
        let error = store.transact(broken).await.unwrap_err();
        assert!(matches!(error, StoreError::InvalidRequest { .. }), "{error}");
        assert_eq!(error.class(), Class::Invalid);
    }
    assert_eq!(store.get("").await.unwrap_err().class(), Class::Invalid);
    let largest = Transaction::new().put("/t/a", vec![b'x'; 1_000_000]);
    assert!(store.transact(largest).await.unwrap().succeeded);
    assert_eq!(store.get("/t/a").await.unwrap().unwrap().value.len(), 1_000_000);
}

/// A token moves between the first key and the last one; whoever reads the pages at different revisions sees it twice or
/// not at all.
async fn a_list_is_of_one_revision_also_when_it_takes_pages(bench: Bench) {
    const KEYS: usize = 1_300;
    let store = bench.store();
    let names: Vec<String> = (0..KEYS).map(|number| format!("/t/m{number:05}")).collect();
    for chunk in names.chunks(MAX_TRANSACTION_OPERATIONS) {
        let fill = chunk.iter().fold(Transaction::new(), |txn, name| txn.put(name, name.clone()));
        store.transact(fill).await.unwrap();
    }
    store.put("/t/a-token", text(""), None).await.unwrap();
    let mover = {
        let store = bench.store();
        tokio::spawn(async move {
            loop {
                for (from, to) in [("/t/a-token", "/t/z-token"), ("/t/z-token", "/t/a-token")] {
                    store.transact(Transaction::new().put(to, "").delete(from)).await.unwrap();
                    tokio::task::yield_now().await;
                }
            }
        })
    };
    for _ in 0..10 {
        let listing = store.list("/t/").await.unwrap();
        assert_eq!(listing.items.len(), KEYS + 1);
        assert!(listing.items.is_sorted_by(|a, b| a.key < b.key));
        assert!(listing.items.iter().all(|item| item.mod_revision <= listing.revision));
        tokio::task::yield_now().await;
    }
    mover.abort();
}

async fn a_watch_tells_changes_in_order_from_its_revision(bench: Bench) {
    let store = bench.store();
    store.put("/t/a", text("old"), None).await.unwrap();
    let start = store.put("/t/a", text("1"), None).await.unwrap();
    store.put("/other", text("not ours"), None).await.unwrap();
    store.transact(Transaction::new().put("/t/b", "2").put("/t/c", "2")).await.unwrap();
    let mut watch = store.watch("/t/", start).await.unwrap();
    let (two, three, four) = (start + 2, start + 3, start + 4);
    assert_eq!(events(&mut watch, 3).await, format!("+/t/a=1@{start} +/t/b=2@{two} +/t/c=2@{two}"));

    store.delete("/t/a").await.unwrap();
    store.put("/t/a", text("new"), None).await.unwrap();
    assert_eq!(events(&mut watch, 2).await, format!("-/t/a@{three} +/t/a=new@{four}"));
    let item = store.get("/t/a").await.unwrap().unwrap();
    assert_eq!(item.create_revision, four, "a key that was deleted begins anew");

    // From a listing on: nothing is lost between the two.
    let listing = store.list("/t/").await.unwrap();
    let after = store.put("/t/d", text("4"), None).await.unwrap();
    let mut next = store.watch("/t/", listing.revision + 1).await.unwrap();
    assert_eq!(events(&mut next, 1).await, format!("+/t/d=4@{after}"));
}

async fn a_watch_without_a_revision_begins_with_the_next_change(bench: Bench) {
    let store = bench.store();
    store.put("/t/a", text("before"), None).await.unwrap();
    let mut watch = store.watch("/t/", 0).await.unwrap();
    let revision = store.put("/t/a", text("after"), None).await.unwrap();
    assert_eq!(events(&mut watch, 1).await, format!("+/t/a=after@{revision}"));
}

async fn after_compaction_an_old_watch_ends_and_a_young_one_goes_on(bench: Bench) {
    let store = bench.store();
    let first = store.put("/t/a", text("1"), None).await.unwrap();
    let mut young = store.watch("/t/", 0).await.unwrap();
    for value in ["2", "3", "4"] {
        store.put("/t/a", text(value), None).await.unwrap();
    }
    let last = first + 3;
    events(&mut young, 3).await;
    bench.compact(last).await;

    let mut old = store.watch("/t/", first).await.unwrap();
    let error = tokio::time::timeout(PATIENCE, old.next()).await.unwrap().unwrap_err();
    assert_eq!(error, StoreError::Compacted { revision: last });
    assert_eq!(error.class(), Class::Retry);
    assert_eq!(old.next().await.unwrap_err(), error, "an ended watch stays ended");

    store.put("/t/a", text("5"), None).await.unwrap();
    assert_eq!(events(&mut young, 1).await, format!("+/t/a=5@{}", last + 1));
    assert_eq!(store.list("/t/").await.unwrap().items.len(), 1);
}

async fn a_lease_is_never_shorter_than_asked(bench: Bench) {
    let store = bench.store();
    let year = Duration::from_secs(365 * 24 * 3600);
    for (asked, granted) in [(1_500, 2_000), (2_000, 2_000), (2_001, 3_000), (1, 1_000), (0, 1_000)] {
        let lease = store.lease_grant(Duration::from_millis(asked)).await.unwrap();
        assert_eq!(lease.ttl, Duration::from_millis(granted), "{asked} ms");
    }
    assert!(store.lease_grant(Duration::MAX).await.unwrap().ttl > 100 * year, "as long as the store has it");
}

async fn a_lease_takes_its_keys_when_it_ends(bench: Bench) {
    let store = bench.store();
    let lease = store.lease_grant(Duration::from_secs(3)).await.unwrap();
    assert!(lease.ttl >= Duration::from_secs(3));
    let revision = store.put("/t/alive", text("n1"), Some(lease.id)).await.unwrap();
    store.put("/t/stays", text("n1"), None).await.unwrap();
    let mut watch = store.watch("/t/", revision + 2).await.unwrap();

    let begun = Instant::now();
    for _ in 0..3 {
        bench.pass(Duration::from_millis(1_200)).await;
        store.lease_keep_alive(lease.id).await.unwrap();
    }
    if !matches!(bench, Bench::Memory(_)) {
        assert!(begun.elapsed() > lease.ttl);
    }
    assert!(store.get("/t/alive").await.unwrap().is_some(), "it was kept alive");

    bench.pass(lease.ttl).await;
    let gone = events(&mut watch, 1).await;
    assert!(gone.starts_with("-/t/alive@"), "{gone}");
    assert!(store.get("/t/stays").await.unwrap().is_some());
    eventually("the lease is gone", || async { store.lease_keep_alive(lease.id).await.is_err() }).await;
    let error = store.lease_keep_alive(lease.id).await.unwrap_err();
    assert_eq!((error.class(), error), (Class::Conflict, StoreError::LeaseNotFound(lease.id)));
}

async fn a_revoked_lease_takes_its_keys_at_once(bench: Bench) {
    let store = bench.store();
    let lease = store.lease_grant(Duration::from_secs(60)).await.unwrap();
    store.put("/t/alive", text("n1"), Some(lease.id)).await.unwrap();
    store.put("/t/leader", text("n1"), Some(lease.id)).await.unwrap();
    store.lease_revoke(lease.id).await.unwrap();
    assert_eq!(store.list("/t/").await.unwrap().items, []);
    let gone = Err(StoreError::LeaseNotFound(lease.id));
    assert_eq!(store.lease_revoke(lease.id).await, gone);
    assert_eq!(store.put("/t/alive", text("n1"), Some(lease.id)).await.map(|_| ()), gone);
    assert_eq!(store.lease_keep_alive(LeaseId(12345)).await, Err(StoreError::LeaseNotFound(LeaseId(12345))));
}

async fn a_put_without_a_lease_lets_go_of_the_lease(bench: Bench) {
    let store = bench.store();
    let lease = store.lease_grant(Duration::from_secs(60)).await.unwrap();
    store.put("/t/a", text("1"), Some(lease.id)).await.unwrap();
    store.put("/t/a", text("2"), None).await.unwrap();
    store.lease_revoke(lease.id).await.unwrap();
    assert!(store.get("/t/a").await.unwrap().is_some());
}

async fn after_the_store_was_away_requests_and_watches_recover(mut bench: Bench) {
    let store = bench.store();
    store.put("/t/a", text("1"), None).await.unwrap();
    let mut watch = store.watch("/t/", 0).await.unwrap();
    bench.stop();

    let begun = Instant::now();
    for error in [
        store.get("/t/a").await.unwrap_err(),
        store.list("/t/").await.unwrap_err(),
        store.put("/t/a", text("2"), None).await.unwrap_err(),
        store.watch("/t/", 0).await.map(|_| ()).unwrap_err(),
        store.lease_grant(Duration::from_secs(5)).await.unwrap_err(),
    ] {
        assert_eq!(error.class(), Class::Retry, "{error}");
        assert!(error.is_ambiguous(), "{error}");
    }
    assert!(begun.elapsed() < PATIENCE, "every request is bounded");
    let broken = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap_err();
    assert!(matches!(broken, StoreError::Disconnected { .. }), "{broken}");

    bench.start();
    eventually("requests recover", || async { store.get("/t/a").await.is_ok() }).await;
    let listing = store.list("/t/").await.unwrap();
    assert_eq!(listing.items[0].value, text("1"), "nothing was lost, and no failed put was applied");
    let mut watch = store.watch("/t/", listing.revision + 1).await.unwrap();
    let revision = store.put("/t/a", text("3"), None).await.unwrap();
    assert_eq!(events(&mut watch, 1).await, format!("+/t/a=3@{revision}"));
}
