// SPDX-License-Identifier: Apache-2.0
//! The rest of an answer: what has to wait for the upstreams, and what is put together of ours and theirs.

use std::sync::Arc;

use dns_zone::{Forward, Incoming, Query, Rcode, RecordData, Response, Written};
use futures::FutureExt as _;
use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{Name, RData, Record};
use tracing::debug;

use crate::cache::Entry;
use crate::forward::Forwarded;
use crate::respond::{Asker, Core, is_plain};
use crate::stats::{Counters, Event, Source};
use crate::wire::{Key, UDP_BYTES_MAX};

/// TTL of an alias that autopath puts in front, in seconds: as long as that of our own records usually is.
const ALIAS_TTL_SECS: u32 = 5;

/// What the upstreams said.
enum Outcome {
    Answer(Arc<Entry>),
    Code(Rcode),
}

impl Core {
    /// Answers a packet that [`Core::respond`] has handed on. Returns within the upstreams' deadline.
    pub(crate) async fn complete(&self, packet: &[u8], asker: Asker, counters: &Counters) -> Vec<u8> {
        let Incoming::Query(query) = dns_zone::parse(packet) else { return Vec::new() };
        let limit = query.limit(asker.transport, UDP_BYTES_MAX);
        let mut out = vec![0; limit];
        // Asked again, because the zone may be a newer one than when the question was handed on.
        let response =
            self.zone.load().as_ref().map(|zone| {
                zone.respond(&query, asker.client.ip(), asker.seed, &self.options(limit), &mut out)
            });
        let (source, written) = match response {
            None => (Source::None, self.reply(&query, Rcode::SERVFAIL, &mut out)),
            Some(Response::Written(written)) => (Source::Cluster, written),
            Some(Response::Forward(forward)) => {
                let outcome = self.follow(&query, forward, counters).await;
                let written = match outcome {
                    Outcome::Answer(entry) => entry.write(&query, &mut out, limit, self.forwarder.now_ms()),
                    Outcome::Code(rcode) => self.reply(&query, rcode, &mut out),
                };
                (Source::Outside, written)
            }
        };
        self.count(&query, asker, counters, source, written);
        out.truncate(written.len);
        out
    }

    /// The same on the spot, where all that it takes is known; `None`: the upstreams must be asked. A search path whose names
    /// are cached costs no turn in the queue to the runtime.
    pub(crate) fn complete_known(
        &self,
        query: &Query<'_>,
        forward: Forward,
        asker: Asker,
        counters: &Counters,
        out: &mut [u8],
    ) -> Option<usize> {
        if !self.knows(&Key::of(query), &forward) {
            return None;
        }
        let limit = query.limit(asker.transport, UDP_BYTES_MAX);
        // Ready at once, unless an answer has just come to its end.
        let written = match self.follow(query, forward, counters).now_or_never()? {
            Outcome::Answer(entry) => entry.write(query, out, limit, self.forwarder.now_ms()),
            Outcome::Code(rcode) => self.reply(query, rcode, out),
        };
        self.count(query, asker, counters, Source::Outside, written);
        Some(written.len)
    }

    fn knows(&self, asked: &Key, forward: &Forward) -> bool {
        let now_ms = self.forwarder.now_ms();
        let known = |name: &dns_zone::Name| self.forwarder.known(&asked.of_name(name.as_wire()), now_ms);
        if forward.candidates.is_empty() {
            return match &forward.name {
                Some(name) => known(name).is_some(),
                None => self.forwarder.known(asked, now_ms).is_some(),
            };
        }
        for candidate in &forward.candidates {
            match known(candidate) {
                None => return false,
                Some(Forwarded::Answer { entry, .. }) if entry.code() == Rcode::NXDOMAIN.0 => {}
                Some(_) => return true,
            }
        }
        true
    }

    async fn follow(&self, query: &Query<'_>, forward: Forward, counters: &Counters) -> Outcome {
        let asked = Key::of(query);
        if is_plain(&forward) {
            return match self.ask(&asked, counters).await {
                Ok(entry) => Outcome::Answer(entry),
                Err(rcode) => Outcome::Code(rcode),
            };
        }
        let mut prefix: Vec<Record> = forward.prefix.iter().filter_map(alias).collect();
        if forward.candidates.is_empty() {
            let key = forward.name.as_ref().map_or(asked, |name| asked.of_name(name.as_wire()));
            return match self.ask(&key, counters).await {
                Ok(entry) => self.merged(query, prefix, Some(&entry)),
                // The alias itself is still true, and the client may know somebody to ask.
                Err(Rcode::REFUSED) if !prefix.is_empty() => self.merged(query, prefix, None),
                Err(rcode) => Outcome::Code(rcode),
            };
        }
        for candidate in &forward.candidates {
            match self.ask(&asked.of_name(candidate.as_wire()), counters).await {
                Ok(entry) if entry.code() == Rcode::NXDOMAIN.0 => {}
                Ok(entry) => {
                    // The alias leads from what was asked, or from where our own aliases end, to what was found.
                    let from =
                        prefix.last().and_then(alias_target).or_else(|| hickory_name(&query.name_as_asked()));
                    if let (Some(from), Some(to)) = (from, hickory_name(candidate)) {
                        prefix.push(Record::from_rdata(from, ALIAS_TTL_SECS, RData::CNAME(CNAME(to))));
                    }
                    return self.merged(query, prefix, Some(&entry));
                }
                // The name itself is ours and is not there, whatever the upstreams do: the client goes on by itself.
                Err(_) => break,
            }
        }
        self.nothing(query, prefix, forward.otherwise.as_ref())
    }

    /// Asks the upstreams, and counts what came of it.
    async fn ask(&self, key: &Key, counters: &Counters) -> Result<Arc<Entry>, Rcode> {
        match self.forwarder.resolve(key).await {
            Forwarded::Answer { entry, outside } => {
                counters.outside(outside);
                Ok(entry)
            }
            Forwarded::Failed => {
                counters.event(Event::ForwardFailed);
                Err(Rcode::SERVFAIL)
            }
            Forwarded::Unconfigured => Err(Rcode::REFUSED),
        }
    }

    /// Our aliases, then the upstream's answer.
    fn merged(&self, query: &Query<'_>, prefix: Vec<Record>, entry: Option<&Entry>) -> Outcome {
        let theirs = entry.map(|entry| Message::from_vec(entry.wire()));
        let theirs = match theirs.transpose() {
            Ok(theirs) => theirs,
            Err(error) => {
                debug!(%error, "a cached DNS answer cannot be read");
                return Outcome::Code(Rcode::SERVFAIL);
            }
        };
        let mut message = Message::response(0, OpCode::Query);
        message.add_answers(prefix);
        if let Some(mut theirs) = theirs {
            message.metadata.response_code = theirs.metadata.response_code;
            message.add_answers(std::mem::take(&mut theirs.answers));
            message.add_authorities(std::mem::take(&mut theirs.authorities));
            message.add_additionals(std::mem::take(&mut theirs.additionals));
        }
        self.as_entry(query, message)
    }

    /// None of the names exist.
    fn nothing(&self, query: &Query<'_>, prefix: Vec<Record>, soa: Option<&dns_zone::Record>) -> Outcome {
        let mut message = Message::response(0, OpCode::Query);
        message.metadata.response_code = ResponseCode::NXDomain;
        message.add_answers(prefix);
        message.add_authorities(soa.and_then(own_soa));
        self.as_entry(query, message)
    }

    fn as_entry(&self, query: &Query<'_>, mut message: Message) -> Outcome {
        let Some(name) = hickory_name(&query.name_as_asked()) else { return Outcome::Code(Rcode::SERVFAIL) };
        message.add_query(hickory_proto::op::Query::query(name, query.record_type().0.into()));
        let entry = message.to_vec().ok().and_then(|wire| Entry::new(wire, 0, self.forwarder.now_ms()));
        entry.map_or(Outcome::Code(Rcode::SERVFAIL), |entry| Outcome::Answer(Arc::new(entry)))
    }

    fn reply(&self, query: &Query<'_>, rcode: Rcode, out: &mut [u8]) -> Written {
        let len = query.reply(rcode, &self.options(usize::from(UDP_BYTES_MAX)), out);
        Written { len, rcode, truncated: false }
    }
}

fn hickory_name(name: &dns_zone::Name) -> Option<Name> {
    Name::from_labels(name.labels()).ok()
}

/// Only aliases are put in front.
fn alias(record: &dns_zone::Record) -> Option<Record> {
    let RecordData::Cname(target) = &record.data else { return None };
    let data = RData::CNAME(CNAME(hickory_name(target)?));
    Some(Record::from_rdata(hickory_name(&record.name)?, record.ttl_secs, data))
}

fn alias_target(record: &Record) -> Option<Name> {
    match &record.data {
        RData::CNAME(target) => Some(target.0.clone()),
        _ => None,
    }
}

fn own_soa(record: &dns_zone::Record) -> Option<Record> {
    let RecordData::Soa(soa) = &record.data else { return None };
    let data = RData::SOA(hickory_proto::rr::rdata::SOA::new(
        hickory_name(&soa.mname)?,
        hickory_name(&soa.rname)?,
        soa.serial,
        soa.refresh_secs.try_into().ok()?,
        soa.retry_secs.try_into().ok()?,
        soa.expire_secs.try_into().ok()?,
        soa.minimum_secs,
    ));
    Some(Record::from_rdata(hickory_name(&record.name)?, record.ttl_secs, data))
}
