// SPDX-License-Identifier: Apache-2.0
//! bpffs and cgroup2: found, or mounted.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, FsType, statfs},
};

use crate::error::MountError;

/// Where bpffs belongs (systemd and most tools mount it there).
const BPFFS_USUAL: &str = "/sys/fs/bpf";

/// The first mount point of a cgroup v2 hierarchy, from /proc/mounts.
pub fn cgroup2_mount() -> Result<PathBuf, MountError> {
    let table = fs::read_to_string("/proc/self/mounts").map_err(MountError::MountTable)?;
    mount_points(&table, "cgroup2").next().ok_or(MountError::NoCgroup2)
}

/// Makes sure that `dir` exists and lies on a bpffs: mounts one at /sys/fs/bpf when `dir` is below it, else at `dir`.
/// An existing bpffs is kept as it is.
pub fn ensure_bpffs(dir: &Path) -> Result<(), MountError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| MountError::Mount { path, source }
    };
    let existing = dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
    if !is_bpffs(existing).map_err(failed(existing))? {
        let point = if dir.starts_with(BPFFS_USUAL) { Path::new(BPFFS_USUAL) } else { dir };
        fs::create_dir_all(point).map_err(failed(point))?;
        mount(Some("bpf"), point, Some("bpf"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0700"))
            .map_err(io::Error::from)
            .map_err(failed(point))?;
        tracing::info!(path = %point.display(), "mounted a bpffs");
    }
    fs::create_dir_all(dir).map_err(failed(dir))
}

/// Whether `path` lies on a bpffs.
pub(crate) fn is_bpffs(path: &Path) -> io::Result<bool> {
    is_on(path, BPF_FS_MAGIC)
}

/// Whether `path` lies in a cgroup v2 hierarchy.
pub(crate) fn is_cgroup2(path: &Path) -> io::Result<bool> {
    is_on(path, CGROUP2_SUPER_MAGIC)
}

/// Mount points of this type in the text of /proc/mounts.
pub(crate) fn mount_points(table: &str, kind: &str) -> impl Iterator<Item = PathBuf> {
    table.lines().filter_map(move |line| {
        let mut fields = line.split(' ');
        let (_source, point, found) = (fields.next()?, fields.next()?, fields.next()?);
        // The kernel writes a space in a path as \040.
        (found == kind).then(|| PathBuf::from(point.replace("\\040", " ")))
    })
}

fn is_on(path: &Path, magic: FsType) -> io::Result<bool> {
    Ok(statfs(path)?.filesystem_type() == magic)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
        cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
        cgroup2 /sys/fs/cgroup/uni\\040fied cgroup2 rw 0 0\n\
        cgroup2 /other cgroup2 rw 0 0\n";

    #[test]
    fn the_v2_mount_is_found_among_v1_mounts() {
        let points: Vec<_> = mount_points(TABLE, "cgroup2").collect();
        assert_eq!(points, [Path::new("/sys/fs/cgroup/uni fied"), Path::new("/other")]);
    }

    #[test]
    fn no_bpffs_in_the_table_means_none() {
        assert_eq!(mount_points(TABLE, "bpf").count(), 0);
    }
}
