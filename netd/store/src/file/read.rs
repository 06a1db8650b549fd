// SPDX-License-Identifier: Apache-2.0
//! From the bytes of a log back to the state: pure.
//!
//! The snapshot came by rename, so it is whole or damaged. After it each line is one change, of the next revision. A crash
//! can leave only one thing behind: an end that is no whole line, or zeroes where the data did not arrive.

use std::collections::BTreeMap;

use super::line::{Line, SCHEMA, SnapshotLine, hides_a_line};
use crate::state::State;

/// No store lives to see it; a number beyond is damage.
const REVISION_MAX: u64 = 1 << 62;

/// A log as read.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) state: State,
    /// How long the snapshot is, in bytes.
    pub(super) snapshot_bytes: usize,
    /// How long the snapshot and all whole lines are: the file is cut to this before the next line.
    pub(super) valid_bytes: usize,
    /// The line that a crash tore.
    pub(super) torn: Option<Damage>,
}

/// A line that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Damage {
    /// From 1.
    pub(super) line: usize,
    pub(super) reason: String,
}

/// Reads a log. A torn end is left out and reported; any other damage is an error.
pub(super) fn read(bytes: &[u8]) -> Result<Read, Damage> {
    let mut lines = Lines { rest: bytes, number: 0 };
    let mut state = snapshot(&mut lines)?;
    let snapshot_bytes = bytes.len() - lines.rest.len();
    let mut read = Read { state: State::default(), snapshot_bytes, valid_bytes: snapshot_bytes, torn: None };
    while !lines.rest.is_empty() {
        let before = lines.rest;
        let change = match lines.next() {
            Ok(Line::Change(line)) => line.change().map_err(|reason| lines.damaged(reason))?,
            Ok(Line::Key(_) | Line::Snapshot(_)) => {
                return Err(lines.damaged("a line of a snapshot after the snapshot".to_owned()));
            }
            Err(damage) if lines.rest.is_empty() && is_torn(before) => {
                read.torn = Some(damage);
                break;
            }
            Err(damage) => return Err(damage),
        };
        let expected = state.revision + 1;
        if change.revision != expected {
            let reason =
                format!("revision {} where {expected} is next: a line is missing or double", change.revision);
            return Err(lines.damaged(reason));
        }
        if change.is_empty() {
            return Err(lines.damaged("a change that changes nothing".to_owned()));
        }
        state.apply(change);
        read.valid_bytes = bytes.len() - lines.rest.len();
    }
    Ok(Read { state, ..read })
}

fn snapshot(lines: &mut Lines<'_>) -> Result<State, Damage> {
    let SnapshotLine { schema, revision, keys } = match lines.next()? {
        Line::Snapshot(line) => line,
        Line::Change(_) | Line::Key(_) => {
            return Err(lines.damaged("it is the first one and begins no snapshot".to_owned()));
        }
    };
    if schema > SCHEMA {
        return Err(
            lines.damaged(format!("format {schema} of a newer version; this one reads up to {SCHEMA}"))
        );
    }
    if !(1..=REVISION_MAX).contains(&revision) {
        return Err(lines.damaged(format!("revision {revision} cannot be")));
    }
    let mut items = BTreeMap::new();
    for _ in 0..keys {
        let Line::Key(line) = lines.next()? else {
            return Err(lines.damaged(format!("the snapshot has fewer than its {keys} keys")));
        };
        let (key, item) = line.item(revision).map_err(|reason| lines.damaged(reason))?;
        if items.insert(key, item).is_some() {
            return Err(lines.damaged("a key twice in the snapshot".to_owned()));
        }
    }
    Ok(State::restored(revision, items))
}

/// Whether a crash can have left this as the end of the file: no newline came, or a part is zeroes. JSON holds no zero byte.
fn is_torn(text: &[u8]) -> bool {
    (!text.ends_with(b"\n") || text.contains(&0)) && !hides_a_line(text)
}

struct Lines<'a> {
    rest: &'a [u8],
    /// Of the line read last, from 1.
    number: usize,
}

impl Lines<'_> {
    fn next(&mut self) -> Result<Line, Damage> {
        self.number += 1;
        let end = self.rest.iter().position(|byte| *byte == b'\n');
        let (text, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest.get(1..).unwrap_or_default();
        if end.is_none() {
            return Err(self.damaged("the file ends in it".to_owned()));
        }
        Line::decode(text).map_err(|reason| self.damaged(reason))
    }

    fn damaged(&self, reason: String) -> Damage {
        Damage { line: self.number, reason }
    }
}
