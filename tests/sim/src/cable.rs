// SPDX-License-Identifier: Apache-2.0
//! A node's link to the store: it can be cut, and it can lose the answer to a write that was made.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use netd_store::{KeyValue, Lease, LeaseId, Listing, Store, StoreError, Transacted, Transaction, Watch};

/// The store as one node sees it.
pub struct Cable {
    store: Arc<dyn Store>,
    cut: AtomicBool,
    /// Percent of writes whose answer is lost.
    lossy: AtomicU32,
}

impl Cable {
    /// A whole link.
    pub fn new(store: Arc<dyn Store>) -> Cable {
        Cable { store, cut: AtomicBool::new(false), lossy: AtomicU32::new(0) }
    }

    /// Cuts or mends the link.
    pub fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::SeqCst);
    }

    /// Whether it is cut.
    pub fn is_cut(&self) -> bool {
        self.cut.load(Ordering::SeqCst)
    }

    /// How many of a hundred writes get no answer.
    pub fn lose(&self, percent: u32) {
        self.lossy.store(percent, Ordering::SeqCst);
    }

    fn check(&self) -> Result<(), StoreError> {
        if self.is_cut() {
            Err(StoreError::Disconnected { reason: "the link is cut".into() })
        } else {
            Ok(())
        }
    }

    fn lost(&self) -> bool {
        fastrand::u32(0..100) < self.lossy.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Store for Cable {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        self.check()?;
        self.store.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.check()?;
        self.store.list(prefix).await
    }

    async fn watch(&self, prefix: &str, from_revision: u64) -> Result<Watch, StoreError> {
        self.check()?;
        self.store.watch(prefix, from_revision).await
    }

    async fn transact(&self, transaction: Transaction) -> Result<Transacted, StoreError> {
        self.check()?;
        // The store may be slow to answer: others come in between.
        tokio::time::sleep(Duration::from_micros(fastrand::u64(0..300))).await;
        let done = self.store.transact(transaction).await?;
        if self.lost() {
            return Err(StoreError::Timeout {
                operation: "transaction",
                after: Duration::from_secs(5),
                endpoint: "the cable".into(),
            });
        }
        Ok(done)
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.check()?;
        self.store.lease_grant(ttl).await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<(), StoreError> {
        self.check()?;
        self.store.lease_keep_alive(id).await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        self.check()?;
        self.store.lease_revoke(id).await
    }
}
