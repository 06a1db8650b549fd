// SPDX-License-Identifier: Apache-2.0
//! What the threads of a device share: TUN, sockets, keys, peers.
//!
//! Locks are taken in this order, each for a short time: `setup`, `tables`, a peer's; `identity` and `sockets` alone.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::x25519;

use super::cipher::{HANDSHAKE_INITIATION, MESSAGE_MAX, message_type};
use super::counters::Counters;
use super::handover;
use super::options::EngineOptions;
use super::peer::PeerId;
use super::tables::Tables;
use super::tun::Tun;
use super::udp::{Endpoint, Sockets};
use crate::{PrivateKey, PublicKey};

/// Handshakes per second without a cookie; more, and each sender has to show that it receives what we send to its address.
/// Above boringtun's own 100, for the nodes of a cluster may all start at once.
const HANDSHAKES_PER_SECOND: u64 = 400;
/// Handshake messages of a kind that wait for their turn; each is small, and a sender repeats itself.
const HANDSHAKES_WAITING_MAX: usize = 256;

/// A device of this process.
pub(crate) struct Tunnel {
    pub options: EngineOptions,
    pub tun: Tun,
    pub counters: Counters,
    /// One change at a time.
    pub(super) setup: Mutex<Setup>,
    tables: RwLock<Tables>,
    identity: RwLock<Option<Arc<Identity>>>,
    sockets: RwLock<Option<Arc<Sockets>>>,
    /// Counts changes of `sockets`, so that a thread sees cheaply whether it has them.
    sockets_version: AtomicU32,
    handshakes: Mutex<Waiting>,
    /// Peers whose timers are to run from now on.
    awake: Mutex<Vec<PeerId>>,
    /// Peers that had a session in the process before us, and have none here yet.
    greeting: AtomicU32,
    /// Where packets of the sessions before a handover go, for a short time.
    late: Mutex<Option<OwnedFd>>,
    waker: (UnixStream, UnixStream),
    stopping: AtomicBool,
}

/// Messages that wait for their turn, in two queues that take turns: whoever fills one leaves the other as it is.
#[derive(Default)]
struct Waiting {
    initiations: VecDeque<HandshakeMessage>,
    /// Answers and cookies, to handshakes that we began.
    answers: VecDeque<HandshakeMessage>,
    answers_first: bool,
}

/// What was asked for and is not to be seen elsewhere.
#[derive(Default)]
pub(crate) struct Setup {
    pub listen_port: u16,
    pub fwmark: u32,
}

/// The device's key and what is made from it.
pub(crate) struct Identity {
    pub private: PrivateKey,
    pub public: PublicKey,
    pub secret: x25519::StaticSecret,
    pub x25519_public: x25519::PublicKey,
    /// Each handshake message passes this one, once.
    pub limiter: RateLimiter,
    /// For the peers' own states, which would count the same message again.
    pub unlimited: Arc<RateLimiter>,
}

/// A message that is not data, as it came.
pub(crate) struct HandshakeMessage {
    bytes: [u8; MESSAGE_MAX],
    len: usize,
    pub from: Endpoint,
}

impl Tunnel {
    pub(crate) fn new(tun: Tun, options: EngineOptions) -> io::Result<Self> {
        let waker = UnixStream::pair()?;
        waker.0.set_nonblocking(true)?;
        waker.1.set_nonblocking(true)?;
        Ok(Self {
            options,
            tun,
            counters: Counters::default(),
            setup: Mutex::default(),
            tables: RwLock::default(),
            identity: RwLock::default(),
            sockets: RwLock::default(),
            sockets_version: AtomicU32::new(0),
            handshakes: Mutex::default(),
            awake: Mutex::default(),
            greeting: AtomicU32::new(0),
            late: Mutex::default(),
            waker,
            stopping: AtomicBool::new(false),
        })
    }

    pub(crate) fn tables(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tables_mut(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn identity(&self) -> Option<Arc<Identity>> {
        self.identity.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_identity(&self, identity: Option<Arc<Identity>>) {
        *self.identity.write().unwrap_or_else(PoisonError::into_inner) = identity;
    }

    pub(crate) fn sockets(&self) -> Option<Arc<Sockets>> {
        self.sockets.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_sockets(&self, sockets: Option<Arc<Sockets>>) {
        *self.sockets.write().unwrap_or_else(PoisonError::into_inner) = sockets;
        self.sockets_version.fetch_add(1, Ordering::Release);
        self.wake();
    }

    /// Changes whenever the sockets do.
    pub(crate) fn sockets_version(&self) -> u32 {
        self.sockets_version.load(Ordering::Acquire)
    }

    /// Keeps a message for its turn. False: too many wait, or it is none.
    pub(crate) fn queue_handshake(&self, message: &[u8], from: &Endpoint) -> bool {
        let mut waiting = lock(&self.handshakes);
        let queue = match message_type(message) {
            Some(HANDSHAKE_INITIATION) => &mut waiting.initiations,
            _ => &mut waiting.answers,
        };
        if queue.len() >= HANDSHAKES_WAITING_MAX || message.len() > MESSAGE_MAX {
            return false;
        }
        let mut bytes = [0; MESSAGE_MAX];
        bytes[..message.len()].copy_from_slice(message);
        queue.push_back(HandshakeMessage { bytes, len: message.len(), from: *from });
        drop(waiting);
        self.wake_from_worker();
        true
    }

    pub(crate) fn next_handshake(&self) -> Option<HandshakeMessage> {
        let mut waiting = lock(&self.handshakes);
        waiting.answers_first = !waiting.answers_first;
        let Waiting { initiations, answers, answers_first } = &mut *waiting;
        let (first, second) = if *answers_first { (answers, initiations) } else { (initiations, answers) };
        first.pop_front().or_else(|| second.pop_front())
    }

    pub(crate) fn handshakes_wait(&self) -> bool {
        let waiting = lock(&self.handshakes);
        !(waiting.initiations.is_empty() && waiting.answers.is_empty())
    }

    /// This peer's timers are to run.
    pub(crate) fn wake_peer(&self, id: PeerId) {
        lock(&self.awake).push(id);
        self.wake_from_worker();
    }

    /// Moves those woken since the last call to `to`.
    pub(crate) fn take_awake(&self, to: &mut Vec<PeerId>) {
        to.append(&mut lock(&self.awake));
    }

    /// One more peer is to be greeted.
    pub(super) fn greet(&self) {
        self.greeting.fetch_add(1, Ordering::AcqRel);
    }

    /// One of them has answered.
    pub(crate) fn greeted(&self) {
        self.greeting.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether some have not.
    pub(crate) fn is_greeting(&self) -> bool {
        self.greeting.load(Ordering::Acquire) != 0
    }

    /// Packets of unknown sessions go there from now on; `None`: they are dropped.
    pub(crate) fn pass_late_to(&self, late: Option<OwnedFd>) {
        *lock(&self.late) = late;
    }

    /// Passes datagrams of sessions that we do not know to the process before us. False: they are lost.
    pub(crate) fn pass_late(&self, datagrams: &[u8], segment: usize) -> bool {
        lock(&self.late).as_ref().is_some_and(|late| handover::pass(late, datagrams, segment))
    }

    /// The same thread works and polls, unless there are several.
    fn wake_from_worker(&self) {
        if self.options.workers > 1 {
            self.wake();
        }
    }

    /// Ends the wait of the thread that polls.
    pub(crate) fn wake(&self) {
        // Full: then it is awake already.
        let _ = (&self.waker.0).write(&[1]);
    }

    /// What that thread polls, beside TUN and sockets.
    pub(crate) fn waker(&self) -> BorrowedFd<'_> {
        self.waker.1.as_fd()
    }

    pub(crate) fn drain_waker(&self) {
        let mut buffer = [0; 64];
        while matches!((&self.waker.1).read(&mut buffer), Ok(64)) {}
    }

    /// Ends the threads of this device.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.wake();
    }

    /// Allows them to start again.
    pub(crate) fn resume(&self) {
        self.stopping.store(false, Ordering::Release);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

impl Identity {
    pub(crate) fn new(private: PrivateKey) -> Self {
        let secret = x25519::StaticSecret::from(*private.as_bytes());
        let x25519_public = x25519::PublicKey::from(&secret);
        Self {
            public: private.public(),
            private,
            secret,
            x25519_public,
            limiter: RateLimiter::new(&x25519_public, HANDSHAKES_PER_SECOND),
            unlimited: Arc::new(RateLimiter::new(&x25519_public, u64::MAX)),
        }
    }
}

impl HandshakeMessage {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Locks whatever a thread that panicked left behind: every value guarded so is whole between two statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
