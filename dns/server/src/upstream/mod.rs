// SPDX-License-Identifier: Apache-2.0
//! One name server that we ask: over UDP, over TCP where that does not do, or over TLS only.

mod learnt;
mod question;
mod stream;
mod tls;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_proto::op::Message;
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use learnt::Learnt;
use question::{Asked, Manner, Received, server_cookie};
pub(crate) use question::{is_negative, is_usable};
use stream::StreamPool;
pub use tls::{TlsError, UpstreamTls, server_tls};

use crate::wire::{Key, NAME_BYTES_MAX, qtype};

/// Packets get lost: a question is repeated once, then asked over TCP.
const UDP_PATIENCE: [Duration; 2] = [Duration::from_millis(700), Duration::from_millis(900)];
/// Time for one question over a stream.
const STREAM_PATIENCE: Duration = Duration::from_secs(3);
/// Foreign packets on a question's own port before somebody must be guessing: then TCP, where guessing does not help.
const FOREIGN_MAX: u32 = 8;
/// How long an upstream that did not answer is asked last.
const HOLD_OFF: Duration = Duration::from_secs(10);
/// Silence after which the next upstream is asked too: twice the usual round trip, within these. With two silent ones before it
/// the third still answers within half a second.
const HEDGE_MIN: Duration = Duration::from_millis(60);
const HEDGE_MAX: Duration = Duration::from_millis(180);
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
    Io(io::Error),
    /// It was not even asked.
    #[error("this machine has no socket for it: {0}")]
    Local(io::Error),
    #[error("its answer cannot be read: {0}")]
    Broken(String),
}

impl From<io::Error> for UpstreamError {
    fn from(error: io::Error) -> Self {
        const OURS: [i32; 5] = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRNOTAVAIL];
        match error.raw_os_error().is_some_and(|number| OURS.contains(&number)) {
            true => UpstreamError::Local(error),
            false => UpstreamError::Io(error),
        }
    }
}

/// One name server.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    tls: bool,
    stream: StreamPool,
    learnt: Mutex<Learnt>,
    /// 64 random bits, in hexadecimal digits.
    probe: [u8; 16],
    /// The names that it is asked for.
    zone: Vec<u8>,
    probes: AtomicU32,
    /// Probes that came back to us as questions.
    probes_seen: AtomicU32,
    looping: AtomicBool,
    /// It was silent for long, which may have been the name's fault: to be probed.
    in_doubt: AtomicBool,
    /// Somebody waits to see whether it is slow or dead.
    watched: AtomicBool,
    /// Since `started`, in milliseconds.
    held_until_ms: AtomicU64,
    failures_in_a_row: AtomicU32,
    /// Smoothed; 0 before the first answer.
    rtt_us: AtomicU64,
    answered_at_ms: AtomicU64,
    pub(crate) answers: AtomicU64,
    pub(crate) failures: AtomicU64,
    started: Instant,
}

impl Upstream {
    /// `zone`: of the names that it is asked for.
    pub(crate) fn new(config: UpstreamConfig, zone: &[u8], started: Instant) -> Self {
        let mut client_cookie = [0; 8];
        fill_random(&mut client_cookie);
        let mut random = [0; 8];
        fill_random(&mut random);
        let mut probe = [0; 16];
        for (i, digit) in probe.iter_mut().enumerate() {
            *digit = b"0123456789abcdef"[usize::from(random[i / 2] >> (i % 2 * 4) & 15)];
        }
        Upstream {
            address: config.address,
            tls: config.tls.is_some(),
            stream: StreamPool::new(config.address, config.tls),
            learnt: Mutex::new(Learnt::new(client_cookie)),
            probe,
            zone: zone.to_vec(),
            probes: AtomicU32::new(0),
            probes_seen: AtomicU32::new(0),
            looping: AtomicBool::new(false),
            in_doubt: AtomicBool::new(false),
            watched: AtomicBool::new(false),
            held_until_ms: AtomicU64::new(0),
            failures_in_a_row: AtomicU32::new(0),
            rtt_us: AtomicU64::new(0),
            answered_at_ms: AtomicU64::new(0),
            answers: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            started,
        }
    }

    /// Asks, and keeps count of how that went. The caller sets the time.
    pub(crate) async fn ask(&self, key: &Key) -> Result<Box<Message>, UpstreamError> {
        let started = Instant::now();
        let result = match self.tls {
            true => self.ask_stream(key, false).await,
            false => self.ask_udp(key).await,
        };
        match &result {
            Ok(_) => self.answered(started.elapsed()),
            Err(UpstreamError::Local(_)) => {}
            Err(_) => self.failed(),
        }
        result
    }

    /// UDP first; TCP where the answer does not fit, is not trusted, or does not come.
    async fn ask_udp(&self, key: &Key) -> Result<Box<Message>, UpstreamError> {
        let mut plain = false;
        for patience in UDP_PATIENCE {
            let asked = Asked::new(key, self.manner(plain), true);
            let message = match timeout(patience, self.exchange(&asked)).await {
                // Lost on the way, there or back.
                Err(_) => continue,
                Ok(result) => result?,
            };
            let Some(message) = message else { break };
            if refuses_edns(&asked, &message) {
                plain = true;
                continue;
            }
            if message.metadata.truncation {
                break;
            }
            self.learn_edns(plain, &message);
            return Ok(message);
        }
        self.ask_stream(key, plain).await
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
                    self.learn_cookie(&message, false);
                    return Ok(Some(message));
                }
                Received::Foreign => {}
                Received::BadCookie => {
                    if let Ok(message) = Message::from_vec(&buffer[..length]) {
                        self.learn_cookie(&message, false);
                    }
                    return Ok(None);
                }
                Received::CaseLost(_) | Received::Broken(_) => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Over TCP or TLS. `plain`: it refused the same question with an OPT record.
    async fn ask_stream(&self, key: &Key, mut plain: bool) -> Result<Box<Message>, UpstreamError> {
        let deadline = Instant::now() + STREAM_PATIENCE;
        loop {
            let mut asked = Asked::new(key, self.manner(plain), true);
            let exchange = self.stream.ask(&asked.bytes);
            let (id, bytes) =
                tokio::time::timeout_at(deadline, exchange).await.map_err(|_| UpstreamError::Silent)??;
            asked.set_id(id);
            match asked.judge(&bytes, false) {
                Received::Answer(message) if refuses_edns(&asked, &message) => plain = true,
                Received::Answer(message) => {
                    if asked.had_edns() {
                        self.learn_cookie(&message, true);
                    }
                    self.learn_edns(plain, &message);
                    return Ok(message);
                }
                Received::CaseLost(message) => {
                    if self.learnt().folds_case(Instant::now()) {
                        info!(address = %self.address, "DNS upstream does not keep the case of names: it is asked in lower case");
                    }
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
        self.in_doubt.store(false, Relaxed);
        let seen = self.probes_seen.load(Relaxed);
        let key = Key::new(&self.probe_name(), qtype::HINFO, 0);
        let alive = match timeout(STREAM_PATIENCE, self.ask(&key)).await {
            Ok(result) => result.is_ok(),
            Err(_) => {
                self.failed();
                false
            }
        };
        // Only an answer that did not come by us says that there is no circle (any more).
        if alive && self.probes_seen.load(Relaxed) == seen {
            self.looping.store(false, Relaxed);
            self.recovered();
        }
        alive
    }

    /// A new name each time: servers keep what they were told about the last. Below its own zone, if it has one: for others it
    /// may have an answer of its own.
    fn probe_name(&self) -> Vec<u8> {
        let label = [LOOP_LABEL, &self.probe, format!("-{:x}", self.probes.fetch_add(1, Relaxed)).as_bytes()]
            .concat();
        let has_room = 1 + label.len() + self.zone.len() <= NAME_BYTES_MAX;
        let zone = if self.zone.len() > 1 && has_room { &self.zone[..] } else { LOOP_ZONE };
        [&[label.len() as u8], &label[..], zone].concat()
    }

    /// Sees our own probe come in as a question; true if this is ours.
    pub(crate) fn saw_probe(&self, label: &[u8]) -> bool {
        let ours = label.strip_prefix(LOOP_LABEL).is_some_and(|rest| rest.starts_with(&self.probe));
        if ours {
            self.probes_seen.fetch_add(1, Relaxed);
        }
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

    /// On hold, or likely to be: to be probed.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.is_held() || self.in_doubt.load(Relaxed)
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

    /// A question that began then ended without any answer. Where it answered others meanwhile, that was the name's fault.
    pub(crate) fn was_silent(&self, since: Instant) {
        let since_ms = since.duration_since(self.started).as_millis() as u64;
        if self.answers.load(Relaxed) == 0 || self.answered_at_ms.load(Relaxed) < since_ms {
            self.in_doubt.store(true, Relaxed);
            self.failed();
        }
    }

    /// Whether nobody watches yet whether it is slow or dead; then [`Upstream::watched`] must follow.
    pub(crate) fn watch(&self) -> bool {
        !self.watched.swap(true, Relaxed)
    }

    /// It answered late, or not at all.
    pub(crate) fn watched(&self, has_answered: bool) {
        self.watched.store(false, Relaxed);
        if !has_answered {
            self.hold_off();
        }
    }

    /// It is silent while another one answers.
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
        self.answered_at_ms.store(self.now_ms(), Relaxed);
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

    fn manner(&self, plain: bool) -> Manner {
        let manner = self.learnt().manner(Instant::now());
        Manner { plain: plain || manner.plain, ..manner }
    }

    fn learn_cookie(&self, message: &Message, authentic: bool) {
        self.learnt().cookie(server_cookie(message), authentic, Instant::now());
    }

    /// `plain`: with an OPT record it was refused, without one this is what came.
    fn learn_edns(&self, plain: bool, message: &Message) {
        if plain && is_usable(message) {
            self.learnt().is_plain(Instant::now());
        }
    }

    fn learnt(&self) -> MutexGuard<'_, Learnt> {
        self.learnt.lock().unwrap_or_else(PoisonError::into_inner)
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

/// What a server from before EDNS says (RFC 6891 section 7), and some that cannot do something else.
fn refuses_edns(asked: &Asked, message: &Message) -> bool {
    asked.had_edns() && message.edns.is_none() && matches!(u16::from(message.metadata.response_code), 1 | 4)
}

fn fill_random(bytes: &mut [u8]) {
    if getrandom::fill(bytes).is_err() {
        bytes.iter_mut().for_each(|byte| *byte = fastrand::u8(..));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(zone: &[u8]) -> Upstream {
        Upstream::new(SocketAddr::from(([192, 0, 2, 1], 53)).into(), zone, Instant::now())
    }

    #[test]
    fn what_this_machine_lacks_is_not_the_upstreams_fault() {
        let is_local = |number| {
            matches!(UpstreamError::from(io::Error::from_raw_os_error(number)), UpstreamError::Local(_))
        };
        assert!(is_local(libc::EMFILE) && is_local(libc::ENOBUFS));
        assert!(!is_local(libc::ECONNREFUSED) && !is_local(libc::ENETUNREACH));
    }

    #[test]
    fn a_probe_is_below_its_servers_zone_and_never_the_same() {
        let stub = upstream(b"\x04corp\x07example\0");
        let (one, other) = (stub.probe_name(), stub.probe_name());
        assert!(one.ends_with(b"\x04corp\x07example\0") && one != other);
        assert!(upstream(&[0]).probe_name().ends_with(LOOP_ZONE));
        let long = [&[60; 61][..], &[60; 61], &[60; 61], &[50; 51], &[0]].concat();
        assert!(upstream(&long).probe_name().ends_with(LOOP_ZONE), "no room below it");
        for name in [one, other] {
            assert!(stub.saw_probe(loop_label(&name).unwrap()), "still known as ours");
        }
        assert!(!upstream(&[0]).saw_probe(loop_label(&stub.probe_name()).unwrap()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_nobody_answers_makes_no_server_ill_that_answers_others() {
        let (busy, idle) = (upstream(&[0]), upstream(&[0]));
        let asked = Instant::now();
        tokio::time::advance(Duration::from_secs(4)).await;
        busy.answered(Duration::from_millis(1));
        for one in [&busy, &idle] {
            one.was_silent(asked);
        }
        assert!(!busy.is_in_doubt() && idle.is_in_doubt() && !idle.is_held(), "first it is probed");
        idle.was_silent(asked);
        assert!(idle.is_held());
    }
}
