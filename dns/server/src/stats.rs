// SPDX-License-Identifier: Apache-2.0
//! Counters that the handler bumps and netd's metrics read. Relaxed atomics: each is exact by itself, a snapshot
//! is not one instant.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

/// Question types that get a counter of their own; everything else is `other`, so that a client cannot grow the metrics.
const TYPES: [(RecordType, &str); 9] = [
    (RecordType::A, "A"),
    (RecordType::AAAA, "AAAA"),
    (RecordType::CNAME, "CNAME"),
    (RecordType::MX, "MX"),
    (RecordType::NS, "NS"),
    (RecordType::PTR, "PTR"),
    (RecordType::SOA, "SOA"),
    (RecordType::SRV, "SRV"),
    (RecordType::TXT, "TXT"),
];

/// Response codes with a counter of their own; the rest is `other`.
const RCODES: [(ResponseCode, &str); 6] = [
    (ResponseCode::NoError, "NOERROR"),
    (ResponseCode::FormErr, "FORMERR"),
    (ResponseCode::ServFail, "SERVFAIL"),
    (ResponseCode::NXDomain, "NXDOMAIN"),
    (ResponseCode::NotImp, "NOTIMP"),
    (ResponseCode::Refused, "REFUSED"),
];

const OTHER: &str = "other";

/// What the DNS server did since it was made.
#[derive(Debug, Default)]
pub struct DnsStats {
    by_type: [AtomicU64; TYPES.len() + 1],
    by_rcode: [AtomicU64; RCODES.len() + 1],
    forwarded: AtomicU64,
    forward_failures: AtomicU64,
    forward_overloads: AtomicU64,
    truncated: AtomicU64,
}

/// The counters at one moment, with the label values a metric carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsCounts {
    /// Questions by type: `A`, `AAAA`, …, `other`.
    pub by_type: Vec<(&'static str, u64)>,
    /// Answers by response code: `NOERROR`, `NXDOMAIN`, …, `other`.
    pub by_rcode: Vec<(&'static str, u64)>,
    /// Questions handed to the upstreams (their cached answers included).
    pub forwarded: u64,
    /// Forwarded questions that no upstream answered usably: the client got SERVFAIL.
    pub forward_failures: u64,
    /// Questions refused because too many were in flight to the upstreams.
    pub forward_overloads: u64,
    /// Answers cut to fit UDP, with the TC bit set.
    pub truncated: u64,
}

impl DnsStats {
    pub(crate) fn asked(&self, qtype: RecordType) {
        let index = TYPES.iter().position(|(known, _)| *known == qtype).unwrap_or(TYPES.len());
        self.by_type[index].fetch_add(1, Relaxed);
    }

    pub(crate) fn answered(&self, rcode: ResponseCode) {
        let index = RCODES.iter().position(|(known, _)| *known == rcode).unwrap_or(RCODES.len());
        self.by_rcode[index].fetch_add(1, Relaxed);
    }

    pub(crate) fn forwarded(&self) {
        self.forwarded.fetch_add(1, Relaxed);
    }

    pub(crate) fn forward_failed(&self) {
        self.forward_failures.fetch_add(1, Relaxed);
    }

    pub(crate) fn forward_overloaded(&self) {
        self.forward_overloads.fetch_add(1, Relaxed);
    }

    pub(crate) fn truncated(&self) {
        self.truncated.fetch_add(1, Relaxed);
    }

    /// All counters now.
    pub fn counts(&self) -> DnsCounts {
        let labels = |names: &mut dyn Iterator<Item = &'static str>, values: &[AtomicU64]| {
            names.chain([OTHER]).zip(values).map(|(name, value)| (name, value.load(Relaxed))).collect()
        };
        DnsCounts {
            by_type: labels(&mut TYPES.iter().map(|(_, name)| *name), &self.by_type),
            by_rcode: labels(&mut RCODES.iter().map(|(_, name)| *name), &self.by_rcode),
            forwarded: self.forwarded.load(Relaxed),
            forward_failures: self.forward_failures.load(Relaxed),
            forward_overloads: self.forward_overloads.load(Relaxed),
            truncated: self.truncated.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_types_and_codes_share_one_counter() {
        let stats = DnsStats::default();
        stats.asked(RecordType::A);
        stats.asked(RecordType::Unknown(4711));
        stats.asked(RecordType::NAPTR);
        stats.answered(ResponseCode::NXDomain);
        stats.answered(ResponseCode::BADVERS);
        let counts = stats.counts();
        assert_eq!(counts.by_type[0], ("A", 1));
        assert_eq!(counts.by_type[TYPES.len()], ("other", 2));
        assert_eq!(counts.by_rcode[3], ("NXDOMAIN", 1));
        assert_eq!(counts.by_rcode[RCODES.len()], ("other", 1));
    }
}
