// SPDX-License-Identifier: Apache-2.0
//! Answers to DNS questions about services, after the Kubernetes DNS-based service discovery specification 1.1.0
//! (<https://github.com/kubernetes/dns/blob/master/docs/specification.md>).
//!
//! ```text
//!  ZoneService… ─► Zone::build ─► Zone ─► answer(name, type, seed) ─► Answer | NoData | NxDomain | Forward
//! ```
//!
//! The crate does no I/O, reads no clock and draws no random numbers: the order of an answer follows from a seed that
//! the caller gives. A zone is built once for each revision of the service table and never changes; a caller that has
//! no zone yet answers SERVFAIL, never NXDOMAIN.
//!
//! Start with [`Zone`] (`zone.rs`); `build.rs` says which records a service has.

mod build;
mod name;
mod order;
mod record;
mod reverse;
mod service;
mod zone;

pub use name::{Name, NameError};
pub use record::{Record, RecordData, RecordType, Soa, Srv};
pub use service::{ZoneEndpoint, ZoneKind, ZonePort, ZoneProblem, ZoneProtocol, ZoneService};
pub use zone::{DNS_SCHEMA_VERSION, Outcome, Zone, ZoneError};
