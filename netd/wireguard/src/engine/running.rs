// SPDX-License-Identifier: Apache-2.0
//! A device with its thread and its configuration socket.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::{Builder, JoinHandle};

use thiserror::Error;

use super::options::EngineOptions;
use super::program::Event;
use super::run::{RunError, run};
use super::tun::{Tun, TunError};
use super::tunnel::Tunnel;
use crate::{ControlError, ControlListener, ControlServer};

/// A device that moves packets.
pub(crate) struct RunningDevice {
    pub tunnel: Arc<Tunnel>,
    thread: Option<JoinHandle<()>>,
    server: Option<ControlServer>,
    events: Sender<Event>,
}

/// Why a device does not run.
#[derive(Debug, Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Tun(#[from] TunError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("cannot start a thread for {device}: {source}")]
    Thread { device: String, source: io::Error },
}

impl RunningDevice {
    /// Makes the TUN and its configuration socket and starts.
    pub(crate) fn open(
        name: &str,
        socket_dir: &Path,
        options: EngineOptions,
        events: Sender<Event>,
    ) -> Result<Self, StartError> {
        let listener = ControlListener::bind(socket_dir, name)?;
        let tun = match Tun::open(name, &options) {
            Ok(tun) => tun,
            Err(error) => {
                // Nobody serves it.
                listener.remove();
                return Err(error.into());
            }
        };
        let tunnel =
            Tunnel::new(tun, options).map_err(|source| StartError::Thread { device: name.into(), source })?;
        let mut device = Self::new(Arc::new(tunnel), events);
        device.start()?;
        device.serve(listener)?;
        Ok(device)
    }

    /// Not started yet.
    pub(crate) fn new(tunnel: Arc<Tunnel>, events: Sender<Event>) -> Self {
        Self { tunnel, thread: None, server: None, events }
    }

    /// Moves packets from now on.
    pub(crate) fn start(&mut self) -> Result<(), StartError> {
        let name = self.tunnel.tun.name().to_owned();
        let offloads = self.tunnel.tun.offloads;
        self.tunnel.resume();
        let (tunnel, events) = (Arc::clone(&self.tunnel), self.events.clone());
        let thread = Builder::new()
            .name(name.clone())
            .spawn(move || {
                // A device whose thread is gone would look alive: a panic ends the program, too, to be started anew.
                let caught = catch_unwind(AssertUnwindSafe(|| run(&tunnel)));
                let result = caught.unwrap_or_else(|_| Err(RunError::Panicked(tunnel.tun.name().into())));
                // Nobody listens any more: the program is on its way out.
                let _ = events.send(Event::Ended(result));
            })
            .map_err(|source| StartError::Thread { device: name.clone(), source })?;
        self.thread = Some(thread);
        tracing::info!(
            device = name,
            tso = offloads.tcp,
            uso = offloads.udp,
            workers = self.tunnel.options.workers,
            "device runs"
        );
        Ok(())
    }

    /// Moves packets again, if it was paused.
    pub(crate) fn start_if_paused(&mut self) -> Result<(), StartError> {
        if self.thread.is_some() { Ok(()) } else { self.start() }
    }

    /// Answers on the configuration socket from now on.
    pub(crate) fn serve(&mut self, listener: ControlListener) -> Result<(), StartError> {
        self.server = Some(ControlServer::start(listener, self.tunnel.clone())?);
        Ok(())
    }

    /// Ends the answers and gives the socket back.
    pub(crate) fn stop_serving(&mut self) -> Option<ControlListener> {
        let stopped = self.server.take()?.stop();
        stopped.inspect_err(|error| tracing::error!(%error, "the configuration socket is lost")).ok()
    }

    /// Ends the thread: packets wait in the kernel's queues from now on.
    pub(crate) fn pause(&mut self) {
        self.tunnel.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(
                device = self.tunnel.tun.name(),
                "the device's thread panicked: please report it"
            );
        }
    }

    /// Orderly end: the TUN stays when it is persistent, the configuration socket goes.
    pub(crate) fn end(mut self) {
        if let Some(listener) = self.stop_serving() {
            listener.remove();
        }
        self.pause();
        tracing::info!(device = self.tunnel.tun.name(), dropped = %self.tunnel.counters, "device stopped");
    }
}
