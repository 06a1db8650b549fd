// SPDX-License-Identifier: Apache-2.0
//! From a request to a reply: who may ask, what we serve, our own zone first, the upstreams for the rest.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use async_trait::async_trait;
use dns_zone::Zone;
use hickory_proto::op::{Edns, Header, HeaderCounts, LowerQuery, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use hickory_server::net::runtime::Time;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use ipnet::IpNet;
use tracing::debug;

use crate::forward::{Forwarded, Forwarder};
use crate::local::{self, Local};
use crate::reply::{Reply, UDP_BYTES_MAX, UDP_BYTES_PLAIN};
use crate::stats::DnsStats;

/// Times our zone is asked for one question. It follows its own CNAMEs; the second time says why a target of ours has
/// no records, and a third would only be needed by a circle.
const ZONE_ASKED_MAX: usize = 2;

/// EDNS version that we speak (RFC 6891).
const EDNS_VERSION: u8 = 0;

/// Answers requests. Holds no lock; each request reads the zone that is current when it starts.
pub(crate) struct Handler {
    pub(crate) clients: Arc<ArcSwap<Vec<IpNet>>>,
    pub(crate) zone: Arc<ArcSwapOption<Zone>>,
    pub(crate) forwarder: Forwarder,
    pub(crate) stats: Arc<DnsStats>,
}

#[async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response: R,
    ) -> ResponseInfo {
        let edns = request.edns.as_ref().map(|asked| response_edns(asked.max_payload()));
        let mut reply = self.reply(request).await;
        if let ([query], Protocol::Udp) = (request.queries.queries(), request.protocol()) {
            let limit = edns.as_ref().map_or(UDP_BYTES_PLAIN, Edns::max_payload);
            reply.fit(query.original(), edns.as_ref(), limit);
        }
        if reply.truncated {
            self.stats.truncated();
        }
        self.stats.answered(reply.rcode);

        let metadata = reply.metadata(&request.metadata, self.forwarder.is_available());
        let message = MessageResponseBuilder::new(&request.queries, edns.as_ref()).build(
            metadata,
            &reply.answers,
            [],
            reply.soa.as_deref(),
            &reply.additionals,
        );
        match response.send_response(message).await {
            Ok(info) => info,
            Err(error) => {
                debug!(client = %request.src(), %error, "DNS answer could not be sent");
                ResponseInfo::from(Header { metadata, counts: HeaderCounts::default() })
            }
        }
    }
}

impl Handler {
    async fn reply(&self, request: &Request) -> Reply {
        let query = match self.admit(request) {
            Ok(query) => query,
            Err(rcode) => return Reply::code(rcode),
        };
        let Some(zone) = self.zone.load_full() else {
            // Before the first sync we do not know which names exist, so "no such name" would be a lie that is cached.
            return Reply::code(ResponseCode::ServFail);
        };
        // The client's ID as the seed: another order for each question, without a random source here.
        let seed = u64::from(request.metadata.id);
        self.resolve(&zone, query.original().name(), query.query_type(), seed).await
    }

    /// The one question of a request that we serve at all, or the code that says why not.
    fn admit<'a>(&self, request: &'a Request) -> Result<&'a LowerQuery, ResponseCode> {
        if !self.is_client(request.src().ip()) {
            return Err(ResponseCode::Refused);
        }
        if request.edns.as_ref().is_some_and(|edns| edns.version() > EDNS_VERSION) {
            return Err(ResponseCode::BADVERS);
        }
        if request.metadata.op_code != OpCode::Query {
            return Err(ResponseCode::NotImp);
        }
        let [query] = request.queries.queries() else { return Err(ResponseCode::FormErr) };
        self.stats.asked(query.query_type());
        if query.query_class() != DNSClass::IN {
            return Err(ResponseCode::Refused);
        }
        match query.query_type() {
            // Zone transfers are for secondaries; we have none.
            RecordType::AXFR | RecordType::IXFR => Err(ResponseCode::Refused),
            // ANY answers are for amplification (RFC 8482); the others are no question.
            RecordType::ANY | RecordType::OPT | RecordType::TSIG | RecordType::ZERO => {
                Err(ResponseCode::NotImp)
            }
            _ => Ok(query),
        }
    }

    fn is_client(&self, address: IpAddr) -> bool {
        self.clients.load().iter().any(|net| net.contains(&address.to_canonical()))
    }

    /// Our zone's answer or the upstreams'. A CNAME of ours (ExternalName) is followed, because stub resolvers expect
    /// the whole chain from the server they ask.
    async fn resolve(&self, zone: &Zone, name: &Name, qtype: RecordType, seed: u64) -> Reply {
        let mut reply = Reply { authoritative: true, ..Reply::default() };
        let mut name = name.clone();
        for _ in 0..ZONE_ASKED_MAX {
            match local::ask(zone, &name, qtype, seed) {
                Local::Answer { answers, additionals } => {
                    reply.answers.extend(answers);
                    reply.additionals.extend(additionals);
                    match unanswered_target(&reply, qtype) {
                        Some(target) => name = target,
                        None => return reply,
                    }
                }
                Local::Negative { rcode, soa } => return Reply { rcode, soa, ..reply },
                Local::Forward => return self.forward(reply, &name, qtype).await,
            }
        }
        Reply::code(ResponseCode::ServFail)
    }

    /// Completes a reply by what the upstreams say about `name`.
    async fn forward(&self, mut reply: Reply, name: &Name, qtype: RecordType) -> Reply {
        // AA speaks about the first name of the answer (RFC 1035 section 4.1.1).
        reply.authoritative = !reply.answers.is_empty();
        match self.forwarder.lookup(name, qtype).await {
            Forwarded::Answer { rcode, answers, additionals } => {
                self.stats.forwarded();
                reply.rcode = rcode;
                reply.answers.extend(answers);
                reply.additionals.extend(additionals);
                reply
            }
            Forwarded::Negative { rcode, soa } => {
                self.stats.forwarded();
                Reply { rcode, soa, ..reply }
            }
            Forwarded::Failed => {
                self.stats.forwarded();
                self.stats.forward_failed();
                Reply::code(ResponseCode::ServFail)
            }
            Forwarded::Overloaded => {
                self.stats.forward_overloaded();
                Reply::code(ResponseCode::Refused)
            }
            // The CNAME itself is still true, and the client may know somebody to ask.
            Forwarded::Unconfigured if !reply.answers.is_empty() => reply,
            Forwarded::Unconfigured => Reply::code(ResponseCode::Refused),
        }
    }
}

/// The name that a CNAME at the end of the answers points to, where the question was for something else.
fn unanswered_target(reply: &Reply, qtype: RecordType) -> Option<Name> {
    match &reply.answers.last()?.data {
        RData::CNAME(target) if qtype != RecordType::CNAME => Some(target.0.clone()),
        _ => None,
    }
}

/// Our OPT record. hickory cuts a UDP answer to the size it names, so it names what this client can take from us.
fn response_edns(client_payload: u16) -> Edns {
    let mut edns = Edns::new();
    edns.set_version(EDNS_VERSION);
    edns.set_max_payload(client_payload.clamp(UDP_BYTES_PLAIN, UDP_BYTES_MAX));
    edns
}
