// SPDX-License-Identifier: Apache-2.0
//! bpf(2) and mmap(2): what aya 0.14 does not offer, behind safe functions.
//!
//! The structures are the parts of `union bpf_attr` (linux/bpf.h) that each command reads; the kernel takes the missing
//! tail as zero.

#![allow(unsafe_code, reason = "raw system calls; each block says why it is sound")]

mod map;
mod netns;
mod program;
mod slots;

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

pub(crate) use map::{MapFd, MapShape, Position, bytes_of, from_bytes};
pub(crate) use netns::{is_ethernet, netns_cookie};
pub(crate) use program::{Instruction, load_program};
pub(crate) use slots::Slots;

const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

/// BPF_LINK_TYPE_CGROUP.
pub(crate) const LINK_TYPE_CGROUP: u32 = 3;
/// BPF_LINK_TYPE_TCX.
pub(crate) const LINK_TYPE_TCX: u32 = 11;

/// What the kernel says about a bpf_link (`struct bpf_link_info`).
#[derive(Clone, Copy, Debug)]
pub(crate) enum LinkInfo {
    /// On a cgroup; the identifier is 0 when the cgroup is gone.
    Cgroup { cgroup_id: u64, attach_type: u32 },
    /// On an interface; the index is 0 when the interface is gone.
    Tcx { ifindex: u32, attach_type: u32 },
    /// Something else.
    Other,
}

/// Opens what is pinned at `path`.
pub(crate) fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let path = c_path(path)?;
    let mut attr = Attr { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: the attr is the one of BPF_OBJ_GET; the path is NUL-terminated and outlives the call.
    let fd = unsafe { bpf(BPF_OBJ_GET, &mut attr) }?;
    Ok(own(fd))
}

/// Pins a map, program or bpf_link at `path`, which must not exist.
pub(crate) fn obj_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let path = c_path(path)?;
    let mut attr = Attr { pathname: path.as_ptr() as u64, bpf_fd: fd.as_raw_fd() as u32, file_flags: 0 };
    // SAFETY: the attr is the one of BPF_OBJ_PIN; the path is NUL-terminated and outlives the call.
    unsafe { bpf(BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// Type, key bytes, value bytes, entries and flags of the map behind `fd`; fails when it is no map.
pub(crate) fn map_info(fd: BorrowedFd<'_>) -> io::Result<[u32; 5]> {
    // bpf_map_info: type, id, key_size, value_size, max_entries, map_flags.
    let [map_type, _id, key_bytes, value_bytes, max_entries, flags, ..] = info(fd)?;
    // Programs and bpf_links answer the same command with other structures: fdinfo tells which this is.
    if !fd_kind(fd)?.ends_with("bpf-map") {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok([map_type, key_bytes, value_bytes, max_entries, flags])
}

/// What the bpf_link behind `fd` is attached to; fails when it is no bpf_link.
pub(crate) fn link_info(fd: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    // bpf_link_info: type, id, prog_id, padding, then a union: cgroup { u64 cgroup_id, u32 attach_type },
    // tcx { u32 ifindex, u32 attach_type }.
    let info = info(fd)?;
    if !fd_kind(fd)?.ends_with("bpf_link") && !fd_kind(fd)?.ends_with("bpf-link") {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok(match info[0] {
        LINK_TYPE_CGROUP => {
            LinkInfo::Cgroup { cgroup_id: words_to_u64(info[4], info[5]), attach_type: info[6] }
        }
        LINK_TYPE_TCX => LinkInfo::Tcx { ifindex: info[4], attach_type: info[5] },
        _ => LinkInfo::Other,
    })
}

/// The first words of BPF_OBJ_GET_INFO_BY_FD's answer.
fn info(fd: BorrowedFd<'_>) -> io::Result<[u32; 16]> {
    #[repr(C)]
    struct Attr {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    // Aligned as the kernel's structures are: their first union holds a u64.
    #[repr(C, align(8))]
    struct Info([u32; 16]);
    let mut info = Info([0; 16]);
    let mut attr = Attr {
        bpf_fd: fd.as_raw_fd() as u32,
        info_len: size_of_val(&info) as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: the attr is the one of BPF_OBJ_GET_INFO_BY_FD; the kernel writes at most info_len bytes at info.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info.0)
}

/// What kind of BPF object a descriptor is: `anon_inode:bpf-map`, `anon_inode:bpf-prog` or `anon_inode:bpf_link`.
fn fd_kind(fd: BorrowedFd<'_>) -> io::Result<String> {
    let target = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    Ok(target.to_string_lossy().into_owned())
}

/// Attaches a program to a cgroup (`target` is its fd) or an interface (`target` is its index).
pub(crate) fn link_create(program: BorrowedFd<'_>, target: u32, attach_type: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        prog_fd: u32,
        target: u32,
        attach_type: u32,
        flags: u32,
        // tcx: after the others, whatever their revision; ignored for cgroups.
        relative: u64,
        expected_revision: u64,
    }
    let mut attr = Attr {
        prog_fd: program.as_raw_fd() as u32,
        target,
        attach_type,
        flags: 0,
        relative: 0,
        expected_revision: 0,
    };
    // SAFETY: the attr is the one of BPF_LINK_CREATE and holds no pointers.
    let fd = unsafe { bpf(BPF_LINK_CREATE, &mut attr) }?;
    Ok(own(fd))
}

/// Replaces the program behind a bpf_link; every event sees the old program or the new one.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link_fd: u32,
        new_prog_fd: u32,
        flags: u32,
        old_prog_fd: u32,
    }
    let mut attr = Attr {
        link_fd: link.as_raw_fd() as u32,
        new_prog_fd: program.as_raw_fd() as u32,
        flags: 0,
        old_prog_fd: 0,
    };
    // SAFETY: the attr is the one of BPF_LINK_UPDATE and holds no pointers.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// Takes the program of a bpf_link off where it is, before the call returns.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link_fd: u32,
    }
    let mut attr = Attr { link_fd: link.as_raw_fd() as u32 };
    // SAFETY: the attr is the one of BPF_LINK_DETACH and holds no pointers.
    unsafe { bpf(BPF_LINK_DETACH, &mut attr) }.map(drop)
}

/// One bpf(2) call.
///
/// # Safety
///
/// `attr` must be a leading part of `union bpf_attr` for this command, with valid pointers in it.
unsafe fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<RawFd> {
    // SAFETY: the caller vouches for the attr; the size is its own.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr as *mut T, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}

fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: bpf(2) has just returned this descriptor (close-on-exec, as all of its are); nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

fn words_to_u64(first: u32, second: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}
