// SPDX-License-Identifier: Apache-2.0
//! The last-known-good snapshot: the store's content on disk, for a start while the store does not answer. From it netd
//! only adds and repairs; nothing is removed until the store is in sync.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use netd_store::{KeyValue, MirrorState};
use serde::{Deserialize, Serialize};

use crate::files::write_atomically;
use crate::node::Node;

const FILE: &str = "snapshot.json";
/// Version N reads N-1's; a newer one is refused, never guessed at.
const SCHEMA: u32 = 1;
/// The disk is not written more often, however often the store changes.
const WRITE_EVERY: Duration = Duration::from_secs(1);

#[derive(Deserialize, Serialize)]
struct Snapshot {
    schema: u32,
    cluster: String,
    revision: u64,
    /// Key to (revision of the last write, value).
    items: BTreeMap<String, (u64, String)>,
}

/// Writes a snapshot after each change of an in-sync mirror, at most once a second.
pub(crate) async fn keep(node: Arc<Node>) -> Result<()> {
    let path = path(&node.config.state_dir);
    let mut mirror = node.mirror.clone();
    let mut written = 0;
    loop {
        let state = mirror.borrow_and_update().clone();
        if state.in_sync && state.revision != written {
            let (path, cluster, revision) = (path.clone(), node.config.cluster.clone(), state.revision);
            match tokio::task::spawn_blocking(move || write(&path, &cluster, &state)).await? {
                Ok(()) => written = revision,
                Err(error) => tracing::warn!("the last-known-good snapshot was not written: {error:#}"),
            }
        }
        tokio::time::sleep(WRITE_EVERY).await;
        if mirror.changed().await.is_err() {
            return Ok(());
        }
    }
}

fn write(path: &Path, cluster: &str, state: &MirrorState) -> Result<()> {
    // Every value of ours is JSON text; one that is not is somebody else's and not worth keeping.
    let items = state
        .items
        .iter()
        .filter_map(|(k, v)| {
            Some((k.clone(), (v.mod_revision, std::str::from_utf8(&v.value).ok()?.to_owned())))
        })
        .collect();
    let snapshot = Snapshot { schema: SCHEMA, cluster: cluster.to_owned(), revision: state.revision, items };
    write_atomically(path, &serde_json::to_vec(&snapshot)?).with_context(|| path.display().to_string())
}

/// The snapshot as mirror content; `None` when there is none. A damaged or foreign one is an error that says what to do.
pub(crate) fn load(state_dir: &Path, cluster: &str) -> Result<Option<(u64, BTreeMap<String, KeyValue>)>> {
    let path = path(state_dir);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| path.display().to_string()),
    };
    let snapshot: Snapshot = serde_json::from_slice(&text)
        .with_context(|| format!("{} is damaged; it is not needed once the store answers", path.display()))?;
    if snapshot.schema > SCHEMA {
        bail!(
            "{} was written by a newer netd (schema {}); start that version",
            path.display(),
            snapshot.schema
        );
    }
    if snapshot.cluster != cluster {
        bail!("{} is of the cluster {:?}, not {cluster:?}", path.display(), snapshot.cluster);
    }
    let items = snapshot
        .items
        .into_iter()
        .map(|(key, (revision, value))| {
            let item = KeyValue {
                key: key.clone(),
                value: Bytes::from(value),
                create_revision: revision,
                mod_revision: revision,
            };
            (key, item)
        })
        .collect();
    Ok(Some((snapshot.revision, items)))
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join(FILE)
}
