// SPDX-License-Identifier: Apache-2.0
//! What the kernel lacks, in words, before anything is created.

use std::{fs, io};

use aya_obj::generated::{bpf_attach_type as attach, bpf_prog_type as kind};
use thiserror::Error;

use crate::{
    mounts, pod,
    sys::{self, Instruction},
};

// Helper numbers (linux/bpf.h).
const GET_PRANDOM_U32: i32 = 7;
const GET_SOCKET_COOKIE: i32 = 46;
const GET_NETNS_COOKIE: i32 = 122;
const REDIRECT_PEER: i32 = 155;
const SET_RETVAL: i32 = 187;

/// What the kernel has beyond what is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// TCX (Linux 6.6); without it pod links get clsact filters.
    pub tcx: bool,
}

/// What is needed and not there.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the BPF datapath cannot run here; missing: {}", features.join("; "))]
pub struct Missing {
    /// Each missing thing, with what provides it.
    pub features: Vec<&'static str>,
}

/// Asks the kernel for each thing the datapath needs by trying it. Changes nothing.
pub fn probe() -> Result<Features, Missing> {
    let mut missing = Vec::new();
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if mounts::mount_points(&table, "bpf").next().is_none()
        && !known.lines().any(|line| line.ends_with("\tbpf"))
    {
        missing.push("the bpf file system (kernel option CONFIG_BPF_SYSCALL)");
    }
    if mounts::mount_points(&table, "cgroup2").next().is_none() {
        missing.push("a mounted cgroup2 hierarchy (mount -t cgroup2 none DIR)");
    }
    let mut tcx = false;
    match classifier() {
        Ok(program) => {
            tcx = pod::has_tcx(std::os::fd::AsFd::as_fd(&program));
            for (kind, attach_type, instructions, what) in SOCKET_PROGRAMS {
                let loaded = sys::load_program(*kind as u32, *attach_type as u32, instructions);
                if loaded.is_err() && !missing.contains(what) {
                    missing.push(what);
                }
            }
        }
        Err(error) => missing.push(why(&error)),
    }
    if missing.is_empty() { Ok(Features { tcx }) } else { Err(Missing { features: missing }) }
}

/// What a program needs to translate: cookies of socket and netns, chance, and an error of its choice.
const CALLS: &[Instruction] = &[
    Instruction::keep_context(),
    Instruction::call(GET_SOCKET_COOKIE),
    Instruction::context(),
    Instruction::call(GET_NETNS_COOKIE),
    Instruction::call(GET_PRANDOM_U32),
    Instruction::set(1, -libc::ECONNREFUSED),
    Instruction::call(SET_RETVAL),
    Instruction::set(0, 1),
    Instruction::exit(),
];

const LOOKS_BACK: &[Instruction] =
    &[Instruction::call(GET_SOCKET_COOKIE), Instruction::set(0, 1), Instruction::exit()];

const SOCK_ADDR: kind = kind::BPF_PROG_TYPE_CGROUP_SOCK_ADDR;
const SOCK: kind = kind::BPF_PROG_TYPE_CGROUP_SOCK;
const CONNECT: &str = "cgroup/connect programs with bpf_set_retval (Linux 5.18, CONFIG_CGROUP_BPF)";
const SENDMSG: &str = "cgroup/sendmsg programs with bpf_set_retval (Linux 5.18, CONFIG_CGROUP_BPF)";
const RECVMSG: &str = "cgroup/recvmsg programs (Linux 5.2, CONFIG_CGROUP_BPF)";
const GETPEERNAME: &str = "cgroup/getpeername programs (Linux 5.8, CONFIG_CGROUP_BPF)";
const RELEASE: &str = "cgroup/sock_release programs (Linux 5.9, CONFIG_CGROUP_BPF)";
const POST_BIND: &str = "cgroup/post_bind programs (Linux 4.17, CONFIG_CGROUP_BPF)";

const SOCKET_PROGRAMS: &[(kind, attach, &[Instruction], &str)] = &[
    (SOCK_ADDR, attach::BPF_CGROUP_INET4_CONNECT, CALLS, CONNECT),
    (SOCK_ADDR, attach::BPF_CGROUP_INET6_CONNECT, CALLS, CONNECT),
    (SOCK_ADDR, attach::BPF_CGROUP_UDP4_SENDMSG, CALLS, SENDMSG),
    (SOCK_ADDR, attach::BPF_CGROUP_UDP6_SENDMSG, CALLS, SENDMSG),
    (SOCK_ADDR, attach::BPF_CGROUP_UDP4_RECVMSG, LOOKS_BACK, RECVMSG),
    (SOCK_ADDR, attach::BPF_CGROUP_UDP6_RECVMSG, LOOKS_BACK, RECVMSG),
    (SOCK_ADDR, attach::BPF_CGROUP_INET4_GETPEERNAME, LOOKS_BACK, GETPEERNAME),
    (SOCK_ADDR, attach::BPF_CGROUP_INET6_GETPEERNAME, LOOKS_BACK, GETPEERNAME),
    (SOCK, attach::BPF_CGROUP_INET_SOCK_RELEASE, LOOKS_BACK, RELEASE),
    (SOCK, attach::BPF_CGROUP_INET4_POST_BIND, LOOKS_BACK, POST_BIND),
    (SOCK, attach::BPF_CGROUP_INET6_POST_BIND, LOOKS_BACK, POST_BIND),
];

/// A TC program that would redirect to a peer.
fn classifier() -> io::Result<std::os::fd::OwnedFd> {
    let instructions = [
        Instruction::set(1, 1),
        Instruction::set(2, 0),
        Instruction::call(REDIRECT_PEER),
        Instruction::set(0, -1),
        Instruction::exit(),
    ];
    sys::load_program(kind::BPF_PROG_TYPE_SCHED_CLS as u32, 0, &instructions)
}

fn why(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => "the bpf system call (kernel option CONFIG_BPF_SYSCALL)",
        Some(libc::EPERM) => {
            "the right to load BPF programs (root, or CAP_BPF with CAP_NET_ADMIN and CAP_PERFMON)"
        }
        _ => "TC programs with bpf_redirect_peer (Linux 5.10, CONFIG_NET_CLS_BPF)",
    }
}
