// SPDX-License-Identifier: Apache-2.0
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking and skips aloud"
)]

//! weft-cni as a runtime sees it: the real binary, real namespaces, and a netd that only remembers.

mod attachment;
mod chain;
mod check;
mod fake;
mod gone;
mod protocol;
mod runtime;
mod wishes;
