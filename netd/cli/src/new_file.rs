// SPDX-License-Identifier: Apache-2.0
//! A file with a secret: whole or not there, for its owner alone, and never in the place of another.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use tempfile::NamedTempFile;

/// Begun beside its place, under another name.
#[derive(Debug)]
pub(crate) struct NewFile {
    path: PathBuf,
    begun: NamedTempFile,
}

impl NewFile {
    /// Refused where there is something at that path already, or nothing can be written there.
    pub(crate) fn beside(path: &Path) -> anyhow::Result<Self> {
        if path.symlink_metadata().is_ok() {
            bail!(
                "{} is there already, and may hold the only copy of a private key: name another file",
                path.display()
            );
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let begun = tempfile::Builder::new().prefix(".weft-").tempfile_in(folder);
        let begun = begun.with_context(|| format!("cannot write into {}", folder.display()))?;
        Ok(Self { path: path.to_owned(), begun })
    }

    /// The file appears under its name.
    pub(crate) fn fill(mut self, text: &str) -> anyhow::Result<PathBuf> {
        let written = self.begun.write_all(text.as_bytes()).and_then(|()| self.begun.as_file().sync_all());
        written.with_context(|| format!("cannot write {}", self.begun.path().display()))?;
        match self.begun.persist_noclobber(&self.path) {
            Ok(_) => Ok(self.path),
            Err(refused) => {
                let why = refused.error;
                let kept = refused.file.keep().map(|(_, path)| path.display().to_string());
                let kept = kept.unwrap_or_else(|_| "nowhere".to_owned());
                Err(anyhow!("cannot write {}: {why}; what belongs there is in {kept}", self.path.display()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn it_is_its_owners_and_never_replaces_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weft0.conf");
        let (first, second) = (NewFile::beside(&path).unwrap(), NewFile::beside(&path).unwrap());
        assert_eq!(first.fill("one").unwrap(), path);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(NewFile::beside(&path).is_err_and(|error| error.to_string().contains("is there already")));
        // Somebody was quicker: what was made is not lost.
        let error = second.fill("two").unwrap_err().to_string();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
        let kept = error.rsplit_once("is in ").unwrap().1;
        assert_eq!(fs::read_to_string(kept).unwrap(), "two", "{error}");
        assert!(NewFile::beside(&folder.path().join("missing/weft0.conf")).is_err());
    }

    #[test]
    fn what_fails_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        drop(NewFile::beside(&folder.path().join("weft0.conf")).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
