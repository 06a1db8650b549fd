// SPDX-License-Identifier: Apache-2.0
//! Witnesses for attachments beyond netd's own books: the netns that the runtime named, and the runtime's cache of CNI
//! results. Only looked at, never written.

use std::collections::BTreeSet;
use std::path::Path;

use ipam::{AttachmentKey, Sight};
use nix::sys::statfs::{FsType, statfs};
use serde::Deserialize;

use crate::attachments::Attachment;
use crate::sweep::has_link;

/// `NSFS_MAGIC` (linux/magic.h): a namespace is mounted here.
const NSFS: FsType = FsType(0x6e73_6673);
/// `PROC_SUPER_MAGIC`: a namespace by its process, `/proc/PID/ns/net`.
const PROC: FsType = FsType(0x9fa0);
/// A cache entry is a config and a result; a larger file is something else.
const ENTRY_BYTES_MAX: u64 = 1024 * 1024;

/// Whether a network namespace is there, at the path that the runtime gave.
pub(crate) fn netns_exists(path: &str) -> bool {
    !path.is_empty() && statfs(path).is_ok_and(|stat| [NSFS, PROC].contains(&stat.filesystem_type()))
}

/// An entry of the runtime's cache (libcni, `cniCacheV1`).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    kind: String,
    container_id: String,
    if_name: String,
    network_name: String,
}

/// Attachments that the runtime still counts as added. `None` where there is no cache: then it says nothing about anybody.
pub(crate) fn runtime_cache(dir: &Path) -> Option<BTreeSet<AttachmentKey>> {
    let entries = std::fs::read_dir(dir.join("results")).ok()?;
    let mut found = BTreeSet::new();
    for entry in entries.flatten() {
        let fits = entry.metadata().is_ok_and(|meta| meta.is_file() && meta.len() <= ENTRY_BYTES_MAX);
        // An entry that does not read is no witness; the runtime may be writing it.
        let Some(Ok(text)) = fits.then(|| std::fs::read(entry.path())) else { continue };
        if let Ok(entry) = serde_json::from_slice::<Entry>(&text)
            && entry.kind == "cniCacheV1"
        {
            found.insert(AttachmentKey::new(entry.network_name, entry.container_id, entry.if_name));
        }
    }
    Some(found)
}

/// What is seen of an attachment now. `cache` is what [`runtime_cache`] found.
pub(crate) fn sight(attachment: &Attachment, cache: Option<&BTreeSet<AttachmentKey>>) -> Sight {
    Sight {
        link: has_link(attachment),
        netns: netns_exists(&attachment.netns),
        listed: cache.is_some_and(|cache| cache.contains(&attachment.key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_the_cache_are_read_and_other_files_are_not() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(runtime_cache(dir.path()), None);
        let results = dir.path().join("results");
        std::fs::create_dir(&results).unwrap();
        let good = r#"{"kind":"cniCacheV1","containerId":"c1","config":"e30=","ifName":"eth0","networkName":"weft","result":{}}"#;
        std::fs::write(results.join("weft-c1-eth0"), good).unwrap();
        std::fs::write(results.join("half"), &good[..20]).unwrap();
        std::fs::write(results.join("other"), good.replace("cniCacheV1", "x")).unwrap();
        let expected = [AttachmentKey::new("weft", "c1", "eth0")].into();
        assert_eq!(runtime_cache(dir.path()), Some(expected));
    }

    #[test]
    fn a_netns_is_a_mounted_namespace_and_not_any_file() {
        assert!(netns_exists("/proc/self/ns/net"));
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(!netns_exists(file.path().to_str().unwrap()));
        assert!(!netns_exists("/nowhere") && !netns_exists(""));
    }
}
