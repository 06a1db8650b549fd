// SPDX-License-Identifier: Apache-2.0
//! The span of a call: what every log line of it carries, and its place in the runtime's trace.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use cni_types::{Call, CniError, NetworkConfig, TraceParent};

/// Where the runtime says its trace is (W3C Trace Context, as the CNI Go library and OpenTelemetry put it into the
/// environment).
const TRACE_VARIABLE: &str = "TRACEPARENT";

/// The runtime's span, and ours below it; netd's spans are below ours.
pub(crate) struct Trace {
    parent: TraceParent,
    pub(crate) own: TraceParent,
}

impl Trace {
    /// None where the runtime traces nothing, or says something that is no trace.
    pub(crate) fn of_environment() -> Option<Self> {
        let parent = TraceParent::parse(&std::env::var(TRACE_VARIABLE).ok()?)?;
        // The keys of a fresh hasher are random; a span ID needs to be no more than that.
        let own = parent.child(RandomState::new().build_hasher().finish());
        Some(Self { parent, own })
    }
}

/// At level error, so that it is there for the warnings that are logged by default.
pub(crate) fn of(
    call: &Result<Call, CniError>,
    config: Option<&NetworkConfig>,
    trace: Option<&Trace>,
) -> tracing::Span {
    let (verb, container, ifname, netns) = match call {
        Ok(Call::Add(t)) => ("ADD", Some(&t.container_id), Some(&t.ifname), Some(&t.netns)),
        Ok(Call::Check(t)) => ("CHECK", Some(&t.container_id), Some(&t.ifname), Some(&t.netns)),
        Ok(Call::Del(t)) => ("DEL", Some(&t.container_id), Some(&t.ifname), t.netns.as_ref()),
        Ok(Call::Gc) => ("GC", None, None, None),
        Ok(Call::Status) => ("STATUS", None, None, None),
        Ok(Call::Version) | Err(_) => return tracing::Span::none(),
    };
    tracing::error_span!(
        "cni",
        verb,
        network = config.map(|config| config.name.as_str()),
        container,
        ifname,
        netns,
        trace_id = trace.map(|trace| trace.own.trace_id.as_str()),
        parent_span_id = trace.map(|trace| trace.parent.span_id.as_str()),
        span_id = trace.map(|trace| trace.own.span_id.as_str()),
    )
}
