// SPDX-License-Identifier: Apache-2.0
//! An answer before it is put on the wire, and cutting it to the size a UDP client can take.

use hickory_proto::op::{Edns, Message, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::Record;

/// Largest UDP answer to a client without EDNS (RFC 1035 section 4.2.1).
pub(crate) const UDP_BYTES_PLAIN: u16 = 512;

/// Largest UDP answer that we send or ask for: fits an Ethernet frame without fragments (DNS flag day 2020).
pub(crate) const UDP_BYTES_MAX: u16 = 1232;

/// A record on the wire is never shorter: compressed name, type, class, TTL and length of the data.
const RECORD_BYTES_MIN: usize = 12;

/// What the client gets.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    pub(crate) rcode: ResponseCode,
    /// The answer is the zone's own (AA).
    pub(crate) authoritative: bool,
    pub(crate) truncated: bool,
    pub(crate) answers: Vec<Record>,
    /// In negative answers, for the time they may be cached (RFC 2308).
    pub(crate) soa: Option<Box<Record>>,
    pub(crate) additionals: Vec<Record>,
}

impl Reply {
    /// A reply without records.
    pub(crate) fn code(rcode: ResponseCode) -> Self {
        Reply { rcode, ..Reply::default() }
    }

    /// The header that goes with this reply.
    pub(crate) fn metadata(&self, request: &Metadata, recursion_available: bool) -> Metadata {
        let mut metadata = Metadata::response_from_request(request);
        metadata.response_code = self.rcode;
        metadata.authoritative = self.authoritative;
        metadata.truncation = self.truncated;
        metadata.recursion_available = recursion_available;
        metadata
    }

    /// Cuts the reply to `limit` bytes and sets the TC bit where an answer had to go.
    ///
    /// Additional records go first and without TC (RFC 2181 section 9). Of the answers as many stay as fit, because
    /// stub resolvers that know no TCP take what they get. The OPT record is counted, so it is never cut.
    pub(crate) fn fit(&mut self, query: &Query, edns: Option<&Edns>, limit: u16) {
        let limit = usize::from(limit);
        if self.answers.len() * RECORD_BYTES_MIN > limit {
            // Spares measuring thousands of records of which a hundred can fit.
            self.additionals.clear();
            self.answers.truncate(limit / RECORD_BYTES_MIN);
            self.truncated = true;
        }
        if self.size(query, edns) <= limit {
            return;
        }
        self.additionals.clear();
        if self.size(query, edns) <= limit {
            return;
        }
        self.truncated = true;
        let all = std::mem::take(&mut self.answers);
        let (mut fits, mut too_many) = (0, all.len());
        while too_many > fits + 1 {
            let middle = fits.midpoint(too_many);
            self.answers = all[..middle].to_vec();
            if self.size(query, edns) <= limit { fits = middle } else { too_many = middle }
        }
        self.answers = all[..fits].to_vec();
    }

    fn size(&self, query: &Query, edns: Option<&Edns>) -> usize {
        let mut message = Message::response(0, OpCode::Query);
        message.add_query(query.clone());
        message.add_answers(self.answers.iter().cloned());
        message.add_authorities(self.soa.as_deref().cloned());
        message.add_additionals(self.additionals.iter().cloned());
        if let Some(edns) = edns {
            message.set_edns(edns.clone());
        }
        // What cannot be encoded does not fit either.
        message.to_vec().map_or(usize::MAX, |bytes| bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::{Name, RData, RecordType, rdata::A};

    use super::*;

    fn reply(answers: u8, additionals: u8) -> (Reply, Query) {
        let name = Name::from_ascii("web.default.svc.cluster.local.").unwrap();
        let record = |n: u8| Record::from_rdata(name.clone(), 5, RData::A(A(Ipv4Addr::new(10, 244, 0, n))));
        let reply = Reply {
            answers: (0..answers).map(record).collect(),
            additionals: (0..additionals).map(record).collect(),
            ..Reply::default()
        };
        (reply, Query::query(name, RecordType::A))
    }

    #[test]
    fn what_fits_is_left_alone() {
        let (mut reply, query) = reply(10, 10);
        reply.fit(&query, None, UDP_BYTES_PLAIN);
        assert_eq!((reply.answers.len(), reply.additionals.len(), reply.truncated), (10, 10, false));
    }

    #[test]
    fn additional_records_go_first_and_without_tc() {
        let (mut reply, query) = reply(10, 100);
        reply.fit(&query, None, UDP_BYTES_PLAIN);
        assert_eq!((reply.answers.len(), reply.additionals.len(), reply.truncated), (10, 0, false));
    }

    #[test]
    fn answers_are_cut_to_the_limit_and_tc_is_set() {
        let (mut reply, query) = reply(200, 0);
        let edns = Edns::new();
        reply.fit(&query, Some(&edns), UDP_BYTES_MAX);
        assert!(reply.truncated);
        assert!(reply.size(&query, Some(&edns)) <= usize::from(UDP_BYTES_MAX));
        // 16 bytes for each answer: the limit is used, not halved away.
        assert!(reply.answers.len() > 60, "{}", reply.answers.len());
    }
}
