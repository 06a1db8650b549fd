// SPDX-License-Identifier: Apache-2.0
//! The trace that a call belongs to: TRACEPARENT in the environment, as the CNI Go library and OpenTelemetry set it.

use std::fmt;

/// Length of version 00: `00-<32>-<16>-<2>`.
const V0_BYTES: usize = 55;

/// A place in a trace (W3C Trace Context, section 3.2). The IDs are lower-case hex and not all zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace, 32 hex digits.
    pub trace_id: String,
    /// The span, 16 hex digits.
    pub span_id: String,
    /// The flags; bit 0 says that the trace is recorded.
    pub flags: u8,
}

impl TraceParent {
    /// Reads the value. Anything malformed is none: a trace never makes a call fail. A version newer than 00 is read as
    /// far as 00 goes, as the standard wants.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if !text.is_ascii() || text.len() < V0_BYTES {
            return None;
        }
        let mut parts = text[..V0_BYTES].split('-');
        let (version, trace_id, span_id, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_hex = |text: &str, len: usize| {
            text.len() == len && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let is_id = |text: &str, len: usize| is_hex(text, len) && text.bytes().any(|b| b != b'0');
        let is_well_formed = is_hex(version, 2)
            && version != "ff"
            && is_id(trace_id, 32)
            && is_id(span_id, 16)
            && is_hex(flags, 2)
            && parts.next().is_none();
        let rest = &text[V0_BYTES..];
        if !is_well_formed || !(rest.is_empty() || version != "00" && rest.starts_with('-')) {
            return None;
        }
        let flags = u8::from_str_radix(flags, 16).ok()?;
        Some(Self { trace_id: trace_id.to_owned(), span_id: span_id.to_owned(), flags })
    }

    /// A span below this one. 0 is no span ID; it becomes 1.
    #[must_use]
    pub fn child(&self, span_id: u64) -> Self {
        Self { span_id: format!("{:016x}", span_id.max(1)), ..self.clone() }
    }
}

impl fmt::Display for TraceParent {
    /// As version 00, which every version reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_standards_example_and_a_child_of_it() {
        let parent = TraceParent::parse(EXAMPLE).unwrap();
        assert_eq!(parent.to_string(), EXAMPLE);
        let child = parent.child(0xabc);
        assert_eq!(child.to_string(), "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000abc-01");
        assert_eq!(parent.child(0).span_id, "0000000000000001");
    }

    #[test]
    fn a_newer_version_is_read_as_far_as_we_know_it() {
        let newer = EXAMPLE.replacen("00", "01", 1) + "-extra";
        assert_eq!(TraceParent::parse(&newer).unwrap().to_string(), EXAMPLE);
    }

    #[test]
    fn anything_malformed_is_no_trace() {
        for bad in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01x",
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceParent::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_read_is_written_again(text in any::<String>(), near in "[0-9a-f-]{50,60}") {
            for text in [text, near] {
                if let Some(parent) = TraceParent::parse(&text) {
                    prop_assert_eq!(TraceParent::parse(&parent.to_string()), Some(parent));
                }
            }
        }
    }
}
