// SPDX-License-Identifier: Apache-2.0
//! Questions and answers: text cases and properties.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod cases;
mod properties;
