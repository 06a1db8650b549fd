// SPDX-License-Identifier: Apache-2.0
//! One name server that we ask: over UDP, over TCP where that does not do, or over TLS only.

mod question;
mod stream;
mod tls;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::Message;
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

pub(crate) use question::is_usable;
use question::{Asked, Manner, Received, server_cookie};
use stream::StreamPool;
pub use tls::{TlsError, UpstreamTls, server_tls};

use crate::wire::{Key, qtype};

/// Packets get lost: a question is repeated once, then asked over TCP.
const UDP_PATIENCE: [Duration; 2] = [Duration::from_millis(700), Duration::from_millis(900)];
/// Time for one question over a stream.
const STREAM_PATIENCE: Duration = Duration::from_secs(3);
/// Foreign packets on a question's own port before somebody must be guessing: then TCP, where guessing does not help.
const FOREIGN_MAX: u32 = 8;
/// How long an upstream that did not answer is asked last.
const HOLD_OFF: Duration = Duration::from_secs(10);
/// Silence after which the next upstream is asked too: twice the usual round trip, within these.
const HEDGE_MIN: Duration = Duration::from_millis(60);
const HEDGE_MAX: Duration = Duration::from_millis(300);
/// The name that leads back to us only in a circle; dnsmasq does the same below `test`.
const LOOP_LABEL: &[u8] = b"weft-loop-";
const LOOP_ZONE: &[u8] = b"\x04test\0";

/// Where a name server is, and how it is spoken to.
#[derive(Clone, Debug)]
pub struct UpstreamConfig {
    /// Its address.
    pub address: SocketAddr,
    /// Only over TLS, and as whom it must show itself. `None`: UDP and TCP.
    pub tls: Option<UpstreamTls>,
}

impl From<SocketAddr> for UpstreamConfig {
    fn from(address: SocketAddr) -> Self {
        UpstreamConfig { address, tls: None }
    }
}

/// Why one name server gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    #[error("no answer in time")]
    Silent,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("its answer cannot be read: {0}")]
    Broken(String),
}

/// One name server.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    tls: bool,
    stream: StreamPool,
    manner: Mutex<Manner>,
    /// 64 random bits, in hexadecimal digits.
    probe: [u8; 16],
    looping: AtomicBool,
    /// Since `started`, in milliseconds.
    held_until_ms: AtomicU64,
    failures_in_a_row: AtomicU32,
    /// Smoothed; 0 before the first answer.
    rtt_us: AtomicU64,
    pub(crate) answers: AtomicU64,
    pub(crate) failures: AtomicU64,
    started: Instant,
}

impl Upstream {
    pub(crate) fn new(config: UpstreamConfig, started: Instant) -> Self {
        let mut client_cookie = [0; 8];
        fill_random(&mut client_cookie);
        let mut random = [0; 8];
        fill_random(&mut random);
        let mut probe = [0; 16];
        for (i, digit) in probe.iter_mut().enumerate() {
            *digit = b"0123456789abcdef"[usize::from(random[i / 2] >> (i % 2 * 4) & 15)];
        }
        let manner = Manner { plain: false, folds_case: false, client_cookie, server_cookie: Vec::new() };
        Upstream {
            address: config.address,
            tls: config.tls.is_some(),
            stream: StreamPool::new(config.address, config.tls),
            manner: Mutex::new(manner),
            probe,
            looping: AtomicBool::new(false),
            held_until_ms: AtomicU64::new(0),
            failures_in_a_row: AtomicU32::new(0),
            rtt_us: AtomicU64::new(0),
            answers: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            started,
        }
    }

    /// Asks, and keeps count of how that went. The caller sets the time.
    pub(crate) async fn ask(&self, key: &Key) -> Result<Box<Message>, UpstreamError> {
        let started = Instant::now();
        let result = match self.tls {
            true => self.ask_stream(key).await,
            false => self.ask_udp(key).await,
        };
        match &result {
            Ok(_) => self.answered(started.elapsed()),
            Err(_) => self.failed(),
        }
        result
    }

    /// UDP first; TCP where the answer does not fit, is not trusted, or does not come.
    async fn ask_udp(&self, key: &Key) -> Result<Box<Message>, UpstreamError> {
        for patience in UDP_PATIENCE {
            let asked = Asked::new(key, self.manner(), true);
            let message = match timeout(patience, self.exchange(&asked)).await {
                // Lost on the way, there or back.
                Err(_) => continue,
                Ok(result) => result?,
            };
            let Some(message) = message else { break };
            if message.edns.is_none() && asked.had_edns() && refuses_edns(&message) {
                self.change_manner(|manner| manner.plain = true);
                continue;
            }
            if message.metadata.truncation {
                break;
            }
            return Ok(message);
        }
        self.ask_stream(key).await
    }

    /// One datagram there, and the one that belongs to it back; `None` where a stream must decide.
    async fn exchange(&self, asked: &Asked) -> Result<Option<Box<Message>>, UpstreamError> {
        // A socket of its own, connected: the kernel picks a random port, and drops what comes from elsewhere.
        let any: SocketAddr = match self.address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(self.address).await?;
        socket.send(&asked.bytes).await?;
        let mut buffer = [0; 4096];
        for _ in 0..FOREIGN_MAX {
            let length = socket.recv(&mut buffer).await?;
            match asked.judge(&buffer[..length], true) {
                Received::Answer(message) => {
                    self.learn_cookie(&message);
                    return Ok(Some(message));
                }
                Received::Foreign => {}
                Received::BadCookie => {
                    if let Ok(message) = Message::from_vec(&buffer[..length]) {
                        self.learn_cookie(&message);
                    }
                    return Ok(None);
                }
                Received::CaseLost(_) | Received::Broken(_) => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Over TCP or TLS.
    async fn ask_stream(&self, key: &Key) -> Result<Box<Message>, UpstreamError> {
        let deadline = Instant::now() + STREAM_PATIENCE;
        loop {
            let mut asked = Asked::new(key, self.manner(), true);
            let exchange = self.stream.ask(&asked.bytes);
            let (id, bytes) =
                tokio::time::timeout_at(deadline, exchange).await.map_err(|_| UpstreamError::Silent)??;
            asked.set_id(id);
            match asked.judge(&bytes, false) {
                Received::Answer(message)
                    if message.edns.is_none() && asked.had_edns() && refuses_edns(&message) =>
                {
                    self.change_manner(|manner| manner.plain = true);
                }
                Received::Answer(message) => {
                    self.learn_cookie(&message);
                    return Ok(message);
                }
                Received::CaseLost(message) => {
                    if !self.manner().folds_case {
                        info!(address = %self.address, "DNS upstream does not keep the case of names: it is asked in lower case");
                    }
                    self.change_manner(|manner| manner.folds_case = true);
                    return Ok(message);
                }
                Received::Foreign => return Err(UpstreamError::Broken("it is to another question".into())),
                Received::BadCookie => {
                    return Err(UpstreamError::Broken("it wants another cookie over TCP".into()));
                }
                Received::Broken(why) => return Err(UpstreamError::Broken(why)),
            }
        }
    }

    /// Whether it answers at all, and whether it leads back to us: any answer to our probe's name will do.
    pub(crate) async fn probe(&self) -> bool {
        let mut name = vec![(LOOP_LABEL.len() + self.probe.len()) as u8];
        name.extend_from_slice(LOOP_LABEL);
        name.extend_from_slice(&self.probe);
        name.extend_from_slice(LOOP_ZONE);
        self.looping.store(false, Relaxed);
        let alive =
            matches!(timeout(STREAM_PATIENCE, self.ask(&Key::new(&name, qtype::HINFO, 0))).await, Ok(Ok(_)));
        if alive && !self.is_looping() {
            self.recovered();
        }
        alive
    }

    /// Sees our own probe come in as a question; true if this is ours.
    pub(crate) fn saw_probe(&self, label: &[u8]) -> bool {
        let ours = label.strip_prefix(LOOP_LABEL) == Some(&self.probe[..]);
        if ours && !self.looping.swap(true, Relaxed) {
            warn!(
                address = %self.address,
                "DNS upstream sends our questions back to us: it is not asked; name other --dns-upstreams, or take this \
                 node's DNS address out of its configuration"
            );
        }
        ours
    }

    pub(crate) fn is_looping(&self) -> bool {
        self.looping.load(Relaxed)
    }

    pub(crate) fn is_held(&self) -> bool {
        self.held_until_ms.load(Relaxed) > self.now_ms()
    }

    /// The smoothed round trip, zero before the first answer.
    pub(crate) fn rtt(&self) -> Duration {
        Duration::from_micros(self.rtt_us.load(Relaxed))
    }

    /// How long it may be silent before another one is asked as well.
    pub(crate) fn hedge_after(&self) -> Duration {
        match self.rtt_us.load(Relaxed) {
            0 => HEDGE_MAX,
            us => (Duration::from_micros(us) * 2 + HEDGE_MIN).min(HEDGE_MAX),
        }
    }

    /// Another one answered first, or nobody in time.
    pub(crate) fn hold_off(&self) {
        let now = self.now_ms();
        let held = self.held_until_ms.swap(now + HOLD_OFF.as_millis() as u64, Relaxed);
        if held <= now {
            info!(address = %self.address, "DNS upstream does not answer in time; others are asked first");
        }
    }

    fn recovered(&self) {
        if self.held_until_ms.swap(0, Relaxed) > self.now_ms() {
            info!(address = %self.address, "DNS upstream answers again");
        }
    }

    fn answered(&self, took: Duration) {
        self.answers.fetch_add(1, Relaxed);
        self.failures_in_a_row.store(0, Relaxed);
        let (last, now) = (self.rtt_us.load(Relaxed), took.as_micros().max(1) as u64);
        self.rtt_us.store(if last == 0 { now } else { (last * 7 + now) / 8 }, Relaxed);
    }

    fn failed(&self) {
        self.failures.fetch_add(1, Relaxed);
        if self.failures_in_a_row.fetch_add(1, Relaxed) > 0 {
            self.hold_off();
        }
    }

    fn manner(&self) -> Manner {
        self.manner.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change_manner(&self, change: impl FnOnce(&mut Manner)) {
        change(&mut self.manner.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn learn_cookie(&self, message: &Message) {
        if let Some(cookie) = server_cookie(message) {
            self.change_manner(|manner| manner.server_cookie = cookie);
        }
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

/// Whether a name is a loop probe of some server like us: its first label.
pub(crate) fn loop_label(name: &[u8]) -> Option<&[u8]> {
    let label = name.get(1..1 + usize::from(*name.first()?))?;
    label.starts_with(LOOP_LABEL).then_some(label)
}

/// A server from before EDNS (RFC 6891 section 7).
fn refuses_edns(message: &Message) -> bool {
    matches!(u16::from(message.metadata.response_code), 1 | 4)
}

fn fill_random(bytes: &mut [u8]) {
    if getrandom::fill(bytes).is_err() {
        bytes.iter_mut().for_each(|byte| *byte = fastrand::u8(..));
    }
}
