// SPDX-License-Identifier: Apache-2.0
//! A watch's stream, read by a task of its own so that an idle consumer does not hold up the connection's other streams.
//!
//! Channel depth [`QUEUED_BATCHES`]; when it is full the task waits and etcd holds the changes back. The task ends when the
//! stream ends, after the error went into the channel, or when the [`Watch`] is dropped.

use async_trait::async_trait;
use etcd_client::{WatchResponse, WatchStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::failure::with_sources;
use super::{from_wire, key_value};
use crate::watch::WatchSource;
use crate::{Event, StoreError, Watch, WatchBatch};

/// Batches in wait; a burst of changes is a few of them, as etcd batches itself.
const QUEUED_BATCHES: usize = 64;

pub(super) fn spawn(stream: WatchStream) -> Watch {
    let (sender, batches) = mpsc::channel(QUEUED_BATCHES);
    let task = tokio::spawn(read(stream, sender));
    Watch::new(EtcdWatch { batches, task })
}

struct EtcdWatch {
    batches: mpsc::Receiver<Result<WatchBatch, StoreError>>,
    task: JoinHandle<()>,
}

impl Drop for EtcdWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[async_trait]
impl WatchSource for EtcdWatch {
    async fn next(&mut self) -> Result<WatchBatch, StoreError> {
        let ended = || Err(StoreError::Disconnected { reason: "the watch's task ended".into() });
        self.batches.recv().await.unwrap_or_else(ended)
    }
}

async fn read(mut stream: WatchStream, sender: mpsc::Sender<Result<WatchBatch, StoreError>>) {
    loop {
        let next = match stream.message().await {
            Ok(Some(response)) => batch(&response),
            Ok(None) => Err(StoreError::Disconnected { reason: "the store closed it".into() }),
            Err(error) => Err(StoreError::Disconnected { reason: with_sources(&error) }),
        };
        let (message, last) = match next {
            Ok(None) => continue,
            Ok(Some(batch)) => (Ok(batch), false),
            Err(error) => (Err(error), true),
        };
        if sender.send(message).await.is_err() || last {
            return;
        }
    }
}

/// `None` for what says nothing to the consumer.
fn batch(response: &WatchResponse) -> Result<Option<WatchBatch>, StoreError> {
    if response.compact_revision() > 0 {
        return Err(StoreError::Compacted { revision: from_wire(response.compact_revision()) });
    }
    if response.canceled() {
        return Err(StoreError::Disconnected {
            reason: format!("cancelled by the store: {}", response.cancel_reason()),
        });
    }
    let events: Vec<Event> =
        response.events().iter().filter_map(|event| event.kv().cloned()).map(event).collect();
    if let Some(last) = events.last() {
        return Ok(Some(WatchBatch { revision: last.revision(), events }));
    }
    // The first response says only that the watch stands; its revision is no progress, older changes may be to come.
    let header = response.header().filter(|_| !response.created());
    Ok(header.map(|header| WatchBatch { revision: from_wire(header.revision()), events }))
}

/// A deletion carries no version; asking the event for its type would panic on a type we do not know.
fn event(item: etcd_client::KeyValue) -> Event {
    let deleted = item.version() == 0;
    let item = key_value(item);
    if deleted { Event::Delete { key: item.key, revision: item.mod_revision } } else { Event::Put(item) }
}
