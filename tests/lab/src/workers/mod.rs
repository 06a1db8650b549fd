// SPDX-License-Identifier: Apache-2.0
//! Small servers and clients that run inside pods and nodes as hidden verbs of weft-lab.
//!
//! Plain blocking sockets and threads: what they measure is the network, not a runtime.

pub(crate) mod outside;
pub(crate) mod probe;
pub(crate) mod query;
pub(crate) mod rush;
pub(crate) mod serve;
mod sockets;
pub(crate) mod stream;
pub(crate) mod talk;

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

/// Microseconds of CLOCK_MONOTONIC: the same in every process of the machine.
pub fn monotonic_us() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| Duration::from(time).as_micros() as u64)
}

/// Looks a `host:port` up through the C library, as any program in the pod would: the first address is the one to use.
pub(crate) fn resolve(to: &str) -> Result<SocketAddr> {
    let mut found = to.to_socket_addrs().with_context(|| format!("looking up {to}"))?;
    found.next().with_context(|| format!("{to} has no address"))
}
