// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! What the cgroup programs do to a socket's peer.
//!
//! A connection is translated once, when it is made, and its socket remembered until it is closed (SOCKETS). Datagrams of an
//! unconnected UDP socket are translated one by one; FLOWS says what an answer's sender stands for. A connected UDP socket of
//! a pod keeps the frontend as its peer where the program on the pod's veth translates its packets, so that each of them finds
//! a live backend.

use ebpf_abi::{
    Address, FlowKey, FlowValue, FrontendKey, PROTO_UDP, SCOPE_INTERNAL, ServiceValue, SocketValue,
    address::{UNSPECIFIED, is_ipv4},
    hash::hash_number,
    service::{SERVICE_AFFINITY, SERVICE_FAULT_CLIENTS, SERVICE_FAULT_RESET, SERVICE_SOURCE_RANGES},
    socket::{NETNS_HOST, NETNS_PACKET_UDP, SOCKET_COUNTED},
};

use crate::{
    maps,
    peer::{self, Peer, Socket},
    service::{self, Chance, Choice},
};

/// Let the system call go on.
pub(crate) const ALLOW: i32 = 1;
/// Let it fail.
pub(crate) const REFUSE: i32 = 0;
/// asm-generic/errno.h: what a closed port says, and what clients expect of a service without backends.
const ECONNREFUSED: i32 = 111;
/// asm-generic/errno.h: what a host says that does not answer. A packet would be dropped; a socket need not wait for that.
const EHOSTUNREACH: i32 = 113;
/// asm-generic/errno.h: what becomes of a connection whose packets are dropped.
const ETIMEDOUT: i32 = 110;
/// A client's address where its netns is not (yet) known, with the netns cookie in the lower half: no source is like this
/// (multicast, RFC 4291 section 2.7).
const UNKNOWN_CLIENT: u128 = 0xff00 << 112;

/// A socket connects: the frontend becomes a backend.
#[inline(always)]
pub(crate) fn connect<const V6: bool>(peer: &Peer<V6>) -> i32 {
    let Some(proto) = peer.protocol() else { return ALLOW };
    let key = frontend(peer, proto);
    let cookie = peer.cookie();
    let Some(service) = service::find(&key, || is_host(peer)) else {
        // It may have been elsewhere before: a connection that failed, or UDP.
        maps::forget_connection(cookie);
        return ALLOW;
    };
    let netns = peer.netns();
    if proto == PROTO_UDP
        && service.slot_count != 0
        && maps::netns(netns).is_some_and(|known| known.flags & NETNS_PACKET_UDP != 0)
    {
        maps::forget_connection(cookie);
        return ALLOW;
    }
    let client = client(&service, &key, netns);
    match service::pick(&service, &client, Chance::Random) {
        Choice::Refuse => fail(&service, ECONNREFUSED),
        Choice::Drop(_) => fail(&service, EHOSTUNREACH),
        Choice::Forward { .. } if service::is_befallen(&service, &client, peer::random()) => {
            maps::forget_connection(cookie);
            inject(&service, &key, cookie, netns)
        }
        Choice::Forward { backend_id, backend } => {
            let value = SocketValue {
                addr: key.addr,
                port: key.port,
                proto,
                flags: SOCKET_COUNTED,
                service_id: service.service_id,
                backend_id,
                since_secs: peer::now_secs(),
                netns,
            };
            maps::remember_connection(cookie, &value);
            peer.set_address(&backend.addr(), backend.port());
            maps::count_connection(service.service_id);
            ALLOW
        }
    }
}

/// A UDP socket sends one datagram to an address: the frontend becomes a backend, the same for each datagram of the socket as
/// long as the service's backends are the same.
#[inline(always)]
pub(crate) fn send<const V6: bool>(peer: &Peer<V6>) -> i32 {
    let Some(proto) = peer.protocol() else { return ALLOW };
    let key = frontend(peer, proto);
    let cookie = peer.cookie();
    if peer.connected_port().is_some() && send_connected(peer, &key, cookie) {
        return ALLOW;
    }
    let Some(service) = service::find(&key, || is_host(peer)) else { return ALLOW };
    let chance = Chance::Hash(hash_number(cookie, service.service_id));
    let netns = if needs_client(&service) { peer.netns() } else { 0 };
    let client = client(&service, &key, netns);
    match service::pick(&service, &client, chance) {
        Choice::Refuse => fail(&service, ECONNREFUSED),
        Choice::Drop(_) => fail(&service, EHOSTUNREACH),
        Choice::Forward { .. } if service::is_befallen(&service, &client, peer::random()) => {
            inject(&service, &key, cookie, peer.netns())
        }
        Choice::Forward { backend_id, backend } => {
            let flow = FlowKey { cookie, addr: backend.addr(), port: backend.port(), proto, pad: [0; 5] };
            let value = FlowValue {
                addr: key.addr,
                port: key.port,
                pad: [0; 2],
                service_id: service.service_id,
                backend_id,
                pad2: 0,
            };
            maps::remember_flow(&flow, &value);
            peer.set_address(&backend.addr(), backend.port());
            maps::count_connection(service.service_id);
            ALLOW
        }
    }
}

/// An injected fault befalls a connection or a datagram. To be dropped, a pod's stays as it is: the program on the pod's veth finds
/// the socket in FLOWS, with an entry that changes nothing, and drops what it sends there. No such program sees the host's.
// Not inline: LLVM 22 dies on the debug information that it makes of that.
#[inline(never)]
fn inject(service: &ServiceValue, key: &FrontendKey, cookie: u64, netns: u64) -> i32 {
    if service.flags & SERVICE_FAULT_RESET != 0 {
        return fail(service, ECONNREFUSED);
    }
    if !maps::netns(netns).is_some_and(|known| known.flags & NETNS_HOST == 0) {
        return fail(service, ETIMEDOUT);
    }
    let doomed = FlowKey { cookie, addr: key.addr, port: key.port, proto: key.proto, pad: [0; 5] };
    let itself = FlowValue {
        addr: key.addr,
        port: key.port,
        pad: [0; 2],
        service_id: service.service_id,
        backend_id: 0,
        pad2: 0,
    };
    maps::remember_flow(&doomed, &itself);
    maps::count_refusal(service.service_id);
    ALLOW
}

/// A connected socket that sends to its peer, by name: it hears answers from there only. IPv6 sockets connected to an IPv4
/// address come by here with every datagram, named or not. `false` when it sends elsewhere.
#[inline(always)]
fn send_connected<const V6: bool>(peer: &Peer<V6>, key: &FrontendKey, cookie: u64) -> bool {
    if peer.is_connected_to(&key.addr, key.port) {
        return true;
    }
    let Some(known) = maps::connection(cookie) else { return false };
    if known.addr != key.addr || known.port != key.port {
        return false;
    }
    let Some(backend) = maps::backend(known.backend_id) else { return false };
    peer.set_address(&backend.addr(), backend.port());
    true
}

/// A UDP socket's program reads a datagram: its sender is the frontend. This hook cannot refuse.
#[inline(always)]
pub(crate) fn receive<const V6: bool>(peer: &Peer<V6>) -> i32 {
    if peer.connected_port().is_some() {
        return name_peer(peer);
    }
    name_sender(peer, PROTO_UDP, peer.cookie())
}

/// A program asks for its socket's peer: it is the frontend. This hook cannot refuse.
#[inline(always)]
pub(crate) fn name_peer<const V6: bool>(peer: &Peer<V6>) -> i32 {
    let Some(proto) = peer.protocol() else { return ALLOW };
    let cookie = peer.cookie();
    if let Some(known) = maps::connection(cookie) {
        peer.set_address(&known.addr, known.port);
        return ALLOW;
    }
    // Connections of ABI version 1 were carried over to FLOWS, for it did not notice when one was closed.
    name_sender(peer, proto, cookie)
}

#[inline(always)]
fn name_sender<const V6: bool>(peer: &Peer<V6>, proto: u8, cookie: u64) -> i32 {
    let (addr, port) = peer.address();
    if let Some((addr, port)) = maps::flow(&FlowKey { cookie, addr, port, proto, pad: [0; 5] }) {
        peer.set_address(&addr, port);
    }
    ALLOW
}

/// A socket is closed.
#[inline(always)]
pub(crate) fn release(socket: &Socket) -> i32 {
    if socket.protocol().is_some() {
        maps::forget_connection(socket.cookie());
    }
    ALLOW
}

/// The peer as a frontend that pods and the host ask for.
#[inline(always)]
fn frontend<const V6: bool>(peer: &Peer<V6>, proto: u8) -> FrontendKey {
    let (addr, port) = peer.address();
    FrontendKey { addr, port, proto, scope: SCOPE_INTERNAL }
}

#[inline(always)]
fn is_host<const V6: bool>(peer: &Peer<V6>) -> bool {
    maps::config().is_some_and(|config| config.is_host_netns(peer.netns()))
}

#[inline(always)]
fn fail(service: &ServiceValue, errno: i32) -> i32 {
    maps::count_refusal(service.service_id);
    peer::fail_with(errno);
    REFUSE
}

/// Whether it matters who asks.
#[inline(always)]
fn needs_client(service: &ServiceValue) -> bool {
    service.flags & (SERVICE_AFFINITY | SERVICE_SOURCE_RANGES | SERVICE_FAULT_CLIENTS) != 0
}

/// Who asks, as the packet path would see it: the address of the pod or host in the frontend's family. It has not chosen a
/// source address yet.
#[inline(always)]
fn client(service: &ServiceValue, key: &FrontendKey, netns: u64) -> Address {
    if !needs_client(service) {
        return UNSPECIFIED;
    }
    let known = maps::netns(netns).map(|known| if is_ipv4(&key.addr) { known.addr4 } else { known.addr6 });
    match known {
        Some(address) if address != UNSPECIFIED => address,
        _ => (UNKNOWN_CLIENT | u128::from(netns)).to_be_bytes(),
    }
}
