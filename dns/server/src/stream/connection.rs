// SPDX-License-Identifier: Apache-2.0
//! One connection: frames of two octets of length and a message (RFC 1035 section 4.2.2).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dns_zone::Transport;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::debug;

use super::Streams;
use crate::life::Phase;
use crate::respond::{Asker, Core, Verdict};
use crate::stats::{Counters, Event};
use crate::wire::{HEADER, STREAM_BYTES_MAX, with_room};

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
/// The same in bytes: two of the largest.
const ANSWER_BYTES_MAX: usize = 2 * STREAM_BYTES_MAX;
/// Questions of one connection that wait for the upstreams; past it no more are read.
const WAITING_MAX: usize = 32;
/// Questions read after the server was told to end: they were there already, or a client never stops asking.
const LATE_MAX: usize = WAITING_MAX;

/// An answer that waits to be written, with its room.
type Answer = (Vec<u8>, OwnedSemaphorePermit);

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

    async fn read(self, mut reader: impl AsyncRead + Unpin, answers: mpsc::Sender<Answer>) {
        let waiting = Arc::new(Semaphore::new(WAITING_MAX));
        let room = Arc::new(Semaphore::new(ANSWER_BYTES_MAX));
        let closing = self.streams.core.life.reached(Phase::Closing);
        tokio::pin!(closing);
        let mut asked = JoinSet::new();
        let mut frame = Vec::new();
        let mut late = 0;
        loop {
            if self.streams.core.life.is_closing() {
                if late == LATE_MAX {
                    break;
                }
                late += 1;
            }
            // A client whose questions wait is not idle.
            let idle = if self.streams.places.is_scarce() { IDLE_SCARCE } else { IDLE };
            let first = tokio::select! {
                biased;
                first = timeout(idle, reader.read_u8()) => first,
                // What has come is answered; what comes from now on is for the next server.
                () = &mut closing => break,
            };
            let first = match first {
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
            let (mut verdict, mut answer) = respond(core, &frame, asker, counters);
            let mut permit = None;
            if matches!(verdict, Verdict::Hand(_)) {
                permit = waiting.clone().try_acquire_owned().ok();
                if permit.is_none() {
                    // A client that is slow to take its answers has no ticket while it waits: others may need it.
                    drop(verdict);
                    permit = waiting.clone().acquire_owned().await.ok();
                    (verdict, answer) = respond(core, &frame, asker, counters);
                }
            }
            match verdict {
                Verdict::Silent => continue,
                Verdict::Answer(_) => {}
                Verdict::Hand(ticket) => {
                    let (core, counters, room) = (core.clone(), counters.clone(), room.clone());
                    let (packet, answers) = (frame.clone(), answers.clone());
                    asked.spawn(async move {
                        let completed = tokio::select! {
                            biased;
                            completed = core.complete(&packet, asker, &counters, ticket) => Some(completed),
                            () = core.life.reached(Phase::Ending) => None,
                        };
                        counters.took(received.elapsed(), 1);
                        // Until there is room for the largest, nothing is written: a slow client costs no memory meanwhile.
                        let Ok(mut place) = room.acquire_many_owned(STREAM_BYTES_MAX as u32).await else {
                            return;
                        };
                        let answer = with_room(|out| {
                            let len = match &completed {
                                Some(completed) => core.finish(completed, &packet, asker, &counters, out),
                                None => core.last_word(&packet, asker, &counters, out),
                            };
                            out[..len].to_vec()
                        });
                        drop(place.split(STREAM_BYTES_MAX - answer.len()));
                        let _ = answers.send((answer, place)).await;
                        drop(permit);
                    });
                    continue;
                }
            }
            counters.took(received.elapsed(), 1);
            let Ok(place) = room.clone().acquire_many_owned(answer.len() as u32).await else { break };
            if answers.send((answer, place)).await.is_err() {
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

/// Answers as far as that goes without waiting.
fn respond(core: &Core, packet: &[u8], asker: Asker, counters: &Counters) -> (Verdict, Vec<u8>) {
    with_room(|out| {
        let verdict = core.respond(packet, asker, counters, out);
        let answer = match verdict {
            Verdict::Answer(len) => out[..len].to_vec(),
            Verdict::Hand(_) | Verdict::Silent => Vec::new(),
        };
        (verdict, answer)
    })
}

/// Writes answers until there are no more; `false` if the client does not take one in time.
async fn write(mut writer: impl AsyncWrite + Unpin, mut answers: mpsc::Receiver<Answer>) -> bool {
    while let Some((answer, _place)) = answers.recv().await {
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

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::admission::Admission;
    use crate::forward::{ForwardConfig, Forwarder};
    use crate::respond::tests::core;
    use crate::stats::DnsStats;
    use crate::stream::Places;

    /// A connection of a server whose only upstream says nothing.
    fn connection() -> (Connection, UdpSocket) {
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let upstreams = vec![silent.local_addr().unwrap().into()];
        let config = ForwardConfig { upstreams, ..ForwardConfig::default() };
        let forwarder = Forwarder::new(&config, &[], tokio::time::Instant::now());
        let core = Core { forwarder, admission: Admission::new(config.in_flight_max), ..core() };
        let stats = Arc::<DnsStats>::default();
        let streams = Streams {
            core: Arc::new(core),
            counters: stats.worker(),
            stats,
            places: Places::new(8, 8),
            started: Instant::now(),
        };
        (Connection { streams, client: "10.244.0.1:4000".parse().unwrap() }, silent)
    }

    #[tokio::test]
    async fn a_client_that_never_stops_asking_does_not_keep_a_server_that_ends() {
        let (connection, _silent) = connection();
        connection.streams.core.life.enter(Phase::Closing);
        // Frames of 257 octets without end.
        let stream = tokio::io::join(tokio::io::repeat(1), tokio::io::sink());
        timeout(Duration::from_secs(5), connection.serve(stream)).await.expect("it ends");
    }

    #[tokio::test]
    async fn a_question_that_waits_for_the_answers_before_it_has_no_ticket() {
        let (connection, _silent) = connection();
        let core = connection.streams.core.clone();
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let serving = tokio::spawn(connection.serve(server));
        for n in 0..2 * WAITING_MAX as u8 {
            let name = [2, b'a' + n % 26, b'a' + n / 26, 3, b'o', b'r', b'g', 0, 0, 1, 0, 1];
            let question = [&[0, n, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &name].concat();
            client.write_u16(question.len() as u16).await.unwrap();
            client.write_all(&question).await.unwrap();
        }
        // All run on this thread, so they get as far as they can.
        for _ in 0..10_000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(core.admission.in_flight(), WAITING_MAX);
        serving.abort();
    }
}
