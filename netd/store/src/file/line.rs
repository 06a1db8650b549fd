// SPDX-License-Identifier: Apache-2.0
//! A line of the log: `<crc32 of the JSON, 8 hex digits> <length of the JSON, 8 hex digits> <JSON>`, and a newline.
//!
//! Text, so that an operator can read it. The length tells an intact line whose newline is damaged from a torn one.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::state::{Change, Item};
use crate::{LeaseId, Put};

/// Version of this format. A file with a higher one was written by a newer version.
pub(super) const SCHEMA: u32 = 1;

/// Checksum, blank, length, blank.
const PREFIX_BYTES: usize = 18;

/// The JSON of a line, in bytes: a full transaction of which every byte is escaped as `\u00xx`, and its keys.
const JSON_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What a line says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Line {
    /// All that happened at one revision.
    Change(ChangeLine),
    /// A key of the snapshot.
    Key(KeyLine),
    /// The first line: so many keys follow, as they were at this revision.
    Snapshot(SnapshotLine),
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SnapshotLine {
    pub(super) schema: u32,
    pub(super) revision: u64,
    pub(super) keys: u64,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeyLine {
    pub(super) key: String,
    created: u64,
    modified: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lease: Option<i64>,
    value: Value,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChangeLine {
    pub(super) revision: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    puts: Vec<PutLine>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    deletes: Vec<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PutLine {
    key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lease: Option<i64>,
    value: Value,
}

/// Text as it is; other bytes in hex.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Value {
    Hex { hex: String },
    Text(String),
}

impl Line {
    /// The line with its newline.
    pub(super) fn encode(&self) -> Vec<u8> {
        // Only maps with keys that are no text could fail, and a line has none.
        let json = serde_json::to_string(self).unwrap_or_default();
        format!("{:08x} {:08x} {json}\n", crc32fast::hash(json.as_bytes()), json.len()).into_bytes()
    }

    /// Reads a line without its newline. The error says what is wrong.
    pub(super) fn decode(text: &[u8]) -> Result<Self, String> {
        let (json, rest) = split(text)?;
        if !rest.is_empty() {
            return Err(format!("{} bytes follow what was written", rest.len()));
        }
        serde_json::from_slice(json).map_err(|error| format!("not a line of this log: {error}"))
    }
}

/// True when the text begins with an intact line and something else than zeroes follows: two lines whose newline is damaged,
/// the first of which was answered for.
pub(super) fn hides_a_line(text: &[u8]) -> bool {
    split(text).is_ok_and(|(_, rest)| rest.iter().any(|byte| *byte != 0))
}

/// The JSON that length and checksum vouch for, and what follows it.
fn split(text: &[u8]) -> Result<(&[u8], &[u8]), String> {
    let no_prefix = || "it does not begin with checksum and length".to_owned();
    let (prefix, json) = text.split_at_checked(PREFIX_BYTES).ok_or_else(no_prefix)?;
    let hex = |digits: &[u8]| {
        // One way to write a number, so that no damage to it goes unseen.
        let canonical = digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        std::str::from_utf8(digits).ok().filter(|_| canonical).and_then(|it| u32::from_str_radix(it, 16).ok())
    };
    let (crc, length) = hex(&prefix[..8]).zip(hex(&prefix[9..17])).ok_or_else(no_prefix)?;
    if prefix[8] != b' ' || prefix[17] != b' ' {
        return Err(no_prefix());
    }
    let length = usize::try_from(length).ok().filter(|length| *length <= JSON_BYTES_MAX);
    let length = length.ok_or_else(|| format!("it would have more than {JSON_BYTES_MAX} bytes"))?;
    let (json, rest) = json.split_at_checked(length).ok_or("it is shorter than its length says")?;
    if crc != crc32fast::hash(json) {
        return Err("the checksum does not match".to_owned());
    }
    Ok((json, rest))
}

impl KeyLine {
    pub(super) fn new(key: &str, item: &Item) -> Self {
        Self {
            key: key.to_owned(),
            created: item.create_revision,
            modified: item.mod_revision,
            lease: item.lease.map(|lease| lease.0),
            value: Value::new(&item.value),
        }
    }

    /// Key and item; the error says what cannot be so in a snapshot at `revision`.
    pub(super) fn item(self, revision: u64) -> Result<(String, Item), String> {
        if self.created == 0 || self.created > self.modified || self.modified > revision {
            return Err(format!(
                "key {} of revisions {} and {} in a snapshot at {revision}",
                self.key, self.created, self.modified
            ));
        }
        let item = Item {
            value: self.value.bytes()?,
            create_revision: self.created,
            mod_revision: self.modified,
            lease: self.lease.map(LeaseId),
        };
        Ok((self.key, item))
    }
}

impl ChangeLine {
    pub(super) fn new(change: &Change) -> Self {
        let put = |put: &Put| PutLine {
            key: put.key.clone(),
            lease: put.lease.map(|lease| lease.0),
            value: Value::new(&put.value),
        };
        Self {
            revision: change.revision,
            puts: change.puts.iter().map(put).collect(),
            deletes: change.deletes.clone(),
        }
    }

    pub(super) fn change(self) -> Result<Change, String> {
        let put =
            |put: PutLine| Ok(Put { key: put.key, value: put.value.bytes()?, lease: put.lease.map(LeaseId) });
        let puts = self.puts.into_iter().map(put).collect::<Result<_, String>>()?;
        Ok(Change { revision: self.revision, puts, deletes: self.deletes })
    }
}

impl Value {
    fn new(value: &Bytes) -> Self {
        match std::str::from_utf8(value) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Hex { hex: value.iter().map(|byte| format!("{byte:02x}")).collect() },
        }
    }

    fn bytes(self) -> Result<Bytes, String> {
        let hex = match self {
            Self::Text(text) => return Ok(Bytes::from(text)),
            Self::Hex { hex } => hex,
        };
        let digits = hex.as_bytes();
        let byte = |pair: &[u8]| {
            let [high, low] = pair else { return None };
            let digit = |it: &u8| char::from(*it).to_digit(16).and_then(|it| u8::try_from(it).ok());
            Some(digit(high)? << 4 | digit(low)?)
        };
        let bytes: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
        bytes.map(Bytes::from).ok_or_else(|| "a value that is no hex".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_looks_so() {
        let puts = vec![Put { key: "/a".into(), value: "{\"b\":1}".into(), lease: Some(LeaseId(7)) }];
        let change = Change { revision: 4, puts, deletes: vec!["/c".into()] };
        let text = Line::Change(ChangeLine::new(&change)).encode();
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "e0ef611a 0000005e {\"change\":{\"revision\":4,\"puts\":[{\"key\":\"/a\",\"lease\":7,\
             \"value\":\"{\\\"b\\\":1}\"}],\"deletes\":[\"/c\"]}}\n"
        );
    }

    #[test]
    fn a_full_transaction_that_is_all_escapes_fits_a_line() {
        for byte in [0x01, 0xff] {
            let value = Bytes::from(vec![byte; crate::MAX_TRANSACTION_BYTES]);
            let puts = vec![Put { key: "/a".into(), value, lease: None }];
            let change = Change { revision: 4, puts, deletes: vec![] };
            let text = Line::Change(ChangeLine::new(&change)).encode();
            let Ok(Line::Change(read)) = Line::decode(text.strip_suffix(b"\n").unwrap()) else {
                panic!("no change")
            };
            assert_eq!(read.change().unwrap(), change);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(key in ".{1,9}", value in any::<Vec<u8>>(), lease in any::<Option<i64>>()) {
            let puts = vec![Put { key: key.clone(), value: value.into(), lease: lease.map(LeaseId) }];
            let change = Change { revision: 9, puts, deletes: vec![key] };
            let text = Line::Change(ChangeLine::new(&change)).encode();
            prop_assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 1);
            let Ok(Line::Change(read)) = Line::decode(&text[..text.len() - 1]) else { panic!("no change") };
            prop_assert_eq!(read.change().unwrap(), change);
        }

        #[test]
        fn no_flipped_bit_goes_unseen(position in 0usize..60, bit in 0u8..8) {
            let mut text = Line::Snapshot(SnapshotLine { schema: 1, revision: 77, keys: 3 }).encode();
            text.pop();
            let position = position % text.len();
            text[position] ^= 1 << bit;
            prop_assert!(Line::decode(&text).is_err());
        }
    }
}
