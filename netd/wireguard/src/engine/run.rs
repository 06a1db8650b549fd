// SPDX-License-Identifier: Apache-2.0
//! The thread of a device: waits for TUN, sockets and timers, and takes a bounded turn at each.
//!
//! Back-pressure: while the socket takes no more, the TUN is not read; its queue fills and TCP above it slows down.

use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;

use super::pool::{Gone, Pool};
use super::timers::Timers;
use super::tunnel::Tunnel;
use super::udp::{Flushed, Receiver, SLOT_BYTES, Sockets};
use super::worker::Worker;
use crate::segment::READ_MAX;

/// One size of buffer serves both ways.
const _: () = assert!(SLOT_BYTES >= READ_MAX);

/// Packets read from the TUN per turn: two full groups of small ones.
const READS_PER_TURN: usize = 128;
/// Bytes read from the TUN per turn: a dozen super-packets.
const BYTES_PER_TURN: usize = 1 << 20;
/// Receive calls per socket and turn.
const RECEIVES_PER_TURN: usize = 16;

/// After a handover the TUN is not read until the peers have answered; not longer than this, for one of them may be gone.
const GREETING_MAX: Duration = Duration::from_millis(500);

/// Why a device stopped.
#[derive(Debug, Error)]
pub enum RunError {
    /// Somebody deleted the link.
    #[error("the TUN {0} is gone: was the link deleted? Start again to make it anew")]
    TunGone(String),
    /// A thread cannot start, or ended.
    #[error("device {0}: worker thread: {1}")]
    Worker(String, io::Error),
    /// A bug.
    #[error("device {0}: its thread panicked: please report it")]
    Panicked(String),
    /// The kernel refused to wait.
    #[error("device {0}: poll: {1}")]
    Poll(String, io::Error),
}

/// Moves packets until the device is stopped.
pub(crate) fn run(tunnel: &Arc<Tunnel>) -> Result<(), RunError> {
    let mut device = Device {
        worker: Worker::new(Arc::clone(tunnel)),
        receiver: Receiver::new(),
        read: vec![0; SLOT_BYTES].into_boxed_slice(),
        timers: Timers::new(Instant::now()),
        blocked: false,
        more: false,
        pool: match tunnel.options.workers {
            0 | 1 => None,
            workers => Some(
                Pool::start(tunnel, workers).map_err(|e| RunError::Worker(tunnel.tun.name().into(), e))?,
            ),
        },
        greeting: tunnel.is_greeting().then(|| Instant::now() + GREETING_MAX),
    };
    if device.greeting.is_some() {
        device.worker.refresh();
        device.worker.greet();
    }
    let mut result = Ok(());
    while result.is_ok() && !tunnel.is_stopping() {
        result = device.turn();
    }
    if let Some(pool) = device.pool.take() {
        pool.stop();
    }
    device.worker.flush_tun();
    device.worker.flush_udp();
    result
}

struct Device {
    worker: Worker,
    receiver: Receiver,
    read: Box<[u8]>,
    timers: Timers,
    /// Who seals and opens; `None`: this thread does.
    pool: Option<Pool>,
    /// The socket is full.
    blocked: bool,
    /// Handshakes wait for their turn.
    more: bool,
    /// Until then the TUN waits for new sessions.
    greeting: Option<Instant>,
}

/// What is ready.
#[derive(Default)]
struct Ready {
    tun: bool,
    v4: bool,
    v6: bool,
    woken: bool,
}

impl Device {
    fn turn(&mut self) -> Result<(), RunError> {
        let sockets = self.worker.sockets();
        let ready = self.wait(sockets.as_deref())?;
        self.worker.refresh();
        if ready.woken {
            self.worker.tunnel.drain_waker();
        }
        if self.greeting.is_some_and(|end| self.worker.now >= end || !self.worker.tunnel.is_greeting()) {
            self.greeting = None;
        }
        let mut moved = false;
        if let Some(sockets) = &sockets {
            moved = self.receive(sockets, &ready)?;
        }
        if !self.blocked && ready.tun && self.greeting.is_none() {
            moved |= self.read()?;
        }
        self.worker.handle_handshakes(moved);
        self.timers.run(&mut self.worker);
        self.blocked = self.worker.flush_udp() == Flushed::Blocked;
        self.more = self.worker.tunnel.handshakes_wait();
        Ok(())
    }

    fn wait(&self, sockets: Option<&Sockets>) -> Result<Ready, RunError> {
        let tunnel = &self.worker.tunnel;
        let blocked_v4 = self.worker.sender.next_v4().filter(|_| self.blocked);
        let tun =
            if self.blocked || self.greeting.is_some() { PollFlags::empty() } else { PollFlags::POLLIN };
        let mut polled = [
            PollFd::new(tunnel.waker(), PollFlags::POLLIN),
            PollFd::new(tunnel.tun.as_fd(), tun),
            // In place of sockets that are not there: polled for nothing.
            PollFd::new(tunnel.waker(), PollFlags::empty()),
            PollFd::new(tunnel.waker(), PollFlags::empty()),
        ];
        let mut count = 2;
        for v4 in [true, false] {
            if let Some(socket) = sockets.and_then(|sockets| sockets.of_family(v4)) {
                let output = if blocked_v4 == Some(v4) { PollFlags::POLLOUT } else { PollFlags::empty() };
                polled[count] = PollFd::new(socket.as_fd(), PollFlags::POLLIN | output);
                count += 1;
            }
        }
        let timeout = match self.timers.wait(Instant::now()) {
            _ if self.more => PollTimeout::ZERO,
            // Up to the next millisecond, or it would spin for the last part of one.
            Some(wait) => PollTimeout::try_from(wait.as_millis() + 1).unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        };
        match poll(&mut polled[..count], timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Ready::default()),
            Err(error) => return Err(RunError::Poll(tunnel.tun.name().into(), error.into())),
        }
        let set = |i: usize, flags: PollFlags| polled[i].revents().is_some_and(|r| r.intersects(flags));
        if set(1, PollFlags::POLLERR | PollFlags::POLLNVAL) {
            return Err(RunError::TunGone(tunnel.tun.name().into()));
        }
        // An error that waits on a socket is taken by reading it.
        let input = PollFlags::POLLIN | PollFlags::POLLERR;
        Ok(Ready { woken: set(0, input), tun: set(1, input), v4: set(2, input), v6: set(3, input) })
    }

    /// Datagrams to the TUN; true when any came.
    fn receive(&mut self, sockets: &Sockets, ready: &Ready) -> Result<bool, RunError> {
        let mut moved = false;
        let v4 = ready.v4.then_some(&sockets.v4);
        let v6 = sockets.v6.as_ref().filter(|_| ready.v6);
        for socket in v4.into_iter().chain(v6) {
            for _ in 0..RECEIVES_PER_TURN {
                let Ok(received) = self.receiver.receive(socket) else { break };
                moved = true;
                for i in 0..received.count {
                    self.open(i)?;
                }
                if received.drained {
                    break;
                }
            }
        }
        self.worker.flush_tun();
        Ok(moved)
    }

    /// Message `i` of the last receive call.
    fn open(&mut self, i: usize) -> Result<(), RunError> {
        let Some(datagrams) = self.receiver.message(i) else { return Ok(()) };
        let owner = self.pool.as_ref().and_then(|pool| Some((pool, pool.owner(&datagrams)?)));
        let Some((pool, peer)) = owner else {
            self.worker.open(&datagrams);
            return Ok(());
        };
        let fresh = pool.buffer().map_err(|Gone| self.worker_gone())?;
        match self.receiver.take(i, fresh) {
            Some(message) => pool.open(peer, message).map_err(|Gone| self.worker_gone()),
            None => Ok(()),
        }
    }

    fn worker_gone(&self) -> RunError {
        RunError::Worker(self.worker.tunnel.tun.name().into(), io::ErrorKind::BrokenPipe.into())
    }

    /// Super-packets to the sockets; true when any came.
    fn read(&mut self) -> Result<bool, RunError> {
        let mut bytes = 0;
        for count in 0..READS_PER_TURN {
            if bytes >= BYTES_PER_TURN {
                break;
            }
            match self.worker.tunnel.tun.read(&mut self.read) {
                Ok(len) => {
                    bytes += len;
                    self.seal(len)?;
                }
                Err(error) if error.raw_os_error() == Some(libc::EBADFD) => {
                    return Err(RunError::TunGone(self.worker.tunnel.tun.name().into()));
                }
                Err(_) => return Ok(count > 0),
            }
        }
        Ok(true)
    }

    /// The `len` bytes that were read last.
    fn seal(&mut self, len: usize) -> Result<(), RunError> {
        let Some(pool) = &self.pool else {
            self.worker.seal(&mut self.read[..len]);
            return Ok(());
        };
        let fresh = pool.buffer().map_err(|Gone| self.worker_gone())?;
        let read = mem::replace(&mut self.read, fresh);
        pool.seal(read, len).map_err(|Gone| self.worker_gone())
    }
}
