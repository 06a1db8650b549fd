// SPDX-License-Identifier: Apache-2.0
//! The node's DNS server: sockets, access and forwarding around the pure answers of `dns-zone`.
//!
//! [`DnsServer::bind`] takes the addresses, [`DnsServer::run`] answers. Names of the zone are answered from the
//! [`dns_zone::Zone`] that the agent swaps in; other names go to the upstreams ([`ForwardConfig`]). What was asked
//! and answered is counted in [`DnsStats`].
//!
//! - Never NXDOMAIN for a name of ours unless the zone says so: without a zone (not in sync) every answer is SERVFAIL.
//! - Nothing queues without bound: past [`FORWARDS_IN_FLIGHT_MAX`] forwarded questions the answer is REFUSED.
//! - Only the given networks are answered; everybody else gets REFUSED.
//! - No question is forwarded to an address of this server.
//!
//! hickory logs each request at `info` under its own targets; [`QUIET_TARGETS`] is for the log filter.

mod bind;
mod forward;
mod handler;
mod local;
mod reply;
mod resolv_conf;
mod server;
mod stats;

pub use bind::BindError;
pub use forward::{FORWARDS_IN_FLIGHT_MAX, ForwardConfig, UPSTREAMS_MAX};
pub use resolv_conf::nameservers;
pub use server::DnsServer;
pub use stats::{DnsCounts, DnsStats};

/// Log targets (tracing's `EnvFilter`) that say one line per request at `info`: to be set to `warn` by default.
pub const QUIET_TARGETS: [&str; 4] = ["hickory_server", "hickory_resolver", "hickory_net", "hickory_proto"];
