// SPDX-License-Identifier: Apache-2.0
//! Answers to DNS questions about services, after the Kubernetes DNS-based service discovery specification 1.1.0
//! (<https://github.com/kubernetes/dns/blob/master/docs/specification.md>), from packet to packet.
//!
//! ```text
//!  ZoneService, Client, OwnRecord, Rules ─► ZoneEdit ─► Zone (one for each revision)
//!                                                         │
//!  packet ─► parse ─► Query ─► Zone::respond ─────────────┴─► packet, or Forward: ask upstream
//!                              Zone::ask, Zone::explain ────► Outcome, the same as values
//! ```
//!
//! The crate does no I/O, reads no clock and draws no random numbers: the order of an answer follows from a seed that
//! the caller gives. A zone never changes; an edit makes the next one, which shares all that is the same. A caller that has
//! no zone yet answers SERVFAIL, never NXDOMAIN. What [`Zone::respond`] does for a name of a service allocates nothing.
//!
//! [`external`] has nothing to do with answers: it publishes names of services in zones of others.
//!
//! Start with `resolve.rs`; `compile.rs` says which names a service has, `locate.rs` where they lie.

mod collect;
mod compile;
mod compress;
mod custom;
mod edit;
mod edns;
mod emit;
mod encode;
mod entry;
mod explain;
pub mod external;
mod folded;
mod locate;
mod name;
mod order;
mod ordered;
mod own_answer;
mod query;
mod questions;
mod rcode;
mod record;
mod resolve;
mod respond;
mod reverse;
mod rules;
mod service;
mod settings;
mod sink;
mod skydns;
mod syntax;
mod tree;
mod views;
mod zone;

pub use collect::{Forward, Outcome};
pub use custom::{OwnData, OwnRecord, RecordSpec, SpecError};
pub use edit::ZoneEdit;
pub use edns::{Cookie, Edns};
pub use encode::{Encoder, ReplyOptions, Written};
pub use explain::Explanation;
pub use folded::Folded;
pub use name::{Name, NameError};
pub use query::{Incoming, Query, Reject, Transport, parse};
pub use rcode::Rcode;
pub use record::{Record, RecordData, RecordType, Soa, Srv};
pub use respond::Response;
pub use rules::{LinkSpec, RewriteSpec, Rules};
pub use service::{LeftOut, ZoneEndpoint, ZoneKind, ZonePort, ZoneProblem, ZoneProtocol, ZoneService};
pub use settings::{PodNames, TTL_SECS_DEFAULT, TTL_SECS_MAX, ZoneError, ZoneSettings};
pub use skydns::{SKYDNS_PREFIX, Skydns, SkydnsError, SkydnsHost, parse_skydns};
pub use views::{Client, Views, ViewsError};
pub use zone::{DNS_SCHEMA_VERSION, Zone};
