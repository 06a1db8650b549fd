// SPDX-License-Identifier: Apache-2.0
//! Answers about names of others: on the spot from what is known, or by the upstreams.

use std::sync::Arc;
use std::time::Duration;

use dns_zone::{Encoder, Incoming, Query, Rcode, Record, ReplyOptions, Response, Written};
use tokio::time::timeout;

use crate::admission::Ticket;
use crate::cache::Entry;
use crate::forward::{Age, Forwarded};
use crate::respond::{Asker, Core};
use crate::search::{Outcome, Search};
use crate::stats::{Counters, Event, Outside, Source};
use crate::wire::{Key, UDP_BYTES_MAX, with_room};

/// For all names of a search path together: a client asks again after 5 s.
const PATIENCE: Duration = Duration::from_millis(4_500);
/// Names of one search path that are looked up on the spot.
const KNOWN_MAX: usize = 8;

/// An answer that only has to be written.
pub(crate) enum Completed {
    /// The zone has it, now.
    Ours(Written, Vec<u8>),
    Outside(Outcome),
    /// There was no question.
    Nothing,
}

impl Core {
    /// Finds what answers a packet that [`Core::respond`] has handed on. `ticket` is given back when it is found, or when the
    /// upstreams have answered.
    pub(crate) async fn complete(
        &self,
        packet: &[u8],
        asker: Asker,
        counters: &Counters,
        ticket: Ticket,
    ) -> Completed {
        let Incoming::Query(query) = dns_zone::parse(packet) else { return Completed::Nothing };
        let ticket = Arc::new(ticket);
        // Asked again, because the zone may be a newer one than when the question was handed on.
        let limit = query.limit(asker.transport, UDP_BYTES_MAX);
        let zone = self.zone.load_full();
        let Some(zone) = zone else { return Completed::Outside(Outcome::Code(Rcode::SERVFAIL)) };
        let response = with_room(|out| {
            match zone.respond(&query, asker.client.ip(), asker.seed, &self.options(limit), out) {
                Response::Written(written) => Err((written, out[..written.len].to_vec())),
                Response::Forward(forward) => Ok(forward),
            }
        });
        let mut search = match response {
            Err((written, bytes)) => return Completed::Ours(written, bytes),
            Ok(forward) => Search::new(&query, forward, zone.settings().ttl_secs),
        };
        drop(zone);
        let asking = async {
            for (index, key) in search.keys().enumerate() {
                let found = self.ask(&key, &ticket, counters).await;
                if search.is_decided_by(&found) {
                    return Some((index, found));
                }
            }
            None
        };
        let decisive = timeout(PATIENCE, asking).await.unwrap_or(Some((0, Forwarded::Failed)));
        Completed::Outside(search.finish(decisive))
    }

    /// Writes it into `out`, which has room for it, and counts it.
    pub(crate) fn finish(
        &self,
        completed: &Completed,
        packet: &[u8],
        asker: Asker,
        counters: &Counters,
        out: &mut [u8],
    ) -> usize {
        let Incoming::Query(query) = dns_zone::parse(packet) else { return 0 };
        let (source, written) = match completed {
            Completed::Nothing => return 0,
            Completed::Ours(written, bytes) => {
                out[..bytes.len()].copy_from_slice(bytes);
                (Source::Cluster, *written)
            }
            Completed::Outside(outcome) => {
                (Source::Outside, self.write(outcome, &query, asker, self.forwarder.now_ms(), out))
            }
        };
        self.count(&query, asker, counters, source, written);
        written.len
    }

    /// Answers from what is known, without waiting and without asking anybody; `None` where that does not do. A name that is
    /// asked for as it is costs no allocation.
    pub(crate) fn on_the_spot(
        &self,
        search: &mut Search<'_>,
        asker: Asker,
        age: Age,
        counters: &Counters,
        out: &mut [u8],
    ) -> Option<usize> {
        let now_ms = asker.now_us / 1_000;
        let mut seen: [Option<(Arc<Entry>, Outside)>; KNOWN_MAX] = [const { None }; KNOWN_MAX];
        let mut decisive = None;
        for (index, key) in search.keys().enumerate() {
            let found = self.forwarder.known(&key, age, now_ms)?;
            if let Forwarded::Answer { entry, outside } = &found {
                *seen.get_mut(index)? = Some((entry.clone(), *outside));
            }
            if search.is_decided_by(&found) {
                decisive = Some((index, found));
                break;
            }
        }
        // Only now is it certain that this client is served by them.
        for (key, (entry, outside)) in search.keys().zip(seen.iter().flatten()) {
            self.was_given(&key, entry, *outside, now_ms, counters);
        }
        let outcome = search.finish(decisive);
        let source = if matches!(outcome, Outcome::Code(_)) { Source::None } else { Source::Outside };
        let written = self.write(&outcome, search.query, asker, now_ms, out);
        self.count(search.query, asker, counters, source, written);
        Some(written.len)
    }

    /// The answer to a question for which there is no time left: an old one, or SERVFAIL.
    pub(crate) fn last_word(
        &self,
        packet: &[u8],
        asker: Asker,
        counters: &Counters,
        out: &mut [u8],
    ) -> usize {
        let Incoming::Query(query) = dns_zone::parse(packet) else { return 0 };
        let options = self.options(query.limit(asker.transport, UDP_BYTES_MAX));
        let zone = self.zone.load();
        match zone
            .as_ref()
            .map(|zone| (zone, zone.respond(&query, asker.client.ip(), asker.seed, &options, out)))
        {
            Some((_, Response::Written(written))) => {
                self.count(&query, asker, counters, Source::Cluster, written);
                return written.len;
            }
            Some((zone, Response::Forward(forward))) => {
                let mut search = Search::new(&query, forward, zone.settings().ttl_secs);
                if let Some(len) = self.on_the_spot(&mut search, asker, Age::Any, counters, out) {
                    return len;
                }
            }
            None => {}
        }
        let written = self.reply(&query, Rcode::SERVFAIL, out);
        self.count(&query, asker, counters, Source::None, written);
        written.len
    }

    /// Asks the upstreams, and counts what came of it.
    async fn ask(&self, key: &Key, ticket: &Arc<Ticket>, counters: &Counters) -> Forwarded {
        let found = self.forwarder.resolve(key, ticket).await;
        match &found {
            Forwarded::Answer { entry, outside } => {
                self.was_given(key, entry, *outside, self.forwarder.now_ms(), counters)
            }
            Forwarded::Failed => counters.event(Event::ForwardFailed),
            Forwarded::Busy => counters.event(Event::ForwardOverload),
            Forwarded::Unconfigured => {}
        }
        found
    }

    fn was_given(&self, key: &Key, entry: &Entry, outside: Outside, now_ms: u64, counters: &Counters) {
        let is_prefetch = outside == Outside::Cached && self.forwarder.was_given(key, entry, now_ms);
        counters.outside(if is_prefetch { Outside::Prefetch } else { outside });
    }

    fn write(
        &self,
        outcome: &Outcome,
        query: &Query<'_>,
        asker: Asker,
        now_ms: u64,
        out: &mut [u8],
    ) -> Written {
        let limit = query.limit(asker.transport, UDP_BYTES_MAX).min(out.len());
        let (out, options) = (&mut out[..limit], self.options(limit));
        match outcome {
            Outcome::Answer { aliases, entry } => entry.write(aliases, query, out, now_ms, asker.seed),
            Outcome::Aliases(aliases) => own(query, aliases, None, Rcode::NOERROR, &options, out),
            Outcome::Nothing { aliases, soa } => {
                own(query, aliases, soa.as_ref(), Rcode::NXDOMAIN, &options, out)
            }
            Outcome::Code(rcode) => self.reply(query, *rcode, out),
        }
    }

    fn reply(&self, query: &Query<'_>, rcode: Rcode, out: &mut [u8]) -> Written {
        let len = query.reply(rcode, &self.options(usize::from(UDP_BYTES_MAX)), out);
        Written { len, rcode, truncated: false }
    }
}

/// An answer of our records alone.
fn own(
    query: &Query<'_>,
    aliases: &[Record],
    soa: Option<&Record>,
    rcode: Rcode,
    options: &ReplyOptions<'_>,
    out: &mut [u8],
) -> Written {
    let mut encoder = Encoder::new(query, options, out);
    let _ = aliases.iter().all(|alias| encoder.answer(alias));
    let _ = soa.is_none_or(|soa| encoder.authority(soa));
    encoder.finish(rcode, false)
}
