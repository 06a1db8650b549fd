// SPDX-License-Identifier: Apache-2.0
//! The last-known-good snapshot: the store's content on disk, for a start while the store does not answer. From it netd
//! only adds and repairs; nothing is removed until the store is in sync. In a large cluster that keeps changing it is up to half a
//! minute old where netd is killed; an orderly stop writes it once more.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use netd_store::{Items, KeyValue, MirrorState};
use serde::{Deserialize, Serialize, Serializer};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::files::write_atomically;
use crate::node::Node;
use crate::relay;

const FILE: &str = "snapshot.json";
/// Version N reads N-1's; a newer one is refused, never guessed at.
const SCHEMA: u32 = 1;
/// The disk is not written more often, however often the store changes.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// Nor sooner than after so many times what writing took: a large cluster that keeps changing costs a tenth of a CPU.
const WRITE_REST: u32 = 10;
/// What is known of the cluster is not older than that all the same.
const WRITE_REST_MAX: Duration = Duration::from_secs(30);

#[derive(Deserialize)]
struct Snapshot {
    schema: u32,
    cluster: String,
    revision: u64,
    /// Key to (revision of the last write, value).
    items: BTreeMap<String, (u64, String)>,
    /// SkyDNS records, where they were read.
    skydns: Option<BTreeMap<String, (u64, String)>>,
}

/// What it says.
#[derive(Debug)]
pub(crate) struct Known {
    pub revision: u64,
    pub items: Items,
    pub skydns: Option<Items>,
}

/// The same, out of a mirror.
#[derive(Serialize)]
struct Written<'a> {
    schema: u32,
    cluster: &'a str,
    revision: u64,
    #[serde(serialize_with = "texts")]
    items: &'a Items,
    #[serde(serialize_with = "texts_of", skip_serializing_if = "Option::is_none")]
    skydns: Option<&'a Items>,
}

/// Writes a snapshot after changes of an in-sync mirror, now and then, and a last one at the stop.
pub(crate) async fn keep(node: Arc<Node>, stop: CancellationToken) -> Result<()> {
    let path = path(&node.config.state_dir);
    follow(node.mirror.clone(), node.skydns.clone(), &stop, |state, skydns| {
        let (path, cluster) = (path.clone(), node.config.cluster.clone());
        let work = tokio::task::spawn_blocking(move || write(&path, &cluster, &state, skydns.as_deref()));
        async move {
            let written = work.await?;
            if let Err(error) = &written {
                tracing::warn!("the last-known-good snapshot was not written: {error:#}");
            }
            Ok(written.is_ok())
        }
    })
    .await
}

/// Calls `write` with what is to be written, again where it says that it was not; until the mirror ends, or once more after
/// `stop`.
async fn follow<W: Future<Output = Result<bool>>>(
    mut mirror: watch::Receiver<Arc<MirrorState>>,
    mut skydns: Option<watch::Receiver<Arc<MirrorState>>>,
    stop: &CancellationToken,
    write: impl Fn(Arc<MirrorState>, Option<Arc<MirrorState>>) -> W,
) -> Result<()> {
    let mut written = (0, None);
    loop {
        let is_last = stop.is_cancelled();
        let state = mirror.borrow_and_update().clone();
        let start = Instant::now();
        let names = skydns.as_mut().map(|skydns| skydns.borrow_and_update().clone());
        // What was not read is kept as it was known.
        let names = names.filter(|names| names.revision > 0);
        let revisions = (state.revision, names.as_ref().map(|names| names.revision));
        let is_news = state.in_sync && revisions != written;
        let failed = is_news && !write(state, names).await?;
        if is_news && !failed {
            written = revisions;
        }
        if is_last {
            return Ok(());
        }
        let next = async {
            tokio::time::sleep(rest(start.elapsed())).await;
            failed
                || tokio::select! {
                    changed = mirror.changed() => changed.is_ok(),
                    () = relay::changed(&mut skydns) => true,
                }
        };
        let goes_on = tokio::select! {
            goes_on = next => goes_on,
            () = stop.cancelled() => true,
        };
        if !goes_on {
            return Ok(());
        }
    }
}

/// From the end of a write to the next one.
fn rest(took: Duration) -> Duration {
    (took * WRITE_REST).clamp(WRITE_EVERY, WRITE_REST_MAX)
}

fn write(path: &Path, cluster: &str, state: &MirrorState, skydns: Option<&MirrorState>) -> Result<()> {
    let skydns = skydns.map(|skydns| &skydns.items);
    let snapshot = Written { schema: SCHEMA, cluster, revision: state.revision, items: &state.items, skydns };
    write_atomically(path, &serde_json::to_vec(&snapshot)?).with_context(|| path.display().to_string())
}

/// Every value of ours is JSON text; one that is not is somebody else's and not worth keeping.
fn texts<S: Serializer>(items: &Items, serializer: S) -> Result<S::Ok, S::Error> {
    let texts = items
        .iter()
        .filter_map(|(key, item)| Some((key, (item.mod_revision, std::str::from_utf8(&item.value).ok()?))));
    serializer.collect_map(texts)
}

fn texts_of<S: Serializer>(items: &Option<&Items>, serializer: S) -> Result<S::Ok, S::Error> {
    match items {
        Some(items) => texts(items, serializer),
        None => serializer.serialize_none(),
    }
}

/// The snapshot as mirror content, with SkyDNS records where they lie at this prefix; `None` when there is none. A damaged or foreign one is an error that says what to do.
pub(crate) fn load(state_dir: &Path, cluster: &str, skydns_prefix: Option<&str>) -> Result<Option<Known>> {
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
    let skydns = snapshot.skydns.zip(skydns_prefix).and_then(|(mut names, prefix)| {
        let had_none = names.is_empty();
        names.retain(|key, _| key.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/')));
        // There may be another one now: of that one nothing is known.
        (had_none || !names.is_empty()).then(|| items(names))
    });
    Ok(Some(Known { revision: snapshot.revision, items: items(snapshot.items), skydns }))
}

fn items(texts: BTreeMap<String, (u64, String)>) -> Items {
    let item = |(key, (revision, value)): (String, (u64, String))| {
        let item = KeyValue {
            key: key.clone(),
            value: Bytes::from(value),
            create_revision: revision,
            mod_revision: revision,
        };
        (key, Arc::new(item))
    };
    texts.into_iter().map(item).collect()
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join(FILE)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = MirrorState::default();
        state.mirror.revision = 7;
        for (key, value) in [("/weft/v1/weft/config", &b"{}"[..]), ("/weft/v1/weft/odd", &[0xff])] {
            let value = Bytes::copy_from_slice(value);
            let item = KeyValue { key: key.to_owned(), value, create_revision: 3, mod_revision: 5 };
            state.mirror.items.insert(key.to_owned(), Arc::new(item));
        }
        write(&path(dir.path()), "weft", &state, None).unwrap();
        let load = |cluster: &str| load(dir.path(), cluster, Some("/skydns"));
        let Known { revision, items, skydns } = load("weft").unwrap().unwrap();
        assert!(skydns.is_none(), "what was not read is not known");
        assert_eq!((revision, items.len()), (7, 1), "what is no text is nobody's of ours");
        let item = items.get("/weft/v1/weft/config").unwrap();
        assert_eq!((item.mod_revision, &item.value[..]), (5, &b"{}"[..]));
        assert!(load("other").is_err());
        let mut names = MirrorState::default();
        for key in ["/skydns/org/a", "/skydns2/org/a"] {
            let value = Bytes::from_static(b"{}");
            let item = KeyValue { key: key.to_owned(), value, create_revision: 3, mod_revision: 5 };
            names.mirror.items.insert(key.to_owned(), Arc::new(item));
        }
        write(&path(dir.path()), "weft", &state, Some(&names)).unwrap();
        let names = load("weft").unwrap().unwrap().skydns.unwrap();
        assert_eq!(names.keys().collect::<Vec<_>>(), ["/skydns/org/a"]);
        let of_another = super::load(dir.path(), "weft", Some("/names")).unwrap().unwrap();
        assert!(of_another.skydns.is_none());
    }

    fn state(revision: u64) -> Arc<MirrorState> {
        let mut state = MirrorState::default();
        (state.mirror.revision, state.mirror.in_sync) = (revision, true);
        Arc::new(state)
    }

    #[tokio::test]
    async fn a_stop_writes_what_is_known_and_a_failed_write_is_tried_again() {
        let (to, mirror) = watch::channel(state(1));
        let (stop, (told, mut seen)) = (CancellationToken::new(), mpsc::unbounded_channel());
        let fails = Cell::new(true);
        let work = follow(mirror, None, &stop, |state, _| {
            told.send(state.revision).unwrap();
            std::future::ready(Ok(!fails.replace(false)))
        });
        let story = async {
            assert_eq!(seen.recv().await, Some(1));
            assert_eq!(seen.recv().await, Some(1), "though nothing has changed");
            // In the rest after that.
            to.send_replace(state(2));
            stop.cancel();
            assert_eq!(seen.recv().await, Some(2));
        };
        let both = async { tokio::join!(work, story).0 };
        tokio::time::timeout(Duration::from_secs(30), both).await.unwrap().unwrap();
    }

    #[test]
    fn large_snapshots_are_written_more_seldom() {
        assert_eq!(rest(Duration::from_millis(3)), WRITE_EVERY);
        assert_eq!(rest(Duration::from_millis(500)), Duration::from_secs(5));
        assert_eq!(rest(Duration::from_secs(60)), WRITE_REST_MAX);
    }
}
