// SPDX-License-Identifier: Apache-2.0
//! UDP: one thread for each socket. It waits for questions, answers what it can, and hands the rest to the runtime.

pub(crate) mod batch;
mod share;

use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use dns_zone::Transport;
use tokio::sync::mpsc;
use tracing::warn;

use crate::admission::Ticket;
use crate::life::{Part, Phase};
use crate::respond::{Asker, Core, Verdict};
use crate::stats::{Counters, DnsStats, Event};
use crate::wire::with_room;
use batch::{Asked, BATCH, Batch};
use share::Share;

/// A worker's thread needs little more than its buffers, which are not on its stack.
const STACK_BYTES: usize = 256 * 1024;

/// After an error of the socket that is nobody's answer: it may go on (no memory left), and must not spin.
const RECEIVE_PAUSE: Duration = Duration::from_millis(10);

/// What a worker cannot do without waiting. No more of them are there than may be in flight, for each has its ticket.
pub(crate) type Work = Box<Question>;

/// A question with the way back to its client.
pub(crate) struct Question {
    pub(crate) packet: Box<[u8]>,
    pub(crate) asker: Asker,
    pub(crate) received: Instant,
    socket: Arc<UdpSocket>,
    asked: Option<Asked>,
    ticket: Ticket,
}

/// One worker.
pub(crate) struct Worker {
    pub(crate) core: Arc<Core>,
    pub(crate) socket: Arc<UdpSocket>,
    pub(crate) stats: Arc<DnsStats>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) work: mpsc::Sender<Work>,
    pub(crate) stop: Arc<AtomicBool>,
    /// When the server was made.
    pub(crate) started: Instant,
}

impl Worker {
    /// Starts the thread; it ends within [`RECEIVE_TIMEOUT`](crate::sockets::RECEIVE_TIMEOUT) of `stop`.
    pub(crate) fn start(self, index: usize) -> io::Result<std::thread::JoinHandle<()>> {
        std::thread::Builder::new()
            .name(format!("dns-{index}"))
            .stack_size(STACK_BYTES)
            .spawn(move || self.run())
    }

    fn run(self) {
        let _part = Part::new(self.core.clone(), self.stop.clone(), "UDP worker");
        let _counted = Counted(&self);
        let wildcard = self.socket.local_addr().is_ok_and(|address| address.ip().is_unspecified());
        let mut batch = Batch::new(wildcard);
        let mut share = Share::new();
        let mut seeds = fastrand::Rng::new();
        let mut was_broken = false;
        while !self.stop.load(Relaxed) && !self.core.life.is_closing() {
            let count = match batch.receive(&*self.socket) {
                Ok(count) => count,
                Err(error) => {
                    match error.kind() {
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => {}
                        // An ICMP error about an answer of ours; nobody waits for it any more.
                        io::ErrorKind::ConnectionRefused
                        | io::ErrorKind::HostUnreachable
                        | io::ErrorKind::NetworkUnreachable => {}
                        _ => {
                            if !std::mem::replace(&mut was_broken, true) {
                                warn!(%error, socket = ?self.socket, "DNS worker cannot receive; trying again");
                            }
                            std::thread::sleep(RECEIVE_PAUSE);
                        }
                    }
                    continue;
                }
            };
            was_broken = false;
            let received = Instant::now();
            share.next_batch(count == BATCH, || batch::is_backlogged(&*self.socket));
            let mut answers = 0;
            for i in 0..count {
                answers += usize::from(self.serve(&mut batch, i, received, &mut share, seeds.u64(..)));
            }
            if answers > 0 {
                let lost = batch.send(&*self.socket);
                if lost > 0 {
                    self.counters.events(Event::SendFailed, lost);
                }
                self.counters.took(received.elapsed(), answers);
            }
        }
    }

    /// Serves query `i` of the batch; whether an answer is ready to be sent.
    fn serve(&self, batch: &mut Batch, i: usize, received: Instant, share: &mut Share, seed: u64) -> bool {
        let asked = batch.asked(i);
        let Some((client, packet, out)) = batch.query(i) else {
            self.counters.event(Event::Ignored);
            return false;
        };
        if !share.admit(client.ip()) {
            self.counters.event(Event::Unfair);
            return false;
        }
        let now_us = (received - self.started).as_micros() as u64;
        let asker = Asker { client, transport: Transport::Udp, now_us, seed };
        match self.core.respond(packet, asker, &self.counters, out) {
            Verdict::Silent => false,
            Verdict::Answer(len) => {
                batch.answer(i, len);
                true
            }
            Verdict::Hand(ticket) => {
                let (packet, socket) = (packet.into(), self.socket.clone());
                let question = Question { packet, asker, received, socket, asked, ticket };
                // There is room for each ticket's question; only a server that ends takes none.
                if self.work.try_send(Box::new(question)).is_err() {
                    self.counters.event(Event::ForwardOverload);
                }
                false
            }
        }
    }
}

/// A worker's counters are kept when it ends, but not one by one.
struct Counted<'w>(&'w Worker);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.stats.retire(&self.0.counters);
    }
}

impl Question {
    /// Asks the upstreams and answers the client, with what there is when the server ends.
    pub(crate) async fn answer(self, core: Arc<Core>, counters: Arc<Counters>) {
        let Question { packet, asker, received, socket, asked, ticket } = self;
        let completed = tokio::select! {
            biased;
            completed = core.complete(&packet, asker, &counters, ticket) => Some(completed),
            () = core.life.reached(Phase::Ending) => None,
        };
        let sent = with_room(|out| {
            let len = match &completed {
                Some(completed) => core.finish(completed, &packet, asker, &counters, out),
                None => core.last_word(&packet, asker, &counters, out),
            };
            batch::send_one(&*socket, &out[..len], asker.client, asked.as_ref())
        });
        if sent.is_err() {
            counters.event(Event::SendFailed);
        }
        counters.took(received.elapsed(), 1);
    }
}
