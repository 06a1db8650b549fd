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
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::tls::UpstreamTls;

/// Time for the handshakes.
const CONNECT: Duration = Duration::from_secs(2);
/// A connection nobody uses is closed after this; upstreams do the same after some seconds (RFC 7766 section 6.2.3).
const IDLE: Duration = Duration::from_secs(8);
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
}

impl StreamPool {
    pub(crate) fn new(address: SocketAddr, tls: Option<UpstreamTls>) -> Self {
        StreamPool { address, tls, jobs: Mutex::default() }
    }

    /// Sends a question and waits for its answer: the identifier it went with, and the bytes. The caller sets the time.
    pub(crate) async fn ask(&self, bytes: &[u8]) -> io::Result<(u16, Vec<u8>)> {
        // The second time on a connection of its own: the first may have been closed by the upstream just now.
        for fresh in [false, true] {
            let (answer, answered) = oneshot::channel();
            let jobs = match self.open_jobs(fresh) {
                Some(jobs) => jobs,
                None => self.connect().await?,
            };
            if jobs.send(Job { bytes: bytes.to_vec(), answer }).await.is_err() {
                continue;
            }
            if let Ok(answer) = answered.await {
                return Ok(answer);
            }
        }
        Err(io::Error::new(io::ErrorKind::ConnectionReset, "closed the connection without an answer"))
    }

    fn open_jobs(&self, fresh: bool) -> Option<mpsc::Sender<Job>> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.clone().filter(|jobs| !fresh && !jobs.is_closed())
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

/// Carries questions and answers until the upstream closes, breaks the rules, or nobody asks.
async fn carry(stream: impl AsyncRead + AsyncWrite + Send + 'static, mut jobs: mpsc::Receiver<Job>) {
    let (reader, mut writer) = tokio::io::split(stream);
    let (frames, mut answers) = mpsc::channel(QUEUED_MAX);
    let reading = tokio::spawn(read_frames(reader, frames));
    let mut waiting: HashMap<u16, oneshot::Sender<(u16, Vec<u8>)>> = HashMap::new();
    let mut id = fastrand::u16(..);
    loop {
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
                match timeout(CONNECT, writer.write_all(&frame)).await {
                    Ok(Ok(())) => {}
                    _ => break,
                }
                let _ = writer.flush().await;
            }
            frame = answers.recv() => {
                let Some(frame) = frame else { break };
                let Some(id) = frame.first_chunk::<2>().map(|id| u16::from_be_bytes(*id)) else { break };
                if let Some(asker) = waiting.remove(&id) {
                    let _ = asker.send((id, frame));
                }
            }
            () = tokio::time::sleep(IDLE) => break,
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
