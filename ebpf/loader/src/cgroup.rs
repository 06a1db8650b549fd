// SPDX-License-Identifier: Apache-2.0
//! The socket programs at the cgroup root.

use std::{
    fs::File,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
};

use aya_obj::generated::bpf_attach_type as attach;
use ebpf_abi::names;

use crate::{
    datapath::Datapath,
    error::AttachError,
    link::{self, Attached, Target},
    migrate, mounts,
};

/// The way back and the end first, so that no socket is translated whose peer would not be named back, and none counted
/// whose end would not be seen.
const ATTACHMENTS: [(&str, attach, &str); 11] = [
    (names::RECVMSG4, attach::BPF_CGROUP_UDP4_RECVMSG, "recvmsg4"),
    (names::RECVMSG6, attach::BPF_CGROUP_UDP6_RECVMSG, "recvmsg6"),
    (names::GETPEERNAME4, attach::BPF_CGROUP_INET4_GETPEERNAME, "getpeername4"),
    (names::GETPEERNAME6, attach::BPF_CGROUP_INET6_GETPEERNAME, "getpeername6"),
    (names::SOCK_RELEASE, attach::BPF_CGROUP_INET_SOCK_RELEASE, "sock_release"),
    (names::POST_BIND4, attach::BPF_CGROUP_INET4_POST_BIND, "post_bind4"),
    (names::POST_BIND6, attach::BPF_CGROUP_INET6_POST_BIND, "post_bind6"),
    (names::SENDMSG4, attach::BPF_CGROUP_UDP4_SENDMSG, "sendmsg4"),
    (names::SENDMSG6, attach::BPF_CGROUP_UDP6_SENDMSG, "sendmsg6"),
    (names::CONNECT4, attach::BPF_CGROUP_INET4_CONNECT, "connect4"),
    (names::CONNECT6, attach::BPF_CGROUP_INET6_CONNECT, "connect6"),
];

impl Datapath {
    /// Attaches the socket programs at the cgroup root, or replaces the programs behind the pinned bpf_links
    /// atomically. A bpf_link whose cgroup is gone, or another than configured, is made anew.
    pub fn attach_cgroup(&mut self) -> Result<(), AttachError> {
        let path = &self.options.cgroup_root;
        let refused = |reason: String| AttachError::CgroupRoot { path: path.clone(), reason };
        let root = File::open(path).map_err(|error| refused(error.to_string()))?;
        if !mounts::is_cgroup2(path).map_err(|error| refused(error.to_string()))? {
            return Err(refused("it is on another file system".to_owned()));
        }
        let id = root.metadata().map_err(|error| refused(error.to_string()))?.ino();
        let target = Target::Cgroup(root.as_fd(), id);
        for (program, attach_type, pin) in ATTACHMENTS {
            let pins = self.pins(pin);
            let outcome =
                link::ensure(program, self.program_fd(program)?, target, attach_type as u32, &pins, false)?;
            match outcome {
                Attached::Updated => tracing::debug!(program, "program replaced behind its bpf_link"),
                _ => tracing::info!(program, cgroup = %path.display(), ?outcome, "attached"),
            }
        }
        // What the programs of another version or map size remembered until this moment.
        self.copy_flows_again()?;
        self.leave_old_sockets().map_err(migrate::gone)?;
        Ok(())
    }
}
