// SPDX-License-Identifier: Apache-2.0
//! Pins of identities that this node had before.
//!
//! Programs outlive netd by their pins, and pins hang on the node's UUID. A node that joins again as a new one (its state
//! directory was emptied) would leave the old identity's programs attached, with maps that nobody changes any more: connections
//! to services would go to pods of long ago. So each identity leaves a mark beside its pins: an empty folder that names the
//! network namespace it works in. One namespace has one node, whose links, table and ports are there; several nodes may share
//! the bpffs, each with a namespace of its own, and their pins are never touched.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use uuid::Uuid;

/// Begins the name of a mark: `netns-INODE-UUID` (bpffs takes no dots in names).
const MARK: &str = "netns-";
/// The namespace that netd works in.
const OWN_NETNS: &str = "/proc/self/ns/net";

/// An identity by its pins: `<bpf-dir>/<cluster>/<uuid>`.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Marked {
    cluster: PathBuf,
    netns: u64,
    uuid: Uuid,
}

/// The network namespace that this process is in; no other has its number while it exists.
///
/// # Errors
/// /proc is not there.
pub(crate) fn own_netns() -> Result<u64> {
    let found = std::fs::metadata(OWN_NETNS).with_context(|| format!("cannot look at {OWN_NETNS}"))?;
    Ok(found.ino())
}

/// Takes the namespace over for `uuid`: pins of whoever was this namespace's node before are detached and removed.
///
/// Call it when this netd has its ports: then no other one lives in the namespace.
///
/// # Errors
/// Pins that cannot be removed: their programs stay attached, so the node must not go on.
pub(crate) fn take_over(bpf_dir: &Path, cluster: &str, uuid: Uuid, netns: u64) -> Result<()> {
    let own = Marked { cluster: bpf_dir.join(cluster), netns, uuid };
    for marked in marks(bpf_dir)? {
        if marked == own {
            continue;
        }
        if marked.netns == netns {
            tracing::warn!(pins = %marked.pins().display(), "this node had another identity before: its programs and maps go");
            marked.remove()?;
        } else if marked.cluster == own.cluster && marked.uuid == uuid {
            // This node in a namespace of before, whose number may come again.
            remove_dir(&marked.path())?;
        }
    }
    std::fs::create_dir_all(own.path()).with_context(|| format!("cannot make {}", own.path().display()))
}

/// `netd clean`: the pins of every identity that this namespace's node had, and those of `uuid` in `cluster`.
///
/// # Errors
/// What cannot be removed; the rest is.
pub(crate) fn remove(bpf_dir: &Path, cluster: &str, uuid: Option<Uuid>, netns: u64) -> Result<()> {
    let mut all = marks(bpf_dir)?;
    all.retain(|marked| {
        marked.netns == netns || (marked.cluster == bpf_dir.join(cluster) && Some(marked.uuid) == uuid)
    });
    // One that was made before there were marks.
    let own = uuid.map(|uuid| Marked { cluster: bpf_dir.join(cluster), netns, uuid });
    all.extend(own.into_iter().filter(|own| own.pins().is_dir()));
    all.sort();
    all.dedup();
    let mut outcome = Ok(());
    for marked in &all {
        outcome = outcome.and(marked.remove());
        // The folders above are the cluster's and everybody's: they go when they are empty.
        for above in marked.cluster.ancestors().take(2) {
            if std::fs::remove_dir(above).is_err() {
                break;
            }
        }
    }
    outcome
}

impl Marked {
    fn path(&self) -> PathBuf {
        self.cluster.join(format!("{MARK}{}-{}", self.netns, self.uuid))
    }

    fn pins(&self) -> PathBuf {
        self.cluster.join(self.uuid.to_string())
    }

    /// The pins of every ABI version, then the mark: what was cut off is found again by it.
    fn remove(&self) -> Result<()> {
        let pins = self.pins();
        for version in entries(&pins)? {
            let removed = ebpf_loader::remove_all(&version)?;
            tracing::info!(dir = %version.display(), ?removed, "removed");
        }
        remove_dir(&pins)?;
        remove_dir(&self.path())
    }
}

/// Every mark below `bpf_dir`.
fn marks(bpf_dir: &Path) -> Result<Vec<Marked>> {
    let mut marks = Vec::new();
    for cluster in entries(bpf_dir)?.into_iter().filter(|path| path.is_dir()) {
        for entry in entries(&cluster)? {
            let name = entry.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let parts = name.strip_prefix(MARK).and_then(|rest| rest.split_once('-'));
            let Some((netns, uuid)) = parts else { continue };
            if let (Ok(netns), Ok(uuid)) = (netns.parse(), Uuid::parse_str(uuid)) {
                marks.push(Marked { cluster: cluster.clone(), netns, uuid });
            }
        }
    }
    marks.sort();
    Ok(marks)
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    match std::fs::read_dir(dir) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<_>>()
            .with_context(|| dir.display().to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| dir.display().to_string()),
    }
}

fn remove_dir(dir: &Path) -> Result<()> {
    match std::fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| dir.display().to_string())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: u64 = 4_026_531_840;
    const ELSEWHERE: u64 = 4_026_532_001;

    fn node(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    /// What [`crate::node::Node::pin_dir`] has in it, as far as it is no BPF object.
    fn pinned(bpf_dir: &Path, cluster: &str, uuid: Uuid) -> PathBuf {
        let dir = bpf_dir.join(cluster).join(uuid.to_string());
        std::fs::create_dir_all(dir.join("1/links")).unwrap();
        dir
    }

    #[test]
    fn a_new_identity_takes_over_from_the_old_one_of_its_namespace_and_from_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        let [old, other, strange] = [1, 2, 3].map(|number| pinned(at, "weft", node(number)));
        take_over(at, "weft", node(1), HERE).unwrap();
        take_over(at, "weft", node(2), ELSEWHERE).unwrap();
        // The same identity again: nothing goes.
        take_over(at, "weft", node(1), HERE).unwrap();
        assert!(old.is_dir() && other.is_dir());
        let renamed = pinned(at, "other", node(9));
        take_over(at, "other", node(9), HERE).unwrap();
        assert!(!old.exists(), "the cluster was renamed: its old pins would stay for ever");
        let new = pinned(at, "weft", node(4));
        take_over(at, "weft", node(4), HERE).unwrap();
        assert!(!renamed.exists() && new.is_dir());
        assert!(other.is_dir(), "another live node's pins");
        assert!(strange.is_dir(), "pins without a mark are nobody's that we know");
        take_over(at, "weft", node(4), HERE).unwrap();
        assert!(new.is_dir());
    }

    #[test]
    fn a_number_of_a_namespace_that_comes_again_costs_nobody_its_pins() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        let moved = pinned(at, "weft", node(1));
        take_over(at, "weft", node(1), HERE).unwrap();
        take_over(at, "weft", node(1), ELSEWHERE).unwrap();
        pinned(at, "weft", node(2));
        take_over(at, "weft", node(2), HERE).unwrap();
        assert!(moved.is_dir());
    }

    #[test]
    fn a_clean_removes_former_identities_too_also_when_the_state_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        let (mine, unmarked, other) =
            (pinned(at, "weft", node(1)), pinned(at, "weft", node(2)), pinned(at, "weft", node(3)));
        take_over(at, "weft", node(1), HERE).unwrap();
        take_over(at, "weft", node(3), ELSEWHERE).unwrap();
        remove(at, "weft", None, HERE).unwrap();
        assert!(!mine.exists() && other.is_dir() && unmarked.is_dir());
        // By its UUID, as of a version that made no marks.
        remove(at, "weft", Some(node(2)), HERE).unwrap();
        assert!(!unmarked.exists() && other.is_dir());
        remove(at, "weft", Some(node(3)), ELSEWHERE).unwrap();
        assert!(!at.join("weft").exists(), "{:?}", entries(&at.join("weft")));
        remove(at, "weft", None, HERE).unwrap();
    }
}
