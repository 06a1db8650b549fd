// SPDX-License-Identifier: Apache-2.0
//! The new side: takes the devices of the running process.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use super::{GONE, HELLO, HandoverError, READY, RUNNING, SOCKET_FILE, STOPPED, expect, frames, prepare};
use crate::engine::options::EngineOptions;
use crate::engine::tun::Tun;
use crate::engine::tunnel::Tunnel;
use crate::engine::udp::Sockets;
use crate::uapi;
use crate::{ControlListener, Snapshot};

/// Devices in one handover.
const DEVICES_MAX: usize = 64;

/// The process before us and what it gave.
pub(crate) struct Predecessor {
    stream: UnixStream,
    devices: BTreeMap<String, Inherited>,
}

/// A device built and not started, and its configuration socket.
pub(crate) type Taken = (Arc<Tunnel>, Option<ControlListener>);

/// A device of its.
struct Inherited {
    tun: OwnedFd,
    control: Option<OwnedFd>,
    late: Option<OwnedFd>,
    v4: Option<OwnedFd>,
    v6: Option<OwnedFd>,
    snapshot: Snapshot,
}

/// The running process, if there is one; its devices still run.
pub(crate) fn find(run_dir: &Path) -> Result<Option<Predecessor>, HandoverError> {
    // Nobody there, or a file that a dead process left: then this is a plain start.
    let Ok(stream) = UnixStream::connect(run_dir.join(SOCKET_FILE)) else { return Ok(None) };
    prepare(&stream)?;
    frames::send(&stream, HELLO, &[])?;
    let count = frames::receive(&stream)?;
    let count = count.text.strip_prefix("devices ").and_then(|n| n.parse::<usize>().ok());
    let Some(count) = count.filter(|count| *count <= DEVICES_MAX) else {
        return Err(HandoverError::Unexpected { got: "something else".into(), expected: "devices" });
    };
    let mut devices = BTreeMap::new();
    for _ in 0..count {
        let (name, inherited) = parse(frames::receive(&stream)?)?;
        devices.insert(name, inherited);
    }
    Ok(Some(Predecessor { stream, devices }))
}

impl Predecessor {
    /// Builds this device as it is there, not started. `None`: it has no such device.
    pub(crate) fn device(
        &mut self,
        name: &str,
        socket_dir: &Path,
        options: EngineOptions,
    ) -> Result<Option<Taken>, HandoverError> {
        let Some(inherited) = self.devices.remove(name) else { return Ok(None) };
        let failed = |reason: String| HandoverError::Device { device: name.into(), reason };
        let tun = Tun::adopt(inherited.tun, name, &options).map_err(|e| failed(e.to_string()))?;
        let tunnel = Arc::new(Tunnel::new(tun, options)?);
        let sockets = match inherited.v4 {
            Some(v4) => Some(Sockets::adopt(v4, inherited.v6, &options)?),
            None => None,
        };
        tunnel.inherit(sockets, &inherited.snapshot).map_err(|e| failed(e.to_string()))?;
        tunnel.pass_late_to(inherited.late);
        let listener = inherited.control.map(|fd| ControlListener::inherit(fd, socket_dir, name)).transpose();
        Ok(Some((tunnel, listener.map_err(|e| failed(e.to_string()))?)))
    }

    /// Has it stop: from now on packets wait until our devices start.
    pub(crate) fn stop(&self) -> Result<(), HandoverError> {
        frames::send(&self.stream, READY, &[])?;
        expect(&self.stream, STOPPED)
    }

    /// Our devices run: it ends. An error: it did not hear that in time and may have gone on; ours must not run beside its.
    pub(crate) fn release(self) -> Result<(), HandoverError> {
        frames::send(&self.stream, RUNNING, &[])?;
        expect(&self.stream, GONE)
    }
}

fn parse(frame: frames::Frame) -> Result<(String, Inherited), HandoverError> {
    let mut parts = frame.text.splitn(3, '\n');
    let (name, names, answer) =
        (parts.next().unwrap_or(""), parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    let failed = |reason: String| HandoverError::Device { device: name.into(), reason };
    let mut descriptors: BTreeMap<&str, OwnedFd> = names.split(' ').zip(frame.descriptors).collect();
    let Some(tun) = descriptors.remove("tun") else {
        return Err(failed("the TUN's descriptor is missing".into()));
    };
    let snapshot = uapi::parse_get(answer).map_err(|error| failed(error.to_string()))?;
    let mut named = |name| descriptors.remove(name);
    let (control, late, v4, v6) = (named("control"), named("late"), named("v4"), named("v6"));
    Ok((name.to_owned(), Inherited { tun, control, late, v4, v6, snapshot }))
}
