// SPDX-License-Identifier: Apache-2.0
//! The program: starts the devices, waits for a signal, ends them in order.

use std::io;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Parser;
use nix::sys::signal::{SigSet, Signal};

use super::args::{Args, LogFormat};
use super::handover::{self, GivenAway, HandoverListener, Predecessor};
use super::kernels::{LOOK_AGAIN, LeftToKernel};
use super::run::RunError;
use super::running::RunningDevice;

/// boringtun tells of each lost handshake as of an error; said first, so that --log-level can say otherwise.
const QUIET_TARGETS: &str = "boringtun=off";

/// From a handover on, until its losses are told: handshakes are done by then.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// What the main thread waits for.
pub(crate) enum Event {
    /// SIGTERM or SIGINT.
    Stop(Signal),
    /// Another process wants the devices.
    Successor(UnixStream),
    /// A device's thread ended.
    Ended(Result<(), RunError>),
}

/// Runs `weft-wireguard` with this process' arguments.
#[must_use]
pub fn main() -> ExitCode {
    let args = Args::parse();
    log_to_stderr(&args);
    match serve(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &Args) -> anyhow::Result<()> {
    let (sender, events) = channel();
    watch_signals(sender.clone()).context("cannot watch for signals")?;
    let (mut devices, mut left) = (Vec::new(), LeftToKernel::default());
    let started = start(args, &sender, &mut devices, &mut left).and_then(|took_over| {
        took_over.map_or(Ok(()), Predecessor::release).context("the process before this one goes on")?;
        // In the place of the one before us, which has said that it is gone.
        let listener = HandoverListener::bind(&args.run_dir, sender.clone());
        Ok(listener
            .inspect_err(|error| tracing::error!(%error, "a new version cannot take over from this one"))
            .ok())
    });
    let listener = match started {
        Ok(listener) => listener,
        Err(error) => {
            // Those taken over are paused only: the process before us goes on with them.
            devices.into_iter().for_each(RunningDevice::end);
            return Err(error);
        }
    };
    tell_supervisor("READY=1");
    let ended = wait(args, (&sender, &events), &mut devices, &mut left);
    tell_supervisor("STOPPING=1");
    if let Ok(End::GivenAway(given)) = ended {
        given.finish();
        return Ok(());
    }
    devices.into_iter().for_each(RunningDevice::end);
    if let Some(listener) = listener {
        listener.remove();
    }
    ended.map(drop)
}

/// Makes or takes over every device and starts it; gives the process to be released, if there is one.
fn start(
    args: &Args,
    events: &Sender<Event>,
    devices: &mut Vec<RunningDevice>,
    left: &mut LeftToKernel,
) -> anyhow::Result<Option<Predecessor>> {
    let mut predecessor = handover::find(&args.run_dir).context("cannot take over")?;
    let mut inherited = Vec::new();
    for name in &args.devices {
        let built = match &mut predecessor {
            Some(predecessor) => predecessor.device(name, &args.socket_dir, args.engine())?,
            None => None,
        };
        match built {
            Some((tunnel, listener)) => {
                inherited.push((RunningDevice::new(tunnel, events.clone()), listener))
            }
            None => devices.extend(left.open(name, &args.socket_dir, args.engine(), events)?),
        }
    }
    let Some(predecessor) = predecessor else { return Ok(None) };
    predecessor.stop()?;
    let paused = Instant::now();
    for (device, _) in &mut inherited {
        device.start()?;
    }
    tracing::info!(
        paused_us = paused.elapsed().as_micros() as u64,
        "took over from the running weft-wireguard"
    );
    for (mut device, listener) in inherited {
        if let Some(listener) = listener {
            device.serve(listener)?;
        }
        report_losses(&device)?;
        devices.push(device);
    }
    Ok(Some(predecessor))
}

/// How many packets of the old sessions came after the change, when all is settled.
fn report_losses(device: &RunningDevice) -> io::Result<()> {
    let tunnel = std::sync::Arc::downgrade(&device.tunnel);
    Builder::new().name("losses".into()).spawn(move || {
        std::thread::sleep(SETTLED_AFTER);
        if let Some(tunnel) = tunnel.upgrade() {
            // Lets the process before us end.
            tunnel.pass_late_to(None);
            let lost = tunnel.counters.unknown_session.load(Ordering::Relaxed);
            tracing::info!(device = tunnel.tun.name(), packets_lost = lost, "handover is settled");
        }
    })?;
    Ok(())
}

/// Why it is time to end.
enum End {
    Signal,
    /// Another process has the devices now.
    GivenAway(GivenAway),
}

/// Until it is time to end, well or not.
fn wait(
    args: &Args,
    (sender, events): (&Sender<Event>, &Receiver<Event>),
    devices: &mut Vec<RunningDevice>,
    left: &mut LeftToKernel,
) -> anyhow::Result<End> {
    loop {
        let event = match left.is_empty() {
            true => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => events.recv_timeout(LOOK_AGAIN),
        };
        match event {
            Err(RecvTimeoutError::Timeout) => {
                for name in left.take_gone() {
                    devices.extend(left.open(&name, &args.socket_dir, args.engine(), sender)?);
                }
            }
            Ok(Event::Stop(signal)) => {
                tracing::info!(%signal, "ending; packets stop, the devices stay");
                return Ok(End::Signal);
            }
            Ok(Event::Successor(stream)) => match handover::give(&stream, devices) {
                Ok(given) => {
                    tracing::info!("another weft-wireguard has the devices: ending");
                    return Ok(End::GivenAway(given));
                }
                Err(error) => tracing::warn!(%error, "handover failed: going on"),
            },
            Ok(Event::Ended(Ok(()))) => {}
            Ok(Event::Ended(Err(error))) => return Err(error.into()),
            Err(RecvTimeoutError::Disconnected) => bail!("nothing runs any more"),
        }
    }
}

/// Signals are taken by a thread that waits for them; to be called before any other thread starts, for they
/// inherit the mask.
fn watch_signals(events: Sender<Event>) -> io::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?;
    Builder::new().name("signals".into()).spawn(move || {
        while let Ok(signal) = signals.wait() {
            if events.send(Event::Stop(signal)).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

/// sd_notify(3): one datagram to the socket that the supervisor named, if any.
fn tell_supervisor(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let sent = UnixDatagram::unbound().and_then(|socket| {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::ffi::OsStrExt;
        use std::os::unix::net::SocketAddr;
        let address = match path.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(&path)?,
        };
        socket.send_to_addr(state.as_bytes(), &address)
    });
    if let Err(error) = sent {
        tracing::warn!(%error, "the supervisor does not take {state}");
    }
}

/// Logs go to stderr: stdout carries nothing.
fn log_to_stderr(args: &Args) {
    let filter = tracing_subscriber::EnvFilter::try_new(format!("{QUIET_TARGETS},{}", args.log_level))
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(format!("{QUIET_TARGETS},info")));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match args.log_format {
        LogFormat::Json => builder.json().init(),
        LogFormat::Text => builder.with_ansi(false).with_target(false).init(),
    }
}
