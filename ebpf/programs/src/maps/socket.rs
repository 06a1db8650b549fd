// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! Sockets that go to a backend, and whose they are.

use aya_ebpf::{
    macros::map,
    maps::{HashMap, LruHashMap},
};
use ebpf_abi::{
    Address, Counter, FlowKey, FlowValue, NetnsValue, SocketValue,
    limits::{FLOWS_DEFAULT, NETNS_MAX, SOCKETS_DEFAULT},
    socket::SOCKET_COUNTED,
};

use super::{ANY, NO_PREALLOC, NOEXIST, count, service::add_load};

#[map]
static SOCKETS: HashMap<u64, SocketValue> = HashMap::with_max_entries(SOCKETS_DEFAULT, NO_PREALLOC);
#[map]
static FLOWS: LruHashMap<FlowKey, FlowValue> = LruHashMap::with_max_entries(FLOWS_DEFAULT, 0);
#[map]
static NETNS: HashMap<u64, NetnsValue> = HashMap::with_max_entries(NETNS_MAX, NO_PREALLOC);

/// Whose sockets those of a netns are.
#[inline(always)]
pub(crate) fn netns(cookie: u64) -> Option<NetnsValue> {
    // SAFETY: the pointer is to a live map value of this type, copied before anything else happens.
    NETNS.get_ptr(cookie).map(|value| unsafe { value.read() })
}

/// The frontend that a datagram's sender stands for.
#[inline(always)]
pub(crate) fn flow(key: &FlowKey) -> Option<(Address, [u8; 2])> {
    // SAFETY: as above.
    FLOWS.get_ptr(key).map(|value| unsafe { ((*value).addr, (*value).port) })
}

/// Remembers which frontend a datagram's receiver stands for.
#[inline(always)]
pub(crate) fn remember_flow(key: &FlowKey, value: &FlowValue) {
    // Every datagram to one backend comes by here: an equal entry stays, a write would take the LRU's lock.
    // SAFETY: as above.
    let known = FLOWS.get_ptr(key).map(|value| unsafe { value.read() });
    if known.as_ref() != Some(value) {
        // A failure (all entries in use on other CPUs just now) costs the sender's name, not the datagram.
        let _ = FLOWS.insert(key, value, ANY);
    }
}

/// A connected socket that goes to a backend.
pub(crate) struct Connection {
    /// The address that its program asked for.
    pub(crate) addr: Address,
    /// The port, network order.
    pub(crate) port: [u8; 2],
    /// Identifier of the backend.
    pub(crate) backend_id: u32,
}

/// What a connected socket's program asked for, and what it was given.
#[inline(always)]
pub(crate) fn connection(cookie: u64) -> Option<Connection> {
    let value = SOCKETS.get_ptr(cookie)?;
    // SAFETY: as above.
    Some(unsafe { Connection { addr: (*value).addr, port: (*value).port, backend_id: (*value).backend_id } })
}

/// A socket connects to a backend: it is one of its open connections until it is closed or connects again.
#[inline(always)]
pub(crate) fn remember_connection(cookie: u64, value: &SocketValue) {
    if SOCKETS.insert(cookie, value, NOEXIST).is_err() {
        // Seldom: a socket whose connection failed, or UDP, connects once more. Or the map is full.
        forget_connection(cookie);
        if SOCKETS.insert(cookie, value, NOEXIST).is_err() {
            count(Counter::SocketsFull);
            return;
        }
    }
    if value.flags & SOCKET_COUNTED != 0 {
        add_load(value.backend_id, 1);
    }
}

/// The socket is closed, or goes elsewhere.
#[inline(always)]
pub(crate) fn forget_connection(cookie: u64) {
    let Some(value) = SOCKETS.get_ptr(cookie) else { return };
    // SAFETY: as above.
    let SocketValue { flags, backend_id, .. } = unsafe { value.read() };
    // Only who takes the entry out may lower the count.
    if SOCKETS.remove(cookie).is_ok() && flags & SOCKET_COUNTED != 0 {
        add_load(backend_id, -1);
    }
}
