// SPDX-License-Identifier: Apache-2.0
//! The store's contract, on the memory twin, on files and on a real etcd that the tests start themselves; and what stands on it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    missing_docs,
    reason = "a test fails by panicking"
)]

mod access;
mod battery;
mod bench;
mod claims;
mod etcd_server;
mod file;
mod file_host;
mod race;
mod shares;
mod tail;
