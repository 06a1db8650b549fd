// SPDX-License-Identifier: Apache-2.0
//! This node's private keys: a file for each generation, readable by root alone. They are made here and never leave.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, anyhow};
use netd_wireguard::PrivateKey;

use crate::files::{remove_if_there, sync_dir};

const FOLDER: &str = "wireguard";
const SUFFIX: &str = ".key";

/// A key and when it was made.
#[derive(Clone, Debug)]
pub(crate) struct OwnKey {
    pub generation: u64,
    pub private: PrivateKey,
    /// Milliseconds since the Unix epoch.
    pub made_ms: u64,
}

/// The folder of key files.
#[derive(Debug)]
pub(crate) struct KeyFiles {
    dir: PathBuf,
}

impl KeyFiles {
    pub(crate) fn open(state_dir: &Path) -> Result<Self> {
        let dir = state_dir.join(FOLDER);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("cannot make {}", dir.display()))?;
        tighten(&dir, 0o700)?;
        Ok(Self { dir })
    }

    /// All keys, oldest generation first. A file that holds no key is an error and stays where it is: a person may have a
    /// backup, and peers know this node by the key.
    pub(crate) fn load(&self) -> Result<Vec<OwnKey>> {
        let mut keys = Vec::new();
        for entry in fs::read_dir(&self.dir).with_context(|| self.dir.display().to_string())? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some(generation) = name.strip_suffix(SUFFIX).and_then(|number| number.parse().ok()) else {
                continue;
            };
            tighten(&path, 0o600)?;
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let private = text.trim().parse().map_err(|error| {
                anyhow!("{}: {error}; restore it, or remove it to have a new key made", path.display())
            })?;
            let modified = fs::metadata(&path)?.modified()?;
            let made_ms = modified.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
            keys.push(OwnKey { generation, private, made_ms });
        }
        keys.sort_by_key(|key| key.generation);
        Ok(keys)
    }

    /// Makes the key of a generation; durable before it is used.
    pub(crate) fn make(&self, generation: u64) -> Result<()> {
        let path = self.path(generation);
        let temporary = path.with_extension("tmp");
        remove_if_there(&temporary)?;
        let private = PrivateKey::generate().context("no random numbers for a key")?;
        let write = || -> std::io::Result<()> {
            use std::io::Write as _;
            let mut file =
                fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            writeln!(file, "{}", private.to_base64().as_str())?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            sync_dir(&self.dir)
        };
        write().with_context(|| format!("cannot write the key {}", path.display()))
    }

    /// Forgets the key of a generation; absent is fine.
    pub(crate) fn remove(&self, generation: u64) -> Result<()> {
        let path = self.path(generation);
        // Synced: a key that peers count as gone is not back after a power cut.
        remove_if_there(&path)
            .and_then(|()| sync_dir(&self.dir))
            .with_context(|| format!("cannot remove {}", path.display()))
    }

    fn path(&self, generation: u64) -> PathBuf {
        self.dir.join(format!("{generation}{SUFFIX}"))
    }
}

/// Takes from a file or folder what others than its owner may do with it, and says so: a backup may have brought it back
/// like that.
fn tighten(path: &Path, mode: u32) -> Result<()> {
    let found = fs::metadata(path).with_context(|| path.display().to_string())?.permissions().mode() & 0o777;
    if found & !mode == 0 {
        return Ok(());
    }
    tracing::warn!(
        path = %path.display(),
        found = format!("{found:o}"),
        now = format!("{mode:o}"),
        "others than root could read this node's private keys: `weft key rotate` makes new ones"
    );
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("{}: cannot be made root's alone", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_and_only_root_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let files = KeyFiles::open(dir.path()).unwrap();
        files.make(2).unwrap();
        files.make(10).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&files.dir), mode(&files.path(2))), (0o700, 0o600));
        let first = files.load().unwrap();
        assert_eq!(first.iter().map(|key| key.generation).collect::<Vec<_>>(), [2, 10]);
        let again = KeyFiles::open(dir.path()).unwrap().load().unwrap();
        assert_eq!(again[0].private.public(), first[0].private.public());
        files.remove(2).unwrap();
        files.remove(2).unwrap();
        assert_eq!(files.load().unwrap().len(), 1);
    }

    #[test]
    fn keys_that_others_can_read_are_closed_to_them() {
        let dir = tempfile::tempdir().unwrap();
        let files = KeyFiles::open(dir.path()).unwrap();
        files.make(4).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        fs::set_permissions(files.path(4), fs::Permissions::from_mode(0o644)).unwrap();
        fs::set_permissions(&files.dir, fs::Permissions::from_mode(0o755)).unwrap();
        let files = KeyFiles::open(dir.path()).unwrap();
        assert_eq!(files.load().unwrap().len(), 1);
        assert_eq!((mode(&files.dir), mode(&files.path(4))), (0o700, 0o600));
    }

    #[test]
    fn a_damaged_key_is_named_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let files = KeyFiles::open(dir.path()).unwrap();
        fs::write(files.path(3), "nonsense").unwrap();
        let error = format!("{:#}", files.load().unwrap_err());
        assert!(error.contains("3.key") && error.contains("remove it"), "{error}");
        assert!(files.path(3).exists());
    }
}
