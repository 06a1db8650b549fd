// SPDX-License-Identifier: Apache-2.0
//! Puts the commit into `netd --version`, where the sources are a git checkout.

use std::process::Command;

fn main() {
    let commit = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()
        .filter(|out| out.status.success())
        .map_or_else(|| "unknown".to_owned(), |out| String::from_utf8_lossy(&out.stdout).trim().to_owned());
    #[allow(clippy::print_stdout, reason = "a build script talks to cargo on stdout")]
    {
        println!("cargo::rustc-env=WEFT_COMMIT={commit}");
        println!("cargo::rerun-if-changed=../.git/HEAD");
        println!("cargo::rerun-if-changed=../.git/logs/HEAD");
    }
}
