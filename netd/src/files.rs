// SPDX-License-Identifier: Apache-2.0
//! Durable files: a whole new version or the old one, never half of either.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Writes `bytes` to `path` so that a crash leaves the old or the new content: a temporary file beside it, fsync, rename,
/// fsync of the folder.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or_else(|| Path::new("."));
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    let temporary = dir.join(name);
    let written = (|| {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_dir(dir)
    })();
    if written.is_err() {
        // A full disk must not fill up with what did not fit.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// As [`write_atomically`], but what survives a crash of the whole machine is the kernel's to decide: for what is of no use
/// after one.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Holds the state directory for one process; the kernel lets go when it ends, however it ends.
#[derive(Debug)]
pub(crate) struct StateLock {
    _file: Flock<File>,
}

/// Takes the state directory, or says who has it.
pub(crate) fn lock_state(dir: &Path) -> anyhow::Result<StateLock> {
    let path = dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(file) => Ok(StateLock { _file: file }),
        Err((_, Errno::EWOULDBLOCK)) => {
            anyhow::bail!("another netd works with {}; stop it first", dir.display())
        }
        Err((_, error)) => Err(anyhow::anyhow!("cannot lock {}: {error}", path.display())),
    }
}

/// Removes `path`; absent is fine.
pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Makes a rename or removal in `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
