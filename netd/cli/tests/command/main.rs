// SPDX-License-Identifier: Apache-2.0
//! The real binary: without a netd, and with one that says what a test wants.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod alone;
mod dns;
mod fake_netd;
mod ipam;
mod members;
mod nodes;
mod pods;
