// SPDX-License-Identifier: Apache-2.0
//! The file with WireGuard's preshared key.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use netd_wireguard::PresharedKey;

use crate::config::{ConfigError, bad};

/// The key in a file that nobody but its owner and group may read or write.
pub(crate) fn read(path: &Path) -> Result<PresharedKey, ConfigError> {
    let refused = |reason: String| bad("wireguard-psk-file", format!("{}: {reason}", path.display()));
    let mode = fs::metadata(path).map_err(|error| refused(error.to_string()))?.permissions().mode();
    if mode & 0o007 != 0 {
        return Err(refused(format!(
            "every user of this host may use it (mode {:o}): `chmod 600` it, and use another secret if somebody may have",
            mode & 0o777
        )));
    }
    let text = fs::read_to_string(path).map_err(|error| refused(error.to_string()))?;
    text.trim().parse().map_err(|error| refused(format!("{error}; `wg genpsk` makes one")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_everybody_may_read_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("psk");
        fs::write(&path, "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n").unwrap();
        let with_mode = |mode| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            read(&path).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(with_mode(0o600), Ok(()));
        assert_eq!(with_mode(0o640), Ok(()), "a group that an operator chose");
        assert!(with_mode(0o644).is_err_and(|error| error.contains("chmod 600")));
        fs::write(&path, "no key").unwrap();
        assert!(with_mode(0o600).is_err_and(|error| error.contains("wg genpsk")));
    }
}
