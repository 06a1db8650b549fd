// SPDX-License-Identifier: Apache-2.0
//! One connection: frames of two octets of length and a message (RFC 1035 section 4.2.2).

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dns_zone::Transport;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::debug;

use super::Streams;
use crate::respond::{Asker, Core, Verdict};
use crate::stats::{Counters, Event};
use crate::wire::{HEADER, Key, STREAM_BYTES_MAX};

/// A client that says nothing for this long is hung up on (RFC 7766 section 6.2.3: a few seconds).
const IDLE: Duration = Duration::from_secs(10);
/// The same while places are scarce.
const IDLE_SCARCE: Duration = Duration::from_secs(1);
/// Time for the rest of a question whose first octets are there.
const FRAME: Duration = Duration::from_secs(3);
/// Time for a client to take an answer.
const WRITE: Duration = Duration::from_secs(5);
/// Answers that wait for a slow client; past it no more of its questions are read.
const ANSWERS_MAX: usize = 32;
/// Questions of one connection that wait for the upstreams; past it no more are read.
const WAITING_MAX: usize = 32;

pub(super) struct Connection {
    pub(super) streams: Streams,
    pub(super) client: SocketAddr,
}

impl Connection {
    /// Serves it until either side closes.
    pub(super) async fn serve(self, stream: impl AsyncRead + AsyncWrite + Send + 'static) {
        let (reader, writer) = tokio::io::split(stream);
        let (answers, queue) = mpsc::channel(ANSWERS_MAX);
        let counters = self.streams.counters.clone();
        let client = self.client;
        let all_written = tokio::select! {
            all_written = write(writer, queue) => all_written,
            // Never ends before the writer; dropping it ends the questions that still wait.
            () = self.read(reader, answers) => true,
        };
        if !all_written {
            counters.event(Event::StreamSlow);
            debug!(%client, "DNS client takes no answers: hung up");
        }
    }

    async fn read(self, mut reader: impl AsyncRead + Unpin, answers: mpsc::Sender<Vec<u8>>) {
        let waiting = Arc::new(Semaphore::new(WAITING_MAX));
        let mut asked = JoinSet::new();
        let mut frame = Vec::new();
        loop {
            // A client whose questions wait is not idle.
            let idle = if self.streams.places.is_scarce() { IDLE_SCARCE } else { IDLE };
            let first = match timeout(idle, reader.read_u8()).await {
                Ok(Ok(first)) => first,
                Err(_) if waiting.available_permits() < WAITING_MAX => continue,
                Ok(Err(_)) | Err(_) => break,
            };
            if !matches!(timeout(FRAME, read_rest(&mut reader, first, &mut frame)).await, Ok(Ok(()))) {
                break;
            }
            while asked.try_join_next().is_some() {}
            let received = Instant::now();
            let now_us = (received - self.streams.started).as_micros() as u64;
            let asker =
                Asker { client: self.client, transport: Transport::Tcp, now_us, seed: fastrand::u64(..) };
            let (core, counters) = (&self.streams.core, &self.streams.counters);
            let (verdict, answer) = respond(core, &frame, asker, counters);
            match verdict {
                Verdict::Silent => continue,
                Verdict::Answer(_) => {}
                Verdict::AnswerAndPrefetch(_) => {
                    if let dns_zone::Incoming::Query(query) = dns_zone::parse(&frame) {
                        let (core, key) = (core.clone(), Key::of(&query));
                        asked.spawn(async move { core.forwarder.prefetch(&key).await });
                    }
                }
                Verdict::Hand(ticket) => {
                    let Ok(permit) = waiting.clone().acquire_owned().await else { break };
                    let (core, counters) = (core.clone(), counters.clone());
                    let (packet, answers) = (frame.clone(), answers.clone());
                    asked.spawn(async move {
                        let bytes = core.complete(&packet, asker, &counters).await;
                        counters.took(received.elapsed(), 1);
                        let _ = answers.send(bytes).await;
                        drop((permit, ticket));
                    });
                    continue;
                }
            }
            counters.took(received.elapsed(), 1);
            if answers.send(answer).await.is_err() {
                break;
            }
        }
        // What was asked before the client closed its side is still answered (RFC 7766 section 6.2.4).
        while asked.join_next().await.is_some() {}
        drop(answers);
        // The writer ends when it has written all; this future must not end before it.
        std::future::pending::<()>().await;
    }
}

/// Reads the second octet of a length, and the message behind it.
async fn read_rest(reader: &mut (impl AsyncRead + Unpin), first: u8, frame: &mut Vec<u8>) -> io::Result<()> {
    let length = usize::from(u16::from_be_bytes([first, reader.read_u8().await?]));
    if length < HEADER {
        return Err(io::ErrorKind::InvalidData.into());
    }
    frame.resize(length, 0);
    reader.read_exact(frame).await.map(drop)
}

/// Answers as far as that goes without waiting. The largest answer has room in a buffer of the thread, not of each connection.
fn respond(core: &Core, packet: &[u8], asker: Asker, counters: &Counters) -> (Verdict, Vec<u8>) {
    thread_local! {
        static OUT: RefCell<Vec<u8>> = RefCell::new(vec![0; STREAM_BYTES_MAX]);
    }
    OUT.with_borrow_mut(|out| {
        let verdict = core.respond(packet, asker, counters, out);
        let answer = match verdict {
            Verdict::Answer(len) | Verdict::AnswerAndPrefetch(len) => out[..len].to_vec(),
            Verdict::Hand(_) | Verdict::Silent => Vec::new(),
        };
        (verdict, answer)
    })
}

/// Writes answers until there are no more; `false` if the client does not take one in time.
async fn write(mut writer: impl AsyncWrite + Unpin, mut answers: mpsc::Receiver<Vec<u8>>) -> bool {
    while let Some(answer) = answers.recv().await {
        let mut frame = Vec::with_capacity(2 + answer.len());
        frame.extend_from_slice(&(answer.len() as u16).to_be_bytes());
        frame.extend_from_slice(&answer);
        let written = async {
            writer.write_all(&frame).await?;
            writer.flush().await
        };
        match timeout(WRITE, written).await {
            Ok(Ok(())) => {}
            // It closed its side, which is not slow.
            Ok(Err(_)) => return true,
            Err(_) => return false,
        }
    }
    let _ = timeout(WRITE, writer.shutdown()).await;
    true
}
