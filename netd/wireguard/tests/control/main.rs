// SPDX-License-Identifier: Apache-2.0
//! The configuration socket, and who talks to it: plain clients, netd's `UserDevice`, and `wg`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    missing_docs,
    reason = "a test fails by panicking"
)]

mod device;
mod fake;
mod socket;
mod wg;
