// SPDX-License-Identifier: Apache-2.0
//! What can go wrong, by operation. Messages name the pin, map or interface, and what to do.

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};
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
        "the pin {path} is {found}, but this version needs {expected}: another version left it; `netd clean` removes          it, and existing connections through services end with it"
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
        program: &'static str,
        /// Why, with the verifier's log.
        source: Box<ProgramError>,
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
#[error("BPF map {map}: {source}")]
pub struct MapAccessError {
    /// Its name in ebpf-abi.
    pub map: &'static str,
    /// Why.
    pub source: MapError,
}

impl MapAccessError {
    pub(crate) fn of(map: &'static str) -> impl FnOnce(MapError) -> Self {
        move |source| Self { map, source }
    }
}

/// [`Datapath::write_image`](crate::Datapath::write_image) failed; what was written before stays, and the next call goes
/// on from there.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The image points outside a map. Nothing was written.
    #[error("the service image does not fit the maps: {what} {value}, of at most {limit}")]
    OutOfRange {
        /// What is too large.
        what: &'static str,
        /// How large.
        value: u64,
        /// The map's size.
        limit: u32,
    },
    /// A map refused.
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
    /// A pod map refused.
    #[error(transparent)]
    Map(#[from] MapAccessError),
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
