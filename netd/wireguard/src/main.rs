// SPDX-License-Identifier: Apache-2.0
//! `weft-wireguard`: WireGuard devices in user space, for kernels without the module; engine/program.rs has the program.

use std::process::ExitCode;

fn main() -> ExitCode {
    netd_wireguard::engine::main()
}
