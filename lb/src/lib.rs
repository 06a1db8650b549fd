// SPDX-License-Identifier: Apache-2.0
//! Services as values: what the cluster wishes, which backends may take a connection, and the exact
//! content of the BPF maps.
//!
//! ```text
//!  JSON ── parse_object ──► Service, EndpointSlice ─┐
//!  local pods ── endpoints_for ──► EndpointSlice ───┼─► Catalogue ─► ServiceTable ─► Compiler::update ─► Writes
//!                                                   │                    │   ▲             ▲
//!                              (from the store) ────┘    the DNS zone ◄──┘   NodeView      └── adopt(Image read back)
//! ```
//!
//! The crate does no I/O and reads no clock: time is an argument (`now_ms`, any monotonic milliseconds).
//! Equal inputs give equal outputs. One [`ServiceTable`] per store revision feeds every reader, so a name
//! and a VIP never disagree about a backend's [`Verdict`].
//!
//! Start with [`ServiceTable`] (`table.rs`), then `frontends.rs` and [`Compiler`] (`compile.rs`). The shapes in
//! `service.rs` and `slice.rs` are those of Kubernetes v1, reduced to what is acted upon; unknown fields are kept and
//! named.

mod adopt;
mod catalogue;
mod choose;
mod compile;
mod entry;
mod error;
mod explain;
mod extras;
mod fault;
mod fields;
mod frontends;
mod holdings;
mod ids;
mod image;
mod join;
mod kubernetes;
mod maglev;
mod map;
mod node;
mod object;
mod place;
mod pods;
mod service;
mod shape;
mod slice;
mod slots;
mod table;
mod unread;
mod validate;
mod validate_service;
mod verdict;
mod warmth;
mod writes;

pub use catalogue::{Catalogue, Changed};
pub use compile::{Compiler, GRACE_MS, Standing};
pub use entry::{
    Backend, BackendPort, Family, Hints, IpMode, LoadBalancer, LoadBalancerIp, ServiceEntry, ServicePort,
    TrafficPolicy,
};
pub use error::{CapacityError, IgnoredField, Limit, ObjectError, Problem};
pub use explain::{ExplainedBackend, ExplainedFrontend, explain};
pub use extras::{Algorithm, Extras, Forwarding, fault_field};
pub use fault::{Fault, FaultKind};
pub use image::{Image, Limits};
pub use kubernetes::{
    CLUSTER_IP_NONE, LABEL_HEADLESS, LABEL_MANAGED_BY, LABEL_SERVICE_NAME, LABEL_SERVICE_PROXY_NAME,
    Metadata, Protocol,
};
pub use map::{ChunkMap, Difference, ServiceMap};
pub use node::{NodeInfo, NodeView};
pub use object::{Object, parse_object};
pub use pods::{NamedPort, PodFacts, endpoints_for, matches};
pub use service::{
    AFFINITY_SECS_DEFAULT, ClientIpConfig, LoadBalancerIngress, LoadBalancerStatus, Port, Service,
    ServiceSpec, ServiceStatus, SessionAffinityConfig, TargetPort,
};
pub use slice::{Conditions, Endpoint, EndpointHints, EndpointPort, EndpointSlice, HintTarget, TargetRef};
pub use table::{ServiceName, ServiceTable};
pub use unread::Unread;
pub use verdict::{Verdict, VerdictState};
pub use writes::Writes;
