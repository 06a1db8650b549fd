// SPDX-License-Identifier: Apache-2.0
//! UDP: one thread for each socket. It waits for questions, answers what it can, and hands the rest to the runtime.

pub(crate) mod batch;
mod share;

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use dns_zone::Transport;
use tokio::sync::mpsc;
use tracing::warn;

use crate::admission::Ticket;
use crate::respond::{Asker, Core, Verdict};
use crate::stats::{Counters, Event};
use crate::wire::Key;
use batch::{Asked, BATCH, Batch};
use share::Share;

/// A worker's thread needs little more than its buffers, which are not on its stack.
const STACK_BYTES: usize = 256 * 1024;

/// What a worker cannot do without waiting.
pub(crate) enum Work {
    /// A question for the upstreams.
    Question(Box<Question>),
    /// A cached answer that should be asked for again.
    Prefetch(Box<Key>),
}

/// A question with the way back to its client.
pub(crate) struct Question {
    pub(crate) packet: Box<[u8]>,
    pub(crate) asker: Asker,
    pub(crate) received: Instant,
    socket: Arc<UdpSocket>,
    asked: Option<Asked>,
    _ticket: Ticket,
}

/// One worker.
pub(crate) struct Worker {
    pub(crate) core: Arc<Core>,
    pub(crate) socket: Arc<UdpSocket>,
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
        let wildcard = self.socket.local_addr().is_ok_and(|address| address.ip().is_unspecified());
        let mut batch = Batch::new(wildcard);
        let mut share = Share::new();
        let mut seeds = fastrand::Rng::new();
        while !self.stop.load(Relaxed) {
            let count = match batch.receive(&*self.socket) {
                Ok(count) => count,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => {
                        continue;
                    }
                    // An ICMP error about an answer of ours; nobody waits for it any more.
                    io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::HostUnreachable
                    | io::ErrorKind::NetworkUnreachable => continue,
                    _ => {
                        warn!(%error, socket = ?self.socket, "DNS worker lost its socket");
                        return;
                    }
                },
            };
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
            Verdict::AnswerAndPrefetch(len) => {
                if let dns_zone::Incoming::Query(query) = dns_zone::parse(packet) {
                    // A full queue means that there is enough to do; the name is asked for when it is too old.
                    let _ = self.work.try_send(Work::Prefetch(Box::new(Key::of(&query))));
                }
                batch.answer(i, len);
                true
            }
            Verdict::Hand(ticket) => {
                let (packet, socket) = (packet.into(), self.socket.clone());
                let question = Question { packet, asker, received, socket, asked, _ticket: ticket };
                if self.work.try_send(Work::Question(Box::new(question))).is_err() {
                    self.counters.event(Event::ForwardOverload);
                }
                false
            }
        }
    }
}

impl Question {
    /// Asks the upstreams and answers the client.
    pub(crate) async fn answer(self, core: Arc<Core>, counters: Arc<Counters>) {
        let bytes = core.complete(&self.packet, self.asker, &counters).await;
        let to: SocketAddr = self.asker.client;
        if batch::send_one(&*self.socket, &bytes, to, self.asked.as_ref()).is_err() {
            counters.event(Event::SendFailed);
        }
        counters.took(self.received.elapsed(), 1);
    }
}
