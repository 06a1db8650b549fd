// SPDX-License-Identifier: Apache-2.0
//! The log on the disk: appended to, and replaced as a whole.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::line::{ChangeLine, KeyLine, Line, SCHEMA, SnapshotLine};
use super::read::read;
use crate::StoreError;
use crate::state::{Change, State};

const FILE: &str = "store.log";

/// A log that has grown by this much since its snapshot is written anew, in bytes: some ten thousand changes, read in a blink.
const GROWTH_BYTES: u64 = 8 * 1024 * 1024;

/// The file, its length, and whether it can be believed.
#[derive(Debug)]
pub(super) struct Log {
    dir: PathBuf,
    path: PathBuf,
    file: File,
    /// Of the whole lines that are durable.
    bytes: u64,
    /// When [`Log::is_long`] says so.
    long_at: u64,
    broken: bool,
}

impl Log {
    /// Reads the log in `dir`, or begins one.
    pub(super) fn open(dir: &Path) -> Result<(Self, State), StoreError> {
        let path = dir.join(FILE);
        let file = File::options().append(true).open(&path);
        let file = match file {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let state = State::default();
                replace(dir, &path, &snapshot(&state)).map_err(|e| unavailable(&path, &e))?;
                File::options().append(true).open(&path).map_err(|e| unavailable(&path, &e))?
            }
            Err(error) => return Err(unavailable(&path, &error)),
        };
        let content = fs::read(&path).map_err(|e| unavailable(&path, &e))?;
        let log = read(&content).map_err(|damage| StoreError::Damaged {
            path: path.clone(),
            line: damage.line,
            reason: damage.reason,
        })?;
        let bytes = log.valid_bytes as u64;
        if let Some(torn) = log.torn {
            let (line, cut) = (torn.line, content.len() - log.valid_bytes);
            tracing::warn!(file = %path.display(), line, bytes = cut, "the last line was torn by a crash and is dropped");
            let cut = file.set_len(bytes).and_then(|()| file.sync_all());
            cut.map_err(|e| unavailable(&path, &e))?;
        }
        let long_at = long_at(log.snapshot_bytes as u64);
        Ok((Self { dir: dir.to_owned(), path, file, bytes, long_at, broken: false }, log.state))
    }

    /// What errors name.
    pub(super) fn endpoint(&self) -> String {
        self.path.display().to_string()
    }

    /// Appends and makes durable. After an error the change is not in the log, unless [`Log::is_broken`].
    pub(super) fn append(&mut self, change: &Change) -> Result<(), StoreError> {
        let line = Line::Change(ChangeLine::new(change)).encode();
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // Neither half a line nor a whole one that nobody was told of may stay.
            let undone = self.file.set_len(self.bytes).and_then(|()| self.file.sync_all());
            self.broken = undone.is_err();
            return Err(unavailable(&self.path, &error));
        }
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// The log has grown far past its snapshot.
    pub(super) fn is_long(&self) -> bool {
        self.bytes >= self.long_at
    }

    /// What is on the disk is not known, after a write that could not be undone: only [`Log::replace`] mends it.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Puts a whole new log in place of this one.
    pub(super) fn replace(&mut self, snapshot: &[u8]) -> Result<(), StoreError> {
        let replaced = replace(&self.dir, &self.path, snapshot)
            .and_then(|()| File::options().append(true).open(&self.path));
        match replaced {
            Ok(file) => {
                let bytes = snapshot.len() as u64;
                (self.file, self.bytes, self.long_at, self.broken) = (file, bytes, long_at(bytes), false);
                Ok(())
            }
            Err(error) => {
                // Which of the two files is in the directory is not known, so nothing may be appended to either.
                self.broken = self.broken || !self.is_in_place();
                self.long_at = self.bytes + GROWTH_BYTES / 8;
                Err(unavailable(&self.path, &error))
            }
        }
    }

    /// Whether the path still leads to the file that is open.
    fn is_in_place(&self) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        let ours = self.file.metadata().map(|it| (it.dev(), it.ino())).ok();
        let named = fs::metadata(&self.path).map(|it| (it.dev(), it.ino())).ok();
        ours.is_some() && ours == named
    }
}

/// An error that time or an operator may mend.
pub(super) fn unavailable(path: &Path, error: &io::Error) -> StoreError {
    StoreError::Unavailable { endpoint: path.display().to_string(), reason: error.to_string() }
}

/// A snapshot that is long by itself is not rewritten at each change.
fn long_at(snapshot_bytes: u64) -> u64 {
    snapshot_bytes + snapshot_bytes.max(GROWTH_BYTES)
}

/// The shortest log that gives this state.
pub(super) fn snapshot(state: &State) -> Vec<u8> {
    let items = state.items();
    let header = SnapshotLine { schema: SCHEMA, revision: state.revision, keys: items.len() as u64 };
    let mut text = Line::Snapshot(header).encode();
    for (key, item) in items {
        text.extend(Line::Key(KeyLine::new(key, item)).encode());
    }
    text
}

/// The old content or the new one after a crash: a file beside it, fsync, rename, fsync of the directory.
fn replace(dir: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("tmp");
    let written = (|| {
        let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        File::open(dir)?.sync_all()
    })();
    if written.is_err() {
        // A full disk must not stay fuller than it was.
        let _ = fs::remove_file(&beside);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Transaction;

    fn put(state: &State, value: String) -> Change {
        state.plan(Transaction::new().put("/a", value)).unwrap().unwrap()
    }

    #[test]
    fn a_write_that_cannot_be_undone_is_mended_by_a_whole_new_log() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, mut state) = Log::open(dir.path()).unwrap();
        let change = put(&state, "1".into());
        log.append(&change).unwrap();
        state.apply(change);
        // A handle that takes neither writes nor cuts.
        log.file = File::open(&log.path).unwrap();
        let error = log.append(&put(&state, "2".into())).unwrap_err();
        assert!(error.is_ambiguous() && log.is_broken(), "{error}");

        log.replace(&snapshot(&state)).unwrap();
        assert!(!log.is_broken());
        let change = put(&state, "3".into());
        log.append(&change).unwrap();
        state.apply(change);
        let (_, again) = Log::open(dir.path()).unwrap();
        assert_eq!((again.revision, again.list("/")), (3, state.list("/")));
    }

    #[test]
    fn a_log_that_cannot_be_replaced_goes_on_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, mut state) = Log::open(dir.path()).unwrap();
        // Nothing can be written where the file beside it would be.
        fs::create_dir_all(log.path.with_extension("tmp").join("x")).unwrap();
        log.replace(&snapshot(&state)).unwrap_err();
        assert!(!log.is_broken());
        let change = put(&state, "1".into());
        log.append(&change).unwrap();
        state.apply(change);
        assert_eq!(Log::open(dir.path()).unwrap().1.list("/"), state.list("/"));
    }
}
