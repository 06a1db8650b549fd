// SPDX-License-Identifier: Apache-2.0
//! A file store that a test closes and opens again, behind one handle: closed, it is a store that is away.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use netd_store::{
    FileStore, KeyValue, Lease, LeaseId, Listing, Store, StoreError, Transacted, Transaction, Watch,
};
use tempfile::TempDir;

#[derive(Clone)]
pub(crate) struct FileHost {
    pub(crate) dir: Arc<TempDir>,
    store: Arc<Mutex<Option<FileStore>>>,
}

impl FileHost {
    pub(crate) fn new() -> Self {
        let host = Self { dir: Arc::new(fast_dir()), store: Arc::default() };
        host.open();
        host
    }

    pub(crate) fn open(&self) {
        *self.store.lock().unwrap() = Some(FileStore::open(self.dir.path()).unwrap());
    }

    pub(crate) fn close(&self) {
        *self.store.lock().unwrap() = None;
    }

    pub(crate) fn store(&self) -> Result<FileStore, StoreError> {
        let closed =
            || StoreError::Unavailable { endpoint: "file".into(), reason: "closed by the test".into() };
        self.store.lock().unwrap().clone().ok_or_else(closed)
    }
}

/// In memory where the system has such a place: these tests open and sync thousands of times.
pub(crate) fn fast_dir() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

#[async_trait]
impl Store for FileHost {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        self.store()?.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.store()?.list(prefix).await
    }

    async fn watch(&self, prefix: &str, from_revision: u64) -> Result<Watch, StoreError> {
        self.store()?.watch(prefix, from_revision).await
    }

    async fn transact(&self, transaction: Transaction) -> Result<Transacted, StoreError> {
        self.store()?.transact(transaction).await
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.store()?.lease_grant(ttl).await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<(), StoreError> {
        self.store()?.lease_keep_alive(id).await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        self.store()?.lease_revoke(id).await
    }
}
