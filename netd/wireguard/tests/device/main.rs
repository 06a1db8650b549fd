// SPDX-License-Identifier: Apache-2.0
//! The program `weft-wireguard` for real, as root: two of them in two network namespaces that a veth pair joins.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs,
    reason = "a test fails by panicking, and a skip is printed"
)]

mod bulk;
mod ground;
mod handover;
mod hostile;
mod interop;
mod life;
mod offloads;
mod relay;
