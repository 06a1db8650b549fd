// SPDX-License-Identifier: Apache-2.0
//! More than one worker: the device's thread reads whole bursts and hands each to the worker that its peer belongs to.
//!
//! A peer has one worker, and a worker takes its bursts in the order they were read: no flow is reordered.
//! Queues are bounded; the reading thread waits for a slow worker, and packets then wait in the kernel's
//! queues.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::thread::{Builder, JoinHandle};

use super::cipher::{DATA, DATA_OVERHEAD, message_type, word};
use super::peer::PeerId;
use super::tunnel::Tunnel;
use super::udp::{Datagrams, Endpoint, Flushed, Message, SLOT_BYTES};
use super::worker::Worker;
use crate::segment::{VNET_HEADER_LEN, destination};

/// Bursts that wait for one worker: enough that it never runs dry, few enough that a packet does not grow old.
const QUEUE_DEPTH: usize = 32;

/// Up to 64 KiB that travel together.
struct Burst {
    bytes: Box<[u8]>,
    len: usize,
    way: Way,
}

enum Way {
    /// A virtio-net header and a packet.
    Out,
    /// Datagrams of so many bytes each.
    In(usize, Endpoint),
}

/// The workers of a device.
pub(crate) struct Pool {
    tunnel: Arc<Tunnel>,
    queues: Vec<SyncSender<Burst>>,
    free: Receiver<Box<[u8]>>,
    threads: Vec<JoinHandle<()>>,
}

/// A worker is gone.
#[derive(Debug)]
pub(crate) struct Gone;

impl Pool {
    /// Starts `workers` threads and makes all buffers.
    pub(crate) fn start(tunnel: &Arc<Tunnel>, workers: usize) -> io::Result<Self> {
        let (give_back, free) = channel();
        let (mut queues, mut threads) = (Vec::new(), Vec::new());
        for i in 0..workers {
            let (queue, bursts) = sync_channel(QUEUE_DEPTH);
            let (tunnel, give_back) = (Arc::clone(tunnel), give_back.clone());
            let builder = Builder::new().name(format!("{}/{i}", tunnel.tun.name()));
            threads.push(builder.spawn(move || work(Worker::new(tunnel), &bursts, &give_back))?);
            queues.push(queue);
        }
        for _ in 0..workers * QUEUE_DEPTH + workers + 1 {
            // Cannot fail: `free` is alive.
            let _ = give_back.send(vec![0; SLOT_BYTES].into_boxed_slice());
        }
        Ok(Self { tunnel: Arc::clone(tunnel), queues, free, threads })
    }

    /// A buffer of [`SLOT_BYTES`]; waits while all are under way.
    pub(crate) fn buffer(&self) -> Result<Box<[u8]>, Gone> {
        self.free.recv().map_err(|_| Gone)
    }

    /// Hands on what one read of the TUN gave.
    pub(crate) fn seal(&self, bytes: Box<[u8]>, len: usize) -> Result<(), Gone> {
        let to = bytes.get(VNET_HEADER_LEN..len).and_then(destination);
        // What has no peer is counted by whichever worker gets it.
        let peer = to.and_then(|to| self.tunnel.tables().owner(to)).unwrap_or(0);
        self.hand(peer, Burst { bytes, len, way: Way::Out })
    }

    /// Hands on a received message.
    pub(crate) fn open(&self, peer: PeerId, message: Message) -> Result<(), Gone> {
        let Message { bytes, len, segment, from } = message;
        self.hand(peer, Burst { bytes, len, way: Way::In(segment, from) })
    }

    /// Whose data is in a received message; `None`: there is none of a peer's in it.
    pub(crate) fn owner(&self, datagrams: &Datagrams<'_>) -> Option<PeerId> {
        let mut segments = datagrams.bytes.chunks(datagrams.segment);
        let data = segments.find(|s| s.len() >= DATA_OVERHEAD && message_type(s) == Some(DATA))?;
        let index = word(data, 1)?;
        self.tunnel.tables().by_index(index >> 8).map(|peer| peer.id)
    }

    /// Waits until all that was handed on is done.
    pub(crate) fn stop(self) {
        drop(self.queues);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!(device = self.tunnel.tun.name(), "a worker panicked: please report it");
            }
        }
    }

    fn hand(&self, peer: PeerId, burst: Burst) -> Result<(), Gone> {
        let queue = &self.queues[peer as usize % self.queues.len()];
        queue.send(burst).map_err(|_| Gone)
    }
}

/// A worker's thread: takes bursts until there are none, then sends what it has and waits for more.
fn work(mut worker: Worker, bursts: &Receiver<Burst>, give_back: &Sender<Box<[u8]>>) {
    loop {
        let burst = match bursts.try_recv() {
            Ok(burst) => burst,
            Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) => {
                finish(&mut worker);
                match bursts.recv() {
                    Ok(burst) => burst,
                    Err(_) => break,
                }
            }
        };
        worker.refresh();
        let Burst { mut bytes, len, way } = burst;
        match way {
            Way::Out => worker.seal(&mut bytes[..len]),
            Way::In(segment, from) => worker.open(&Datagrams { bytes: &bytes[..len], segment, from }),
        }
        // Nobody takes it at the end of the pool.
        let _ = give_back.send(bytes);
    }
    finish(&mut worker);
}

/// Everything out; back-pressure is to wait here while the queue fills.
fn finish(worker: &mut Worker) {
    worker.flush_tun();
    while worker.flush_udp() == Flushed::Blocked && !worker.tunnel.is_stopping() {
        let Some(sockets) = worker.sockets() else { return };
        worker.sender.wait(&sockets);
    }
}
