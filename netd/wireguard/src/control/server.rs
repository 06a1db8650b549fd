// SPDX-License-Identifier: Apache-2.0
//! The threads behind a control socket.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Configurable, ControlError, ControlListener, connection};

/// Clients served at once; `wg` and netd stay for milliseconds.
pub const CONNECTIONS_MAX: usize = 16;
/// How long [`ControlServer::stop`] waits for requests under way; only the device itself can make one last.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Before accepting again after a failure, of which want of descriptors is the likely one.
const ACCEPT_PAUSE_MS: u16 = 200;

/// A control socket that is served. Dropping it stops the service, as [`stop`](Self::stop) does.
pub struct ControlServer {
    listener: Arc<ControlListener>,
    clients: Arc<Clients>,
    acceptor: Option<JoinHandle<()>>,
}

impl ControlServer {
    /// Serves a socket for a device.
    ///
    /// # Errors
    /// [`ControlError::Start`]
    pub fn start(listener: ControlListener, device: Arc<dyn Configurable>) -> Result<Self, ControlError> {
        let path = listener.path().to_owned();
        let start = |source| ControlError::Start { path: path.clone(), source };
        let ifname = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let (wake, woken) = UnixStream::pair().map_err(start)?;
        wake.set_nonblocking(true).map_err(start)?;
        woken.set_nonblocking(true).map_err(start)?;
        let clients = Arc::new(Clients { served: Mutex::default(), changed: Condvar::new(), wake });
        let listener = Arc::new(listener);
        let acceptor = Acceptor {
            listener: Arc::clone(&listener),
            clients: Arc::clone(&clients),
            device,
            ifname: ifname.into(),
            woken,
        };
        let acceptor = thread::Builder::new().name("control".to_owned()).spawn(move || acceptor.run());
        Ok(Self { listener, clients, acceptor: Some(acceptor.map_err(start)?) })
    }

    /// Ends the service after requests under way are answered, and gives the socket back; clients that
    /// connect meanwhile wait in its backlog.
    ///
    /// # Errors
    /// [`ControlError::Start`] where the descriptor cannot be copied.
    pub fn stop(mut self) -> Result<ControlListener, ControlError> {
        self.end();
        self.listener.duplicate()
    }

    fn end(&mut self) {
        if let Some(acceptor) = self.acceptor.take() {
            self.clients.stop();
            let _ = acceptor.join();
        }
    }
}

impl AsFd for ControlServer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.end();
    }
}

/// The clients that are being served.
struct Clients {
    served: Mutex<Served>,
    changed: Condvar,
    /// A byte here makes the acceptor look again.
    wake: UnixStream,
}

#[derive(Default)]
struct Served {
    streams: BTreeMap<u64, UnixStream>,
    next: u64,
    is_stopping: bool,
}

impl Clients {
    fn lock(&self) -> MutexGuard<'_, Served> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Full: then it is awake.
        let _ = (&self.wake).write(&[0]);
    }

    /// Takes the next client of the socket, with a number for when it leaves. `None`: none waits, or no more
    /// are taken, and then it goes on waiting.
    fn accept(&self, listener: &ControlListener) -> io::Result<Option<(u64, UnixStream)>> {
        let mut served = self.lock();
        if served.is_stopping || served.streams.len() >= CONNECTIONS_MAX {
            return Ok(None);
        }
        let Some(stream) = listener.accept()? else { return Ok(None) };
        let number = served.next;
        served.next += 1;
        served.streams.insert(number, stream.try_clone()?);
        Ok(Some((number, stream)))
    }

    fn leave(&self, number: u64) {
        self.lock().streams.remove(&number);
        self.changed.notify_all();
        self.wake();
    }

    fn is_full(&self) -> bool {
        self.lock().streams.len() >= CONNECTIONS_MAX
    }

    fn stop(&self) {
        let mut served = self.lock();
        served.is_stopping = true;
        for stream in served.streams.values() {
            // One that waits for a request sees the end of them; an answer still goes out.
            let _ = stream.shutdown(Shutdown::Read);
        }
        self.wake();
        let is_busy = |served: &mut Served| !served.streams.is_empty();
        drop(self.changed.wait_timeout_while(served, STOP_TIMEOUT, is_busy));
    }
}

struct Acceptor {
    listener: Arc<ControlListener>,
    clients: Arc<Clients>,
    device: Arc<dyn Configurable>,
    ifname: Arc<str>,
    woken: UnixStream,
}

impl Acceptor {
    fn run(self) {
        while !self.clients.lock().is_stopping {
            if let Err(error) = self.turn() {
                tracing::warn!(device = &*self.ifname, %error, "the control socket cannot accept a client; trying again");
                let pause = PollFd::new(self.woken.as_fd(), PollFlags::POLLIN);
                let _ = poll(&mut [pause], PollTimeout::from(ACCEPT_PAUSE_MS));
            }
        }
    }

    /// Waits until something happens, and takes the clients that there is room for.
    fn turn(&self) -> io::Result<()> {
        let wake = PollFd::new(self.woken.as_fd(), PollFlags::POLLIN);
        let clients = PollFd::new(self.listener.as_fd(), PollFlags::POLLIN);
        let count = if self.clients.is_full() { 1 } else { 2 };
        match poll(&mut [wake, clients][..count], PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.drain_wake();
        while let Some((number, stream)) = self.clients.accept(&self.listener)? {
            self.serve(number, stream)?;
        }
        Ok(())
    }

    fn drain_wake(&self) {
        let mut bytes = [0; 64];
        while io::Read::read(&mut &self.woken, &mut bytes).is_ok_and(|length| length == bytes.len()) {}
    }

    fn serve(&self, number: u64, stream: UnixStream) -> io::Result<()> {
        let leaving = Leaving { clients: Arc::clone(&self.clients), number };
        let (device, ifname) = (Arc::clone(&self.device), Arc::clone(&self.ifname));
        // Where there is no thread the closure is dropped, and the client with it.
        thread::Builder::new().name("control-client".to_owned()).spawn(move || {
            let _leaving = leaving;
            connection::serve(stream, connection::PATIENCE, &*device, &ifname);
        })?;
        Ok(())
    }
}

/// Leaves when the client's thread ends, in whatever way.
struct Leaving {
    clients: Arc<Clients>,
    number: u64,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.clients.leave(self.number);
    }
}
