// SPDX-License-Identifier: Apache-2.0
//! From a packet to its answer, as far as that goes without waiting: who may ask, our own names, what the cache knows. Workers
//! and connections share it; there is no lock but that of one part of the cache, and no allocation but for answers that are put
//! together of ours and of cached ones (aliases that lead outside, search paths).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use dns_zone::{Forward, Incoming, Query, Rcode, ReplyOptions, Response, Transport, Written, Zone};
use ipnet::IpNet;

use crate::admission::{Admission, Ticket};
use crate::forward::{Forwarded, Forwarder};
use crate::query_log::QueryLog;
use crate::rate::Rate;
use crate::stats::{Counters, Event, Outside, Source};
use crate::wire::{Key, UDP_BYTES_MAX};

/// What all parts of one server share.
pub(crate) struct Core {
    pub(crate) clients: Arc<ArcSwap<Vec<IpNet>>>,
    pub(crate) zone: Arc<ArcSwapOption<Zone>>,
    pub(crate) forwarder: Arc<Forwarder>,
    pub(crate) admission: Arc<Admission>,
    /// For refusals over UDP: a stranger's address may be forged.
    pub(crate) refusals: Rate,
    /// For all answers over UDP, where configured.
    pub(crate) answers: Option<Rate>,
    pub(crate) log: QueryLog,
}

/// Who asks, and when.
#[derive(Clone, Copy)]
pub(crate) struct Asker {
    pub(crate) client: SocketAddr,
    pub(crate) transport: Transport,
    /// Since the server was made.
    pub(crate) now_us: u64,
    /// For the order of records.
    pub(crate) seed: u64,
}

/// What becomes of a packet.
pub(crate) enum Verdict {
    /// Nothing goes back.
    Silent,
    /// So many bytes of the buffer go back.
    Answer(usize),
    /// The same, and the question is to be asked again before the answer is out of date.
    AnswerAndPrefetch(usize),
    /// The upstreams must be asked ([`Core::complete`]).
    Hand(Ticket),
}

impl Core {
    /// Answers `packet` into `out`, which holds at least [`UDP_BYTES_MAX`] bytes, or all that a stream may carry.
    pub(crate) fn respond(
        &self,
        packet: &[u8],
        asker: Asker,
        counters: &Counters,
        out: &mut [u8],
    ) -> Verdict {
        let query = match dns_zone::parse(packet) {
            Incoming::Ignore => {
                counters.event(Event::Ignored);
                return Verdict::Silent;
            }
            Incoming::Reject(reject) => {
                if !self.may_have(asker, self.is_client(asker.client.ip()), counters) {
                    return Verdict::Silent;
                }
                counters.answered(Source::None, None, reject.rcode);
                let len = reject.encode(&self.options(usize::from(UDP_BYTES_MAX)), out);
                return if len == 0 { Verdict::Silent } else { Verdict::Answer(len) };
            }
            Incoming::Query(query) => query,
        };
        let ip = asker.client.ip();
        let is_client = self.is_client(ip);
        if !self.may_have(asker, is_client, counters) {
            return Verdict::Silent;
        }
        if !is_client {
            return self.code(&query, asker, counters, Rcode::REFUSED, out);
        }
        let zone = self.zone.load();
        let Some(zone) = zone.as_ref() else {
            // Before the first sync we do not know which names exist, so "no such name" would be a lie that is cached.
            return self.code(&query, asker, counters, Rcode::SERVFAIL, out);
        };
        let options = self.options(query.limit(asker.transport, UDP_BYTES_MAX));
        match zone.respond(&query, ip, asker.seed, &options, out) {
            Response::Written(written) => {
                let source = if is_reverse(&query) { Source::Reverse } else { Source::Cluster };
                self.count(&query, asker, counters, source, written);
                Verdict::Answer(written.len)
            }
            Response::Forward(forward) if is_plain(&forward) => {
                let key = Key::of(&query);
                match self.forwarder.known(&key, asker.now_us / 1_000) {
                    Some(Forwarded::Answer { entry, outside }) => {
                        let written = entry.write(&query, out, options.limit, asker.now_us / 1_000);
                        counters.outside(outside);
                        self.count(&query, asker, counters, Source::Outside, written);
                        match outside {
                            Outside::Prefetch => Verdict::AnswerAndPrefetch(written.len),
                            _ => Verdict::Answer(written.len),
                        }
                    }
                    Some(Forwarded::Unconfigured | Forwarded::Failed) => {
                        self.code(&query, asker, counters, Rcode::REFUSED, out)
                    }
                    None => self.hand(&query, asker, counters, out),
                }
            }
            Response::Forward(forward) => match self.complete_known(&query, forward, asker, counters, out) {
                Some(len) => Verdict::Answer(len),
                None => self.hand(&query, asker, counters, out),
            },
        }
    }

    fn hand(&self, query: &Query<'_>, asker: Asker, counters: &Counters, out: &mut [u8]) -> Verdict {
        match self.admission.enter(asker.client.ip()) {
            Some(ticket) => Verdict::Hand(ticket),
            None => {
                counters.event(Event::ForwardOverload);
                self.code(query, asker, counters, Rcode::REFUSED, out)
            }
        }
    }

    /// Whether this address may ask.
    pub(crate) fn is_client(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.clients.load().iter().any(|net| net.contains(&address))
    }

    /// Whether one more answer may go to this client over UDP, where its address may be forged.
    fn may_have(&self, asker: Asker, is_client: bool, counters: &Counters) -> bool {
        let rate = if is_client { self.answers.as_ref() } else { Some(&self.refusals) };
        let allowed = asker.transport == Transport::Tcp
            || rate.is_none_or(|rate| rate.allows(asker.client.ip(), asker.now_us));
        if !allowed {
            counters.event(Event::RateLimited);
        }
        allowed
    }

    /// An answer without records.
    fn code(
        &self,
        query: &Query<'_>,
        asker: Asker,
        counters: &Counters,
        rcode: Rcode,
        out: &mut [u8],
    ) -> Verdict {
        let len = query.reply(rcode, &self.options(usize::from(UDP_BYTES_MAX)), out);
        self.count(query, asker, counters, Source::None, Written { len, rcode, truncated: false });
        Verdict::Answer(len)
    }

    /// Counts an answer, and logs it where it is its turn.
    pub(crate) fn count(
        &self,
        query: &Query<'_>,
        asker: Asker,
        counters: &Counters,
        source: Source,
        written: Written,
    ) {
        counters.answered(source, Some(query.record_type()), written.rcode);
        if written.truncated {
            counters.event(Event::Truncated);
        }
        self.log.note(query, asker, source, written);
    }

    pub(crate) fn options(&self, limit: usize) -> ReplyOptions<'static> {
        ReplyOptions {
            limit,
            udp_size: UDP_BYTES_MAX,
            recursion_available: self.forwarder.is_available(),
            cookie: None,
            extended_error: None,
        }
    }
}

/// Whether the question goes to the upstreams as it came, and their answer goes back as it came.
pub(crate) fn is_plain(forward: &Forward) -> bool {
    forward.prefix.is_empty() && forward.name.is_none() && forward.candidates.is_empty()
}

/// Whether a question is about an address.
fn is_reverse(query: &Query<'_>) -> bool {
    query.name().as_wire().ends_with(b"\x04arpa\0")
}

#[cfg(test)]
mod tests;
