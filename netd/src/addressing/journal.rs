// SPDX-License-Identifier: Apache-2.0
//! The address journal on disk. An entry is durable before anyone hears of the address it gives.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use ipam::{Allocator, JournalEntry};
use uuid::Uuid;

use crate::files::write_atomically;

const FILE: &str = "ipam.journal";
/// A journal is rewritten as a snapshot once it has grown past this: some ten thousand changes.
const COMPACT_BYTES: u64 = 2 * 1024 * 1024;

/// Appends entries; one writer.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    bytes: u64,
    compact_at: u64,
}

impl Journal {
    /// Reads the journal in `state_dir` and rebuilds the allocator from it. A torn last line (a crash while writing) is cut
    /// off and reported; other damage is an error that names the line.
    pub(crate) fn open(state_dir: &Path, node: Uuid, cool_down: Duration) -> Result<(Self, Allocator)> {
        let path = state_dir.join(FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e).with_context(|| path.display().to_string()),
        };
        let read = ipam::journal::read(&bytes).with_context(|| {
            format!("{} is damaged; restore it, or move it away: addresses of running pods are then taken from the store", path.display())
        })?;
        if let Some(dropped) = &read.dropped {
            tracing::warn!(file = %path.display(), %dropped, "the last line was torn by a crash and is dropped");
        }
        let allocator = Allocator::rebuild(node, cool_down, read.entries)
            .map_err(|(index, error)| anyhow::anyhow!("{}: entry {}: {error}", path.display(), index + 1))?;
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| path.display().to_string())?;
        if read.valid_bytes != bytes.len() {
            file.set_len(read.valid_bytes as u64)?;
        }
        let mut bytes = read.valid_bytes as u64;
        if read.newline_missing {
            file.write_all(b"\n")?;
            bytes += 1;
        }
        let mut journal = Self { path, file, bytes, compact_at: COMPACT_BYTES };
        if read.valid_bytes == 0 {
            journal.compact(&allocator)?;
        }
        Ok((journal, allocator))
    }

    /// Appends and makes durable, but for entries that only say that an address is in use or free again: after a crash of
    /// the machine nothing is in use, and one that is free again is only kept too long. They reach the disk with the next.
    pub(crate) fn append(&mut self, entries: &[JournalEntry]) -> Result<()> {
        let text: String = entries.iter().map(JournalEntry::encode).collect();
        let lazy = |entry: &JournalEntry| {
            matches!(entry, JournalEntry::Commit { .. } | JournalEntry::Release { .. })
        };
        let sync = |file: &File| if entries.iter().all(lazy) { Ok(()) } else { file.sync_data() };
        let outcome = self.file.write_all(text.as_bytes()).and_then(|()| sync(&self.file));
        if outcome.is_err() {
            // Half a line must not stay in front of the next entry.
            let _ = self.file.set_len(self.bytes);
        }
        outcome.with_context(|| format!("cannot write {}", self.path.display()))?;
        self.bytes += text.len() as u64;
        Ok(())
    }

    /// Rewrites the journal as a snapshot of `allocator` when it has grown long.
    pub(crate) fn compact_if_long(&mut self, allocator: &Allocator) -> Result<()> {
        if self.bytes < self.compact_at { Ok(()) } else { self.compact(allocator) }
    }

    /// Rewrites the journal as a snapshot of `allocator`, whatever it held.
    pub(crate) fn compact(&mut self, allocator: &Allocator) -> Result<()> {
        let text: String = allocator.snapshot().iter().map(JournalEntry::encode).collect();
        write_atomically(&self.path, text.as_bytes())
            .with_context(|| format!("cannot rewrite {}", self.path.display()))?;
        self.file = OpenOptions::new().append(true).open(&self.path)?;
        self.bytes = text.len() as u64;
        // A snapshot that is long by itself is not rewritten at each change.
        self.compact_at = COMPACT_BYTES.max(self.bytes * 2);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ipam::{AttachmentKey, BlockRecord, Family, Owner, Pool, Timestamp, Want};

    use super::*;

    const COOL: Duration = Duration::from_secs(30);

    fn block(node: Uuid) -> BlockRecord {
        let pool = Pool::new("default", "10.244.0.0/16".parse().unwrap(), None);
        BlockRecord::claimed(&pool, "10.244.1.0/26".parse().unwrap(), node)
    }

    fn any() -> Want {
        Want::any([Family::V4])
    }

    fn owner(id: &str) -> Owner {
        Owner::Attachment(AttachmentKey {
            network: "weft".into(),
            container_id: id.into(),
            ifname: "eth0".into(),
        })
    }

    #[test]
    fn what_was_answered_for_is_there_after_a_crash_with_a_torn_line() {
        let (dir, node) = (tempfile::tempdir().unwrap(), Uuid::new_v4());
        let (mut journal, mut allocator) = Journal::open(dir.path(), node, COOL).unwrap();
        let entry = allocator.add_block(block(node)).unwrap().unwrap();
        journal.append(&[entry]).unwrap();
        let (ips, entries) = allocator.allocate(&owner("a"), &any(), Timestamp(1)).unwrap();
        journal.append(&entries).unwrap();
        drop(journal);
        let path = dir.path().join(FILE);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(b"0000");
        std::fs::write(&path, bytes).unwrap();
        let (mut journal, again) = Journal::open(dir.path(), node, COOL).unwrap();
        assert_eq!(again.addresses_of(&owner("a")), ips);
        assert_eq!(again, allocator);
        let (_, entries) = allocator.allocate(&owner("b"), &any(), Timestamp(2)).unwrap();
        journal.append(&entries).unwrap();
        let (_, third) = Journal::open(dir.path(), node, COOL).unwrap();
        assert_eq!(third, allocator);
    }

    #[test]
    fn a_compacted_journal_rebuilds_the_same_allocator() {
        let (dir, node) = (tempfile::tempdir().unwrap(), Uuid::new_v4());
        let (mut journal, mut allocator) = Journal::open(dir.path(), node, COOL).unwrap();
        let mut entries = vec![allocator.add_block(block(node)).unwrap().unwrap()];
        for i in 0..20 {
            entries.extend(allocator.allocate(&owner(&i.to_string()), &any(), Timestamp(i)).unwrap().1);
        }
        entries.extend(allocator.release(&owner("3"), Timestamp(30)).unwrap().1);
        journal.append(&entries).unwrap();
        journal.compact(&allocator).unwrap();
        let (_, again) = Journal::open(dir.path(), node, COOL).unwrap();
        assert_eq!(again, allocator);
    }
}
