// SPDX-License-Identifier: Apache-2.0
//! The datapath in the kernel: root, each test in its own netns, mount namespace and cgroup, with its own bpffs.

#![allow(clippy::unwrap_used, reason = "helpers of tests; clippy knows only the test functions themselves")]
#![allow(clippy::print_stderr, clippy::print_stdout, reason = "SKIP lines, and a child's results")]

mod checked;
mod client;
mod conntrack;
mod devices;
mod lab;
mod lifecycle;
mod neighbour;
mod nodes;
mod overlay;
mod packets;
mod pod;
mod pods;
mod qdisc;
mod raw;
mod resize;
mod scale;
mod services;
mod sockets;
mod upgrade;
mod versions;
