// SPDX-License-Identifier: Apache-2.0
//! The program: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    weft_conformance::program()
}
