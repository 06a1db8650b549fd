// SPDX-License-Identifier: Apache-2.0
//! `netd`: the node daemon; lib.rs has the program.

use std::process::ExitCode;

fn main() -> ExitCode {
    netd::main()
}
