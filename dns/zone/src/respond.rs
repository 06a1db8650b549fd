// SPDX-License-Identifier: Apache-2.0
//! From a question to the octets of its answer. For a name of ours nothing is allocated.

use std::net::IpAddr;

use crate::collect::Collect;
use crate::resolve::{Ask, Verdict};
use crate::sink::{NameRef, record};
use crate::{
    Encoder, Folded, Forward, Name, Query, Rcode, Record, RecordData, RecordType, ReplyOptions, Written, Zone,
};

const CLASS_IN: u16 = 1;

/// What becomes of a question.
#[derive(Debug)]
pub enum Response {
    /// Upstream has to be asked.
    Forward(Forward),
    /// The answer lies in the buffer.
    Written(Written),
}

impl Zone {
    /// Answers a question that `client` asks into `out`, which has at least 512 octets. `seed` decides the order of the records:
    /// take another one each time.
    ///
    /// Classes other than IN and transfers are refused; ANY gets the records of one type (RFC 8482).
    pub fn respond(
        &self,
        query: &Query<'_>,
        client: IpAddr,
        seed: u64,
        options: &ReplyOptions<'_>,
        out: &mut [u8],
    ) -> Response {
        let refused = match query.record_type() {
            _ if query.class() != CLASS_IN => Some(Rcode::REFUSED),
            RecordType::AXFR | RecordType::IXFR => Some(Rcode::REFUSED),
            RecordType::OPT | RecordType(0) => Some(Rcode::FORMERR),
            // TKEY, TSIG, MAILB, MAILA: questions of kinds that we do not serve.
            RecordType(249 | 250 | 253 | 254) => Some(Rcode::NOTIMP),
            _ => None,
        };
        if let Some(rcode) = refused {
            return Response::Written(Encoder::new(query, options, out).finish(rcode, false));
        }
        let ask = Ask { record_type: query.record_type(), client: self.client(client), seed };
        let mut encoder = Encoder::new(query, options, out);
        let rcode = match self.resolve(&ask, query.name(), &mut encoder) {
            Verdict::Answer | Verdict::NoData => Rcode::NOERROR,
            Verdict::NxDomain => Rcode::NXDOMAIN,
            Verdict::Forward if encoder.is_empty() => return Response::Forward(Forward::default()),
            verdict => {
                // Rare, and upstream costs more: the aliases once more, as values.
                let question = query.name_as_asked();
                let mut collect = Collect::new(&question);
                self.resolve(&ask, query.name(), &mut collect);
                let prefix = collect.take_answers();
                return Response::Forward(self.forward(&ask, &question, query.name(), verdict, prefix));
            }
        };
        Response::Written(encoder.finish(rcode, true))
    }

    pub(crate) fn forward(
        &self,
        ask: &Ask<'_>,
        question: &Name,
        folded: &Folded,
        verdict: Verdict,
        prefix: Vec<Record>,
    ) -> Forward {
        let name = match prefix.last().map(|record| &record.data) {
            Some(RecordData::Cname(target)) => Some(target.clone()),
            _ => None,
        };
        if verdict != Verdict::Candidates {
            return Forward { prefix, name, ..Forward::default() };
        }
        let candidates = self.candidates(ask, folded).iter().map(Folded::to_name).collect();
        let labels: Vec<&[u8]> = question.labels().collect();
        let front = labels.len().saturating_sub(self.fixed.apex.labels);
        let apex =
            Name::from_labels(labels[front..].iter().copied()).unwrap_or_else(|_| self.fixed.origin.clone());
        let otherwise = record(NameRef::from(&apex), 0, self.soa());
        Forward { prefix, name, candidates, otherwise: Some(otherwise) }
    }
}
