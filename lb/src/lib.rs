// SPDX-License-Identifier: Apache-2.0
//! Services as values: what the cluster wishes, which backends may take a connection, and the exact
//! content of the BPF maps.
//!
//! ```text
//!  JSON ── parse_object ──► Service, EndpointSlice ─┐
//!  local pods ── endpoints_for ──► EndpointSlice ───┼─► ServiceTable::build ─► Compiler::compile ─► Image
//!                                                   │        │                    ▲
//!                              (from the store) ────┘        └─► the DNS zone     └── Compiler::adopt(Image read back)
//! ```
//!
//! The crate does no I/O and reads no clock: time is an argument (`now_ms`, any monotonic milliseconds).
//! Equal inputs give equal outputs. One [`ServiceTable`] per store revision feeds every reader, so a name
//! and a VIP never disagree about a backend's [`Verdict`].
//!
//! Start with [`ServiceTable`] (`table.rs`), then [`Compiler`] (`compile.rs`). The shapes in `kubernetes.rs`
//! are those of Kubernetes v1, reduced to what is acted upon; unknown fields are kept and named.

mod annotation;
mod compile;
mod error;
mod fields;
mod frontends;
mod ids;
mod image;
mod kubernetes;
mod object;
mod pods;
mod shape;
mod slots;
mod table;
mod validate;
mod verdict;

pub use compile::{CompileOutcome, Compiler, GRACE_MS};
pub use error::{CapacityError, IgnoredField, Limit, ObjectError, Problem};
pub use image::{Image, Limits};
pub use kubernetes::{
    CLUSTER_IP_NONE, Conditions, Endpoint, EndpointPort, EndpointSlice, LABEL_HEADLESS, LABEL_MANAGED_BY,
    LABEL_SERVICE_NAME, LABEL_SERVICE_PROXY_NAME, Metadata, Port, Protocol, Service, ServiceSpec, TargetPort,
    TargetRef,
};
pub use object::{Object, parse_object};
pub use pods::{NamedPort, PodFacts, endpoints_for, matches};
pub use table::{Backend, BackendPort, ServiceEntry, ServiceName, ServicePort, ServiceTable};
pub use verdict::{Verdict, VerdictState};
