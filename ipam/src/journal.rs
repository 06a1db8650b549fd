// SPDX-License-Identifier: Apache-2.0
//! The journal: what happened to this node's addresses, one line for each change.
//!
//! A line is eight hex digits of CRC-32 over the rest, a blank, JSON, a newline. A line counts from the moment its
//! newline is on disk. A crash may leave the last line torn: it was never answered for, so it is dropped and
//! reported. All addresses of an owner change in one line, so that a crash never leaves it with half of them. Damage
//! anywhere else means that the disk lost something that was answered for, and is an error.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::block::BlockRecord;
use crate::owner::Owner;
use crate::time::Timestamp;

/// Longest line in bytes. The longest real one holds a full block of 1,024 allocations, some 200 KiB.
pub const LINE_BYTES_MAX: usize = 1 << 20;

/// One change. `sequence` counts the changes of this node and never repeats. Lines with one address, and all that had no
/// others before there were families, look as they always did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JournalEntry {
    /// An address was given to an owner, pending.
    Allocate {
        /// Number of the change.
        sequence: u64,
        /// When.
        at: Timestamp,
        /// The address.
        ip: IpAddr,
        /// The owner's addresses of other families.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        also: Vec<IpAddr>,
        /// Who has it now.
        owner: Owner,
    },
    /// A block came to this node, or its state changed. Allocations in it are taken over as committed.
    Block {
        /// The block.
        record: BlockRecord,
    },
    /// A block left this node, with everything in it.
    BlockRemoved {
        /// Its prefix.
        cidr: IpNet,
    },
    /// A pending address is in use now.
    Commit {
        /// Number of the change.
        sequence: u64,
        /// When.
        at: Timestamp,
        /// The address.
        ip: IpAddr,
        /// The owner's addresses of other families.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        also: Vec<IpAddr>,
        /// Who has it.
        owner: Owner,
    },
    /// An address was given back; its cool-down begins.
    Release {
        /// Number of the change.
        sequence: u64,
        /// When.
        at: Timestamp,
        /// The address.
        ip: IpAddr,
        /// The owner's addresses of other families.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        also: Vec<IpAddr>,
        /// Who had it.
        owner: Owner,
    },
    /// All addresses of an owner belong to another one now.
    Rename {
        /// Number of the change.
        sequence: u64,
        /// Who had them.
        from: Owner,
        /// Who has them.
        to: Owner,
    },
    /// First line of a compacted journal.
    Snapshot {
        /// Whose journal this is.
        node: Uuid,
        /// Number of the next change.
        next_sequence: u64,
    },
}

/// A line that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("journal line {line} is damaged: {reason}")]
pub struct JournalError {
    /// Line number, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: String,
}

/// A journal as read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Journal {
    /// All good entries, in order.
    pub entries: Vec<JournalEntry>,
    /// The last line, where it was damaged: report it.
    pub dropped: Option<JournalError>,
    /// Length in bytes of the good lines: truncate the file to this before appending.
    pub valid_bytes: usize,
    /// The last good line has no newline: append one before the next entry.
    pub newline_missing: bool,
}

impl JournalEntry {
    /// The line with its newline.
    pub fn encode(&self) -> String {
        // Only maps with keys that are no text could fail, and the entry has none.
        let json = serde_json::to_string(self).unwrap_or_default();
        format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()))
    }

    /// Reads a line, with or without its newline. `line` is its number, for the error.
    pub fn decode(line: usize, text: &[u8]) -> Result<JournalEntry, JournalError> {
        let damaged = |reason: String| JournalError { line, reason };
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        if text.len() > LINE_BYTES_MAX {
            return Err(damaged(format!("it has {} bytes, more than {LINE_BYTES_MAX}", text.len())));
        }
        let (crc, json) = match text.split_at_checked(9) {
            Some((prefix, json)) if prefix.ends_with(b" ") => (&prefix[..8], json),
            _ => return Err(damaged("it does not begin with a checksum".to_owned())),
        };
        let crc = std::str::from_utf8(crc).ok().and_then(|hex| u32::from_str_radix(hex, 16).ok());
        let crc = crc.ok_or_else(|| damaged("it does not begin with a checksum".to_owned()))?;
        if crc != crc32fast::hash(json) {
            return Err(damaged("the checksum does not match".to_owned()));
        }
        serde_json::from_slice(json).map_err(|error| damaged(format!("it is not a journal entry: {error}")))
    }

    /// Number of the change, for entries that have one.
    pub fn sequence(&self) -> Option<u64> {
        match self {
            JournalEntry::Allocate { sequence, .. }
            | JournalEntry::Commit { sequence, .. }
            | JournalEntry::Release { sequence, .. }
            | JournalEntry::Rename { sequence, .. } => Some(*sequence),
            JournalEntry::Block { .. }
            | JournalEntry::BlockRemoved { .. }
            | JournalEntry::Snapshot { .. } => None,
        }
    }
}

/// Reads a whole journal. A damaged last line is dropped and reported; a damaged line before it is an error.
pub fn read(bytes: &[u8]) -> Result<Journal, JournalError> {
    let mut journal = Journal::default();
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n').enumerate().peekable();
    while let Some((index, text)) = lines.next() {
        match JournalEntry::decode(index + 1, text) {
            Ok(entry) => {
                journal.entries.push(entry);
                journal.valid_bytes += text.len();
                journal.newline_missing = !text.ends_with(b"\n");
            }
            Err(error) if lines.peek().is_none() && !holds_whole_entry(text) => {
                journal.dropped = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(journal)
}

/// Whether the line begins with an intact entry and goes on with something else: two lines whose newline was
/// damaged. The first of them was answered for, so this is not a torn line. Zeroes may follow a torn line, where a
/// crash came between the growth of the file and its data.
fn holds_whole_entry(text: &[u8]) -> bool {
    let json = text.get(9..).unwrap_or_default();
    let mut values = serde_json::Deserializer::from_slice(json).into_iter::<IgnoredAny>();
    if !matches!(values.next(), Some(Ok(_))) {
        return false;
    }
    let (entry, rest) = text.split_at(9 + values.byte_offset());
    JournalEntry::decode(0, entry).is_ok() && rest.iter().any(|byte| *byte != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(sequence: u64) -> JournalEntry {
        JournalEntry::Release {
            sequence,
            at: Timestamp(17),
            ip: "10.244.0.9".parse().unwrap(),
            also: Vec::new(),
            owner: "attachment/weft/c0ffee/eth0".parse().unwrap(),
        }
    }

    fn text(count: u64) -> Vec<u8> {
        (1..=count).map(|sequence| entry(sequence).encode()).collect::<String>().into_bytes()
    }

    #[test]
    fn line_looks_so() {
        assert_eq!(
            entry(4).encode(),
            "75ee14a6 {\"release\":{\"sequence\":4,\"at\":17,\"ip\":\"10.244.0.9\",\"owner\":\"attachment/weft/c0ffee/eth0\"}}\n"
        );
        assert_eq!(JournalEntry::decode(1, entry(4).encode().as_bytes()), Ok(entry(4)));
    }

    #[test]
    fn torn_last_line_is_dropped_and_reported_at_every_cut() {
        let whole = text(3);
        let two = text(2).len();
        for cut in two + 1..whole.len() - 1 {
            let journal = read(&whole[..cut]).unwrap();
            assert_eq!(journal.entries, [entry(1), entry(2)], "cut at {cut}");
            assert_eq!(journal.valid_bytes, two);
            assert_eq!(journal.dropped.unwrap().line, 3);
        }
    }

    #[test]
    fn only_the_newline_is_missing() {
        let whole = text(3);
        let journal = read(&whole[..whole.len() - 1]).unwrap();
        assert_eq!(journal.entries.len(), 3);
        assert!(journal.newline_missing && journal.dropped.is_none());
    }

    #[test]
    fn zeroes_after_a_crash_are_a_torn_line() {
        let mut whole = text(2);
        let valid = whole.len();
        whole.extend([0; 100]);
        let journal = read(&whole).unwrap();
        assert_eq!((journal.entries.len(), journal.valid_bytes), (2, valid));
        assert!(journal.dropped.is_some());
    }

    #[test]
    fn damaged_middle_line_is_an_error_that_names_it() {
        for position in 0..text(1).len() {
            let mut whole = text(3);
            let at = text(1).len() + position;
            whole[at] ^= 0x04;
            let error = read(&whole).unwrap_err();
            assert_eq!(error.line, 2, "byte {position}: {error}");
        }
    }

    #[test]
    fn empty_line_in_the_middle_is_damage() {
        let whole = [text(1), b"\n".to_vec(), text(1)].concat();
        assert_eq!(read(&whole).unwrap_err().line, 2);
        assert_eq!(read(b"").unwrap(), Journal::default());
    }
}
