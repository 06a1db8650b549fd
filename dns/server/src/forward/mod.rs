// SPDX-License-Identifier: Apache-2.0
//! Questions about names of others: from the cache, or asked of the upstreams.
//!
//! Clients that ask the same at the same time share one question. An answer that is out of date is better than none: it is
//! given when the upstreams fail or are slow (RFC 8767). hickory reads and writes the foreign messages; its resolver is not
//! used, for its cache has a cap in entries and not in bytes, and neither old answers nor cookies.

mod distil;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout};

use crate::admission::Ticket;
use crate::cache::{Cache, Entry, Freshness};
use crate::group::{Group, Own};
use crate::stats::Outside;
use crate::upstream::{Upstream, UpstreamConfig, loop_label};
use crate::wire::Key;

/// Forwarded questions in flight at once. Each may hold a few sockets, so this stays well below a limit of 1024 files.
pub const FORWARDS_IN_FLIGHT_MAX: usize = 256;
/// Default cap of the cache: some 30,000 answers.
pub const CACHE_BYTES: usize = 16 << 20;
/// How long past its time an answer may be given when no upstream answers (RFC 8767 section 5 says up to days).
const STALE_MAX: Duration = Duration::from_secs(24 * 3_600);
/// A client waits this long for a fresh answer where there is an old one (RFC 8767 section 5, the client response timer).
const STALE_AFTER: Duration = Duration::from_millis(1_800);
/// After a failure the upstreams are left alone for this long where there is an old answer (the same, failure recheck timer).
const STALE_RETRY: Duration = Duration::from_secs(30);
/// How often an upstream that failed is asked whether it is back.
const PROBE_EVERY: Duration = Duration::from_millis(500);
/// How often upstreams in order are asked whether they lead back to us.
const LOOP_PROBE_EVERY: Duration = Duration::from_secs(60);

/// Names that wait to be asked for again before they are out of date.
const PREFETCHES_MAX: usize = 64;

/// Where and how questions about outside names go.
#[derive(Clone, Debug)]
pub struct ForwardConfig {
    /// Asked in this order; at most [`UPSTREAMS_MAX`](crate::UPSTREAMS_MAX) are used. Empty: outside names are refused.
    pub upstreams: Vec<UpstreamConfig>,
    /// Names with name servers of their own; the longest that fits wins.
    pub stubs: Vec<StubZone>,
    /// Further addresses that lead back to this server (the cluster DNS VIP): never forwarded to on port 53.
    pub own_addresses: Vec<IpAddr>,
    /// Questions in flight to upstreams at once; past it the client gets REFUSED.
    pub in_flight_max: usize,
    /// Bytes that cached answers take.
    pub cache_bytes: usize,
    /// Whether upstreams are asked for a random name now and then, to see that they live and do not lead back to us.
    pub probe: bool,
}

/// A zone that other name servers know: all names at and below `zone`.
#[derive(Clone, Debug)]
pub struct StubZone {
    /// Such as `corp.example`.
    pub zone: dns_zone::Name,
    /// As in [`ForwardConfig::upstreams`].
    pub upstreams: Vec<UpstreamConfig>,
}

impl Default for ForwardConfig {
    fn default() -> Self {
        ForwardConfig {
            upstreams: Vec::new(),
            stubs: Vec::new(),
            own_addresses: Vec::new(),
            in_flight_max: FORWARDS_IN_FLIGHT_MAX,
            cache_bytes: CACHE_BYTES,
            probe: true,
        }
    }
}

/// What came of a question about a name of others.
#[derive(Clone, Debug)]
pub(crate) enum Forwarded {
    /// There is an answer; `outside` says how it came, and whether it is out of date.
    Answer { entry: Arc<Entry>, outside: Outside },
    /// No upstream gave a usable answer in time.
    Failed,
    /// Too much is being asked already.
    Busy,
    /// There is no upstream for this name.
    Unconfigured,
}

/// How old an answer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Age {
    /// As good as one from the upstreams now, or they failed just now.
    Good,
    /// Anything is better than nothing.
    Any,
}

/// The outcome of one question to the upstreams, for all who wait for it.
type Flight = Shared<BoxFuture<'static, Option<Arc<Entry>>>>;

/// The upstreams of one server, and what they said.
pub(crate) struct Forwarder {
    itself: Weak<Forwarder>,
    upstreams: Group,
    /// The longest names first.
    stubs: Vec<(Vec<u8>, Group)>,
    cache: Cache,
    flights: Mutex<HashMap<Box<[u8]>, Flight>>,
    /// For flights: they may outlive those who wait for them, and each may hold some sockets.
    places: Arc<Semaphore>,
    places_max: usize,
    prefetches: mpsc::Sender<Key>,
    /// Until somebody looks after the upstreams.
    wanted: Mutex<Option<mpsc::Receiver<Key>>>,
    started: Instant,
    probe: bool,
}

impl Forwarder {
    /// `listening` are the server's own sockets: an upstream among them is dropped, with a warning.
    pub(crate) fn new(
        config: &ForwardConfig,
        listening: &[std::net::SocketAddr],
        started: Instant,
    ) -> Arc<Self> {
        let own = Own { listening: listening.to_vec(), addresses: config.own_addresses.clone() };
        let mut stubs: Vec<(Vec<u8>, Group)> = Vec::new();
        for stub in &config.stubs {
            let zone = stub.zone.as_wire().to_ascii_lowercase();
            let group = Group::new(&stub.upstreams, &own, &zone, started);
            stubs.push((zone, group));
        }
        stubs.sort_by_key(|(zone, _)| std::cmp::Reverse(zone.len()));
        let (prefetches, wanted) = mpsc::channel(PREFETCHES_MAX);
        Arc::new_cyclic(|itself| Forwarder {
            itself: itself.clone(),
            upstreams: Group::new(&config.upstreams, &own, &[0], started),
            stubs,
            cache: Cache::new(config.cache_bytes, STALE_MAX.as_millis() as u64),
            flights: Mutex::default(),
            places: Arc::new(Semaphore::new(config.in_flight_max)),
            places_max: config.in_flight_max,
            prefetches,
            wanted: Mutex::new(Some(wanted)),
            started,
            probe: config.probe,
        })
    }

    /// Whether outside names can be asked at all (the RA bit).
    pub(crate) fn is_available(&self) -> bool {
        self.upstreams.is_available() || self.stubs.iter().any(|(_, group)| group.is_available())
    }

    /// Answers from what is known: the cache, or that there is nobody to ask. `None`: the upstreams must be asked. Quick, and
    /// without effect: who gives the answer to somebody says so by [`Forwarder::was_given`].
    pub(crate) fn known(&self, key: &Key, age: Age, now_ms: u64) -> Option<Forwarded> {
        let (entry, outside) = match self.cache.find(key, now_ms) {
            Some((entry, Freshness::Fresh)) => (entry, Outside::Cached),
            Some((entry, Freshness::StaleForNow)) => (entry, Outside::Stale),
            Some((entry, _)) if age == Age::Any => (entry, Outside::Stale),
            Some(_) => return None,
            None => return (!self.group(key.name()).is_available()).then_some(Forwarded::Unconfigured),
        };
        Some(Forwarded::Answer { entry, outside })
    }

    /// Somebody got this answer from the cache: one that many ask for is asked for again before it is out of date.
    pub(crate) fn was_given(&self, key: &Key, entry: &Entry, now_ms: u64) -> bool {
        if !entry.was_given(now_ms) {
            return false;
        }
        let is_queued = self.prefetches.try_send(*key).is_ok();
        if !is_queued {
            // There is enough to do; the next one who asks may have more luck.
            entry.not_refreshed();
        }
        is_queued
    }

    /// Answers from what is known, else asks. Returns within the deadline of a [`Group`]. `ticket`: of the client's question,
    /// which has its place until the upstreams have answered, even where the client waits no more.
    pub(crate) async fn resolve(&self, key: &Key, ticket: &Arc<Ticket>) -> Forwarded {
        let now_ms = self.now_ms();
        if let Some(known) = self.known(key, Age::Good, now_ms) {
            return known;
        }
        if let Some(label) = loop_label(key.name())
            && self.all_upstreams().any(|upstream| upstream.saw_probe(label))
        {
            return Forwarded::Failed;
        }
        let asked = |entry| Forwarded::Answer { entry, outside: Outside::Asked };
        let flight = self.fetch(key, Some(ticket));
        match (self.cache.find(key, now_ms), flight) {
            (Some((entry, _)), None) => Forwarded::Answer { entry, outside: Outside::Stale },
            (None, None) => Forwarded::Busy,
            (None, Some(flight)) => flight.await.map_or(Forwarded::Failed, asked),
            (Some((entry, _)), Some(flight)) => match timeout(STALE_AFTER, flight).await {
                Ok(Some(entry)) => asked(entry),
                outcome => {
                    // Those who wait on go on waiting; this client has its answer, and those who come get it at once.
                    if outcome.is_err() {
                        entry.refresh_failed(self.now_ms() + STALE_RETRY.as_millis() as u64);
                    }
                    Forwarded::Answer { entry, outside: Outside::Stale }
                }
            },
        }
    }

    /// Asks the upstreams, once for all who ask the same now. `None`: too much is being asked. Without a ticket (nobody waits
    /// for it) half of the places stay free.
    fn fetch(&self, key: &Key, ticket: Option<&Arc<Ticket>>) -> Option<Flight> {
        let flights = self.flights();
        if let Some(flight) = flights.get(&**key) {
            return Some(flight.clone());
        }
        if ticket.is_none() && self.places.available_permits() <= self.places_max / 2 {
            return None;
        }
        let place = self.places.clone().try_acquire_owned().ok()?;
        let (itself, owned, ticket) = (self.itself.clone(), *key, ticket.cloned());
        let asking = async move {
            let entry = itself.upgrade()?.ask(&owned).await;
            drop((place, ticket));
            entry
        };
        Some(self.begin(key, asking, flights))
    }

    /// A task of its own: clients that go away do not end what others wait for, and the cache gets the answer anyway.
    fn begin(
        &self,
        key: &Key,
        asking: impl Future<Output = Option<Arc<Entry>>> + Send + 'static,
        mut flights: MutexGuard<'_, HashMap<Box<[u8]>, Flight>>,
    ) -> Flight {
        let landing = Landing { forwarder: self.itself.clone(), key: *key };
        let (outcome, landed) = oneshot::channel();
        let flight = landed.map(|landed| landed.ok().flatten()).boxed().shared();
        flights.insert((**key).into(), flight.clone());
        // A runtime that shuts down drops the task here and now, and the landing takes the lock.
        drop(flights);
        tokio::spawn(async move {
            let (outcome, landing) = (outcome, landing);
            let entry = asking.await;
            drop(landing);
            let _ = outcome.send(entry);
        });
        flight
    }

    async fn ask(&self, key: &Key) -> Option<Arc<Entry>> {
        let answer = self.group(key.name()).ask(key).await;
        let now_ms = self.now_ms();
        let entry = answer.and_then(|message| {
            let (wire, secs) = distil::distil(key, *message)?;
            Entry::new(wire, u64::from(secs) * 1_000, now_ms).map(Arc::new)
        });
        match &entry {
            Some(entry) => self.cache.keep(key, entry.clone()),
            None => self.failed(key),
        }
        entry
    }

    /// The upstreams gave nothing: what there is will do for a while.
    fn failed(&self, key: &Key) {
        let now_ms = self.now_ms();
        if let Some((old, _)) = self.cache.find(key, now_ms) {
            old.refresh_failed(now_ms + STALE_RETRY.as_millis() as u64);
        }
    }

    /// Looks after the upstreams and what is to be asked for again: those that failed are asked until they answer. Never ends;
    /// the second time it is called it does nothing.
    pub(crate) async fn look_after(&self) {
        let Some(wanted) = self.wanted.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return std::future::pending().await;
        };
        tokio::join!(self.prefetch(wanted), self.probe());
    }

    async fn prefetch(&self, mut wanted: mpsc::Receiver<Key>) {
        while let Some(key) = wanted.recv().await {
            if self.fetch(&key, None).is_none()
                && let Some((entry, _)) = self.cache.find(&key, self.now_ms())
            {
                entry.not_refreshed();
            }
        }
    }

    async fn probe(&self) {
        if !self.probe {
            return std::future::pending().await;
        }
        let mut next_round = Instant::now();
        loop {
            let everybody = Instant::now() >= next_round;
            if everybody {
                next_round = Instant::now() + LOOP_PROBE_EVERY;
            }
            let due = self.all_upstreams().filter(|upstream| everybody || upstream.is_in_doubt());
            futures::future::join_all(due.map(|upstream| upstream.probe())).await;
            tokio::time::sleep(PROBE_EVERY).await;
        }
    }

    /// Name servers with their zone (`.` for the upstreams), in the configured order.
    pub(crate) fn groups(&self) -> impl Iterator<Item = (&[u8], &Group)> {
        let stubs = self.stubs.iter().map(|(zone, group)| (&zone[..], group));
        std::iter::once((&[0][..], &self.upstreams)).chain(stubs)
    }

    /// How full the cache is, for the metrics.
    pub(crate) fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Milliseconds since the server was made.
    pub(crate) fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// What is to be asked for again, taken from the queue.
    #[cfg(test)]
    pub(crate) fn wanted(&self) -> Vec<Vec<u8>> {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        std::iter::from_fn(|| wanted.as_mut()?.try_recv().ok()).map(|key| key.to_vec()).collect()
    }

    fn group(&self, name: &[u8]) -> &Group {
        let stub = self.stubs.iter().find(|(zone, _)| is_at_or_below(name, zone));
        stub.map_or(&self.upstreams, |(_, group)| group)
    }

    fn all_upstreams(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.groups().flat_map(|(_, group)| &group.upstreams)
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<Box<[u8]>, Flight>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A flight's place among the flights; whatever ends it, the next who asks begins another.
struct Landing {
    forwarder: Weak<Forwarder>,
    key: Key,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let Some(forwarder) = self.forwarder.upgrade() else { return };
        if std::thread::panicking() {
            forwarder.failed(&self.key);
        }
        forwarder.flights().remove(&*self.key);
    }
}

/// Both in lower case; whole labels.
fn is_at_or_below(name: &[u8], zone: &[u8]) -> bool {
    let mut rest = name;
    while rest.len() > zone.len() {
        rest = &rest[1 + usize::from(rest[0])..];
    }
    rest == zone
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stub_zone_has_its_own_servers_and_the_longest_wins() {
        let upstream =
            |last: u8| vec![UpstreamConfig::from(std::net::SocketAddr::from(([192, 0, 2, last], 53)))];
        let stub = |zone: &str, last| StubZone {
            zone: dns_zone::Name::parse(zone).unwrap(),
            upstreams: upstream(last),
        };
        let config = ForwardConfig {
            upstreams: upstream(1),
            stubs: vec![stub("Corp.Example", 2), stub("db.corp.example", 3)],
            ..ForwardConfig::default()
        };
        let forwarder = Forwarder::new(&config, &[], Instant::now());
        let asked = |name: &str| {
            let name = dns_zone::Name::parse(name).unwrap();
            forwarder.group(name.as_wire()).upstreams[0].address.to_string()
        };
        assert_eq!(asked("www.example.org"), "192.0.2.1:53");
        assert_eq!(asked("xcorp.example"), "192.0.2.1:53");
        assert_eq!(asked("corp.example"), "192.0.2.2:53");
        assert_eq!(asked("a.db.corp.example"), "192.0.2.3:53");
    }

    fn silent() -> Arc<Forwarder> {
        // Nobody answers on this port; questions end by their deadline.
        let config = ForwardConfig {
            upstreams: vec![UpstreamConfig::from(std::net::SocketAddr::from(([192, 0, 2, 1], 53)))],
            in_flight_max: 4,
            ..ForwardConfig::default()
        };
        Forwarder::new(&config, &[], Instant::now())
    }

    fn key(n: u8) -> Key {
        Key::new(&[1, b'a' + n, 0], 1, 0)
    }

    fn ticket() -> Arc<Ticket> {
        let admission = crate::admission::Admission::new(64);
        Arc::new(admission.enter([10, 244, 0, 1].into()).unwrap())
    }

    #[tokio::test]
    async fn a_flight_that_panics_makes_room_for_the_next() {
        let forwarder = silent();
        let entry = popular();
        forwarder.cache.keep(&key(0), entry.clone());
        assert!((0..3).all(|now| !forwarder.was_given(&key(0), &entry, now)));
        assert!(forwarder.was_given(&key(0), &entry, 95_000));
        let flight = forwarder.begin(&key(0), async { panic!("as a decoder might") }, forwarder.flights());
        assert!(flight.await.is_none() && forwarder.flights().is_empty());
        assert!(forwarder.was_given(&key(0), &entry, 99_000), "it may be asked for early again");
    }

    /// Begins a flight when it is dropped.
    struct Last(Arc<Forwarder>);

    impl Drop for Last {
        fn drop(&mut self) {
            self.0.fetch(&key(1), None);
        }
    }

    #[test]
    fn a_flight_that_begins_while_the_runtime_ends_ends_too() {
        let (ended, end) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let run = async {
                tokio::spawn(async {
                    let _last = Last(silent());
                    std::future::pending::<()>().await
                });
                tokio::task::yield_now().await;
            };
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run);
            ended.send(()).unwrap();
        });
        end.recv_timeout(Duration::from_secs(5)).expect("it does not wait for itself");
    }

    fn popular() -> Arc<Entry> {
        let wire = b"\0\0\x81\x80\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01".to_vec();
        Arc::new(Entry::new(wire, 100_000, 0).unwrap())
    }

    #[tokio::test]
    async fn flights_have_a_limit_of_their_own_and_prefetches_leave_half() {
        let forwarder = silent();
        let ticket = ticket();
        let begun = (0..4).filter(|n| forwarder.fetch(&key(*n), None).is_some()).count();
        assert_eq!(begun, 2, "what nobody waits for");
        let begun = (10..20).filter(|n| forwarder.fetch(&key(*n), Some(&ticket)).is_some()).count();
        assert_eq!(begun, 2, "clients went away, their questions are still asked");
        assert!(forwarder.fetch(&key(10), Some(&ticket)).is_some(), "shared");
        assert!(matches!(forwarder.resolve(&key(30), &ticket).await, Forwarded::Busy));
        assert!(Arc::strong_count(&ticket) > 2, "their places are taken as long as the upstreams are asked");
    }

    #[tokio::test]
    async fn a_prefetch_that_finds_no_room_may_be_tried_again() {
        let forwarder = silent();
        let entry = popular();
        forwarder.cache.keep(&key(0), entry.clone());
        (0..3).for_each(|now| assert!(!forwarder.was_given(&key(0), &entry, now)));
        for _ in 0..PREFETCHES_MAX {
            assert!(forwarder.was_given(&key(0), &entry, 95_000));
            entry.not_refreshed();
        }
        assert!(!forwarder.was_given(&key(0), &entry, 95_000), "the queue is full");
        assert_eq!(forwarder.wanted().len(), PREFETCHES_MAX);
        assert!(forwarder.was_given(&key(0), &entry, 95_000));
        assert!(!forwarder.was_given(&key(0), &entry, 95_000), "it is on its way");
    }
}
