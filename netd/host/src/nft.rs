// SPDX-License-Identifier: Apache-2.0

//! Our one nftables table, `inet weft`, loaded and compared as a whole through the `nft` program.
//!
//! `nft -f -` is one kernel transaction: all of the script or nothing. The text comes from `netd_plan::nft`.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

pub use netd_plan::nft::TABLE;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::process::{self, Output};

/// Fields of a listing that differ though nobody changed anything: handles are given by the kernel, counters count.
const VOLATILE_FIELDS: [&str; 4] = ["handle", "packets", "bytes", "metainfo"];

/// The `nft` program, found.
#[derive(Clone, Debug)]
pub struct Nft {
    program: PathBuf,
}

/// A failed nft operation.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The listing could not be read.
    #[error("`nft -j list table {TABLE}` printed something that is not JSON: {reason}")]
    Listing {
        /// The parser's words.
        reason: String,
    },
    /// No `nft` in PATH or the usual folders.
    #[error("the program `nft` is missing: install the package `nftables`")]
    Missing,
    /// nft could not be run.
    #[error("cannot run {}: {source}", program.display())]
    Run {
        /// Its path.
        program: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// nft refused the script or the command.
    #[error("nft: {}{message}", line.as_ref().map(|line| format!("at `{line}`: ")).unwrap_or_default())]
    Refused {
        /// nft's stderr, shortened.
        message: String,
        /// The line of the script that it complains about.
        line: Option<String>,
    },
}

impl Nft {
    /// Finds the program.
    ///
    /// # Errors
    /// [`NftError::Missing`].
    pub fn find() -> Result<Self, NftError> {
        process::find("nft").map(Self::with_program).ok_or(NftError::Missing)
    }

    /// Uses the program at this path.
    pub fn with_program(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into() }
    }

    /// Loads a script in one transaction.
    ///
    /// # Errors
    /// [`NftError::Refused`] with nft's words and the line it complains about; then nothing has changed.
    pub async fn apply(&self, script: &str) -> Result<(), NftError> {
        let output = self.run(&["-f", "-"], script).await?;
        if output.status.success() { Ok(()) } else { Err(refused(script, &output.stderr)) }
    }

    /// A digest (SHA-256, hex) of our table as the kernel has it, without handles, counters and elements that rules
    /// add themselves; `None` where there is no table. Equal digests mean that nobody changed it.
    pub async fn observe(&self) -> Result<Option<String>, NftError> {
        let arguments: Vec<&str> = ["-j", "list", "table"].into_iter().chain(TABLE.split(' ')).collect();
        let output = self.run(&arguments, "").await?;
        if !output.status.success() {
            let absent = output.stderr.contains("No such file or directory");
            return if absent { Ok(None) } else { Err(refused("", &output.stderr)) };
        }
        let mut listing: Value = serde_json::from_str(&output.stdout)
            .map_err(|error| NftError::Listing { reason: error.to_string() })?;
        strip(&mut listing);
        Ok(Some(hex(&Sha256::digest(listing.to_string()))))
    }

    /// Packets that each counter of our table has counted, by its name; none where there is no table.
    ///
    /// # Errors
    /// [`NftError`], as of [`Self::observe`].
    pub async fn counters(&self) -> Result<BTreeMap<String, u64>, NftError> {
        let arguments: Vec<&str> =
            ["-j", "list", "counters", "table"].into_iter().chain(TABLE.split(' ')).collect();
        let output = self.run(&arguments, "").await?;
        if !output.status.success() {
            let absent = output.stderr.contains("No such file or directory");
            return if absent { Ok(BTreeMap::new()) } else { Err(refused("", &output.stderr)) };
        }
        let listing: Value = serde_json::from_str(&output.stdout)
            .map_err(|error| NftError::Listing { reason: error.to_string() })?;
        let items = listing["nftables"].as_array().into_iter().flatten();
        let counter = |item: &Value| {
            let counter = item.get("counter")?;
            Some((counter["name"].as_str()?.to_owned(), counter["packets"].as_u64()?))
        };
        Ok(items.filter_map(counter).collect())
    }

    /// Removes our table; absent is fine.
    pub async fn remove(&self) -> Result<(), NftError> {
        // Declaring it first makes the deletion succeed where it is absent.
        self.apply(&format!("table {TABLE}\ndelete table {TABLE}\n")).await
    }

    async fn run(&self, arguments: &[&str], input: &str) -> Result<Output, NftError> {
        run(&self.program, arguments, input).await
    }
}

async fn run(program: &Path, arguments: &[&str], input: &str) -> Result<Output, NftError> {
    process::run(program, arguments, input)
        .await
        .map_err(|source| NftError::Run { program: program.to_owned(), source })
}

/// Drops what changes by itself.
fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            VOLATILE_FIELDS.iter().for_each(|field| drop(fields.remove(*field)));
            if is_dynamic(fields.get("flags")) {
                fields.remove("elem");
            }
            fields.values_mut().for_each(strip);
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

/// Whether a set is one that rules or time change.
fn is_dynamic(flags: Option<&Value>) -> bool {
    let changing = |flag: &Value| matches!(flag.as_str(), Some("dynamic" | "timeout"));
    match flags {
        Some(Value::Array(flags)) => flags.iter().any(changing),
        Some(flag) => changing(flag),
        None => false,
    }
}

/// Longest part of nft's stderr that goes into a message; it repeats itself for every line of a bad script.
const MESSAGE_LEN_MAX: usize = 600;

fn refused(script: &str, stderr: &str) -> NftError {
    let line = stderr
        .split(':')
        .nth(1)
        .and_then(|number| number.trim().parse::<usize>().ok())
        .and_then(|number| script.lines().nth(number.checked_sub(1)?))
        .map(|line| line.trim().to_owned());
    let message: String = stderr.trim().chars().take(MESSAGE_LEN_MAX).collect();
    NftError::Refused { message, line }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_line() {
        let script = "table inet weft {\n  chain x {\n    tcp dport nonsense\n  }\n}\n";
        let stderr = "/dev/stdin:3:15-22: Error: Could not resolve service: Servname not supported\n";
        let error = refused(script, stderr);
        assert!(error.to_string().starts_with("nft: at `tcp dport nonsense`: "), "{error}");
        assert!(matches!(refused(script, "Error: no line"), NftError::Refused { line: None, .. }));
        assert!(matches!(refused(script, "x:0:1-1: Error"), NftError::Refused { line: None, .. }));
    }

    #[test]
    fn counters_handles_and_dynamic_elements_do_not_count_as_drift() {
        let mut before = serde_json::json!([{"metainfo": {"version": "1"}},
            {"rule": {"handle": 4, "expr": [{"counter": {"packets": 1, "bytes": 60}}]}},
            {"set": {"name": "seen", "flags": ["dynamic"], "elem": ["10.0.0.1"]}},
            {"set": {"name": "pods", "flags": ["interval"], "elem": ["10.244.0.0"]}}]);
        let mut after = before.clone();
        after[1]["rule"]["handle"] = 9.into();
        after[1]["rule"]["expr"][0]["counter"]["packets"] = 7.into();
        after[2]["set"]["elem"] = serde_json::json!([]);
        strip(&mut before);
        strip(&mut after);
        assert_eq!(before, after);
        after[3]["set"]["elem"] = serde_json::json!([]);
        assert_ne!(before, after, "a static set was emptied");
    }
}
