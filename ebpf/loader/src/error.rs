// SPDX-License-Identifier: Apache-2.0
//! What can go wrong, by operation. Messages name the pin, map or interface, and what to do.

use std::{io, path::PathBuf};

use aya::{EbpfError, programs::ProgramError};
use thiserror::Error;

/// [`Datapath::open`](crate::Datapath::open) failed. Nothing was attached or detached.
#[derive(Debug, Error)]
pub enum LoadError {
    /// Built with AYA_BUILD_SKIP.
    #[error(
        "this binary was built without the BPF programs (AYA_BUILD_SKIP): build it again without that variable"
    )]
    NoObject,
    /// The object in this binary does not fit this crate: a build gone wrong.
    #[error("the built-in BPF object is not usable: {0}")]
    Object(String),
    /// The pin directory cannot be made.
    #[error("cannot create the pin directory {path}: {source}")]
    PinDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The pin directory is on an ordinary file system.
    #[error(
        "the pin directory {path} is not on a bpffs: mount one there (mount -t bpf bpf DIR) or choose another"
    )]
    NotBpffs {
        /// The directory.
        path: PathBuf,
    },
    /// A pin is in the way.
    #[error(
        "the pin {path} is {found}, but this version needs {expected}: another version left it; `netd clean` removes it, and existing connections through services end with it"
    )]
    PinDiffers {
        /// The pin.
        path: PathBuf,
        /// What lies there.
        found: String,
        /// What should.
        expected: String,
    },
    /// A pin cannot be opened.
    #[error("cannot open the pin {path}: {source}")]
    Pin {
        /// The pin.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Maps could not be created or pinned.
    #[error("cannot create or pin the BPF maps in {path}: {source}")]
    Maps {
        /// The pin directory.
        path: PathBuf,
        /// Why.
        source: Box<EbpfError>,
    },
    /// The verifier or the kernel refused a program.
    #[error("the kernel refuses the BPF program {program}: {source}")]
    Program {
        /// Its name in ebpf-abi.
        program: String,
        /// Why, with the verifier's log.
        source: Box<ProgramError>,
    },
    /// A map of another size cannot be made.
    #[error("cannot make the BPF map {map} anew with {entries} entries: {source}")]
    Resize {
        /// Its name in ebpf-abi.
        map: &'static str,
        /// Entries that it is to have.
        entries: u32,
        /// Why.
        source: io::Error,
    },
    /// SLOTS cannot be mapped.
    #[error("cannot map the pinned SLOTS into memory: {0}")]
    Slots(#[source] io::Error),
    /// `attach = tcx` on a kernel without it.
    #[error("this kernel has no TCX (Linux 6.6): set the attach mode to auto or clsact")]
    NoTcx,
    /// The maps cannot be read back.
    #[error(transparent)]
    Read(#[from] MapAccessError),
}

/// One map could not be read or written.
#[derive(Debug, Error)]
pub enum MapAccessError {
    /// There is no room for one more entry.
    #[error("BPF map {map} is full ({max_entries} entries): raise its size in the configuration")]
    Full {
        /// Its name in ebpf-abi.
        map: &'static str,
        /// Its size.
        max_entries: u32,
    },
    /// The kernel refused.
    #[error("cannot {action} BPF map {map}: {source}")]
    Kernel {
        /// Its name in ebpf-abi.
        map: &'static str,
        /// `read`, `write`, …
        action: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl MapAccessError {
    /// The map that is full, when that is what is wrong.
    #[must_use]
    pub fn full_map(&self) -> Option<&'static str> {
        match self {
            Self::Full { map, .. } => Some(map),
            Self::Kernel { .. } => None,
        }
    }
}

/// [`Datapath::write`](crate::Datapath::write) failed. What was written before stays and is consistent: nothing points at what
/// was not written. The same call goes on from there.
#[derive(Debug, Error)]
pub enum WriteError {
    /// Something points outside a map. Nothing was written.
    #[error("the services do not fit the maps: {what} {value}, of at most {limit}")]
    OutOfRange {
        /// What is too large.
        what: &'static str,
        /// How large.
        value: u64,
        /// The map's size.
        limit: u32,
    },
    /// A map is full, or refused.
    #[error(transparent)]
    Map(#[from] MapAccessError),
}

/// Attaching or detaching failed. It may be repeated.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The cgroup root is not a directory of the v2 hierarchy.
    #[error("the cgroup root {path} is no directory of a mounted cgroup v2 hierarchy: {reason}")]
    CgroupRoot {
        /// The configured directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A file that is no bpf_link, or cannot be opened, lies where the link should be pinned.
    #[error("the pin {path} is in the way and is no bpf_link ({reason}): remove it")]
    Pin {
        /// The pin.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The kernel refused.
    #[error("cannot {action} {program} at {target}: {source}")]
    Kernel {
        /// `attach`, `pin`, …
        action: &'static str,
        /// The program.
        program: &'static str,
        /// Where.
        target: String,
        /// Why.
        source: io::Error,
    },
    /// The clsact filter could not be changed.
    #[error("cannot {action} the clsact filter on {interface}: {reason}")]
    Clsact {
        /// `add` or `remove`.
        action: &'static str,
        /// The interface.
        interface: String,
        /// Why.
        reason: String,
    },
    /// The interface of this name has another index than the caller saw.
    #[error(
        "interface {interface} does not have index {index} here: it was replaced, or this is another netns"
    )]
    InterfaceChanged {
        /// The name.
        interface: String,
        /// The index the caller gave.
        index: u32,
    },
    /// A map refused.
    #[error(transparent)]
    Map(#[from] MapAccessError),
    /// What another version left cannot be removed.
    #[error("cannot remove {path}, which another version or map size left: {source}")]
    Migration {
        /// The pin or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The program is not loaded: a bug of this crate, reported instead of a panic.
    #[error("the BPF program {0} is not loaded")]
    NotLoaded(&'static str),
}

/// [`remove_all`](crate::remove_all) failed; it may be repeated.
#[derive(Debug, Error)]
#[error("cannot remove {path}: {source}")]
pub struct CleanError {
    /// The pin or directory.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// A mount is missing or cannot be made.
#[derive(Debug, Error)]
pub enum MountError {
    /// No cgroup v2 hierarchy.
    #[error("no cgroup2 file system is mounted: mount one (mount -t cgroup2 none /sys/fs/cgroup/unified)")]
    NoCgroup2,
    /// The mount table cannot be read.
    #[error("cannot read /proc/mounts: {0}")]
    MountTable(#[source] io::Error),
    /// bpffs cannot be mounted.
    #[error("cannot mount a bpffs at {path}: {source}")]
    Mount {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}
