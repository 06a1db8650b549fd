// SPDX-License-Identifier: Apache-2.0
//! The queue of DELs that found no netd: one file for each, in a folder beside the socket.
//!
//! weft-cni writes, netd reads: at start, before it accepts ADD, and then now and again (a DEL may have been given
//! up while netd was starting). Releasing is idempotent, so an entry that is replayed twice does no harm; an entry
//! is removed only after its release succeeded. An ADD settles the entry of its own attachment before it allocates,
//! so a replay takes the attachment's lock and then looks whether the file still exists.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::attachment::{AttachmentId, ReleaseRequest};

/// The folder's name; it lies in the socket's folder.
pub const DEFERRED_DIR: &str = "deferred-del";

/// Entries that may wait: more pods than any node runs in a day without netd. Beyond it DEL fails and the runtime
/// keeps it instead.
pub const DEFERRED_ENTRIES_MAX: usize = 65_536;

/// The largest entry that is read, in bytes: three names fit many times over.
const ENTRY_BYTES_MAX: u64 = 64 * 1024;

/// The schema that this version writes; it reads this one only.
const SCHEMA: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Entry {
    schema: u32,
    #[serde(flatten)]
    release: ReleaseRequest,
}

/// A waiting entry.
#[derive(Debug)]
pub struct Deferred {
    /// Its file; hand it to [`remove`] once the release succeeded.
    pub path: PathBuf,
    /// The release, or why the file cannot be read as one.
    pub release: Result<ReleaseRequest, String>,
}

/// The queue's folder for a socket.
pub fn dir(socket: &Path) -> PathBuf {
    socket.parent().unwrap_or(Path::new("/")).join(DEFERRED_DIR)
}

/// The file of an attachment's release, whether it waits or not.
pub fn path(socket: &Path, id: &AttachmentId) -> PathBuf {
    dir(socket).join(format!("{}.json", file_stem(id)))
}

/// Puts a release into the queue, durably: when this returns, the entry outlives a crash. Putting the same one
/// again replaces it. Errors: the file system's; [`io::ErrorKind::StorageFull`] where [`DEFERRED_ENTRIES_MAX`]
/// entries wait already.
pub fn enqueue(socket: &Path, release: &ReleaseRequest) -> io::Result<PathBuf> {
    let dir = dir(socket);
    fs::create_dir_all(&dir)?;
    if fs::read_dir(&dir)?.count() >= DEFERRED_ENTRIES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!("{} holds {DEFERRED_ENTRIES_MAX} entries: start netd, it replays them", dir.display()),
        ));
    }
    let path = path(socket, release);
    // The process ID keeps two writers of the same entry apart until the rename.
    let draft = path.with_extension(format!("{}.tmp", std::process::id()));
    let entry = serde_json::to_vec(&Entry { schema: SCHEMA, release: release.clone() })?;
    let written = (|| {
        let mut file = File::create(&draft)?;
        file.write_all(&entry)?;
        file.sync_all()?;
        fs::rename(&draft, &path)?;
        File::open(&dir)?.sync_all()
    })();
    if let Err(error) = written {
        let _ = fs::remove_file(&draft);
        return Err(error);
    }
    Ok(path)
}

/// The waiting entries, by file name. A folder that does not exist is an empty queue; half-written drafts are not
/// entries. Errors: the folder cannot be read.
pub fn entries(socket: &Path) -> io::Result<Vec<Deferred>> {
    let listing = match fs::read_dir(dir(socket)) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths = Vec::new();
    for item in listing {
        let path = item?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths.into_iter().map(|path| Deferred { release: read(&path), path }).collect())
}

/// Removes an entry; one that is gone already is fine.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<ReleaseRequest, String> {
    let size = fs::metadata(path).map_err(|e| e.to_string())?.len();
    if size > ENTRY_BYTES_MAX {
        return Err(format!("{size} bytes, at most {ENTRY_BYTES_MAX} are read"));
    }
    let bytes = fs::read(path).map_err(|e| e.to_string())?;
    let entry: Entry = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
    if entry.schema != SCHEMA {
        return Err(format!("schema {}, this version reads {SCHEMA}", entry.schema));
    }
    Ok(entry.release)
}

/// Hex of a hash, since container IDs have no length limit and file names do.
fn file_stem(id: &AttachmentId) -> String {
    let digest = Sha256::digest(id.to_string().as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(container: &str) -> ReleaseRequest {
        AttachmentId { network: "weft".into(), container_id: container.into(), ifname: "eth0".into() }
    }

    #[test]
    fn a_release_waits_once_and_is_removed_once() {
        let run = tempfile::tempdir().unwrap();
        let socket = run.path().join("netd.sock");
        assert!(entries(&socket).unwrap().is_empty());

        let path = enqueue(&socket, &id("c1")).unwrap();
        assert_eq!(enqueue(&socket, &id("c1")).unwrap(), path);
        enqueue(&socket, &id(&"long".repeat(200))).unwrap();
        let waiting = entries(&socket).unwrap();
        assert_eq!(waiting.len(), 2);
        let found = waiting.iter().find(|entry| entry.path == path).unwrap();
        assert_eq!(found.release, Ok(id("c1")));

        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(entries(&socket).unwrap().len(), 1);
    }

    #[test]
    fn a_damaged_entry_is_named_and_the_others_are_read() {
        let run = tempfile::tempdir().unwrap();
        let socket = run.path().join("netd.sock");
        enqueue(&socket, &id("c1")).unwrap();
        fs::write(dir(&socket).join("0.json"), "{half").unwrap();
        fs::write(
            dir(&socket).join("1.json"),
            r#"{"schema":9,"network":"n","container_id":"c","ifname":"e"}"#,
        )
        .unwrap();
        fs::write(dir(&socket).join("draft.1.tmp"), "").unwrap();

        let waiting = entries(&socket).unwrap();
        assert_eq!(waiting.len(), 3);
        assert!(waiting[0].release.is_err());
        assert_eq!(waiting[1].release, Err("schema 9, this version reads 1".into()));
        assert!(waiting[2].release.is_ok());
    }
}
