// SPDX-License-Identifier: Apache-2.0
//! The log of the file store: any bytes are opened or refused with file and line; what opens is the same when opened again,
//! and takes new keys.

use std::cell::OnceCell;
use std::fs;

use netd_store::{FileStore, Store, StoreError};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

thread_local! {
    static PLACE: OnceCell<(TempDir, Runtime)> = const { OnceCell::new() };
}

pub(super) fn check(input: &[u8]) -> String {
    let sealed = super::resealed(input, |json| {
        let head = format!("{:08x} {:08x} ", crc32fast::hash(json), json.len());
        [head.as_bytes(), json, b"\n"].concat()
    });
    PLACE.with(|place| {
        let (dir, runtime) = place.get_or_init(|| {
            let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
            (dir, Builder::new_current_thread().enable_all().build().unwrap())
        });
        runtime.block_on(open(dir, input));
        runtime.block_on(open(dir, &sealed))
    })
}

async fn open(dir: &TempDir, bytes: &[u8]) -> String {
    let path = dir.path().join("store.log");
    fs::write(&path, bytes).unwrap();
    let store = match FileStore::open(dir.path()) {
        Ok(store) => store,
        Err(StoreError::Damaged { path: named, line, reason }) => {
            assert_eq!(named, path);
            let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
            assert!((1..=lines + 1).contains(&line), "line {line} of {lines}");
            assert_eq!(fs::read(&path).unwrap(), bytes, "a damaged log is left as it is");
            return reason;
        }
        Err(other) => panic!("{other}"),
    };
    // The first look ends the leases of the log.
    let first = store.list("/").await.unwrap();
    drop(store);
    let store = FileStore::open(dir.path()).expect("what was opened once opens again");
    assert_eq!(store.list("/").await.unwrap(), first);
    let revision = store.put("/fuzz", "1".into(), None).await.unwrap();
    assert_eq!(revision, first.revision + 1);
    drop(store);
    let store = FileStore::open(dir.path()).expect("what was written is read");
    let item = store.get("/fuzz").await.unwrap().expect("what was answered for is there");
    assert_eq!(item.mod_revision, revision);
    format!("{} keys", first.items.len())
}
