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
use tokio::time::{Instant, timeout};

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
    /// There is an answer; out of date where `stale`.
    Answer { entry: Arc<Entry>, outside: Outside },
    /// No upstream gave a usable answer in time.
    Failed,
    /// There is no upstream for this name.
    Unconfigured,
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
            stubs
                .push((stub.zone.as_wire().to_ascii_lowercase(), Group::new(&stub.upstreams, &own, started)));
        }
        stubs.sort_by_key(|(zone, _)| std::cmp::Reverse(zone.len()));
        Arc::new_cyclic(|itself| Forwarder {
            itself: itself.clone(),
            upstreams: Group::new(&config.upstreams, &own, started),
            stubs,
            cache: Cache::new(config.cache_bytes, STALE_MAX.as_millis() as u64),
            flights: Mutex::default(),
            started,
            probe: config.probe,
        })
    }

    /// Whether outside names can be asked at all (the RA bit).
    pub(crate) fn is_available(&self) -> bool {
        self.upstreams.is_available() || self.stubs.iter().any(|(_, group)| group.is_available())
    }

    /// Answers from what is known: the cache, or that there is nobody to ask. `None`: the upstreams must be asked. Quick.
    pub(crate) fn known(&self, key: &Key, now_ms: u64) -> Option<Forwarded> {
        match self.cache.find(key, now_ms) {
            Some((entry, Freshness::Fresh)) => Some(Forwarded::Answer { entry, outside: Outside::Cached }),
            Some((entry, Freshness::Prefetch)) => {
                Some(Forwarded::Answer { entry, outside: Outside::Prefetch })
            }
            Some((entry, Freshness::StaleForNow)) => {
                Some(Forwarded::Answer { entry, outside: Outside::Stale })
            }
            Some((_, Freshness::Stale | Freshness::Dead)) => None,
            None if !self.group(key.name()).is_available() => Some(Forwarded::Unconfigured),
            None => None,
        }
    }

    /// Answers from what is known, else asks. Returns within the deadline of a [`Group`].
    pub(crate) async fn resolve(&self, key: &Key) -> Forwarded {
        let now_ms = self.now_ms();
        if let Some(known) = self.known(key, now_ms) {
            return known;
        }
        if let Some(label) = loop_label(key.name())
            && self.all_upstreams().any(|upstream| upstream.saw_probe(label))
        {
            return Forwarded::Failed;
        }
        let asked = |entry| Forwarded::Answer { entry, outside: Outside::Asked };
        match self.cache.find(key, now_ms) {
            Some((old, _)) => match timeout(STALE_AFTER, self.fetch(key)).await {
                Ok(Some(entry)) => asked(entry),
                // Those who wait on go on waiting; this client has its answer.
                Ok(None) | Err(_) => Forwarded::Answer { entry: old, outside: Outside::Stale },
            },
            None => self.fetch(key).await.map_or(Forwarded::Failed, asked),
        }
    }

    /// Asks again for what is still good, so that nobody has to wait for it later.
    pub(crate) async fn prefetch(&self, key: &Key) {
        self.fetch(key).await;
    }

    /// Asks the upstreams, once for all who ask the same now.
    fn fetch(&self, key: &Key) -> Flight {
        let mut flights = self.flights();
        if let Some(flight) = flights.get(&**key) {
            return flight.clone();
        }
        let (itself, owned) = (self.itself.clone(), *key);
        // A task of its own: clients that go away do not end what others wait for, and the cache gets the answer anyway.
        let task = tokio::spawn(async move {
            let forwarder = itself.upgrade()?;
            let entry = forwarder.ask(&owned).await;
            forwarder.flights().remove(&*owned);
            entry
        });
        let flight = task.map(|joined| joined.ok().flatten()).boxed().shared();
        flights.insert((**key).into(), flight.clone());
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
            None => {
                if let Some((old, _)) = self.cache.find(key, now_ms) {
                    old.refresh_failed(now_ms + STALE_RETRY.as_millis() as u64);
                }
            }
        }
        entry
    }

    /// Looks after the upstreams until it is dropped: those that failed are asked until they answer.
    pub(crate) async fn look_after(&self) {
        if !self.probe {
            return std::future::pending().await;
        }
        let mut next_round = Instant::now();
        loop {
            let everybody = Instant::now() >= next_round;
            if everybody {
                next_round = Instant::now() + LOOP_PROBE_EVERY;
            }
            let due = self.all_upstreams().filter(|upstream| everybody || upstream.is_held());
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
}
