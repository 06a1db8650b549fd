// SPDX-License-Identifier: Apache-2.0
//! Questions about outside names: asked of the upstreams through hickory's resolver (UDP, TCP where the answer was
//! truncated, and a cache).
//!
//! Each upstream has a resolver of its own so that the choice between them is ours: the first healthy one in the
//! configured order is asked; when it has said nothing for [`FAILOVER_AFTER`], or answered with an error, the next is
//! asked as well and the first usable answer wins. An upstream that was overtaken goes to the end of the order for
//! [`HOLD_OFF`]. No task is spawned here: dropping the future cancels the waiting.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, Record, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// The port of DNS (RFC 1035 section 4.2).
pub(crate) const DNS_PORT: u16 = 53;

/// Upstreams used; as many as resolv.conf(5) allows (MAXNS), and more only lengthen a failure.
pub const UPSTREAMS_MAX: usize = 3;

/// Forwarded questions in flight at once. Each may hold a few sockets, so this stays well below a limit of 1024 files.
pub const FORWARDS_IN_FLIGHT_MAX: usize = 256;

/// Cached responses per upstream; responses are small, so a few MiB at most.
const CACHE_RESPONSES_MAX: u64 = 2048;

/// A cached answer is asked for again after this time even if its TTL is longer.
const CACHE_TTL_MAX: Duration = Duration::from_secs(3600);

/// A cached "does not exist" lives shorter: people wait for names they just made.
const CACHE_NEGATIVE_TTL_MAX: Duration = Duration::from_secs(30);

/// Silence after which the next upstream is asked too. Above most round trips, far below a client's patience (5 s).
const FAILOVER_AFTER: Duration = Duration::from_millis(400);

/// The whole time for one question; a client has asked again by then.
const DEADLINE: Duration = Duration::from_secs(4);

/// How long an upstream that did not answer is asked last.
const HOLD_OFF: Duration = Duration::from_secs(10);

/// Largest UDP answer asked of an upstream: fits an Ethernet frame without fragments (DNS flag day 2020).
const EDNS_PAYLOAD: u16 = 1232;

/// Where and how questions about outside names go.
#[derive(Clone, Debug)]
pub struct ForwardConfig {
    /// Asked in this order; at most [`UPSTREAMS_MAX`] are used. Empty: outside names are refused.
    pub upstreams: Vec<SocketAddr>,
    /// Further addresses that lead back to this server (the cluster DNS VIP): never forwarded to on port 53.
    pub own_addresses: Vec<IpAddr>,
    /// Questions in flight to upstreams at once; past it the client gets REFUSED.
    pub in_flight_max: usize,
}

impl Default for ForwardConfig {
    fn default() -> Self {
        ForwardConfig {
            upstreams: Vec::new(),
            own_addresses: Vec::new(),
            in_flight_max: FORWARDS_IN_FLIGHT_MAX,
        }
    }
}

/// What came of a forwarded question.
#[derive(Debug)]
pub(crate) enum Forwarded {
    /// The upstream's records.
    Answer { rcode: ResponseCode, answers: Vec<Record>, additionals: Vec<Record> },
    /// The upstream says: no such name (NXDOMAIN) or no such record (NOERROR), with its SOA where it gave one.
    Negative { rcode: ResponseCode, soa: Option<Box<Record>> },
    /// No upstream gave a usable answer in time.
    Failed,
    /// Too many questions in flight.
    Overloaded,
    /// There is no upstream.
    Unconfigured,
}

/// The upstreams of one server.
pub(crate) struct Forwarder {
    upstreams: Vec<Upstream>,
    in_flight: Semaphore,
    started: Instant,
}

struct Upstream {
    address: SocketAddr,
    resolver: TokioResolver,
    /// Milliseconds since `Forwarder::started` until which this upstream is asked last.
    held_until_ms: AtomicU64,
}

impl Forwarder {
    /// `listening` are the addresses the server itself listens on: an upstream among them is dropped, with a warning.
    pub(crate) fn new(config: ForwardConfig, listening: &[SocketAddr]) -> Self {
        let mut upstreams: Vec<Upstream> = Vec::new();
        for address in config.upstreams {
            if leads_back(address, listening, &config.own_addresses) {
                warn!(%address, "DNS upstream is this server itself; ignored, because questions would loop");
            } else if upstreams.iter().any(|known| known.address == address) {
                continue;
            } else if upstreams.len() == UPSTREAMS_MAX {
                warn!(%address, max = UPSTREAMS_MAX, "too many DNS upstreams; ignored");
            } else {
                match resolver(address) {
                    Ok(resolver) => {
                        upstreams.push(Upstream { address, resolver, held_until_ms: AtomicU64::new(0) })
                    }
                    Err(error) => warn!(%address, %error, "DNS upstream cannot be used; ignored"),
                }
            }
        }
        Forwarder { upstreams, in_flight: Semaphore::new(config.in_flight_max), started: Instant::now() }
    }

    /// Whether outside names can be asked at all (the RA bit).
    pub(crate) fn is_available(&self) -> bool {
        !self.upstreams.is_empty()
    }

    /// Asks the upstreams. Returns within [`DEADLINE`]; never waits for a place among the questions in flight.
    pub(crate) async fn lookup(&self, name: &Name, qtype: RecordType) -> Forwarded {
        if self.upstreams.is_empty() {
            return Forwarded::Unconfigured;
        }
        let Ok(_permit) = self.in_flight.try_acquire() else { return Forwarded::Overloaded };
        match tokio::time::timeout(DEADLINE, self.race(name, qtype)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.upstreams.iter().for_each(|upstream| self.hold_off(upstream));
                Forwarded::Failed
            }
        }
    }

    async fn race(&self, name: &Name, qtype: RecordType) -> Forwarded {
        let mut waiting = self.order().into_iter();
        let mut asked = FuturesUnordered::new();
        let mut silent: Vec<&Upstream> = Vec::new();
        loop {
            // Each turn asks one more upstream, then listens to all that were asked.
            match waiting.next() {
                Some(upstream) => {
                    asked.push(async {
                        (upstream.address, upstream.resolver.lookup(name.clone(), qtype).await)
                    });
                    silent.push(upstream);
                }
                None if asked.is_empty() => return Forwarded::Failed,
                None => {}
            }
            let patience = if waiting.len() == 0 { DEADLINE } else { FAILOVER_AFTER };
            let Ok(Some((address, result))) = tokio::time::timeout(patience, asked.next()).await else {
                continue;
            };
            silent.retain(|upstream| upstream.address != address);
            match usable(result) {
                Ok(outcome) => {
                    silent.iter().for_each(|upstream| self.hold_off(upstream));
                    return outcome;
                }
                Err(error) => debug!(%address, %name, %qtype, %error, "DNS upstream failed"),
            }
        }
    }

    /// Upstreams in the order to ask them: the configured order, those on hold last.
    fn order(&self) -> Vec<&Upstream> {
        let now = self.now_ms();
        let mut order: Vec<&Upstream> = self.upstreams.iter().collect();
        order.sort_by_key(|upstream| upstream.held_until_ms.load(Relaxed) > now);
        order
    }

    fn hold_off(&self, upstream: &Upstream) {
        let now = self.now_ms();
        if upstream.held_until_ms.swap(now + HOLD_OFF.as_millis() as u64, Relaxed) <= now {
            info!(address = %upstream.address, "DNS upstream does not answer in time; others are asked first");
        }
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

fn leads_back(upstream: SocketAddr, listening: &[SocketAddr], own: &[IpAddr]) -> bool {
    let same = |own: &SocketAddr| {
        let everywhere = own.ip().is_unspecified() && upstream.ip().is_loopback();
        own.port() == upstream.port() && (own.ip() == upstream.ip() || everywhere)
    };
    upstream.ip().is_unspecified()
        || (upstream.port() == DNS_PORT && own.contains(&upstream.ip()))
        || listening.iter().any(same)
}

fn resolver(address: SocketAddr) -> Result<TokioResolver, NetError> {
    let on_port = |mut connection: ConnectionConfig| {
        connection.port = address.port();
        connection
    };
    let connections = vec![on_port(ConnectionConfig::udp()), on_port(ConnectionConfig::tcp())];
    let server = NameServerConfig::new(address.ip(), true, connections);
    let mut builder = TokioResolver::builder_with_config(
        ResolverConfig::from_name_servers(vec![server]),
        TokioRuntimeProvider::default(),
    );
    *builder.options_mut() = options();
    builder.build()
}

fn options() -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.timeout = DEADLINE;
    // Packets lost on the way are repeated inside one attempt; another attempt would only outlive the deadline.
    options.attempts = 0;
    options.num_concurrent_reqs = 1;
    options.edns0 = true;
    options.edns_payload_len = EDNS_PAYLOAD;
    options.use_hosts_file = ResolveHosts::Never;
    options.preserve_intermediates = true;
    options.cache_size = CACHE_RESPONSES_MAX;
    options.positive_max_ttl = Some(CACHE_TTL_MAX);
    options.negative_max_ttl = Some(CACHE_NEGATIVE_TTL_MAX);
    options
}

/// An answer or a trusted "no"; every other error means that another upstream should be asked.
fn usable(result: Result<hickory_resolver::lookup::Lookup, NetError>) -> Result<Forwarded, NetError> {
    match result {
        Ok(lookup) => Ok(Forwarded::Answer {
            rcode: lookup.message().metadata.response_code,
            answers: lookup.answers().to_vec(),
            additionals: lookup.additionals().to_vec(),
        }),
        Err(NetError::Dns(DnsError::NoRecordsFound(none)))
            if matches!(none.response_code, ResponseCode::NXDomain | ResponseCode::NoError) =>
        {
            let soa = none.soa.map(|soa| Box::new(soa.into_record_of_rdata()));
            Ok(Forwarded::Negative { rcode: none.response_code, soa })
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn upstreams_that_lead_back_are_dropped() {
        let config = ForwardConfig {
            upstreams: ["169.254.53.53:53", "10.96.0.10:53", "0.0.0.0:53", "192.0.2.1:53", "192.0.2.1:53"]
                .map(socket)
                .to_vec(),
            own_addresses: vec!["10.96.0.10".parse().unwrap()],
            ..ForwardConfig::default()
        };
        let forwarder = Forwarder::new(config, &[socket("169.254.53.53:53")]);
        let left: Vec<_> = forwarder.upstreams.iter().map(|upstream| upstream.address).collect();
        assert_eq!(left, [socket("192.0.2.1:53")]);
    }

    #[tokio::test]
    async fn another_port_of_an_own_address_is_another_server() {
        let config = ForwardConfig { upstreams: vec![socket("127.0.0.1:5300")], ..ForwardConfig::default() };
        assert!(Forwarder::new(config, &[socket("127.0.0.1:53")]).is_available());
    }

    #[tokio::test(start_paused = true)]
    async fn an_upstream_on_hold_is_asked_last_and_comes_back() {
        let config = ForwardConfig {
            upstreams: vec![socket("192.0.2.1:53"), socket("192.0.2.2:53")],
            ..ForwardConfig::default()
        };
        let forwarder = Forwarder::new(config, &[]);
        let first = |f: &Forwarder| f.order()[0].address.ip().to_string();
        assert_eq!(first(&forwarder), "192.0.2.1");
        forwarder.hold_off(&forwarder.upstreams[0]);
        assert_eq!(first(&forwarder), "192.0.2.2");
        tokio::time::advance(HOLD_OFF).await;
        assert_eq!(first(&forwarder), "192.0.2.1");
    }
}
