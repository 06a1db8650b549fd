// SPDX-License-Identifier: Apache-2.0
//! Questions and answers: text cases, packets and properties.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod cases;
mod hot_path;
mod incremental;
mod packets;
mod properties;
mod wire;
