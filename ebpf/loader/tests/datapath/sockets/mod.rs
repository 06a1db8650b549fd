// SPDX-License-Identifier: Apache-2.0
//! Services through the programs at the cgroup root: real sockets of processes in the cgroup, entries written to the maps by
//! hand.

mod affinity;
pub(crate) mod agent;
mod bind;
mod connections;
mod datagrams;
mod faults;
mod heartbeat;
mod load;
mod node_ports;
pub(crate) mod world;
