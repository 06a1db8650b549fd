// SPDX-License-Identifier: Apache-2.0
//! etcd v3.4 or newer over gRPC.
//!
//! One session (one endpoint) at a time: the next endpoint is tried when a request on it fails or does not answer, so a
//! member that is down or cut off costs one failed request, not a share of all. Files (CA, certificate, key) are read again
//! for each session. Requests never retry by themselves: callers have back-off, and a transaction must not run twice.
//!
//! Tasks: one for each open watch (see `watch.rs`), ended when the [`Watch`] is dropped.

mod config;
mod failure;
mod session;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{Client, Compare, CompareOp, Error, GetOptions, PutOptions, Txn, TxnOp, WatchOptions};
use tokio::time::timeout;

pub use config::{DEFAULT_REQUEST_TIMEOUT, EtcdConfig};
use session::Sessions;

use crate::state::lease_secs;
use crate::transaction::check_key;
use crate::{KeyValue, Lease, LeaseId, Listing, Store, StoreError, Transacted, Transaction, Watch};

/// Keys asked for at once. With values of a few KiB a page stays far below [`MAX_MESSAGE_BYTES`].
const PAGE_KEYS: i64 = 500;

/// How often a list starts again because compaction overtook it.
const LIST_ATTEMPTS: usize = 3;

/// A page of large values, or a watch that catches up on 1,000 revisions, may pass gRPC's default of 4 MiB.
const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// An etcd cluster. Clones share one session.
#[derive(Debug, Clone)]
pub struct Etcd {
    sessions: Arc<Sessions>,
}

impl Etcd {
    /// Checks the settings and reads the files; contacts nobody. The first request connects.
    pub async fn connect(config: EtcdConfig) -> Result<Self, StoreError> {
        Ok(Self { sessions: Arc::new(Sessions::new(config).await?) })
    }

    /// The endpoint of the session that stands, for status; `None` while there is none.
    pub async fn endpoint(&self) -> Option<String> {
        self.sessions.standing().await
    }

    /// Forgets the history before `revision` (etcd does so by itself where `--auto-compaction-retention` is set).
    pub async fn compact(&self, revision: u64) -> Result<(), StoreError> {
        let revision = to_wire(revision)?;
        self.request("compact", async move |mut client| client.compact(revision, None).await).await?;
        Ok(())
    }

    async fn request<T, F>(
        &self,
        operation: &'static str,
        call: impl FnOnce(Client) -> F + Send,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>> + Send,
    {
        let limit = self.sessions.config.request_timeout;
        let mut used = None;
        let bounded = timeout(limit, async {
            let session = self.sessions.current().await?;
            let client = session.client.clone();
            let endpoint = used.insert(session).endpoint.as_str();
            call(client).await.map_err(|error| failure::translate(&error, endpoint))
        })
        .await;
        let outcome = bounded.unwrap_or_else(|_| {
            let endpoint = used
                .as_ref()
                .map_or_else(|| self.sessions.config.endpoints.join(","), |it| it.endpoint.clone());
            Err(StoreError::Timeout { operation, after: limit, endpoint })
        });
        if let (Err(error), Some(session)) = (&outcome, &used)
            && failure::ends_session(error)
        {
            self.sessions.leave(session).await;
        }
        outcome
    }

    /// One page: the keys from `start` on, at `revision` (0: now). Answers revision, items, last raw key and whether more follow.
    async fn page(&self, start: Vec<u8>, end: Vec<u8>, revision: i64) -> Result<Page, StoreError> {
        let options = GetOptions::new().with_range(end).with_limit(PAGE_KEYS).with_revision(revision);
        let mut reply = self
            .request("list", async move |client: Client| {
                client
                    .kv_client()
                    .max_decoding_message_size(MAX_MESSAGE_BYTES)
                    .get(start, Some(options))
                    .await
            })
            .await?;
        let more = reply.more();
        let items = reply.take_kvs();
        let next = items.last().map(|last| [last.key(), &[0]].concat());
        Ok(Page {
            revision: reply.header().map_or(0, |header| header.revision()),
            items: items.into_iter().map(key_value).collect(),
            next: next.filter(|_| more),
        })
    }

    async fn list_once(&self, prefix: &str) -> Result<Listing, StoreError> {
        let end = range_end(prefix);
        let mut page = self.page(prefix.into(), end.clone(), 0).await?;
        let revision = page.revision;
        let mut items = page.items;
        while let Some(next) = page.next {
            page = self.page(next, end.clone(), revision).await?;
            items.append(&mut page.items);
        }
        Ok(Listing { revision: from_wire(revision), items })
    }
}

struct Page {
    revision: i64,
    items: Vec<KeyValue>,
    /// Where the next page starts.
    next: Option<Vec<u8>>,
}

#[async_trait]
impl Store for Etcd {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        check_key(key)?;
        let key = key.to_owned();
        let mut reply = self
            .request("get", async move |client: Client| {
                client.kv_client().max_decoding_message_size(MAX_MESSAGE_BYTES).get(key, None).await
            })
            .await?;
        Ok(reply.take_kvs().pop().map(key_value))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        check_key(prefix)?;
        let mut listing = self.list_once(prefix).await;
        for _ in 1..LIST_ATTEMPTS {
            if !matches!(listing, Err(StoreError::Compacted { .. })) {
                break;
            }
            listing = self.list_once(prefix).await;
        }
        listing
    }

    async fn watch(&self, prefix: &str, from_revision: u64) -> Result<Watch, StoreError> {
        check_key(prefix)?;
        let options = WatchOptions::new()
            .with_range(range_end(prefix))
            .with_start_revision(to_wire(from_revision)?)
            .with_progress_notify();
        let prefix = prefix.to_owned();
        let stream = self
            .request("watch", async move |client: Client| {
                client
                    .watch_client()
                    .max_decoding_message_size(MAX_MESSAGE_BYTES)
                    .watch(prefix, Some(options))
                    .await
            })
            .await?;
        Ok(watch::spawn(stream))
    }

    async fn transact(&self, transaction: Transaction) -> Result<Transacted, StoreError> {
        transaction.check()?;
        let lease = transaction.puts.iter().find_map(|put| put.lease);
        let mut compares = Vec::with_capacity(transaction.compares.len());
        for compare in transaction.compares {
            // An absent key compares as modified at revision 0.
            compares.push(Compare::mod_revision(
                compare.key,
                CompareOp::Equal,
                to_wire(compare.mod_revision)?,
            ));
        }
        let puts = transaction.puts.into_iter().map(|put| {
            let options = put.lease.map(|lease| PutOptions::new().with_lease(lease.0));
            TxnOp::put(put.key, put.value, options)
        });
        let deletes = transaction.deletes.into_iter().map(|key| TxnOp::delete(key, None));
        let txn = Txn::new().when(compares).and_then(puts.chain(deletes).collect::<Vec<_>>());
        let reply = self
            .request("transact", async move |mut client: Client| client.txn(txn).await)
            .await
            .map_err(|error| name_lease(error, lease))?;
        Ok(Transacted {
            succeeded: reply.succeeded(),
            revision: reply.header().map_or(0, |header| from_wire(header.revision())),
        })
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        let seconds = to_wire(lease_secs(ttl))?;
        let reply = self
            .request("lease grant", async move |mut client: Client| client.lease_grant(seconds, None).await)
            .await?;
        Ok(Lease { id: LeaseId(reply.id()), ttl: Duration::from_secs(from_wire(reply.ttl())) })
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<(), StoreError> {
        // The call sends one keep-alive and waits for its answer; the stream is not needed afterwards.
        self.request("lease keep-alive", async move |mut client: Client| client.lease_keep_alive(id.0).await)
            .await
            .map_err(|error| name_lease(error, Some(id)))?;
        Ok(())
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        self.request("lease revoke", async move |mut client: Client| client.lease_revoke(id.0).await)
            .await
            .map_err(|error| name_lease(error, Some(id)))?;
        Ok(())
    }
}

/// etcd's answer does not say which lease is gone.
fn name_lease(error: StoreError, lease: Option<LeaseId>) -> StoreError {
    match (error, lease) {
        (StoreError::LeaseNotFound(_), Some(lease)) => StoreError::LeaseNotFound(lease),
        (error, _) => error,
    }
}

fn key_value(item: etcd_client::KeyValue) -> KeyValue {
    let (create_revision, mod_revision) = (from_wire(item.create_revision()), from_wire(item.mod_revision()));
    let (key, value) = item.into_key_value();
    let key =
        String::from_utf8(key).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
    KeyValue { key, value: Bytes::from(value), create_revision, mod_revision }
}

/// The first key after all keys with the prefix.
fn range_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // etcd: "all keys from the start on".
    vec![0]
}

fn to_wire(revision: u64) -> Result<i64, StoreError> {
    i64::try_from(revision)
        .map_err(|_| StoreError::InvalidRequest { reason: format!("revision {revision} is out of range") })
}

fn from_wire(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_ends_after_the_last_key_of_the_prefix() {
        assert_eq!(range_end("/a/"), b"/a0");
        assert_eq!(range_end("a\u{7f}"), b"a\x80");
    }
}
