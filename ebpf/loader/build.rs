// SPDX-License-Identifier: Apache-2.0
//! Builds ../programs for the BPF target into OUT_DIR/weft-datapath.
//!
//! The toolchain is the workspace's own: what aya-build asks of nightly (`-Z build-std`) is allowed on it by
//! RUSTC_BOOTSTRAP, set here only. AYA_BUILD_SKIP=1 leaves the programs out, for machines that only check or lint; the
//! loader then refuses to open a datapath.

#![allow(clippy::print_stdout, reason = "how a build script talks to cargo")]

use std::{env, fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain, build_ebpf};

const OBJECT: &str = "weft-datapath";
const TOOLCHAIN_FILE: &str = "../../rust-toolchain.toml";

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={error:#}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<()> {
    let own_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR is not set")?);
    for path in [
        "build.rs",
        "../abi/Cargo.toml",
        "../abi/src",
        "../programs/Cargo.toml",
        "../programs/Cargo.lock",
        "../programs/src",
        TOOLCHAIN_FILE,
    ] {
        println!("cargo::rerun-if-changed={}", own_dir.join(path).display());
    }

    if env::var_os("AYA_BUILD_SKIP").is_some_and(|value| value == "1" || value.eq_ignore_ascii_case("true")) {
        println!("cargo::rerun-if-env-changed=AYA_BUILD_SKIP");
        let object = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?).join(OBJECT);
        return fs::write(&object, []).with_context(|| format!("cannot write {}", object.display()));
    }

    anyhow::ensure!(
        find_linker(),
        "bpf-linker is not on PATH, and without it the BPF programs cannot be built: run `make deps`"
    );
    let toolchain = toolchain(&own_dir)?;

    #[allow(unsafe_code, reason = "set_var is unsafe where another thread may read the environment")]
    // SAFETY: a build script of one thread; nothing has been spawned yet.
    unsafe {
        env::set_var("RUSTC_BOOTSTRAP", "1");
        // aya-build repeats each line of the inner cargo as a warning of ours; errors come another way.
        env::set_var("CARGO_TERM_QUIET", "true");
        // The programs are linked as one; with CARGO_INCREMENTAL=1 in the environment rustc would refuse that.
        env::set_var("CARGO_INCREMENTAL", "0");
    }
    // aya-build starts cargo in our own directory, and that cargo must find the programs' package: they are not in the
    // workspace.
    let programs = own_dir.join("../programs");
    env::set_current_dir(&programs).with_context(|| format!("cannot enter {}", programs.display()))?;
    let package = Package { name: "ebpf-programs", root_dir: "../programs/src", ..Package::default() };
    build_ebpf([package], Toolchain::Custom(&toolchain)).context("cannot build the BPF programs")
}

/// The channel in rust-toolchain.toml, whatever toolchain the outer build was asked to use: its LLVM is the one that
/// bpf-linker can link.
fn toolchain(own_dir: &std::path::Path) -> Result<String> {
    let file = own_dir.join(TOOLCHAIN_FILE);
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    text.lines()
        .filter_map(|line| line.split_once('='))
        .find(|(key, _)| key.trim() == "channel")
        .map(|(_, value)| value.trim().trim_matches('"').to_owned())
        .with_context(|| format!("{} names no channel", file.display()))
}

fn find_linker() -> bool {
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    let path = env::var_os("PATH").unwrap_or_default();
    // `rustup run` puts cargo's own bin directory on PATH, too.
    env::split_paths(&path)
        .chain(cargo_home.or(home).map(|dir| dir.join("bin")))
        .any(|dir| dir.join("bpf-linker").is_file())
}
