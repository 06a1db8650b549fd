// SPDX-License-Identifier: Apache-2.0
//! The packet path: services for whoever is outside of the cgroup. Nobody here is in one.

mod bytes;
mod client;
mod node_ports;
mod pod_clients;
mod pressure;
mod service;
mod tunnel;
