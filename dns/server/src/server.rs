// SPDX-License-Identifier: Apache-2.0
//! All parts put together.

use std::future::Future;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use dns_zone::Zone;
use ipnet::IpNet;
use rustls::ServerConfig;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::admission::Admission;
use crate::bind::BindError;
use crate::forward::{ForwardConfig, Forwarder};
use crate::further::{self, Further, Starter, Threads};
use crate::held;
use crate::life::{Life, Phase};
use crate::query_log::QueryLog;
use crate::rate::{self, Rate};
use crate::respond::Core;
use crate::sockets::{Sockets, bind, bind_tcp};
use crate::stats::{Counters, DnsStats};
use crate::stream::{Places, STREAMS_MAX, STREAMS_PER_CLIENT_MAX, Streams};
use crate::udp::Work;

/// Time for requests in flight when the server is told to stop.
const DRAIN: Duration = Duration::from_millis(500);

/// Refusals a second to one network that may not ask: enough for who is there by mistake to see it, useless as a weapon.
const REFUSALS_PER_SECOND: u32 = 20;

/// After that, for the answers to what still waits: no more than writing them.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// UDP workers of an address where none are configured: some 100,000 answers a second each, and each has its buffers, a socket
/// and its wake-ups when idle.
const WORKERS_MAX: usize = 8;

/// What a server is made of.
#[derive(Debug)]
pub struct DnsConfig {
    /// UDP and TCP on each (which need not be on the node yet); port 0 picks one that is free on both.
    pub addresses: Vec<SocketAddr>,
    /// More of them, while the server runs.
    pub further: Option<Further>,
    /// DNS over TLS.
    pub tls: Vec<TlsListen>,
    /// UDP workers, a thread for each and for each address; 0: as many as the machine has cores, 8 at most.
    pub workers: usize,
    /// Networks that may ask (pods, nodes, loopback). All others get REFUSED over UDP and no connection; an empty list
    /// refuses everybody, and only 0.0.0.0/0 or ::/0 serves the world.
    pub clients: Arc<ArcSwap<Vec<IpNet>>>,
    /// What we answer from. While it holds `None` the node is not in sync and every question gets SERVFAIL.
    pub zone: Arc<ArcSwapOption<Zone>>,
    /// All other names.
    pub forward: ForwardConfig,
    /// UDP answers a second to one client (of IPv6 a /64), a second's worth at once; past it every second question is answered
    /// by "come over TCP" (TC). `None`: no limit.
    pub answers_per_second: Option<u32>,
    /// One question of so many is logged, with target [`QUERY_LOG_TARGET`](crate::QUERY_LOG_TARGET); 0: none.
    pub query_log_every: u32,
    /// Connections of clients at once.
    pub streams_max: usize,
    /// Connections of one client at once.
    pub streams_per_client_max: usize,
    /// What is counted.
    pub stats: Arc<DnsStats>,
}

/// An address for DNS over TLS (RFC 7858: port 853).
#[derive(Clone, Debug)]
pub struct TlsListen {
    /// Where.
    pub address: SocketAddr,
    /// Certificate and key, of [`server_tls`](crate::server_tls).
    pub config: Arc<ServerConfig>,
}

impl Default for DnsConfig {
    fn default() -> Self {
        DnsConfig {
            addresses: Vec::new(),
            further: None,
            tls: Vec::new(),
            workers: 0,
            clients: Arc::default(),
            zone: Arc::default(),
            forward: ForwardConfig::default(),
            answers_per_second: None,
            query_log_every: 0,
            streams_max: STREAMS_MAX,
            streams_per_client_max: STREAMS_PER_CLIENT_MAX,
            stats: Arc::default(),
        }
    }
}

/// The bound, not yet running DNS server of a node.
///
/// It owns its sockets from [`DnsServer::bind`] on (questions queue in them), answers from [`DnsServer::run`] on.
#[derive(Debug)]
pub struct DnsServer {
    listeners: Vec<Sockets>,
    tls: Vec<(std::net::TcpListener, TlsListen)>,
    config: DnsConfig,
}

impl DnsServer {
    /// Binds all addresses. `held`: sockets that somebody kept for us while we were away ([`hold`](crate::hold)); those that
    /// fit are used, with the questions that wait in them, the rest is closed.
    ///
    /// # Errors
    /// [`BindError`] names the address and what to do; nothing stays bound.
    pub fn bind(config: DnsConfig, held: Vec<OwnedFd>) -> Result<Self, BindError> {
        if config.addresses.is_empty() {
            return Err(BindError::NoAddress);
        }
        let workers = match config.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX),
            workers => workers,
        };
        let mut held = held::sort(held);
        let mut listeners = Vec::new();
        for address in &config.addresses {
            listeners.push(bind(*address, workers, held.take(*address))?);
        }
        let mut tls = Vec::new();
        for listen in &config.tls {
            tls.push((bind_tcp(listen.address, held.take(listen.address).tcp)?, listen.clone()));
        }
        Ok(DnsServer { listeners, tls, config })
    }

    /// The addresses bound, in the order given, with the real ports.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|listener| listener.address).collect()
    }

    /// The same of DNS over TLS.
    pub fn tls_addresses(&self) -> Vec<SocketAddr> {
        self.tls.iter().filter_map(|(listener, _)| listener.local_addr().ok()).collect()
    }

    /// All sockets, for somebody who holds them while we are away.
    pub fn sockets(&self) -> Vec<BorrowedFd<'_>> {
        let streams = self.tls.iter().map(|(listener, _)| listener.as_fd());
        let pairs = self.listeners.iter();
        pairs
            .flat_map(|pair| pair.udp.iter().map(AsFd::as_fd).chain([pair.tcp.as_fd()]))
            .chain(streams)
            .collect()
    }

    /// Answers until `shutdown` resolves, then takes nothing new and answers what it has taken, for at most half a second; what
    /// waits longer gets an old answer or SERVFAIL. Returns also when a part of it has ended by itself, which is logged: it is
    /// to be started anew then. Dropping the future ends it too. Must run in a tokio runtime with I/O and time.
    ///
    /// # Errors
    /// A thread could not be started, or a listener not be used.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), BindError> {
        let addresses = self.addresses();
        let DnsServer { listeners, tls, config } = self;
        let started = tokio::time::Instant::now();
        let forwarder = Forwarder::new(&config.forward, &addresses, started);
        config.stats.show(&forwarder);
        let in_flight_max = config.forward.in_flight_max;
        let core = Arc::new(Core {
            clients: config.clients,
            zone: config.zone,
            forwarder: forwarder.clone(),
            admission: Admission::new(in_flight_max),
            refusals: Rate::new(REFUSALS_PER_SECOND, rate::NETWORK),
            answers: config.answers_per_second.map(|a_second| Rate::new(a_second, rate::CLIENT)),
            log: QueryLog::new(config.query_log_every),
            life: Life::new(),
        });
        let counters = config.stats.worker();
        let streams = Streams {
            core: core.clone(),
            counters: counters.clone(),
            stats: config.stats.clone(),
            places: Places::new(config.streams_max, config.streams_per_client_max),
            started: started.into_std(),
        };
        let (work, queue) = mpsc::channel(in_flight_max.max(1));
        let starter = Starter {
            core: core.clone(),
            stats: config.stats.clone(),
            streams: streams.clone(),
            started: started.into_std(),
        };
        let mut threads = Threads::default();
        let mut accepting = JoinSet::new();
        for Sockets { udp, tcp, .. } in listeners {
            threads.start(udp, &starter, &work)?;
            accepting.spawn(streams.clone().accept(tcp, None));
        }
        for (listener, listen) in tls {
            accepting.spawn(streams.clone().accept(listener, Some(listen.config)));
        }
        let further = further::keep(config.further, starter, work.downgrade());
        drop(work);
        info!(?addresses, workers = threads.threads.len(), "DNS server is answering");
        let dispatching = dispatch(core.clone(), counters, queue);
        tokio::pin!(dispatching, further);
        tokio::select! {
            Some(ended) = accepting.join_next() => warn!(?ended, ?addresses, "DNS server lost its TCP sockets"),
            () = &mut dispatching => warn!(?addresses, "DNS server lost its UDP sockets"),
            () = core.life.lost_a_part() => warn!(?addresses, "DNS server stops"),
            () = forwarder.look_after() => {}
            () = &mut further => {}
            () = shutdown => {
                core.life.enter(Phase::Closing);
                // Its queue closes when the last worker has ended, and the last connection at a further address.
                let draining = async {
                    tokio::join!(dispatching, async { while accepting.join_next().await.is_some() {} })
                };
                tokio::pin!(draining);
                let drained = tokio::time::timeout(DRAIN, &mut draining).await;
                if drained.is_err() {
                    core.life.enter(Phase::Ending);
                    let _ = tokio::time::timeout(LAST_WORDS, &mut draining).await;
                }
                info!(?addresses, in_time = drained.is_ok(), "DNS server stopped");
            }
        }
        Ok(())
    }
}

/// Does what the workers handed on, until all of them have ended and all is done.
async fn dispatch(core: Arc<Core>, counters: Arc<Counters>, mut queue: mpsc::Receiver<Work>) {
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            work = queue.recv() => match work {
                Some(question) => {
                    tasks.spawn(question.answer(core.clone(), counters.clone()));
                }
                None => break,
            },
            Some(_) = tasks.join_next() => {}
        }
    }
    while tasks.join_next().await.is_some() {}
}
