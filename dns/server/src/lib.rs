// SPDX-License-Identifier: Apache-2.0
//! The node's DNS server: sockets, access, forwarding and cache around the answers of `dns-zone`.
//!
//! ```text
//!  UDP ─► worker threads ─┐                      ┌─► our zone, the cache: answered on the spot
//!                         ├─► Core::respond ─────┤
//!  TCP, TLS ─► tasks ─────┘                      └─► Core::complete ─► Forwarder ─► upstreams
//! ```
//!
//! [`DnsServer::bind`] takes the addresses, [`DnsServer::run`] answers. Names of the zone are answered from the
//! [`dns_zone::Zone`] that the agent swaps in; other names go to the upstreams ([`ForwardConfig`]). What was asked
//! and answered is counted in [`DnsStats`].
//!
//! - Never NXDOMAIN for a name of ours unless the zone says so: without a zone (not in sync) every answer is SERVFAIL.
//! - Nothing queues without bound: past [`FORWARDS_IN_FLIGHT_MAX`] forwarded questions, or a client's part of them, the
//!   answer is REFUSED; names of ours are answered all the same.
//! - Only the given networks are answered; everybody else gets REFUSED, and few of those.
//! - No question is forwarded to this server itself.
//! - An answer of ours, and one from the cache, costs no allocation.
//!
//! Start with `respond.rs`.

mod admission;
mod bind;
mod cache;
mod complete;
mod forward;
mod further;
mod group;
mod held;
pub mod hold;
mod life;
mod query_log;
mod rate;
mod resolv_conf;
mod respond;
mod search;
mod server;
mod sockets;
mod stats;
mod stream;
mod udp;
mod upstream;
mod wire;

pub use bind::BindError;
pub use forward::{CACHE_BYTES, FORWARDS_IN_FLIGHT_MAX, ForwardConfig, StubZone};
pub use further::Further;
pub use group::UPSTREAMS_MAX;
pub use query_log::QUERY_LOG_TARGET;
pub use resolv_conf::nameservers;
pub use server::{DnsConfig, DnsServer, TlsListen};
pub use stats::{DnsCounts, DnsStats, UpstreamCounts};
pub use stream::{STREAMS_MAX, STREAMS_PER_CLIENT_MAX};
pub use upstream::{TlsError, UpstreamConfig, UpstreamTls, server_tls};

/// Log targets (tracing's `EnvFilter`) that say one line per request at `info`: to be set to `warn` by default.
pub const QUIET_TARGETS: [&str; 1] = ["hickory_proto"];
