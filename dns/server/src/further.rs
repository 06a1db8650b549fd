// SPDX-License-Identifier: Apache-2.0
//! Addresses that come and go while the server runs: those by which other nodes' pods ask.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, spawn_blocking};
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
        sockets: Vec<std::net::UdpSocket>,
        starter: &Starter,
        work: &mpsc::Sender<Work>,
    ) -> Result<(), BindError> {
        for socket in sockets {
            let worker = Worker {
                core: starter.core.clone(),
                socket: Arc::new(socket),
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
    accepting: AbortHandle,
}

impl Open {
    /// Returns when its sockets are closed, so that they may be bound again.
    async fn close(mut self) {
        self.threads.stop.store(true, Relaxed);
        let threads = std::mem::take(&mut self.threads.threads);
        drop(self);
        let joined = spawn_blocking(|| threads.into_iter().for_each(|thread| drop(thread.join())));
        let _ = joined.await;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // First, for who ends without it is missed.
        self.threads.stop.store(true, Relaxed);
        self.accepting.abort();
    }
}

/// Answers where it is wanted; never ends. `work` is held by those who answer, not by this.
pub(crate) async fn keep(further: Option<Further>, starter: Starter, work: mpsc::WeakSender<Work>) {
    let Some(Further { mut wanted, bound }) = further else { return std::future::pending().await };
    let mut open: BTreeMap<SocketAddr, Open> = BTreeMap::new();
    let mut failed: BTreeMap<SocketAddr, String> = BTreeMap::new();
    loop {
        let addresses = wanted.borrow_and_update().clone();
        let gone: Vec<Open> =
            open.extract_if(.., |address, _| !addresses.contains(address)).map(|(_, open)| open).collect();
        futures::future::join_all(gone.into_iter().map(Open::close)).await;
        failed.retain(|address, _| addresses.contains(address));
        for address in &addresses {
            let Some(work) = work.upgrade().filter(|_| !open.contains_key(address)) else { continue };
            match begin(*address, &starter, &work) {
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

/// With one worker: this is for when another node's own server is away.
fn begin(address: SocketAddr, starter: &Starter, work: &mpsc::Sender<Work>) -> Result<Open, BindError> {
    let Sockets { udp, tcp, .. } = bind(address, 1, Given::default())?;
    let mut threads = Threads::default();
    threads.start(udp, starter, work)?;
    let part = Part::new(starter.core.clone(), threads.stop.clone(), "TCP listener for other nodes' pods");
    let accept = starter.streams.clone().accept(tcp, None);
    let accepting = tokio::spawn(async move {
        let _part = part;
        accept.await
    });
    Ok(Open { threads, accepting: accepting.abort_handle() })
}
