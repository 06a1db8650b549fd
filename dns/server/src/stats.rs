// SPDX-License-Identifier: Apache-2.0
//! What the server counts. Each worker has counters of its own, so that none waits for another's cache line; they are summed
//! when somebody reads. Relaxed atomics: each is exact by itself, a reading is not one instant.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use dns_zone::{Rcode, RecordType};

use crate::forward::Forwarder;

/// Question types that get a counter of their own; everything else is `other`, so that a client cannot grow the metrics.
const TYPES: [(RecordType, &str); 10] = [
    (RecordType(1), "A"),
    (RecordType(28), "AAAA"),
    (RecordType(5), "CNAME"),
    (RecordType(65), "HTTPS"),
    (RecordType(15), "MX"),
    (RecordType(2), "NS"),
    (RecordType(12), "PTR"),
    (RecordType(6), "SOA"),
    (RecordType(33), "SRV"),
    (RecordType(16), "TXT"),
];
/// Response codes by number; the rest is `other`.
const RCODES: [&str; 6] = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"];
const OTHER: &str = "other";

/// Upper ends of the latency buckets: one microsecond, doubled each time, up to a second; the last is open.
const LATENCY_BUCKETS: usize = 22;

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Our zone.
    Cluster,
    /// Our zone, about an address.
    Reverse,
    /// The upstreams.
    Outside,
    /// Nowhere: not a question, not a client, not in sync.
    None,
}

const SOURCES: [(Source, &str); 4] = [
    (Source::Cluster, "cluster"),
    (Source::Reverse, "reverse"),
    (Source::Outside, "outside"),
    (Source::None, "none"),
];

/// How a name of others was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outside {
    Asked,
    Cached,
    /// As `Cached`, and the first to see that it should be asked for again.
    Prefetch,
    Stale,
}

/// Things that are only counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    ForwardFailed,
    ForwardOverload,
    Truncated,
    /// An answer that was not sent because the client's network had too many.
    RateLimited,
    /// A question that was dropped because its client asked more than its share of an overloaded worker.
    Unfair,
    /// An answer that the kernel did not take.
    SendFailed,
    /// Not a question: too short, or an answer.
    Ignored,
    StreamAccepted,
    StreamRefused,
    StreamSlow,
}

const EVENTS: usize = Event::StreamSlow as usize + 1;

/// The counters of one worker.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    answers: [[[AtomicU64; RCODES.len() + 1]; TYPES.len() + 1]; SOURCES.len()],
    outside: [AtomicU64; 4],
    events: [AtomicU64; EVENTS],
    latency: [AtomicU64; LATENCY_BUCKETS],
    latency_us: AtomicU64,
}

impl Counters {
    pub(crate) fn answered(&self, source: Source, qtype: Option<RecordType>, rcode: Rcode) {
        let of_type = TYPES.iter().position(|(known, _)| Some(*known) == qtype).unwrap_or(TYPES.len());
        let of_code = usize::from(rcode.0).min(RCODES.len());
        self.answers[source as usize][of_type][of_code].fetch_add(1, Relaxed);
    }

    pub(crate) fn outside(&self, how: Outside) {
        self.outside[how as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn event(&self, event: Event) {
        self.events(event, 1);
    }

    pub(crate) fn events(&self, event: Event, count: usize) {
        self.events[event as usize].fetch_add(count as u64, Relaxed);
    }

    /// So many answers took this long.
    pub(crate) fn took(&self, time: Duration, answers: usize) {
        let us = time.as_micros() as u64;
        let bucket = (64 - us.leading_zeros()) as usize;
        self.latency[bucket.min(LATENCY_BUCKETS - 1)].fetch_add(answers as u64, Relaxed);
        self.latency_us.fetch_add(us * answers as u64, Relaxed);
    }

    fn absorb(&self, other: &Counters) {
        self.cells().zip(other.cells()).for_each(|(sum, cell)| {
            sum.fetch_add(cell.load(Relaxed), Relaxed);
        });
    }

    fn cells(&self) -> impl Iterator<Item = &AtomicU64> {
        let Counters { answers, outside, events, latency, latency_us } = self;
        let answers = answers.iter().flatten().flatten();
        answers.chain(outside).chain(events).chain(latency).chain([latency_us])
    }
}

/// What the DNS server did since it was made.
#[derive(Default)]
pub struct DnsStats {
    workers: Mutex<Vec<Arc<Counters>>>,
    /// Of workers that have ended.
    past: Counters,
    forwarder: ArcSwapOption<Weak<Forwarder>>,
    streams_open: AtomicU64,
}

/// A connection of a client, counted until it is dropped.
pub(crate) struct OpenStream(Arc<DnsStats>);

/// The counters at one moment, with the label values a metric carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsCounts {
    /// Answers by source (`cluster`, `reverse`, `outside`, `none`), type (`A`, …, `other`) and code (`NOERROR`, …, `other`);
    /// only those that are not zero.
    pub answers: Vec<(&'static str, &'static str, &'static str, u64)>,
    /// Questions by type: `A`, `AAAA`, …, `other`.
    pub by_type: Vec<(&'static str, u64)>,
    /// Answers by response code: `NOERROR`, `NXDOMAIN`, …, `other`.
    pub by_rcode: Vec<(&'static str, u64)>,
    /// Answers about names of others, the cached included.
    pub forwarded: u64,
    /// Of those, from the cache.
    pub cache_hits: u64,
    /// Of those, out of date because the upstreams failed.
    pub stale: u64,
    /// Forwarded questions that no upstream answered usably: the client got SERVFAIL.
    pub forward_failures: u64,
    /// Questions refused because too many were in flight to the upstreams.
    pub forward_overloads: u64,
    /// Answers cut to fit UDP, with the TC bit set.
    pub truncated: u64,
    /// Answers not sent because the client, or a stranger's network, had too many; one of two clients is told to come over TCP.
    pub rate_limited: u64,
    /// Questions dropped because their client asked more than its share of an overloaded worker.
    pub unfair: u64,
    /// Answers that the kernel did not take.
    pub send_failures: u64,
    /// Packets that are no question.
    pub ignored: u64,
    /// Connections of clients now.
    pub streams_open: u64,
    /// Connections taken.
    pub streams_accepted: u64,
    /// Connections closed at once: too many, of all or of one client, or from who is no client.
    pub streams_refused: u64,
    /// Connections closed because the client did not take its answers.
    pub streams_slow: u64,
    /// Upper end of a bucket in microseconds (the last has none), and the answers that took so long.
    pub latency: Vec<(Option<u64>, u64)>,
    /// Sum of all latencies in microseconds.
    pub latency_us: u64,
    /// Answers in the cache.
    pub cache_entries: u64,
    /// Bytes they take.
    pub cache_bytes: u64,
    /// Answers that had to go because the cache was full.
    pub cache_evictions: u64,
    /// The name servers we ask.
    pub upstreams: Vec<UpstreamCounts>,
}

/// One name server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamCounts {
    /// Where it is.
    pub address: SocketAddr,
    /// The names it is asked for; the root's for all.
    pub zone: String,
    /// Answers it gave.
    pub answers: u64,
    /// Questions it did not answer.
    pub failures: u64,
    /// Smoothed round trip; zero before the first answer.
    pub rtt: Duration,
    /// It is asked first.
    pub healthy: bool,
}

impl DnsStats {
    /// Counters of their own for one who counts.
    pub(crate) fn worker(&self) -> Arc<Counters> {
        let counters = Arc::new(Counters::default());
        self.workers().push(counters.clone());
        counters
    }

    /// Its counters count no more: what they have is kept in one sum for all.
    pub(crate) fn retire(&self, counters: &Arc<Counters>) {
        let mut workers = self.workers();
        let known = workers.len();
        workers.retain(|worker| !Arc::ptr_eq(worker, counters));
        if workers.len() < known {
            self.past.absorb(counters);
        }
    }

    /// Counts a connection while it is open.
    pub(crate) fn stream(self: &Arc<Self>) -> OpenStream {
        self.streams_open.fetch_add(1, Relaxed);
        OpenStream(self.clone())
    }

    /// Whose cache and upstreams are shown.
    pub(crate) fn show(&self, forwarder: &Arc<Forwarder>) {
        self.forwarder.store(Some(Arc::new(Arc::downgrade(forwarder))));
    }

    /// All counters now.
    pub fn counts(&self) -> DnsCounts {
        let mut counts = DnsCounts {
            by_type: TYPES.iter().map(|(_, name)| *name).chain([OTHER]).map(|name| (name, 0)).collect(),
            by_rcode: RCODES.into_iter().chain([OTHER]).map(|name| (name, 0)).collect(),
            latency: (0..LATENCY_BUCKETS).map(|i| ((i + 1 < LATENCY_BUCKETS).then_some(1 << i), 0)).collect(),
            streams_open: self.streams_open.load(Relaxed),
            ..DnsCounts::default()
        };
        // While it is read nobody moves from one of these to the sum, which would count double.
        let known = self.workers();
        let workers: Vec<&Counters> = known.iter().map(|worker| &**worker).chain([&self.past]).collect();
        for (source, (_, source_name)) in SOURCES.iter().enumerate() {
            for of_type in 0..=TYPES.len() {
                for of_code in 0..=RCODES.len() {
                    let count =
                        workers.iter().map(|w| w.answers[source][of_type][of_code].load(Relaxed)).sum();
                    if count > 0 {
                        let (qtype, rcode) = (&mut counts.by_type[of_type], &mut counts.by_rcode[of_code]);
                        qtype.1 += count;
                        rcode.1 += count;
                        counts.answers.push((source_name, qtype.0, rcode.0, count));
                    }
                }
            }
        }
        for worker in workers {
            counts.add(worker);
        }
        drop(known);
        if let Some(forwarder) = self.forwarder.load().as_ref().and_then(|weak| weak.upgrade()) {
            counts.add_forwarder(&forwarder);
        }
        counts
    }

    fn workers(&self) -> MutexGuard<'_, Vec<Arc<Counters>>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.streams_open.fetch_sub(1, Relaxed);
    }
}

impl std::fmt::Debug for DnsStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DnsStats").finish_non_exhaustive()
    }
}

impl DnsCounts {
    fn add(&mut self, worker: &Counters) {
        let event = |event: Event| worker.events[event as usize].load(Relaxed);
        let outside = |how: Outside| worker.outside[how as usize].load(Relaxed);
        let hits = outside(Outside::Cached) + outside(Outside::Prefetch);
        self.cache_hits += hits;
        self.stale += outside(Outside::Stale);
        self.forwarded += hits + outside(Outside::Stale) + outside(Outside::Asked);
        self.forward_failures += event(Event::ForwardFailed);
        self.forward_overloads += event(Event::ForwardOverload);
        self.truncated += event(Event::Truncated);
        self.rate_limited += event(Event::RateLimited);
        self.unfair += event(Event::Unfair);
        self.send_failures += event(Event::SendFailed);
        self.ignored += event(Event::Ignored);
        self.streams_accepted += event(Event::StreamAccepted);
        self.streams_refused += event(Event::StreamRefused);
        self.streams_slow += event(Event::StreamSlow);
        self.latency_us += worker.latency_us.load(Relaxed);
        for (sum, bucket) in self.latency.iter_mut().zip(&worker.latency) {
            sum.1 += bucket.load(Relaxed);
        }
    }

    fn add_forwarder(&mut self, forwarder: &Forwarder) {
        let size = forwarder.cache().size();
        (self.cache_entries, self.cache_bytes) = (size.entries as u64, size.bytes as u64);
        self.cache_evictions = size.evicted;
        for (zone, group) in forwarder.groups() {
            let zone = dns_zone::Name::from_wire(zone).unwrap_or_else(|_| dns_zone::Name::root()).to_string();
            self.upstreams.extend(group.upstreams.iter().map(|upstream| UpstreamCounts {
                address: upstream.address,
                zone: zone.clone(),
                answers: upstream.answers.load(Relaxed),
                failures: upstream.failures.load(Relaxed),
                rtt: upstream.rtt(),
                healthy: !upstream.is_held() && !upstream.is_looping(),
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_summed_and_unknown_types_and_codes_share_one_counter() {
        let stats = DnsStats::default();
        let (one, other) = (stats.worker(), stats.worker());
        one.answered(Source::Cluster, Some(RecordType(1)), Rcode::NOERROR);
        other.answered(Source::Cluster, Some(RecordType(1)), Rcode::NOERROR);
        other.answered(Source::None, None, Rcode::BADVERS);
        other.answered(Source::Outside, Some(RecordType(4711)), Rcode::NXDOMAIN);
        let counts = stats.counts();
        assert_eq!(counts.by_type[0], ("A", 2));
        assert_eq!(counts.by_type[TYPES.len()], ("other", 2));
        assert_eq!((counts.by_rcode[0], counts.by_rcode[3]), (("NOERROR", 2), ("NXDOMAIN", 1)));
        assert_eq!(counts.by_rcode[RCODES.len()], ("other", 1));
        assert!(counts.answers.contains(&("cluster", "A", "NOERROR", 2)));
    }

    #[test]
    fn what_a_worker_counted_stays_when_it_has_ended() {
        let stats = DnsStats::default();
        let worker = stats.worker();
        worker.answered(Source::Cluster, Some(RecordType(1)), Rcode::NOERROR);
        worker.outside(Outside::Stale);
        worker.event(Event::StreamSlow);
        worker.took(Duration::from_micros(3), 2);
        let before = stats.counts();
        stats.retire(&worker);
        stats.retire(&worker);
        assert_eq!(stats.counts(), before);
        assert!(stats.workers().is_empty());
    }

    #[test]
    fn latencies_fall_into_their_bucket() {
        let stats = DnsStats::default();
        let worker = stats.worker();
        for (us, count) in [(0, 1), (1, 1), (2, 1), (3, 2), (5_000_000, 1)] {
            worker.took(Duration::from_micros(us), count);
        }
        let latency = stats.counts().latency;
        assert_eq!(latency[..3], [(Some(1), 1), (Some(2), 1), (Some(4), 3)]);
        assert_eq!(*latency.last().unwrap(), (None, 1));
    }
}
