// SPDX-License-Identifier: Apache-2.0
//! Who this node is: a UUID made once and kept on disk. Its name and addresses may change; its blocks and pins hang on
//! the UUID.

use std::path::Path;

use anyhow::{Context, Result, bail};
use uuid::Uuid;

use crate::files::write_atomically;

const FILE: &str = "node-id";

/// Reads the node's UUID from the state directory, or makes one.
pub(crate) fn load_or_create(state_dir: &Path) -> Result<Uuid> {
    let path = state_dir.join(FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => match Uuid::parse_str(text.trim()) {
            Ok(uuid) => Ok(uuid),
            // A new identity would orphan this node's blocks: a person has to decide.
            Err(_) => bail!(
                "{} does not hold a UUID; restore it from a backup or from `weft node ls` of another node, or remove the file to join as a new node",
                path.display()
            ),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let uuid = Uuid::new_v4();
            write_atomically(&path, format!("{uuid}\n").as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))?;
            tracing::info!(node = %uuid, "new node identity");
            Ok(uuid)
        }
        Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The UUID if this node has one (for `netd clean`, which must not make one).
pub(crate) fn load(state_dir: &Path) -> Option<Uuid> {
    Uuid::parse_str(std::fs::read_to_string(state_dir.join(FILE)).ok()?.trim()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_made_once_and_a_damaged_one_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let first = load_or_create(dir.path()).unwrap();
        assert_eq!(load_or_create(dir.path()).unwrap(), first);
        std::fs::write(dir.path().join(FILE), "nonsense").unwrap();
        let error = load_or_create(dir.path()).unwrap_err().to_string();
        assert!(error.contains("node-id"), "{error}");
    }
}
