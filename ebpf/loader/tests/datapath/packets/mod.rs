// SPDX-License-Identifier: Apache-2.0
//! The packet path: services for whoever is outside of the cgroup. Nobody here is in one.

mod bytes;
pub(crate) mod client;
mod cut;
mod direct;
mod faults;
mod node_ports;
mod pod_clients;
mod pressure;
pub(crate) mod service;
mod states;
mod tunnel;
