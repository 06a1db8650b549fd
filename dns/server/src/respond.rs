// SPDX-License-Identifier: Apache-2.0
//! From a packet to its answer, as far as that goes without waiting: who may ask, our own names, what the cache knows. Workers
//! and connections share it; there is no lock but that of one part of the cache, and no allocation but for answers that are put
//! together of ours and of cached ones (aliases that lead outside, search paths).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use dns_zone::{Incoming, Query, Rcode, ReplyOptions, Response, Transport, Written, Zone};
use ipnet::IpNet;

use crate::admission::{Admission, Ticket};
use crate::forward::{Age, Forwarder};
use crate::life::Life;
use crate::query_log::QueryLog;
use crate::rate::Rate;
use crate::search::Search;
use crate::stats::{Counters, Event, Source};
use crate::wire::{TC, UDP_BYTES_MAX};

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
    pub(crate) life: Life,
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
    /// The upstreams must be asked ([`Core::complete`]).
    Hand(Ticket),
}

/// Whether one more answer may go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Allowance {
    Yes,
    No,
    /// Only one that says: come over TCP. Who uses a forged address cannot.
    OverTcp,
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
                if self.may_have(asker, self.is_client(asker.client.ip()), counters) != Allowance::Yes {
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
        match self.may_have(asker, is_client, counters) {
            Allowance::Yes => {}
            Allowance::No => return Verdict::Silent,
            Allowance::OverTcp => {
                let verdict = self.code(&query, asker, counters, Rcode::NOERROR, out);
                out[2] |= TC;
                return verdict;
            }
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
            Response::Forward(forward) => {
                let mut search = Search::new(&query, forward, zone.settings().ttl_secs);
                match self.on_the_spot(&mut search, asker, Age::Good, counters, out) {
                    Some(len) => Verdict::Answer(len),
                    None => self.hand(search, &query, asker, counters, out),
                }
            }
        }
    }

    fn hand(
        &self,
        mut search: Search<'_>,
        query: &Query<'_>,
        asker: Asker,
        counters: &Counters,
        out: &mut [u8],
    ) -> Verdict {
        if let Some(ticket) = self.admission.enter(asker.client.ip()) {
            return Verdict::Hand(ticket);
        }
        // An old answer is better than none, and the upstreams are busy enough.
        if let Some(len) = self.on_the_spot(&mut search, asker, Age::Any, counters, out) {
            return Verdict::Answer(len);
        }
        counters.event(Event::ForwardOverload);
        self.code(query, asker, counters, Rcode::REFUSED, out)
    }

    /// Whether this address may ask.
    pub(crate) fn is_client(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.clients.load().iter().any(|net| net.contains(&address))
    }

    /// Whether one more answer may go to this client over UDP, where its address may be forged.
    fn may_have(&self, asker: Asker, is_client: bool, counters: &Counters) -> Allowance {
        let rate = if is_client { self.answers.as_ref() } else { Some(&self.refusals) };
        match rate.filter(|_| asker.transport == Transport::Udp) {
            Some(rate) if !rate.allows(asker.client.ip(), asker.now_us) => {
                counters.event(Event::RateLimited);
                match is_client && rate.is_slip() {
                    true => Allowance::OverTcp,
                    false => Allowance::No,
                }
            }
            _ => Allowance::Yes,
        }
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

/// Whether a question is about an address.
fn is_reverse(query: &Query<'_>) -> bool {
    query.name().as_wire().ends_with(b"\x04arpa\0")
}

#[cfg(test)]
pub(crate) mod tests;
