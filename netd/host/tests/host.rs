// SPDX-License-Identifier: Apache-2.0

//! The kernel's objects for real, as root, each story in a netns of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and a skip is printed"
)]

#[path = "host/gate.rs"]
mod gate;
#[path = "host/ground.rs"]
mod ground;
#[path = "host/limits.rs"]
mod limits;
#[path = "host/objects.rs"]
mod objects;
#[path = "host/offload.rs"]
mod offload;
#[path = "host/pod.rs"]
mod pod;
#[path = "host/ports.rs"]
mod ports;
#[path = "host/settings.rs"]
mod settings;
#[path = "host/sockdiag.rs"]
mod sockdiag;
#[path = "host/talk.rs"]
mod talk;
#[path = "host/tunnels.rs"]
mod tunnels;
