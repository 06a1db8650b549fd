// SPDX-License-Identifier: Apache-2.0
//! Sockets that went through a service, and whose they are.

use std::{collections::BTreeMap, io, net::SocketAddr};

use ebpf_abi::{
    BackendValue, FlowKey, FlowValue, NetnsValue, PROTO_TCP, SocketValue, address, socket::SOCKET_COUNTED,
};

use crate::{datapath::Datapath, error::MapAccessError, map::Walk, sys};

/// Entries per system call of a walk.
const STEP: usize = 4_096;

/// A look at how many open connections each backend has: by its count, and by SOCKETS.
#[derive(Debug, Default)]
pub struct LoadLook {
    /// The counts when it began.
    before: Option<BTreeMap<u32, u64>>,
    /// By how much a backend's count is above what SOCKETS has of it, as far as it was read.
    errors: BTreeMap<u32, u64>,
    walk: Walk,
}

/// A socket that goes to a backend through a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceSocket {
    /// Its cookie.
    pub cookie: u64,
    /// IP protocol number.
    pub proto: u8,
    /// What the program asked for.
    pub frontend: SocketAddr,
    /// Identifier of the frontend.
    pub service_id: u32,
    /// Identifier of the backend.
    pub backend_id: u32,
    /// Where it goes on the wire; `None` when the identifier is not in use any more.
    pub backend: Option<SocketAddr>,
    /// Cookie of its netns; `None` for one that was connected by an older version, which did not note it.
    pub netns: Option<u64>,
    /// When it was connected: seconds of CLOCK_MONOTONIC; 0 when that was not noted.
    pub since_secs: u32,
}

impl ServiceSocket {
    /// Version 1 remembered connected sockets among the flows.
    pub(crate) fn of_old_flow(key: &FlowKey, flow: &FlowValue) -> Self {
        Self {
            cookie: key.cookie,
            proto: key.proto,
            frontend: socket_addr(flow.addr, flow.port),
            service_id: flow.service_id,
            backend_id: flow.backend_id,
            backend: Some(socket_addr(key.addr, key.port)),
            netns: None,
            since_secs: 0,
        }
    }
}

impl Datapath {
    /// Connected sockets whose frontend and backend identifiers are wanted; those of an older version among them, of which
    /// some may be closed by now.
    pub fn sockets_where(
        &self,
        is_wanted: impl Fn(u32, u32) -> bool,
    ) -> Result<Vec<ServiceSocket>, MapAccessError> {
        let mut found = Vec::new();
        let mut walk = Walk::default();
        while let Some(entries) = self.maps.sockets.step(&mut walk, STEP)? {
            for (cookie, socket) in entries {
                if is_wanted(socket.service_id, socket.backend_id) {
                    found.push(self.service_socket(cookie, &socket)?);
                }
            }
        }
        let mut walk = Walk::default();
        while let Some(entries) = self.maps.flows.step(&mut walk, STEP)? {
            for (key, flow) in entries {
                if key.proto == PROTO_TCP && is_wanted(flow.service_id, flow.backend_id) {
                    found.push(ServiceSocket::of_old_flow(&key, &flow));
                }
            }
        }
        Ok(found)
    }

    /// Number of connected sockets in the maps.
    pub fn socket_count(&self) -> Result<usize, MapAccessError> {
        let mut count = 0;
        let mut walk = Walk::default();
        while let Some(entries) = self.maps.sockets.step(&mut walk, STEP)? {
            count += entries.len();
        }
        Ok(count)
    }

    /// Removes the entries of sockets that are closed without the programs' having seen it (while maps were replaced). Each with
    /// its [`ServiceSocket::since_secs`]: one that has connected again since it was listed is let be. How many.
    pub fn forget_sockets(&mut self, closed: &BTreeMap<u64, u32>) -> Result<usize, MapAccessError> {
        let mut forgotten = 0;
        for (cookie, since_secs) in closed {
            let known = self.maps.sockets.get(cookie)?;
            if known.is_some_and(|socket| socket.since_secs == *since_secs) {
                forgotten += usize::from(self.maps.sockets.remove(cookie)?);
            }
        }
        Ok(forgotten)
    }

    /// One step of a look at the counts of open connections; `true` when it is at its end.
    pub fn look_at_loads(&self, look: &mut LoadLook) -> Result<bool, MapAccessError> {
        if look.before.is_none() {
            let loads = self.backend_loads()?;
            look.errors.clone_from(&loads);
            look.before = Some(loads);
        }
        let Some(entries) = self.maps.sockets.step(&mut look.walk, STEP)? else {
            let (before, after) = (look.before.take().unwrap_or_default(), self.backend_loads()?);
            // Of a backend whose connections came or went meanwhile nobody knows which of them the walk has met.
            look.errors.retain(|id, error| *error != 0 && before.get(id) == after.get(id));
            return Ok(true);
        };
        for (_, socket) in entries.iter().filter(|(_, socket)| socket.flags & SOCKET_COUNTED != 0) {
            let error = look.errors.entry(socket.backend_id).or_default();
            *error = error.wrapping_sub(1);
        }
        Ok(false)
    }

    /// Puts the counts of open connections right where both looks, one after the other, have found them wrong by the same number.
    /// How many.
    pub fn correct_loads(&mut self, first: &LoadLook, second: &LoadLook) -> Result<usize, MapAccessError> {
        let mut corrected = 0;
        for (id, error) in first.errors.iter().filter(|(id, error)| second.errors.get(*id) == Some(*error)) {
            // A connection that begins or ends between these two is not counted: the next look finds that.
            if let Some(load) = self.maps.backend_load.get(id)? {
                self.maps.backend_load.set(id, &load.wrapping_sub(*error))?;
                corrected += 1;
            }
        }
        Ok(corrected)
    }

    /// Open connections by backend identifier, those with none left out.
    pub fn backend_loads(&self) -> Result<BTreeMap<u32, u64>, MapAccessError> {
        let loads = self.maps.backend_load.entries()?.into_iter();
        Ok(loads.filter(|(_, load)| *load != 0).collect())
    }

    /// What the programs know of a netns and its sockets.
    pub fn set_netns(&mut self, cookie: u64, netns: &NetnsValue) -> Result<(), MapAccessError> {
        self.maps.netns.set(&cookie, netns)
    }

    /// Forgets a netns; absent is fine.
    pub fn remove_netns(&mut self, cookie: u64) -> Result<bool, MapAccessError> {
        self.maps.netns.remove(&cookie)
    }

    /// Every netns that the programs know, by cookie.
    pub fn netns(&self) -> Result<BTreeMap<u64, NetnsValue>, MapAccessError> {
        Ok(self.maps.netns.entries()?.into_iter().collect())
    }

    pub(crate) fn service_socket(
        &self,
        cookie: u64,
        socket: &SocketValue,
    ) -> Result<ServiceSocket, MapAccessError> {
        let backend = self.maps.backends.get(&socket.backend_id)?;
        let backend = backend.filter(|backend: &BackendValue| !backend.is_unused());
        Ok(ServiceSocket {
            cookie,
            proto: socket.proto,
            frontend: socket_addr(socket.addr, socket.port),
            service_id: socket.service_id,
            backend_id: socket.backend_id,
            backend: backend.map(|backend| SocketAddr::new(backend.address(), backend.port_number())),
            netns: (socket.netns != 0).then_some(socket.netns),
            since_secs: socket.since_secs,
        })
    }
}

/// The cookie of the calling thread's netns, by which the programs know it (Linux 5.14).
///
/// # Errors
/// Of socket(2) and getsockopt(2).
pub fn netns_cookie() -> io::Result<u64> {
    sys::netns_cookie()
}

fn socket_addr(addr: ebpf_abi::Address, port: [u8; 2]) -> SocketAddr {
    SocketAddr::new(address::ip(addr), u16::from_be_bytes(port))
}
