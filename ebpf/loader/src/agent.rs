// SPDX-License-Identifier: Apache-2.0
//! What the agent says of itself: while it is silent the programs send what is meant for its own servers to others.

use std::{io, time::Duration};

use ebpf_abi::names;
use nix::time::{ClockId, clock_gettime};

use crate::{
    datapath::Datapath,
    error::{LoadError, MapAccessError},
    map::BpfMap,
};

/// The only entry of AGENT.
const ENTRY: u32 = 0;

/// Says that the agent's own servers answer. Of its own descriptor, so that who says so waits for nobody.
#[derive(Debug)]
pub struct Heartbeat {
    agent: BpfMap<u32, u64>,
}

impl Datapath {
    /// For as long as the datapath is pinned where it is.
    ///
    /// # Errors
    /// The pin cannot be opened.
    pub fn heartbeat(&self) -> Result<Heartbeat, LoadError> {
        Ok(Heartbeat { agent: BpfMap::open(&self.options.pin_dir, names::AGENT)? })
    }
}

impl Heartbeat {
    /// They answer now: what comes within [`AGENT_SILENT_NS`](ebpf_abi::service::AGENT_SILENT_NS) goes to them.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn beat(&self) -> Result<(), MapAccessError> {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(|errno| MapAccessError::Kernel {
            map: names::AGENT,
            action: "write",
            source: io::Error::from(errno),
        })?;
        let nanoseconds = u64::try_from(Duration::from(now).as_nanos()).unwrap_or(u64::MAX);
        self.agent.set(&ENTRY, &nanoseconds)
    }

    /// They answer no more: what comes from now on goes to others.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn end(&self) -> Result<(), MapAccessError> {
        self.agent.set(&ENTRY, &0)
    }
}
