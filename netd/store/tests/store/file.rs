// SPDX-License-Identifier: Apache-2.0
//! What the file store promises beyond the contract: it survives crashes, damage and a full disk, and says what it sees.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use netd_store::{Class, FileStore, Listing, Store, StoreError, Transaction};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::bench::{PATIENCE, events, text};
use crate::file_host::fast_dir;

fn log_of(dir: &Path) -> PathBuf {
    dir.join("store.log")
}

/// Length of the log and all keys, after each change.
type Stages = Vec<(usize, Listing)>;

/// Puts, deletes, several keys at once, text that needs escapes, bytes that are no text.
async fn write_some(dir: &Path, store: &FileStore) -> Stages {
    let mut stages = vec![];
    let changes = [
        Transaction::new().put("/a", "1").put("/b", "2"),
        Transaction::new().put("/a", "with \"quotes\"\nand lines"),
        Transaction::new().delete("/b").put("/c", vec![0xff, 0x00, 0x0a]),
        Transaction::new().put("/a", ""),
        Transaction::new().put("/é", "key beyond ASCII").delete("/a"),
    ];
    stages.push((fs::read(log_of(dir)).unwrap().len(), store.list("/").await.unwrap()));
    for change in changes {
        assert!(store.transact(change).await.unwrap().succeeded);
        stages.push((fs::read(log_of(dir)).unwrap().len(), store.list("/").await.unwrap()));
    }
    stages
}

/// A store whose log holds these bytes.
fn open_with(log: &[u8]) -> (tempfile::TempDir, Result<FileStore, StoreError>) {
    let dir = fast_dir();
    fs::write(log_of(dir.path()), log).unwrap();
    let store = FileStore::open(dir.path());
    (dir, store)
}

#[tokio::test]
async fn a_crash_at_every_byte_leaves_all_changes_before_it() {
    let dir = fast_dir();
    let store = FileStore::open(dir.path()).unwrap();
    let stages = write_some(dir.path(), &store).await;
    let whole = fs::read(log_of(dir.path())).unwrap();
    for cut in stages[0].0..=whole.len() {
        let expected = &stages.iter().rev().find(|(bytes, _)| *bytes <= cut).unwrap().1;
        // The end as it was cut, and as it is where the file had grown before its data arrived.
        for zeroes in [0, 1, 50] {
            let (dir, again) = open_with(&[&whole[..cut], &vec![0; zeroes]].concat());
            let again = again.unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
            assert_eq!(again.list("/").await.unwrap(), *expected, "cut at {cut}");
            let revision = again.put("/after", text("1"), None).await.unwrap();
            assert_eq!(revision, expected.revision + 1);
            drop(again);
            let third = FileStore::open(dir.path()).unwrap();
            assert_eq!(third.get("/after").await.unwrap().unwrap().mod_revision, revision);
        }
    }
}

#[tokio::test]
async fn the_snapshot_is_whole_or_the_file_is_damaged() {
    let dir = fast_dir();
    let store = FileStore::open(dir.path()).unwrap();
    let first = fs::read(log_of(dir.path())).unwrap();
    drop(store);
    for cut in 0..first.len() {
        let error = open_with(&first[..cut]).1.map(|_| ()).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { line: 1, .. }), "cut at {cut}: {error}");
    }
}

#[tokio::test]
async fn damage_before_the_end_is_named_with_file_and_line() {
    let dir = fast_dir();
    let store = FileStore::open(dir.path()).unwrap();
    write_some(dir.path(), &store).await;
    let whole = fs::read(log_of(dir.path())).unwrap();
    for position in 0..whole.len() {
        let mut damaged = whole.clone();
        // Makes no newline and no zero.
        damaged[position] ^= 0x04;
        let line = 1 + whole[..position].iter().filter(|byte| **byte == b'\n').count();
        let (dir, store) = open_with(&damaged);
        match store.map(|_| ()) {
            Err(StoreError::Damaged { path, line: named, .. }) => {
                assert_eq!((path, named), (log_of(dir.path()), line), "byte {position}");
            }
            // The last newline: the line was perhaps never answered for.
            Ok(()) if position == whole.len() - 1 => {}
            other => panic!("byte {position}: {other:?}"),
        }
    }
    let lines: Vec<&[u8]> = whole.split_inclusive(|byte| *byte == b'\n').collect();
    for missing in 1..lines.len() - 1 {
        let rest = [&lines[..missing], &lines[missing + 1..]].concat().concat();
        let error = open_with(&rest).1.map(|_| ()).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { line, .. } if line == missing + 1), "{error}");
    }
    let error = open_with(b"hello\n").1.map(|_| ()).unwrap_err();
    assert_eq!(error.class(), Class::Fatal);
    let story = error.to_string();
    assert!(story.contains("store.log, line 1, cannot be used") && story.contains("restore"), "{story}");
}

#[tokio::test]
async fn a_second_opener_hears_who_has_it_until_the_first_is_gone() {
    let dir = fast_dir();
    let first = FileStore::open(dir.path()).unwrap();
    let clone = first.clone();
    let mut watch = first.watch("/", 0).await.unwrap();
    let locked = StoreError::Locked { dir: dir.path().to_owned(), pid: Some(std::process::id()) };
    assert_eq!(FileStore::open(dir.path()).map(|_| ()), Err(locked.clone()));
    assert_eq!(locked.class(), Class::Fatal);
    assert!(locked.to_string().contains(&format!("in use by process {}", std::process::id())), "{locked}");
    drop(first);
    assert_eq!(FileStore::open(dir.path()).map(|_| ()), Err(locked), "a clone has it");
    drop(clone);
    FileStore::open(dir.path()).unwrap();
    let ended = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap_err();
    assert!(matches!(ended, StoreError::Disconnected { .. }), "{ended}");
}

#[tokio::test]
async fn an_opened_store_goes_on_where_it_was() {
    let dir = fast_dir();
    let store = FileStore::open(dir.path()).unwrap();
    let stages = write_some(dir.path(), &store).await;
    let before = stages.last().unwrap().1.clone();
    drop(store);
    let store = FileStore::open(dir.path()).unwrap();
    assert_eq!(store.list("/").await.unwrap(), before);
    assert_eq!(store.put("/next", text("1"), None).await.unwrap(), before.revision + 1);
    let c = &before.items[0];
    let swap = Transaction::new().unchanged(c.key.clone(), c.mod_revision).put(c.key.clone(), "2");
    assert!(store.transact(swap).await.unwrap().succeeded, "what was read before the restart still compares");
    let mut watch = store.watch("/a", stages[0].1.revision + 1).await.unwrap();
    assert!(events(&mut watch, 4).await.starts_with("+/a=1@2 +/a=with"), "the history is there too");
}

#[tokio::test]
async fn leased_keys_do_not_survive_the_holder() {
    let dir = fast_dir();
    let store = FileStore::open(dir.path()).unwrap();
    let lease = store.lease_grant(Duration::from_secs(3600)).await.unwrap();
    store.put("/alive", text("n1"), Some(lease.id)).await.unwrap();
    let revision = store.put("/stays", text("n1"), None).await.unwrap();
    drop(store);
    let store = FileStore::open(dir.path()).unwrap();
    let mut watch = store.watch("/", revision + 1).await.unwrap();
    assert_eq!(events(&mut watch, 1).await, format!("-/alive@{}", revision + 1));
    let listing = store.list("/").await.unwrap();
    assert_eq!(listing.items.iter().map(|item| item.key.as_str()).collect::<Vec<_>>(), ["/stays"]);
    assert_eq!(store.lease_keep_alive(lease.id).await, Err(StoreError::LeaseNotFound(lease.id)));
    assert_ne!(store.lease_grant(Duration::from_secs(5)).await.unwrap().id, lease.id);
    drop(store);
    let again = FileStore::open(dir.path()).unwrap().list("/").await.unwrap();
    assert_eq!(again, listing, "and that is durable");
}

#[tokio::test]
async fn the_log_is_shortened_and_its_watches_go_on() {
    const ROUNDS: usize = 300;
    let dir = fast_dir();
    let store = FileStore::open(dir.path()).unwrap();
    let mut watch = store.watch("/big", 0).await.unwrap();
    let (mut longest, mut last) = (0, 0);
    for round in 0..ROUNDS {
        last = store.put("/big", Bytes::from(format!("{round}{}", "x".repeat(100_000))), None).await.unwrap();
        longest = longest.max(fs::metadata(log_of(dir.path())).unwrap().len());
        assert_eq!(watch.next().await.unwrap().revision, last);
    }
    assert!(longest < 10 << 20, "30 MB were written, and the log is {longest} bytes");
    let before = store.list("/").await.unwrap();
    let mut early = store.watch("/", 2).await.unwrap();
    assert!(matches!(early.next().await, Err(StoreError::Compacted { revision }) if revision > 2));
    drop(store);
    let store = FileStore::open(dir.path()).unwrap();
    assert_eq!(store.list("/").await.unwrap(), before);
    let mut next = store.watch("/", last + 1).await.unwrap();
    store.put("/small", text("1"), None).await.unwrap();
    assert_eq!(events(&mut next, 1).await, format!("+/small=1@{}", last + 1));
}

/// A disk of 256 KiB of its own, in a mount namespace that ends with the thread.
#[test]
fn a_full_disk_fails_the_transaction_and_nothing_is_pretended() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().to_owned();
    std::thread::spawn(move || {
        let private = unshare(CloneFlags::CLONE_NEWNS)
            .and_then(|()| {
                mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            })
            .and_then(|()| mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), Some("size=256k")));
        if let Err(error) = private {
            eprintln!("SKIP a full disk: no mount namespace ({error}); root is needed");
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(fill(&disk));
    })
    .join()
    .unwrap();
}

async fn fill(disk: &Path) {
    let store = FileStore::open(disk).unwrap();
    let value = |round: u64| Bytes::from(format!("{round}{}", "x".repeat(10_000)));
    let mut round = 0;
    let error = loop {
        match store.put("/a", value(round), None).await {
            Ok(_) => round += 1,
            Err(error) => break error,
        }
        assert!(round < 100, "the disk never gets full");
    };
    assert_eq!(error.class(), Class::Retry);
    assert!(
        error.to_string().contains("No space left on device") && error.to_string().contains("store.log"),
        "{error}"
    );
    let listing = store.list("/").await.unwrap();
    assert_eq!(listing.items[0].value, value(round - 1), "what failed is not there");
    assert_eq!(listing.revision, round + 1);
    let small = store.put("/small", text("fits"), None).await.unwrap();
    assert_eq!(small, listing.revision + 1, "what still fits is taken");

    drop(store);
    let store = FileStore::open(disk).unwrap();
    assert_eq!(store.list("/a").await.unwrap().items, listing.items, "nor after a restart");
    store.put("/a", value(round), None).await.unwrap_err();
    assert_eq!(store.list("/").await.unwrap().revision, small);
}
