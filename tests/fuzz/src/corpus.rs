// SPDX-License-Identifier: Apache-2.0
//! The files of a target.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::Target;

/// A file of a corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// The file's name.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Where a target's files lie.
pub fn corpus_dir(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

/// All files of a target, sorted by name.
pub fn corpus(target: &Target) -> io::Result<Vec<Input>> {
    let mut inputs = Vec::new();
    for entry in fs::read_dir(corpus_dir(target))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        inputs.push(Input { name, bytes: fs::read(path)? });
    }
    inputs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(inputs)
}

/// Adds a file, named after its kind and its content.
pub fn keep(target: &Target, kind: &str, bytes: &[u8]) -> io::Result<PathBuf> {
    let path = corpus_dir(target).join(format!("{kind}-{:08x}", crc32fast::hash(bytes)));
    fs::write(&path, bytes)?;
    Ok(path)
}
