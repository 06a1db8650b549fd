// SPDX-License-Identifier: Apache-2.0
//! A conformance runner for CNI 1.1: it plays a container runtime to any plugin and prints, row by row, which sentences
//! of the specification (and of its conventions) the plugin keeps.
//!
//! ```text
//! weft-conformance --plugin /opt/cni/bin/bridge --config 10-bridge.conf
//! ```
//!
//! A row is a small function in `rows`: it makes containers (network namespaces) of its own, calls the plugin with
//! environment and standard input as a runtime does, and looks into the kernel for what the plugin says it did. It
//! passes, fails (with what was expected and what came), or does not apply, where the plugin does not speak the version
//! or the config does not declare the capability.
//!
//! The plugin runs in a network namespace made for it, so that a bridge or a rule of its own never lands in the caller's;
//! or behind `--exec-prefix`, where the plugin needs a node that exists already. After each row every ADD of that row
//! has got its DEL and the namespaces are gone, also after Ctrl-C. What a plugin keeps in files stays: give it a
//! directory of its own in the config.
//!
//! Nothing here depends on a Weft crate: what is judged and who judges share no code.

mod attachment;
mod call;
mod cli;
mod interrupt;
mod kernel;
mod process;
mod program;
mod report;
mod result;
mod rows;
mod runtime;
mod say;
mod talk;
mod verdict;
mod version;

pub use program::program;
