// SPDX-License-Identifier: Apache-2.0
//! What a command finds at well-known paths instead of the host's own: mounts in a namespace that nobody else sees.

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::fs::{self, DirEntry, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::symlink;
use std::path::Path;

/// Where the C library looks for name servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where `wg`, wireguard-go and others look for control sockets of devices in user space.
pub(crate) const WIREGUARD_DIR: &str = "/var/run/wireguard";
/// A folder of every Unix, covered for a moment while something is built that belongs elsewhere.
const BUILD_ON: &str = "/tmp";

/// From now on the calling process's mounts are its own.
pub(crate) fn unshare_mounts() -> Result<()> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).context("a private mount namespace")?;
    // Slave, not private: what the host mounts later is still seen here, nothing of ours is seen there.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).context("making / a slave mount")
}

/// Lays a file over /etc/resolv.conf.
pub(crate) fn cover_resolv_conf(file: &Path) -> Result<()> {
    if !fs::exists(file)? {
        bail!("{} does not exist", file.display());
    }
    if !fs::exists(RESOLV_CONF)? {
        // The host has no name server: there is nothing to cover, and its /etc is not ours to fill.
        return Ok(());
    }
    bind(file, Path::new(RESOLV_CONF))
}

/// Lays a folder over /var/run/wireguard, also where the host has none: its file system stays as it is.
pub(crate) fn cover_wireguard(folder: &Path) -> Result<()> {
    let target = Path::new(WIREGUARD_DIR);
    if !target.is_dir() {
        let run = fs::canonicalize("/var/run").context("/var/run")?;
        stand_in_for(&run).with_context(|| format!("a {} with a folder more", run.display()))?;
        match fs::create_dir(target) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(error).context(WIREGUARD_DIR);
            }
            _ => {}
        }
    }
    bind(folder, target)
}

/// Lays an empty file system over a folder, and binds each entry of the folder into it. Entries that are made in the folder
/// itself later are not seen; what is made inside its folders is.
fn stand_in_for(folder: &Path) -> Result<()> {
    let none = None::<&str>;
    mount(Some("tmpfs"), BUILD_ON, Some("tmpfs"), MsFlags::empty(), Some("mode=0755")).context("a tmpfs")?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        match bring(&entry, &Path::new(BUILD_ON).join(entry.file_name())) {
            // It went meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            result => result.with_context(|| entry.path().display().to_string())?,
        }
    }
    mount(Some(BUILD_ON), folder, none, MsFlags::MS_MOVE, none).context("putting it in place")
}

fn bring(entry: &DirEntry, to: &Path) -> io::Result<()> {
    let kind = entry.file_type()?;
    if kind.is_symlink() {
        return symlink(fs::read_link(entry.path())?, to);
    }
    if kind.is_dir() {
        fs::create_dir(to)?;
    } else {
        File::create(to)?;
    }
    let none = None::<&str>;
    mount(Some(&entry.path()), to, none, MsFlags::MS_BIND | MsFlags::MS_REC, none).map_err(Into::into)
}

fn bind(from: &Path, over: &Path) -> Result<()> {
    let none = None::<&str>;
    mount(Some(from), over, none, MsFlags::MS_BIND, none)
        .with_context(|| format!("binding {} over {}", from.display(), over.display()))
}
