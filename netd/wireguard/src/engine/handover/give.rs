// SPDX-License-Identifier: Apache-2.0
//! The running side: waits for a successor and gives it the devices.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::Builder;
use std::time::Duration;

use super::{
    GONE, HELLO, HandoverError, READY, RUNNING, SOCKET_FILE, STOPPED, expect, frames, late, prepare,
};
use crate::engine::program::Event;
use crate::engine::running::RunningDevice;
use crate::engine::tunnel::Tunnel;
use crate::{Configurable, uapi};

/// After a connection that could not be taken.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// Where a successor finds us.
pub(crate) struct HandoverListener {
    path: PathBuf,
}

impl HandoverListener {
    /// Listens in `run_dir`; each successor that connects is an event. Replaces the file of one before us.
    pub(crate) fn bind(run_dir: &Path, events: Sender<Event>) -> Result<Self, HandoverError> {
        let path = run_dir.join(SOCKET_FILE);
        let listener =
            listen(run_dir, &path).map_err(|source| HandoverError::Socket { path: path.clone(), source })?;
        let accept = move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else {
                    // As when descriptors are short: not in a busy loop.
                    std::thread::sleep(ACCEPT_AGAIN);
                    continue;
                };
                if events.send(Event::Successor(stream)).is_err() {
                    return;
                }
            }
        };
        let spawned = Builder::new().name("handover".into()).spawn(accept);
        spawned.map_err(|source| HandoverError::Socket { path: path.clone(), source })?;
        Ok(Self { path })
    }

    /// At the end of the process, unless a successor has put its own socket there.
    pub(crate) fn remove(self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn listen(run_dir: &Path, path: &Path) -> io::Result<UnixListener> {
    fs::create_dir_all(run_dir)?;
    // Bound under another name first: a successor never finds a socket that anybody may connect to.
    let fresh = run_dir.join(format!("{SOCKET_FILE}.new"));
    let _ = fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
    fs::rename(&fresh, path)?;
    Ok(listener)
}

/// What is left to do for devices that another process has now.
pub(crate) struct GivenAway(Vec<(Arc<Tunnel>, OwnedFd)>);

impl GivenAway {
    /// Opens the late packets; returns when the new process has no more of them.
    pub(crate) fn finish(self) {
        let open = |(tunnel, from): (Arc<Tunnel>, OwnedFd)| {
            Builder::new().name("late".into()).spawn(move || late::open_all(tunnel, &from)).ok()
        };
        let threads: Vec<_> = self.0.into_iter().filter_map(open).collect();
        for thread in threads {
            let _ = thread.join();
        }
    }
}

/// Gives the devices to the process at the other end. An error: it did not take them, and they run here as before.
pub(crate) fn give(stream: &UnixStream, devices: &mut [RunningDevice]) -> Result<GivenAway, HandoverError> {
    prepare(stream)?;
    expect(stream, HELLO)?;
    let mut listeners = Vec::new();
    for device in devices.iter_mut() {
        listeners.push(device.stop_serving());
    }
    let result = pass(stream, devices, &listeners);
    if result.is_err() {
        for (device, listener) in devices.iter_mut().zip(listeners) {
            let name = device.tunnel.tun.name().to_owned();
            let served = listener.map_or(Ok(()), |listener| device.serve(listener));
            if let Err(error) = served.and_then(|()| device.start_if_paused()) {
                tracing::error!(device = name, %error, "cannot go on after a failed handover: restart weft-wireguard");
            }
        }
    }
    result
}

fn pass(
    stream: &UnixStream,
    devices: &mut [RunningDevice],
    listeners: &[Option<crate::ControlListener>],
) -> Result<GivenAway, HandoverError> {
    let mut given = Vec::new();
    frames::send(stream, &format!("devices {}", devices.len()), &[])?;
    for (device, listener) in devices.iter().zip(listeners) {
        let tunnel = &device.tunnel;
        let sockets = tunnel.sockets();
        let (old, new) = late::pair()?;
        let mut names = "tun late".to_owned();
        let mut descriptors: Vec<BorrowedFd<'_>> = vec![tunnel.tun.as_fd(), new.as_fd()];
        if let Some(listener) = listener {
            names.push_str(" control");
            descriptors.push(listener.as_fd());
        }
        for (name, socket) in ["v4", "v6"].iter().zip(sockets.iter().flat_map(|sockets| sockets.iter())) {
            names.push(' ');
            names.push_str(name);
            descriptors.push(socket.as_fd());
        }
        let text = uapi::print_get(&tunnel.read());
        let text = zeroize::Zeroizing::new(format!("{}\n{names}\n{}", tunnel.tun.name(), *text));
        frames::send(stream, &text, &descriptors)?;
        given.push((Arc::clone(tunnel), old));
    }
    expect(stream, READY)?;
    devices.iter_mut().for_each(RunningDevice::pause);
    frames::send(stream, STOPPED, &[])?;
    expect(stream, RUNNING)?;
    // It may have given up meanwhile, as we may before it has started: then this fails, or it does not hear this.
    frames::send(stream, GONE, &[])?;
    Ok(GivenAway(given))
}
