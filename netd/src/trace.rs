// SPDX-License-Identifier: Apache-2.0
//! The trace that a request belongs to (W3C Trace Context, level 1): weft-cni passes on what the runtime gave it, and netd's
//! log lines of that request carry it.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use netd_api::TRACEPARENT;
use tracing::Instrument as _;
use uuid::Uuid;

/// `00-<trace id>-<parent id>-<flags>`, taken apart.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Parent<'a> {
    trace_id: &'a str,
    span_id: &'a str,
}

impl<'a> Parent<'a> {
    /// `None` for what is no traceparent: the request goes on without a trace, as the standard wants it.
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split('-');
        let (version, trace_id, span_id, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let hex = |part: &str, len| {
            part.len() == len && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let zero = |part: &str| part.bytes().all(|b| b == b'0');
        let known = hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
        (known && hex(trace_id, 32) && hex(span_id, 16) && hex(flags, 2) && !zero(trace_id) && !zero(span_id))
            .then_some(Self { trace_id, span_id })
    }
}

/// Puts every request into a span; one that belongs to a trace becomes a child of its caller's span.
pub(crate) async fn layer(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let header = request.headers().get(TRACEPARENT).and_then(|value| value.to_str().ok());
    let span = match header.and_then(Parent::parse) {
        Some(Parent { trace_id, span_id }) => {
            let own = Uuid::new_v4().simple().to_string();
            tracing::info_span!("request", path, trace_id, parent_span_id = span_id, span_id = &own[..16])
        }
        None => tracing::info_span!("request", path),
    };
    next.run(request).instrument(span).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_traceparent_is_no_parent() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let parent = Parent::parse(good).unwrap();
        assert_eq!(
            (parent.trace_id, parent.span_id),
            ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
        );
        // A later version may have more parts.
        assert!(Parent::parse("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x").is_some());
        for bad in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        ] {
            assert_eq!(Parent::parse(bad), None, "{bad}");
        }
    }
}
