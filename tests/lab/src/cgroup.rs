// SPDX-License-Identifier: Apache-2.0
//! Control groups of a lab: `<v2 mount>/weft/<lab>/<member>[/<pod>]`. Whoever is in one can be ended at once.

use crate::patience::patient;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// A killed process that still holds its group after this long is stuck in the kernel.
const EMPTY_LIMIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

/// The mount point of the v2 hierarchy, also on hosts that mix both versions.
pub(crate) fn v2_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("/proc/mounts")?;
    find_v2(&mounts)
        .context("no cgroup2 file system is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")
}

/// The group of a lab.
pub(crate) fn lab(lab: &str) -> Result<PathBuf> {
    Ok(v2_mount()?.join("weft").join(lab))
}

/// Makes a group, with its parents. An existing one is fine.
pub(crate) fn create(group: &Path) -> Result<()> {
    fs::create_dir_all(group).with_context(|| format!("cgroup {}", group.display()))
}

/// Moves the calling process into a group.
pub(crate) fn join(group: &Path) -> Result<()> {
    fs::write(group.join("cgroup.procs"), "0").with_context(|| format!("joining cgroup {}", group.display()))
}

/// Ends every process in a group and below, and waits until they are gone. An absent group is fine.
pub(crate) fn kill_all(group: &Path) -> Result<()> {
    if !group.exists() {
        return Ok(());
    }
    let end = Instant::now() + patient(EMPTY_LIMIT);
    loop {
        kill_once(group)?;
        if !populated(group)? {
            return Ok(());
        }
        if Instant::now() >= end {
            bail!("cgroup {}: processes survive SIGKILL: {:?}", group.display(), members(group)?);
        }
        thread::sleep(POLL);
    }
}

/// Ends every process in a group, then removes it with all below. An absent group is fine.
pub(crate) fn remove(group: &Path) -> Result<()> {
    kill_all(group)?;
    let end = Instant::now() + patient(EMPTY_LIMIT);
    while let Err(error) = remove_tree(group) {
        if Instant::now() >= end {
            return Err(error).with_context(|| format!("removing cgroup {}", group.display()));
        }
        thread::sleep(POLL);
    }
    Ok(())
}

/// The processes in a group and below.
pub(crate) fn members(group: &Path) -> Result<Vec<i32>> {
    let mut pids = Vec::new();
    for folder in tree(group)? {
        // A group that vanished meanwhile has no processes.
        let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    Ok(pids)
}

fn kill_once(group: &Path) -> Result<()> {
    let switch = group.join("cgroup.kill");
    if switch.exists() {
        return fs::write(&switch, "1").with_context(|| switch.display().to_string());
    }
    // Kernels before 5.14 have no switch.
    for pid in members(group)? {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    Ok(())
}

fn populated(group: &Path) -> Result<bool> {
    let path = group.join("cgroup.events");
    let events = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(events.lines().any(|line| line == "populated 1"))
}

fn remove_tree(group: &Path) -> Result<()> {
    // Deepest first.
    for folder in tree(group)?.iter().rev() {
        match fs::remove_dir(folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// A group and all below, parents first.
fn tree(group: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![group.to_owned()];
    let mut next = 0;
    while next < found.len() {
        match fs::read_dir(&found[next]) {
            Ok(entries) => {
                let folders =
                    entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
                found.extend(folders.map(|entry| entry.path()));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| found[next].display().to_string()),
        }
        next += 1;
    }
    Ok(found)
}

fn find_v2(mounts: &str) -> Option<PathBuf> {
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.find_map(|mount| (mount.get(2) == Some(&"cgroup2")).then(|| PathBuf::from(mount[1])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_v2_mount_is_found_beside_v1_controllers() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
        assert_eq!(find_v2(mounts), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(find_v2("proc /proc proc rw 0 0\n"), None);
    }
}
