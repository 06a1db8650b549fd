// SPDX-License-Identifier: Apache-2.0
//! BPF_PROG_LOAD of a few instructions: how the probe asks the kernel what it knows.

use std::{io, os::fd::OwnedFd};

use super::{bpf, own};

const BPF_PROG_LOAD: libc::c_long = 5;

/// One instruction (`struct bpf_insn`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    /// `r<register> = value`.
    pub(crate) const fn set(register: u8, value: i32) -> Self {
        Self { code: 0xb7, registers: register, offset: 0, immediate: value }
    }

    /// `r6 = r1`: the context outlives calls there.
    pub(crate) const fn keep_context() -> Self {
        Self { code: 0xbf, registers: 0x16, offset: 0, immediate: 0 }
    }

    /// `r1 = r6`.
    pub(crate) const fn context() -> Self {
        Self { code: 0xbf, registers: 0x61, offset: 0, immediate: 0 }
    }

    /// `r0 = helper(r1, …)`.
    pub(crate) const fn call(helper: i32) -> Self {
        Self { code: 0x85, registers: 0, offset: 0, immediate: helper }
    }

    /// `return r0`.
    pub(crate) const fn exit() -> Self {
        Self { code: 0x95, registers: 0, offset: 0, immediate: 0 }
    }
}

/// Loads a program that is attached to nothing; the kernel frees it with the descriptor.
pub(crate) fn load_program(
    program_type: u32,
    attach_type: u32,
    instructions: &[Instruction],
) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
        prog_name: [u8; 16],
        prog_ifindex: u32,
        expected_attach_type: u32,
    }
    let mut attr = Attr {
        prog_type: program_type,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: *b"weft_probe\0\0\0\0\0\0",
        prog_ifindex: 0,
        expected_attach_type: attach_type,
    };
    // SAFETY: the attr is the one of BPF_PROG_LOAD; instructions and licence outlive the call, which only reads them.
    let fd = unsafe { bpf(BPF_PROG_LOAD, &mut attr) }?;
    Ok(own(fd))
}
