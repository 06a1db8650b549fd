// SPDX-License-Identifier: Apache-2.0
//! weft-lab: a Weft cluster on one machine.

use std::process::ExitCode;

fn main() -> ExitCode {
    weft_lab::cli::run()
}
