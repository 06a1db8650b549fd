// SPDX-License-Identifier: Apache-2.0
//! Stories of the plan: deltas, order, overlay, key generations, paths, MTUs and the nft text, the last one judged by the
//! real `nft`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "a skipped test says so")]

#[path = "plan/backoff.rs"]
mod backoff;
#[path = "plan/delta.rs"]
mod delta;
#[path = "plan/gate.rs"]
mod gate;
#[path = "plan/generation.rs"]
mod generation;
#[path = "plan/mtu.rs"]
mod mtu;
#[path = "plan/nft.rs"]
mod nft;
#[path = "plan/order.rs"]
mod order;
#[path = "plan/overlay.rs"]
mod overlay;
#[path = "plan/paths.rs"]
mod paths;
#[path = "plan/rotation.rs"]
mod rotation;
#[path = "plan/rotation_cluster.rs"]
mod rotation_cluster;
#[path = "plan/shape.rs"]
mod shape;
