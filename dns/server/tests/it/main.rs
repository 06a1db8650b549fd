// SPDX-License-Identifier: Apache-2.0
//! A real server on loopback, asked by a plain client as `dig` would, with upstreams that the test plays.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod access;
mod cache;
mod client;
mod forwarding;
mod held;
mod metrics;
mod overload;
mod server;
mod storm;
mod streams;
mod trust;
mod upstream;
mod zone;
