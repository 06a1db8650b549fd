// SPDX-License-Identifier: Apache-2.0
//! What the battery needs of a store besides the trait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use netd_store::{Etcd, Event, Memory, Store, Watch};

use crate::etcd_server::EtcdServer;
use crate::file_host::FileHost;

/// Far more than anything here takes, also on a machine that is busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) enum Bench {
    Etcd(Etcd, EtcdServer),
    File(FileHost),
    Memory(Memory),
}

impl Bench {
    pub(crate) async fn etcd() -> Self {
        let server = EtcdServer::plain();
        Self::Etcd(server.client().await, server)
    }

    pub(crate) async fn file() -> Self {
        Self::File(FileHost::new())
    }

    pub(crate) async fn memory() -> Self {
        Self::Memory(Memory::new())
    }

    pub(crate) fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Etcd(etcd, _) => Arc::new(etcd.clone()),
            Self::File(host) => Arc::new(host.clone()),
            Self::Memory(memory) => Arc::new(memory.clone()),
        }
    }

    pub(crate) async fn compact(&self, revision: u64) {
        match self {
            Self::Etcd(etcd, _) => etcd.compact(revision).await.unwrap(),
            Self::File(host) => host.store().unwrap().compact(revision),
            Self::Memory(memory) => memory.compact(revision),
        }
    }

    /// Lets time pass, as leases see it.
    pub(crate) async fn pass(&self, time: Duration) {
        match self {
            Self::Etcd(..) | Self::File(_) => tokio::time::sleep(time).await,
            Self::Memory(memory) => memory.advance(time),
        }
    }

    pub(crate) fn stop(&mut self) {
        match self {
            Self::Etcd(_, server) => server.stop(),
            Self::File(host) => host.close(),
            Self::Memory(memory) => memory.faults().outage(true),
        }
    }

    pub(crate) fn start(&mut self) {
        match self {
            Self::Etcd(_, server) => server.start(),
            Self::File(host) => host.open(),
            Self::Memory(memory) => memory.faults().outage(false),
        }
    }
}

pub(crate) fn text(value: &str) -> Bytes {
    Bytes::copy_from_slice(value.as_bytes())
}

/// The next events that are there, as `+key=value@revision` and `-key@revision`, with one `|` after each batch.
pub(crate) async fn events(watch: &mut Watch, count: usize) -> String {
    let (mut seen, mut story) = (0, String::new());
    while seen < count {
        let batch = tokio::time::timeout(PATIENCE, watch.next()).await.expect("an event").unwrap();
        for event in &batch.events {
            seen += 1;
            match event {
                Event::Delete { key, revision } => story += &format!("-{key}@{revision} "),
                Event::Put(item) => {
                    story += &format!(
                        "+{}={}@{} ",
                        item.key,
                        String::from_utf8_lossy(&item.value),
                        item.mod_revision
                    )
                }
            }
        }
    }
    story.trim_end().to_owned()
}

/// Asks again until the answer is yes.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut ask: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !ask().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
