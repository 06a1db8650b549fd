// SPDX-License-Identifier: Apache-2.0
//! Addresses that come and go while the server runs: those by which other nodes' pods ask.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tracing::{info, warn};

use crate::bind::BindError;
use crate::life::Part;
use crate::respond::Core;
use crate::sockets::{Given, Sockets, bind};
use crate::stats::DnsStats;
use crate::stream::Streams;
use crate::udp::{Work, Worker};

/// Who else has the port may let go of it.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Addresses beside those that a server begins with.
#[derive(Clone, Debug)]
pub struct Further {
    /// Where to answer, UDP and TCP; may change at any time.
    pub wanted: watch::Receiver<Vec<SocketAddr>>,
    /// Where it is answered.
    pub bound: watch::Sender<Vec<SocketAddr>>,
}

/// Threads of workers; told to end when dropped.
#[derive(Default)]
pub(crate) struct Threads {
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) threads: Vec<JoinHandle<()>>,
    /// Of the workers, and of the questions that wait for the upstreams.
    sockets: Vec<Weak<UdpSocket>>,
}

/// What answers at an address.
#[derive(Clone)]
pub(crate) struct Starter {
    pub(crate) core: Arc<Core>,
    pub(crate) stats: Arc<DnsStats>,
    pub(crate) streams: Streams,
    pub(crate) started: Instant,
}

impl Threads {
    /// One for each socket.
    pub(crate) fn start(
        &mut self,
        sockets: Vec<UdpSocket>,
        starter: &Starter,
        work: &mpsc::Sender<Work>,
    ) -> Result<(), BindError> {
        for socket in sockets {
            let socket = Arc::new(socket);
            self.sockets.push(Arc::downgrade(&socket));
            let worker = Worker {
                core: starter.core.clone(),
                socket,
                stats: starter.stats.clone(),
                counters: starter.stats.worker(),
                work: work.clone(),
                stop: self.stop.clone(),
                started: starter.started,
            };
            self.threads.push(worker.start(self.threads.len()).map_err(BindError::Thread)?);
        }
        Ok(())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

/// One address that is answered at.
struct Open {
    threads: Threads,
    accepting: JoinSet<io::Result<()>>,
}

impl Open {
    /// Returns when nobody listens any more, with the sockets that live on while questions wait in the upstreams.
    async fn close(mut self) -> Vec<Weak<UdpSocket>> {
        self.threads.stop.store(true, Relaxed);
        self.accepting.shutdown().await;
        let threads = std::mem::take(&mut self.threads.threads);
        let sockets = std::mem::take(&mut self.threads.sockets);
        drop(self);
        let joined = spawn_blocking(|| threads.into_iter().for_each(|thread| drop(thread.join())));
        let _ = joined.await;
        sockets
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // First, for who ends without it is missed.
        self.threads.stop.store(true, Relaxed);
    }
}

/// Answers where it is wanted; never ends. `work` is held by those who answer, not by this.
pub(crate) async fn keep(further: Option<Further>, starter: Starter, work: mpsc::WeakSender<Work>) {
    let Some(Further { mut wanted, bound }) = further else { return std::future::pending().await };
    let mut open: BTreeMap<SocketAddr, Open> = BTreeMap::new();
    let mut failed: BTreeMap<SocketAddr, String> = BTreeMap::new();
    let mut closed: BTreeMap<SocketAddr, Vec<Weak<UdpSocket>>> = BTreeMap::new();
    loop {
        let addresses = wanted.borrow_and_update().clone();
        let gone: Vec<(SocketAddr, Open)> =
            open.extract_if(.., |address, _| !addresses.contains(address)).collect();
        let closing = gone.into_iter().map(async |(address, open)| (address, open.close().await));
        for (address, sockets) in futures::future::join_all(closing).await {
            closed.entry(address).or_default().extend(sockets);
        }
        closed.retain(|_, sockets| {
            sockets.retain(|socket| socket.strong_count() > 0);
            !sockets.is_empty()
        });
        failed.retain(|address, _| addresses.contains(address));
        for address in &addresses {
            let Some(work) = work.upgrade().filter(|_| !open.contains_key(address)) else { continue };
            let sockets = closed.get(address).map(|sockets| &sockets[..]).unwrap_or_default();
            match begin(*address, sockets, &starter, &work) {
                Ok(begun) => {
                    info!(%address, "DNS server is answering other nodes' pods");
                    failed.remove(address);
                    open.insert(*address, begun);
                }
                Err(error) => {
                    let error = error.to_string();
                    if failed.get(address) != Some(&error) {
                        warn!(error, "other nodes' pods cannot ask this node's DNS server; trying again");
                        failed.insert(*address, error);
                    }
                }
            }
        }
        let now: Vec<SocketAddr> = open.keys().copied().collect();
        bound.send_if_modified(|known| {
            let is_news = *known != now;
            *known = now;
            is_news
        });
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return std::future::pending().await },
            () = tokio::time::sleep(RETRY_AFTER), if !failed.is_empty() => {}
        }
    }
}

/// With one worker: this is for when another node's own server is away. `sockets`: of the last time; one that is still open for
/// an answer has the address, and is used again.
fn begin(
    address: SocketAddr,
    sockets: &[Weak<UdpSocket>],
    starter: &Starter,
    work: &mpsc::Sender<Work>,
) -> Result<Open, BindError> {
    let again = sockets.iter().filter_map(|socket| socket.upgrade()?.try_clone().ok());
    let given = Given { udp: again.take(1).collect(), tcp: None };
    let Sockets { udp, tcp, .. } = bind(address, 1, given)?;
    let mut threads = Threads::default();
    threads.start(udp, starter, work)?;
    let part = Part::new(starter.core.clone(), threads.stop.clone(), "TCP listener for other nodes' pods");
    let accept = starter.streams.clone().accept(tcp, None);
    // A server that ends waits until nobody has `work` any more.
    let work = work.clone();
    let mut accepting = JoinSet::new();
    accepting.spawn(async move {
        let _held = (part, work);
        accept.await
    });
    Ok(Open { threads, accepting })
}
