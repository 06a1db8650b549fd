// SPDX-License-Identifier: Apache-2.0
//! One process per directory. The kernel lets go of the lock when the process ends, however it ends.
//!
//! The lock (flock(2)) belongs to the open file, and a child that this process forks has that open too until its exec closes
//! it. So closing is not enough: the lock is given back by name, and who takes it waits for the children of one that died.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use super::log::unavailable;
use crate::StoreError;

const FILE: &str = "lock";

/// A process ID has at most 7 digits (linux/threads.h, PID_MAX_LIMIT); the rest is for what else might stand there.
const PID_BYTES_MAX: u64 = 32;

/// A child of a process that was killed holds the lock until its exec: that takes no time, except on a machine that is busy.
const WAIT: Duration = Duration::from_secs(1);

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(10);

/// Holds a directory.
#[derive(Debug)]
pub(super) struct DirLock {
    file: File,
}

impl DirLock {
    /// Makes the directory where it does not exist and takes it; blocks for [`WAIT`] where somebody has it.
    pub(super) fn take(dir: &Path) -> Result<Self, StoreError> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| unavailable(dir, &e))?;
        let path = dir.join(FILE);
        let open =
            File::options().create(true).truncate(false).read(true).write(true).mode(0o600).open(&path);
        let mut file = open.map_err(|e| unavailable(&path, &e))?;
        let begun = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if begun.elapsed() < WAIT => std::thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => {
                    return Err(StoreError::Locked { dir: dir.to_owned(), pid: holder(&mut file) });
                }
                Err(TryLockError::Error(error)) => return Err(unavailable(&path, &error)),
            }
        }
        // The number is for people only; a full disk must not keep the store shut.
        let noted = file.set_len(0).and_then(|()| file.rewind());
        if let Err(error) = noted.and_then(|()| writeln!(file, "{}", std::process::id())) {
            tracing::debug!(%error, "the lock file does not name this process");
        }
        Ok(Self { file })
    }
}

impl Drop for DirLock {
    fn drop(&mut self) {
        // Where it fails the close that follows does it.
        let _ = self.file.unlock();
    }
}

/// Whom the file names; nobody for a moment while the holder begins.
fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(PID_BYTES_MAX).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_given_back_is_free_though_a_child_has_the_file_open() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DirLock::take(dir.path()).unwrap();
        // What fork leaves in a child: the same open file.
        let inherited = lock.file.try_clone().unwrap();
        drop(lock);
        let again = File::open(dir.path().join(FILE)).unwrap();
        again.try_lock().unwrap();
        drop(inherited);
    }

    #[test]
    fn who_comes_while_the_child_of_a_killed_process_holds_the_lock_waits_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let inherited = File::create(dir.path().join(FILE)).unwrap();
        inherited.try_lock().unwrap();
        let child = std::thread::spawn(move || {
            std::thread::sleep(WAIT / 10);
            drop(inherited);
        });
        DirLock::take(dir.path()).unwrap();
        child.join().unwrap();
    }
}
