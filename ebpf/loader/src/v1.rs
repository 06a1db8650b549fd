// SPDX-License-Identifier: Apache-2.0
//! What ABI version 1 had pinned, in today's layouts.
//!
//! Services keep their identifiers and slots, so that their counters and the flows' references stay true. Translated
//! sockets of version 1 are all in FLOWS, dead ones among them: they go to FLOWS, where the least recently used go first, and
//! not to SOCKETS, where only a socket's end removes an entry.

use std::{io, path::Path};

use ebpf_abi::{
    BackendValue, FlowKey, FlowValue, FrontendKey, Pod6Key, PodAddressKey, PodKey, PodLink, PodValue,
    SCOPE_INTERNAL, ServiceCounters, ServiceValue, address, names,
    v1::{
        BackendValue as OldBackend, FlowKey as OldFlowKey, FlowValue as OldFlow, ServiceKey,
        ServiceValue as OldService,
    },
};

use crate::{
    datapath::Maps,
    error::MapAccessError,
    map::{BpfMap, copy_entries},
    sys::MapFd,
};

/// Its number, the last part of its pin directory.
pub(crate) const VERSION: u32 = 1;

/// How much was taken over.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Carried {
    pub(crate) services: usize,
    pub(crate) backends: usize,
    pub(crate) flows: usize,
    pub(crate) pods: usize,
}

/// Copies everything from the pins in `from`. What is not there (or has another form) is left out.
pub(crate) fn carry_over(from: &Path, maps: &Maps) -> Result<Carried, MapAccessError> {
    let mut carried = Carried::default();
    if let Some(old) = open::<u32, OldBackend>(from, names::BACKENDS) {
        let backends: Vec<_> = old
            .entries()?
            .into_iter()
            .filter(|(id, backend)| !backend.is_unused() && *id < maps.backends.max_entries())
            .map(|(id, backend)| (id, backend_now(backend)))
            .collect();
        carried.backends = maps.backends.put_all(backends.iter().map(|(id, backend)| (id, backend)))?;
    }
    if let Some(old) = open::<u32, u32>(from, names::SLOTS) {
        for (slot, backend_id) in old.entries()? {
            maps.slots.store(slot, backend_id);
        }
    }
    if let Some(old) = open::<u32, ServiceCounters>(from, names::SERVICE_COUNTERS) {
        copy_entries(names::SERVICE_COUNTERS, old.fd(), maps.counters.fd())?;
    }
    if let Some(old) = open::<ServiceKey, OldService>(from, names::SERVICES) {
        let services: Vec<_> = old
            .entries()?
            .into_iter()
            .filter(|(_, service)| fits(service, maps))
            .map(|(key, service)| (key_now(key), service_now(service)))
            .collect();
        carried.services = maps.services.put_all(services.iter().map(|(key, service)| (key, service)))?;
    }
    carried.flows = carry_flows(from, maps)?;
    if let Some(old) = open::<PodKey, PodValue>(from, names::PODS) {
        carried.pods = copy_entries(names::PODS, old.fd(), maps.pods.fd())?.copied;
    }
    if let Some(old) = open::<Pod6Key, PodValue>(from, names::PODS6) {
        copy_entries(names::PODS6, old.fd(), maps.pods6.fd())?;
    }
    if let Some(old) = open::<PodAddressKey, u32>(from, names::POD_ADDRESSES) {
        copy_entries(names::POD_ADDRESSES, old.fd(), maps.pod_addresses.fd())?;
    }
    if let Some(old) = open::<u32, PodLink>(from, names::POD_LINKS) {
        copy_entries(names::POD_LINKS, old.fd(), maps.pod_links.fd())?;
    }
    if let Some(old) = open::<u32, u64>(from, names::DROPS) {
        copy_entries(names::DROPS, old.fd(), maps.drops.fd())?;
    }
    if let Some(old) = open::<u32, u32>(from, names::OVERLAY) {
        copy_entries(names::OVERLAY, old.fd(), maps.overlay.fd())?;
    }
    Ok(carried)
}

/// Copies the flows that ours do not have yet.
pub(crate) fn carry_flows(from: &Path, maps: &Maps) -> Result<usize, MapAccessError> {
    let Some(old) = open::<OldFlowKey, OldFlow>(from, names::FLOWS) else { return Ok(0) };
    let mut copied = 0;
    for (key, flow) in old.entries()? {
        copied += usize::from(maps.flows.insert_new(&flow_key_now(key), &flow_now(flow))?);
    }
    Ok(copied)
}

fn open<K: aya::Pod, V: aya::Pod>(from: &Path, name: &'static str) -> Option<BpfMap<K, V>> {
    match MapFd::open(&from.join(name)) {
        Ok(fd) => {
            let map = BpfMap::of(name, fd);
            if map.is_none() {
                tracing::warn!(pin = %from.join(name).display(), "not of the form of its version: left out");
            }
            map
        }
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(pin = %from.join(name).display(), %error, "cannot be opened: left out");
            }
            None
        }
    }
}

/// A frontend that points outside our maps is written anew by the next image.
fn fits(service: &OldService, maps: &Maps) -> bool {
    let end = u64::from(service.slot_offset) + u64::from(service.slot_count);
    end <= u64::from(maps.slots.len()) && service.service_id < maps.counters.max_entries()
}

fn key_now(key: ServiceKey) -> FrontendKey {
    FrontendKey { addr: address::mapped(key.addr), port: key.port, proto: key.proto, scope: SCOPE_INTERNAL }
}

fn service_now(service: OldService) -> ServiceValue {
    ServiceValue {
        service_id: service.service_id,
        slot_offset: service.slot_offset,
        slot_count: service.slot_count,
        ..ServiceValue::default()
    }
}

fn backend_now(backend: OldBackend) -> BackendValue {
    BackendValue {
        addr: address::mapped(backend.addr),
        port: backend.port,
        proto: backend.proto,
        ..BackendValue::default()
    }
}

fn flow_key_now(key: OldFlowKey) -> FlowKey {
    FlowKey {
        cookie: key.cookie,
        addr: address::mapped(key.addr),
        port: key.port,
        proto: key.proto,
        pad: [0; 5],
    }
}

fn flow_now(flow: OldFlow) -> FlowValue {
    FlowValue {
        addr: address::mapped(flow.addr),
        port: flow.port,
        service_id: flow.service_id,
        backend_id: flow.backend_id,
        ..FlowValue::default()
    }
}
