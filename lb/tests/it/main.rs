// SPDX-License-Identifier: Apache-2.0
//! Services from manifest to map image: text cases and properties.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod agent;
mod cases;
mod fixtures;
mod kernel;
mod manifests;
mod paths;
mod properties;
mod room;
mod unread;
