// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! From a frontend to one of its backends. Sockets and packets both ask here, and get the same answers from the same maps.

use ebpf_abi::{
    Address, AffinityBackendKey, AffinityKey, AffinityValue, DropReason, FrontendKey, PROTO_WILDCARD,
    ServiceValue, address,
    hash::{below, hash_client},
    service::{
        ALGORITHM_AGENT_FIRST, ALGORITHM_LEAST_CONNECTIONS, SCOPE_DSR, SERVICE_AFFINITY,
        SERVICE_AGENT_SILENT, SERVICE_DROP_EMPTY, SERVICE_FAULT_CLIENTS, SERVICE_KEEP_SOURCE,
        SERVICE_SOURCE_RANGES,
    },
};

use crate::{
    maps::{self, Backend},
    peer,
};

/// Where a new connection or flow goes.
pub(crate) enum Choice {
    /// Nobody behind it: say so to the client.
    Refuse,
    /// Say nothing.
    Drop(DropReason),
    /// Here.
    Forward { backend_id: u32, backend: Backend },
}

/// How a slot is found.
#[derive(Clone, Copy)]
pub(crate) enum Chance {
    /// Anew each time.
    Random,
    /// The same for the same hash, whatever the backends' load.
    Hash(u32),
}

/// The frontend that answers for an address, port and protocol: itself, a node port, or the wildcard of the address.
/// `on_host` says whether the host itself asks, where loopback addresses answer node ports; asked only when it matters. Which of
/// its addresses answers node ports was the other node's to say where that one has wrapped the packet.
#[inline(always)]
pub(crate) fn find(key: &FrontendKey, on_host: impl FnOnce() -> bool) -> Option<ServiceValue> {
    // The keys of node ports have this address; nobody may ask for them by it.
    if address::is_unspecified(&key.addr) {
        return if on_host() { node_port(key) } else { None };
    }
    if let Some(service) = maps::service(key) {
        let is_asleep = service.flags & SERVICE_AGENT_SILENT != 0 && maps::agent_is_there();
        return if is_asleep { None } else { Some(service) };
    }
    if let Some(config) = maps::config()
        && config.is_node_port(key.port)
        && (key.scope == SCOPE_DSR
            || maps::answers_node_ports(&key.addr)
            || (address::is_loopback(&key.addr) && config.answers_loopback(&key.addr) && on_host()))
        && let Some(service) = node_port(key)
    {
        return Some(service);
    }
    maps::service(&FrontendKey { addr: key.addr, port: [0; 2], proto: PROTO_WILDCARD, scope: key.scope })
}

/// The node port, whatever the address.
#[inline(always)]
fn node_port(key: &FrontendKey) -> Option<ServiceValue> {
    maps::service(&FrontendKey { addr: address::any(&key.addr), ..*key })
}

/// All of it: who may ask, who stays with whom, and else by the service's algorithm.
#[inline(always)]
pub(crate) fn pick(service: &ServiceValue, client: &Address, chance: Chance) -> Choice {
    if !source_allowed(service, client) {
        return Choice::Drop(DropReason::SourceRange);
    }
    let backend_id = if service.slot_count == 0 {
        None
    } else if service.flags & SERVICE_AFFINITY == 0 {
        choose(service, chance)
    } else {
        affinity(service, client).or_else(|| begin(service, client, chance))
    };
    match backend_id.and_then(with_backend) {
        Some((backend_id, backend)) => Choice::Forward { backend_id, backend },
        None => nobody(service),
    }
}

/// What a frontend without backends does.
#[inline(always)]
pub(crate) fn nobody(service: &ServiceValue) -> Choice {
    if service.flags & SERVICE_DROP_EMPTY == 0 {
        Choice::Refuse
    } else {
        Choice::Drop(DropReason::ServiceEmpty)
    }
}

/// Whether the client is one that may ask.
#[inline(always)]
pub(crate) fn source_allowed(service: &ServiceValue, client: &Address) -> bool {
    service.flags & SERVICE_SOURCE_RANGES == 0 || maps::is_in_ranges(service.service_id, client)
}

/// Whether an injected fault befalls what this client begins; the number is random, or a hash of it.
#[inline(always)]
pub(crate) fn is_befallen(service: &ServiceValue, client: &Address, number: u32) -> bool {
    service.is_befallen(number)
        && (service.flags & SERVICE_FAULT_CLIENTS == 0 || maps::is_in_ranges(service.service_id, client))
}

/// The backend that the client stays with; `None` when it has none, may no longer, or has not come for too long.
#[inline(always)]
pub(crate) fn affinity(service: &ServiceValue, client: &Address) -> Option<u32> {
    let known = maps::affinity(&AffinityKey { client: *client, affinity_id: service.affinity_id })?;
    let now = peer::now_secs();
    if now.wrapping_sub(known.used_secs) >= service.affinity_secs {
        return None;
    }
    let backend_id = known.backend_id;
    if !maps::is_affine(&AffinityBackendKey { affinity_id: service.affinity_id, backend_id }) {
        return None;
    }
    let backend = maps::backend(backend_id)?;
    // The policy may have become Local since.
    if service.flags & SERVICE_KEEP_SOURCE != 0 && !backend.is_local() {
        return None;
    }
    known.use_now(now);
    Some(backend_id)
}

/// The client stays with this backend from now on.
#[inline(always)]
pub(crate) fn remember_affinity(service: &ServiceValue, client: &Address, backend_id: u32) {
    let key = AffinityKey { client: *client, affinity_id: service.affinity_id };
    let fresh = maps::affinity(&key).is_none();
    maps::begin_affinity(&key, &AffinityValue { backend_id, used_secs: peer::now_secs() }, fresh);
}

/// A first backend for a client that will stay. By hash of the client: two connections at the same time agree, as do the two
/// paths.
#[inline(always)]
fn begin(service: &ServiceValue, client: &Address, chance: Chance) -> Option<u32> {
    let by_load = matches!(chance, Chance::Random) && service.algorithm == ALGORITHM_LEAST_CONNECTIONS;
    let backend_id = if by_load {
        choose(service, chance)?
    } else {
        let seed = maps::config().map_or(0, |config| config.hash_seed());
        slot(service, hash_client(client, seed))?
    };
    remember_affinity(service, client, backend_id);
    // By load two connections at the same time may disagree: the first one's choice stands for both.
    let known = if by_load {
        maps::affinity(&AffinityKey { client: *client, affinity_id: service.affinity_id })
    } else {
        None
    };
    Some(known.map_or(backend_id, |known| known.backend_id))
}

/// By the service's algorithm.
#[inline(always)]
fn choose(service: &ServiceValue, chance: Chance) -> Option<u32> {
    if service.algorithm == ALGORITHM_AGENT_FIRST {
        return agent_first(service, chance);
    }
    let hash = match chance {
        Chance::Hash(hash) => return slot(service, hash),
        Chance::Random => peer::random(),
    };
    let one = slot(service, hash)?;
    if service.algorithm != ALGORITHM_LEAST_CONNECTIONS {
        return Some(one);
    }
    // The better of two: nearly as good as the best of all, and without looking at all (Mitzenmacher, 2001).
    let other = slot(service, peer::random())?;
    Some(if maps::load(other) < maps::load(one) { other } else { one })
}

/// The first slot as long as the agent is there, else one of the others.
#[inline(always)]
fn agent_first(service: &ServiceValue, chance: Chance) -> Option<u32> {
    if service.slot_count < 2 || maps::agent_is_there() {
        return maps::slot(service.slot_offset);
    }
    let number = match chance {
        Chance::Hash(hash) => hash,
        Chance::Random => peer::random(),
    };
    maps::slot(service.slot_offset.wrapping_add(1).wrapping_add(below(number, service.slot_count - 1)))
}

/// The backend identifier in the slot that a number means.
#[inline(always)]
fn slot(service: &ServiceValue, number: u32) -> Option<u32> {
    maps::slot(service.slot_offset.wrapping_add(below(number, service.slot_count)))
}

#[inline(always)]
fn with_backend(backend_id: u32) -> Option<(u32, Backend)> {
    Some((backend_id, maps::backend(backend_id)?))
}
