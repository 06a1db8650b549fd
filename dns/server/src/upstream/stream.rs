// SPDX-License-Identifier: Apache-2.0
//! One connection to an upstream, TCP or TLS (RFC 7766, RFC 7858), shared by all questions to it; answers come in any order.
//! It is opened when it is needed and closed when nobody asked for a while.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsConnector;

use super::tls::UpstreamTls;

/// Time for the handshakes.
const CONNECT: Duration = Duration::from_secs(2);
/// A connection nobody uses is closed after this; upstreams do the same after some seconds (RFC 7766 section 6.2.3).
const IDLE: Duration = Duration::from_secs(8);
/// A connection on which questions went out and nothing came back for this long is dead, whatever the kernel says: it would try
/// for a quarter of an hour. As long as one question's patience.
const SILENCE: Duration = Duration::from_secs(3);
/// Questions that wait for the connection to take them.
const QUEUED_MAX: usize = 256;

/// A question with its frame's bytes, and where the answer goes.
struct Job {
    bytes: Vec<u8>,
    answer: oneshot::Sender<(u16, Vec<u8>)>,
}

/// The connection to one upstream.
pub(crate) struct StreamPool {
    address: SocketAddr,
    tls: Option<UpstreamTls>,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    /// One connects for all who wait; when, and why, that failed last.
    connecting: tokio::sync::Mutex<Option<(Instant, io::Error)>>,
}

impl StreamPool {
    pub(crate) fn new(address: SocketAddr, tls: Option<UpstreamTls>) -> Self {
        StreamPool { address, tls, jobs: Mutex::default(), connecting: tokio::sync::Mutex::default() }
    }

    /// Sends a question and waits for its answer: the identifier it went with, and the bytes. The caller sets the time.
    pub(crate) async fn ask(&self, bytes: &[u8]) -> io::Result<(u16, Vec<u8>)> {
        // The second time on another connection: the first may have been closed by the upstream just now.
        let mut failed = None;
        for _ in 0..2 {
            let (answer, answered) = oneshot::channel();
            let jobs = self.open(failed.as_ref()).await?;
            if jobs.send(Job { bytes: bytes.to_vec(), answer }).await.is_ok()
                && let Ok(answer) = answered.await
            {
                return Ok(answer);
            }
            failed = Some(jobs);
        }
        Err(io::Error::new(io::ErrorKind::ConnectionReset, "closed the connection without an answer"))
    }

    /// The connection, a new one where there is none but `failed`.
    async fn open(&self, failed: Option<&mpsc::Sender<Job>>) -> io::Result<mpsc::Sender<Job>> {
        if let Some(jobs) = self.open_jobs(failed) {
            return Ok(jobs);
        }
        let came = Instant::now();
        let mut last_failure = self.connecting.lock().await;
        if let Some(jobs) = self.open_jobs(failed) {
            return Ok(jobs);
        }
        if let Some((_, error)) = last_failure.as_ref().filter(|(at, _)| *at >= came) {
            return Err(same_error(error));
        }
        let connected = self.connect().await;
        *last_failure = connected.as_ref().err().map(|error| (Instant::now(), same_error(error)));
        connected
    }

    fn open_jobs(&self, failed: Option<&mpsc::Sender<Job>>) -> Option<mpsc::Sender<Job>> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.clone()
            .filter(|jobs| !jobs.is_closed() && !failed.is_some_and(|failed| failed.same_channel(jobs)))
    }

    async fn connect(&self) -> io::Result<mpsc::Sender<Job>> {
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no connection in time");
        let connecting = async {
            let stream = TcpStream::connect(self.address).await?;
            stream.set_nodelay(true)?;
            let (sender, receiver) = mpsc::channel(QUEUED_MAX);
            match &self.tls {
                None => drop(tokio::spawn(carry(stream, receiver))),
                Some(tls) => {
                    let connector = TlsConnector::from(tls.config.clone());
                    let stream = connector.connect(tls.name.clone(), stream).await?;
                    drop(tokio::spawn(carry(stream, receiver)));
                }
            }
            io::Result::Ok(sender)
        };
        let sender = timeout(CONNECT, connecting).await.map_err(late)??;
        *self.jobs.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender.clone());
        Ok(sender)
    }
}

fn same_error(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

/// Carries questions and answers until the upstream closes, breaks the rules, or nobody asks.
async fn carry(stream: impl AsyncRead + AsyncWrite + Send + 'static, mut jobs: mpsc::Receiver<Job>) {
    let (reader, mut writer) = tokio::io::split(stream);
    let (frames, mut answers) = mpsc::channel(QUEUED_MAX);
    let reading = tokio::spawn(read_frames(reader, frames));
    let mut waiting: HashMap<u16, oneshot::Sender<(u16, Vec<u8>)>> = HashMap::new();
    let mut id = fastrand::u16(..);
    let mut idle_at = Instant::now() + IDLE;
    // Since when something is due of which nothing has come; who asked may have gone by now.
    let mut due_since: Option<Instant> = None;
    loop {
        let ends_at = due_since.map_or(idle_at, |since| idle_at.min(since + SILENCE));
        tokio::select! {
            job = jobs.recv() => {
                let Some(Job { mut bytes, answer }) = job else { break };
                waiting.retain(|_, asker| !asker.is_closed());
                id = id.wrapping_add(1 + fastrand::u16(..16));
                if waiting.contains_key(&id) || bytes.len() < 2 {
                    continue;
                }
                bytes[..2].copy_from_slice(&id.to_be_bytes());
                let mut frame = (bytes.len() as u16).to_be_bytes().to_vec();
                frame.append(&mut bytes);
                waiting.insert(id, answer);
                // Over TLS it is the flush that waits for the socket.
                let sent = async {
                    writer.write_all(&frame).await?;
                    writer.flush().await
                };
                match timeout(CONNECT, sent).await {
                    Ok(Ok(())) => {}
                    _ => break,
                }
                idle_at = Instant::now() + IDLE;
                due_since.get_or_insert_with(Instant::now);
            }
            frame = answers.recv() => {
                let Some(frame) = frame else { break };
                let Some(id) = frame.first_chunk::<2>().map(|id| u16::from_be_bytes(*id)) else { break };
                if let Some(asker) = waiting.remove(&id) {
                    let _ = asker.send((id, frame));
                }
                waiting.retain(|_, asker| !asker.is_closed());
                idle_at = Instant::now() + IDLE;
                due_since = (!waiting.is_empty()).then(Instant::now);
            }
            () = sleep_until(ends_at) => break,
        }
    }
    reading.abort();
}

async fn read_frames(mut reader: impl AsyncRead + Unpin, frames: mpsc::Sender<Vec<u8>>) {
    while let Ok(length) = reader.read_u16().await {
        let mut frame = vec![0; usize::from(length)];
        if reader.read_exact(&mut frame).await.is_err() || frames.send(frame).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::task::{Context, Poll};

    use tokio::io::ReadBuf;
    use tokio::net::TcpListener;

    use super::*;

    /// Takes connections; the first `deaf` of them read and never answer, the others give each frame back.
    async fn echo(deaf: usize) -> (SocketAddr, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, taken) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let count = taken.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let is_deaf = count.fetch_add(1, Relaxed) < deaf;
                tokio::spawn(async move {
                    let (mut reader, mut writer) = stream.into_split();
                    let mut bytes = [0; 512];
                    while let Ok(length @ 1..) = reader.read(&mut bytes).await {
                        if !is_deaf {
                            writer.write_all(&bytes[..length]).await.unwrap();
                        }
                    }
                });
            }
        });
        (address, taken)
    }

    #[tokio::test]
    async fn a_connection_that_went_silent_is_left_for_a_new_one() {
        let (address, taken) = echo(1).await;
        let pool = StreamPool::new(address, None);
        let first = timeout(Duration::from_millis(2_900), pool.ask(&[0; 20])).await;
        assert!(first.is_err(), "nobody answers");
        let second = timeout(Duration::from_secs(2), pool.ask(&[0; 20])).await;
        assert_eq!(second.expect("in time").expect("answered").1.len(), 20);
        assert_eq!(taken.load(Relaxed), 2);
    }

    /// Takes all that is written, as TLS does, and never gets rid of it.
    struct Clogged;

    impl AsyncRead for Clogged {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Clogged {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_takes_no_more_is_left() {
        let (sender, receiver) = mpsc::channel(QUEUED_MAX);
        let (answer, _answered) = oneshot::channel();
        sender.send(Job { bytes: vec![0; 20], answer }).await.expect("there is room");
        timeout(IDLE / 2, carry(Clogged, receiver)).await.expect("it ends in time");
        assert!(sender.is_closed());
    }

    #[tokio::test]
    async fn a_burst_opens_one_connection() {
        let (address, taken) = echo(0).await;
        let pool = StreamPool::new(address, None);
        let all = futures::future::join_all((0..50).map(|_| pool.ask(&[7; 20]))).await;
        assert!(all.iter().all(Result::is_ok));
        assert_eq!(taken.load(Relaxed), 1);
    }

    #[tokio::test]
    async fn who_waits_for_a_connection_that_cannot_be_made_is_told_at_once() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let pool = StreamPool::new(closed, None);
        let all = futures::future::join_all((0..50).map(|_| pool.ask(&[7; 20]))).await;
        assert!(all.iter().all(Result::is_err));
    }
}
