// SPDX-License-Identifier: Apache-2.0
//! One pinned bpf_link: made, or its program replaced.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use crate::{
    error::AttachError,
    expedite::Expedited,
    sys::{self, LinkInfo},
};

/// What attaching did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// There was none.
    Created,
    /// There was one that led elsewhere (its cgroup or interface is gone, or another): removed and made anew.
    Replaced,
    /// There was one: the program behind it was replaced, without a moment without a program.
    Updated,
}

/// Where a bpf_link goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    /// A cgroup directory and its inode number, which is the kernel's cgroup identifier.
    Cgroup(BorrowedFd<'a>, u64),
    /// An interface index.
    Interface(u32),
}

/// Where a bpf_link is pinned, and where another version of us may have pinned the same one.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    pub(crate) own: PathBuf,
    pub(crate) earlier: Vec<PathBuf>,
}

/// Makes sure that `program` is attached at `target` through a bpf_link pinned at `pins.own`. A bpf_link of another version
/// is taken over: its program is replaced, then it is pinned here and no longer there.
pub(crate) fn ensure(
    name: &'static str,
    program: BorrowedFd<'_>,
    target: Target<'_>,
    attach_type: u32,
    pins: &Pins,
    expedite: bool,
) -> Result<Attached, AttachError> {
    let failed = |action| {
        let target = target.to_string();
        move |source| AttachError::Kernel { action, program: name, target, source }
    };
    let mut outcome = Attached::Created;
    let mut is_attached = false;
    for pin in std::iter::once(&pins.own).chain(&pins.earlier) {
        let link = match sys::obj_get(pin) {
            Ok(link) => link,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(AttachError::Pin { path: pin.clone(), reason: error.to_string() }),
        };
        let info = sys::link_info(link.as_fd())
            .map_err(|error| AttachError::Pin { path: pin.clone(), reason: error.to_string() })?;
        if !is_attached && target.is(info, attach_type) {
            match sys::link_update(link.as_fd(), program) {
                Ok(()) => is_attached = true,
                // The cgroup or interface went away in between.
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
                Err(error) => return Err(failed("replace the program of")(error)),
            }
            if is_attached && *pin == pins.own {
                continue;
            }
            if is_attached {
                sys::obj_pin(link.as_fd(), &pins.own).map_err(failed("pin the bpf_link of"))?;
            }
        }
        fs::remove_file(pin).map_err(failed("unpin the old bpf_link of"))?;
        outcome = Attached::Replaced;
    }
    if is_attached {
        return Ok(Attached::Updated);
    }
    let link = {
        let _soon = Expedited::begin(expedite);
        sys::link_create(program, target.number(), attach_type).map_err(failed("attach"))?
    };
    // Until the pin stands the attachment ends with this process; the next call then finds neither and starts over.
    sys::obj_pin(link.as_fd(), &pins.own).map_err(failed("pin the bpf_link of"))?;
    Ok(outcome)
}

/// What the bpf_link pinned at `pin` is attached to; `None` without a pin, or when it is no bpf_link.
pub(crate) fn observe(pin: &Path) -> Option<LinkInfo> {
    let link = sys::obj_get(pin).ok()?;
    sys::link_info(link.as_fd()).ok()
}

/// Detaches and unpins; absent is fine. Unpinning alone detaches, too, but some time after it returned: the kernel leaves
/// that to a worker.
pub(crate) fn remove(pin: &Path) -> io::Result<bool> {
    if let Ok(link) = sys::obj_get(pin) {
        // What the link led to may be gone, and what is not detached now is by unpinning.
        let _ = sys::link_detach(link.as_fd());
    }
    match fs::remove_file(pin) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl Target<'_> {
    fn is(self, info: LinkInfo, attach_type: u32) -> bool {
        match (self, info) {
            (Self::Cgroup(_, id), LinkInfo::Cgroup { cgroup_id, attach_type: found }) => {
                id == cgroup_id && attach_type == found
            }
            (Self::Interface(index), LinkInfo::Tcx { ifindex, attach_type: found }) => {
                index == ifindex && attach_type == found
            }
            _ => false,
        }
    }

    fn number(self) -> u32 {
        match self {
            Self::Cgroup(fd, _) => fd.as_raw_fd() as u32,
            Self::Interface(index) => index,
        }
    }
}

impl std::fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cgroup(_, id) => write!(f, "cgroup {id}"),
            Self::Interface(index) => write!(f, "interface {index}"),
        }
    }
}
